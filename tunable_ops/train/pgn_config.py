"""The configuration of the task "perceptual_gradient"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunable_ops.train.generators import FACTOR, LEAST
from tunable_ops.train.sections import Data, HeldOut, RunConfig, Section, Steps

__all__ = ["PGNConfig"]


class PerceptualLoss(Section):
    """The loss whose gradients are learnt: `tunable_ops.losses.Perceptual` with these arguments.

    Attributes:
        network: Of the features.
        layers: Their names, or "relus" for all activations.
        pool: How the features are pooled.
        weights: Where the features' weights come from; left out: see `tunable_ops.losses.weights`.
        dtype: What the features are computed in while training. With bfloat16 the true gradient turns by 4 to 9 degrees
            (at distances of 0.1 to 0.01), at random, and takes two thirds of the time on a CPU that multiplies
            bfloat16; "auto" takes it where the processor has it in hardware, as ``compute.precision`` of the other
            task.
    """

    network: Literal["vgg16", "vgg19"] = "vgg19"
    layers: str | list[str] = "relus"
    pool: Literal["avg", "max"] = "avg"
    weights: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"


class Terms(Section):
    """Weights of the terms.

    The first three are published. For a PGN that is to lead generators, take ``relative = 1`` and leave the others out:
    they weigh a sample by the square of its gradient, and pull the proxy target to y.

    Attributes:
        field: Of the field's error; 2**26 as published.
        proxy: Of the proxy's perceptual loss. With 0 a step costs one pass less through the loss's network.
        l1: Of the proxy's L1 distance.
        l1_steps: Steps after which the L1 term is left out; left out: never. From random weights the relative error
            alone does not find a direction for hundreds of steps; the L1 term leads to that of y, and then is a bias.
        relative: Of the relative error of the field, ``|g - g_true|**2 / |g_true|**2``, mean over the samples; the
            denominator is at least 1/100 of its mean over the step.
        tangent: Of the relative error of what the parameters of a generator gather over its samples of a step,
            ``|J^T (g - g_true)|**2 / (|J^T g_true|**2 + |J^T g|**2)``; needs ``toys.generators``.
        tangent_others: The same, of autoencoders and image priors.
    """

    field: float = Field(default=2.0**26, ge=0)
    proxy: float = Field(default=0.2, ge=0)
    l1: float = Field(default=0.5, ge=0)
    l1_steps: int | None = Field(default=None, ge=1)
    relative: float = Field(default=0.0, ge=0)
    tangent: float = Field(default=0.0, ge=0)
    tangent_others: float = Field(default=0.0, ge=0)


class Toys(Section):
    """What is driven by the network's own gradients (`tunable_ops.train.toys`).

    Attributes:
        autoencoders: How many of the three autoencoders take part at a step, in turn.
        lr: Learning rate of the autoencoders.
        priors: Image priors; one of them takes part at a step.
        prior_lr: Learning rate of the image priors.
        generators: Tunable super-resolution networks x4, of which one takes part at a step, in turn: "edsr_x4", the
            small EDSR of examples/perceptual/super_resolution.py, and "rlfn_x4", the published RLFN made tunable. Each
            is put back to its start after 100 to 1500 steps; a kind may be named several times. ``data.crop`` must be
            a multiple of 4, for RLFN at least 60.
        generator_lr: Learning rate of the generators; RLFN takes a tenth of it.
        direct: Share of the generators' lives that follow the true gradient instead of the predicted one.
        generator_l1: Share of the generators' lives with an L1 objective beside the perceptual one.
        distorted: Distorted pictures at every step (`tunable_ops.train.distortions`): what a restoration begins with.
            They follow no gradient.
        others_every: With generators or distorted pictures, autoencoders and priors take part at every so many-th step
            only.
    """

    autoencoders: int = Field(default=3, ge=0, le=3)
    lr: float = Field(default=1e-3, gt=0)
    priors: int = Field(default=0, ge=0)
    prior_lr: float = Field(default=3e-3, gt=0)
    generators: list[Literal["edsr_x4", "rlfn_x4"]] = Field(default_factory=list)
    generator_lr: float = Field(default=1e-3, gt=0)
    direct: float = Field(default=0.5, ge=0, le=1)
    generator_l1: float = Field(default=0.5, ge=0, le=1)
    distorted: int = Field(default=0, ge=0)
    others_every: int = Field(default=1, ge=1)


class PGNOptim(Steps):
    """Adam; its rate follows a cosine.

    ``steps`` may change between a stop and its resumption: the rate then follows the cosine of the new length.

    Attributes:
        lr: Learning rate at the beginning.
        final: Fraction of the rate at which the cosine ends.
        clip: Gradients are clipped at so many times their running norm.
    """

    steps: int = Field(default=200_000, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    final: float = Field(default=0.02, ge=0, le=1)
    clip: float = Field(default=5.0, gt=0)


class PGNData(Data):
    """Where clean pictures come from, and how crops are cut from them, with the published size of crops and batches."""

    crop: int = Field(default=224, ge=8)
    batch: int = Field(default=4, ge=1)
    rotations: bool = False


class PGNValidation(HeldOut):
    """The angle between predicted and true gradients on held-out pictures."""

    crop: int = Field(default=128, ge=0)


class PGNConfig(RunConfig):
    """Everything that decides the training of a perceptual gradient network (`tunable_ops.losses.PGN`).

    Attributes:
        task: This task.
        network: Size of the network.
        start: The weights to begin with: a file of `losses.PGN`, or "shipped" for the network that ships; left out:
            random ones.
        contraction: The proxy target is at most so many times as far from y as x is (`losses.PGN`), while the network
            learns and in its file; left out: the network's own target, as published.
    """

    task: Literal["perceptual_gradient"] = "perceptual_gradient"
    network: Literal["resnet4", "resnet6", "resnet8", "unet", "unet_published"] = "unet"
    start: str | None = None
    contraction: float | None = Field(default=None, gt=0, le=1)
    loss: PerceptualLoss = PerceptualLoss()
    terms: Terms = Terms()
    toys: Toys = Toys()
    data: PGNData = PGNData()
    optim: PGNOptim = PGNOptim()
    validation: PGNValidation = PGNValidation()

    @model_validator(mode="after")
    def _consistent(self) -> PGNConfig:
        toys, terms = self.toys, self.terms
        if not (toys.autoencoders or toys.priors or toys.generators or toys.distorted):
            raise ValueError("toys must have autoencoders, priors, generators or distorted; got none")
        if toys.others_every > 1 and not (toys.generators or toys.distorted):
            raise ValueError(
                f"toys.others_every must be 1 without toys.generators and toys.distorted; got {toys.others_every}"
            )
        if terms.tangent and not toys.generators:
            raise ValueError(f"terms.tangent must be 0 without toys.generators; got {terms.tangent:g}")
        if terms.tangent_others and not (toys.autoencoders or toys.priors):
            raise ValueError(
                "terms.tangent_others must be 0 without toys.autoencoders and toys.priors; "
                f"got {terms.tangent_others:g}"
            )
        if not any((terms.field, terms.proxy, terms.l1, terms.relative, terms.tangent, terms.tangent_others)):
            raise ValueError("terms must have a weight above 0; got none")
        for kind in toys.generators:
            if self.data.crop % FACTOR or self.data.crop < LEAST[kind]:
                raise ValueError(
                    f"data.crop must be a multiple of {FACTOR} and at least {LEAST[kind]} for the generator {kind}; "
                    f"got {self.data.crop}"
                )
        return self
