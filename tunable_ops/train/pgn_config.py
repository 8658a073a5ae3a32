"""The configuration of the task "perceptual_gradient"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
    """Weights of the three terms.

    Attributes:
        field: Of the field's error; 2**26 as published.
        proxy: Of the proxy's perceptual loss.
        l1: Of the proxy's L1 distance.
    """

    field: float = Field(default=2.0**26, ge=0)
    proxy: float = Field(default=0.2, ge=0)
    l1: float = Field(default=0.5, ge=0)


class Toys(Section):
    """What is driven by the network's own gradients (`tunable_ops.train.toys`).

    Attributes:
        autoencoders: How many of the three autoencoders take part at a step, in turn.
        lr: Learning rate of the autoencoders.
        priors: Image priors; one of them takes part at a step.
        prior_lr: Learning rate of the image priors.
    """

    autoencoders: int = Field(default=3, ge=1, le=3)
    lr: float = Field(default=1e-3, gt=0)
    priors: int = Field(default=0, ge=0)
    prior_lr: float = Field(default=3e-3, gt=0)


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
    """

    task: Literal["perceptual_gradient"] = "perceptual_gradient"
    network: Literal["resnet4", "resnet6", "resnet8", "unet", "unet_published"] = "unet"
    loss: PerceptualLoss = PerceptualLoss()
    terms: Terms = Terms()
    toys: Toys = Toys()
    data: PGNData = PGNData()
    optim: PGNOptim = PGNOptim()
    validation: PGNValidation = PGNValidation()
