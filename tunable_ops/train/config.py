"""Training configurations, one per task: TOML files, checked in full before any work starts.

The docstrings of `Config`, `PGNConfig` and their sections document every key; docs/configuration.md is made of them
(`tunable_ops.train.keys`). A key that does not exist is an error that names its dotted path and the nearest right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunable_ops.grey import PARAMETER
from tunable_ops.modules import LambdaSpec
from tunable_ops.modules.convert import USUAL_PARAMETERS
from tunable_ops.train.adversarial import Adversarial
from tunable_ops.train.degradations import Degradation, Noise
from tunable_ops.train.sections import (
    Data,
    Device,
    HeldOut,
    RunConfig,
    Section,
    Steps,
    configs_of,
    read_tree,
    validate,
)

__all__ = ["Config", "Data", "PGNConfig", "load_config", "packaged_configs"]


class Model(Section):
    """The plain network.

    Attributes:
        name: In `tunable_ops.models.ARCHITECTURES`.
        arguments: Of its class. ``channels = 1`` trains on grey pictures.
        weights: File to start from: weights of the plain network under its own names (safetensors), or a checkpoint of
            this package, plain or converted as the configuration says; or the name of a base that ships
            (`pretrained.BASES`), such as "ffdnet_color". Left out: random weights, which the seed
            decides.
    """

    name: str = "dncnn"
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None


class Tuning(Section):
    """How the network is made tunable; the arguments of `tunable_ops.convert`.

    Attributes:
        kind: Map from lambda to the blend, "affine" (trained) or "identity"; "none" trains the plain network itself
            with fixed weights of the objectives. The other kinds are those of `tunable_ops.control`, trained in as many
            phases as there are objectives, each with an equal part of the steps and a schedule of its own.
        control: Arguments of the kinds of `tunable_ops.control`.
        domain: "simplex" (the parameters sum to 1) or "box" (each by itself).
        num_kernels: Kernels per layer; left out: as many as parameters, one more on the box.
        include: Patterns of the modules that become tunable; left out: all that can.
        exclude: Patterns of the modules that stay plain.
        parameters: Patterns of the network's own parameters that become tunable too (SwinIR's position tables:
            "*.relative_position_bias_table").
        names: Of the tuning parameters; left out: those of the objectives that follow lambda. Names beyond these
            objectives are knobs of the degradation, or of objectives with a ``weight``.
        ranges: [low, high] of each, in its unit; left out: [0, 1]. On the box an objective's weight is lambda divided
            by the largest end of its range.
        defaults: Of lambda, in its units, which the checkpoint keeps; left out: the middle of the simplex, 0 on the
            box.
        units: What each parameter is counted in, such as "of 255" or "pixels"; left out: none.
        lam: For the kind "none", the fixed lambda, in its units; left out: the first objective alone.
        freeze: On the box, let only the new kernels learn: the plain ones, phi and all that is not tunable stay, so
            that at lambda = 0 the network is what it was, bit for bit. Batch norms still gather statistics.
        rank: Of the new kernels, on the box; left out: full.
    """

    kind: Literal["affine", "identity", "none", "dni", "adafm", "dynamic_net", "cfsnet"] = "affine"
    control: dict[str, Any] = Field(default_factory=dict)
    domain: Literal["simplex", "box"] = "simplex"
    num_kernels: int | None = Field(default=None, ge=1)
    rank: int | None = Field(default=None, ge=1)
    include: list[str] | None = None
    exclude: list[str] = Field(default_factory=list)
    parameters: list[str] = Field(default_factory=lambda: list(USUAL_PARAMETERS))
    names: list[str] | None = None
    ranges: list[tuple[float, float]] | None = None
    defaults: list[float] | None = None
    units: list[str] | None = None
    lam: list[float] | None = None
    freeze: bool = False

    @property
    def phased(self) -> bool:
        """True if the knob is one of `tunable_ops.control`, trained objective after objective."""
        return self.kind not in ("affine", "identity", "none")

    @model_validator(mode="after")
    def _fit(self) -> Tuning:
        if self.control and not self.phased:
            raise ValueError(f"tuning.control must be left out for kind {self.kind!r}; got {self.control}")
        if self.freeze and (self.domain != "box" or self.kind != "affine"):
            raise ValueError(
                'tuning.freeze must go with kind "affine" on the box, where the plain kernels are apart; got kind '
                f'"{self.kind}", domain "{self.domain}"'
            )
        foreign = [k for k in ("num_kernels", "rank", "include", "exclude", "ranges", "units") if getattr(self, k)]
        foreign += ["parameters"] * (self.parameters != list(USUAL_PARAMETERS))
        if self.phased and (foreign or self.domain != "simplex"):
            raise ValueError(
                f"tuning must leave {', '.join(foreign) or 'domain'} alone for kind {self.kind!r}, which has arguments "
                "of its own in tuning.control and lives on the simplex"
            )
        if self.rank is not None and (self.domain != "box" or self.kind == "none"):
            raise ValueError(
                'tuning.rank must be left out where no new kernels stand beside a base, that is for kind "none" and '
                f'outside the domain "box"; got {self.rank} for kind "{self.kind}", domain "{self.domain}"'
            )
        return self


class Sampler(Section):
    """How lambda is drawn.

    Attributes:
        kind: Distribution over the domain; left out: uniform over the domain that the network has.
        corners: Probability with which one of the domain's corners is drawn instead.
        groups: How many lambdas are drawn per batch and process, each for an equal part of it; left out: one per
            sample. Few make a step faster on a CPU, where per-sample kernels cost most, and its gradient noisier.
        balanced: Let each draw come with its mirror images, cyclic shifts (1 - lambda on the box), so that every batch
            weighs the objectives alike.
        stratified: Let the draws of a batch cover the domain evenly (`losses.sampler`); where they are balanced, those
            that the others mirror.
    """

    kind: Literal["simplex", "uniform"] | None = None
    corners: float = Field(default=0.1, ge=0, le=1)
    groups: int | None = Field(default=None, ge=1)
    balanced: bool = True
    stratified: bool = False


_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Objective(Section):
    """One objective of the multi-loss; objective i has the weight lambda_i.

    Attributes:
        name: Of the objective, in the logs and for the knob.
        loss: A function of `tunable_ops.losses`, or a loss on features: "perceptual" (`losses.Perceptual`), "lpips",
            "dists", "perceptual_gradient" (`losses.PGN`). With "style" the objective is the style of ``picture``, and
            ``target`` the content; where one objective is a style all are, and share the section ``style``.
            With "adversarial" the outputs are to look as real as the targets to a discriminator, which is trained
            beside the network; one objective may have it.
        target: What the output is compared with: the "clean" picture, the "noiseless" one (blurred and down-sampled
            only), the "noisy" one (the clean one with the noise of the input, not blurred), or the "input" of the
            network.
        scale: Fixed factor that brings objectives to comparable sizes.
        follows: Let the weight be lambda_i. Objectives with false come after those that follow; their weight is 1
            whatever lambda is: for knobs of the degradation, whose levels follow lambda.
        weight: Knobs that move the objective, whatever its place: knob -> [weight where the knob is 0, weight where it
            is 1], and between them a straight line; several knobs multiply, others leave it alone. Such objectives come
            after those that follow the lambda of their place, and ``tuning.names`` must then list all knobs. An L1 that
            fades as ``texture`` rises has ``{ texture = [1, 0.1] }``; a loss towards the sharp, noisy picture, at its
            corner of two knobs, ``{ keep = [0, 1], deblur = [0, 1] }``.
        arguments: Of the loss; those on features take the arguments of their class ("perceptual": network "vgg16" if
            none is given; "perceptual_gradient": ``path``, a file of `losses.PGN`, default the one that ships, and
            ``anchored``). Empty for "style".
        picture: For "style": a file, or "skimage:NAME" for one that scikit-image ships.
    """

    name: str
    loss: Literal[
        "mse",
        "log_mse",
        "l1",
        "charbonnier",
        "ssim",
        "tv",
        "perceptual",
        "perceptual_gradient",
        "lpips",
        "dists",
        "adversarial",
        "style",
    ] = "mse"
    target: Literal["clean", "noiseless", "noisy", "input"] = "clean"
    scale: float = Field(default=1.0, gt=0)
    follows: bool = True
    weight: dict[str, tuple[_Weight, _Weight]] | None = Field(default=None, min_length=1)
    arguments: dict[str, float | int | str | bool | list[str] | dict[str, float]] = Field(default_factory=dict)
    picture: str | None = None

    @model_validator(mode="after")
    def _one_weight(self) -> Objective:
        if self.weight is not None and not self.follows:
            raise ValueError(
                f"objectives.follows must be left out where weight says what the objective follows; got false for "
                f"{self.name!r}"
            )
        idle = [knob for knob, ends in (self.weight or {}).items() if ends[0] == ends[1]]
        if idle:
            raise ValueError(
                f"objectives.weight must differ between the two ends of a knob; got equal ones for "
                f"{', '.join(idle)} of {self.name!r}: leave the knob out, and give the factor as scale"
            )
        return self

    @property
    def has_own_knob(self) -> bool:
        """True if its weight is the lambda of its place."""
        return self.follows and self.weight is None

    @model_validator(mode="after")
    def _picture_of_a_style(self) -> Objective:
        if (self.loss == "style") != (self.picture is not None):
            raise ValueError(
                f"objectives.picture must be given for the loss 'style' and no other; got {self.picture!r} for the "
                f"loss {self.loss!r} of {self.name!r}"
            )
        if self.loss in ("style", "adversarial") and self.arguments:
            raise ValueError(f"objectives.arguments must be empty for the loss {self.loss!r}; got {self.arguments}")
        return self


class Style(Section):
    """What style objectives share; the rest of `tunable_ops.losses.StyleTransfer`.

    Attributes:
        size: Shorter side to which the style pictures are brought, in pixels: with small ones the strokes are small.
        layers: Of the Gram matrices.
        content_layer: Layer of the content term.
        content: Weight of the content term.
        smooth: Weight of the total variation.
        network: Of the features.
        pool: How the features are pooled.
        weights: Where the features' weights come from; left out: see `tunable_ops.losses.weights`.
    """

    size: int = Field(default=256, ge=16)
    layers: list[str] = Field(default=["relu1_2", "relu2_2", "relu3_3", "relu4_3"], min_length=1)
    content_layer: str = "relu3_3"
    content: float = Field(default=0.25, ge=0)
    smooth: float = Field(default=0.0, ge=0)
    network: Literal["vgg16", "vgg19"] = "vgg16"
    pool: Literal["avg", "max"] = "avg"
    weights: str | None = None


class Optim(Steps):
    """AdamW; its rate is warmed up linearly, then follows a cosine.

    ``steps`` may change between a stop and its resumption, unless ``tuning.kind`` trains in phases: from the step
    reached on, the rate is that of the new number of steps.

    Attributes:
        lr: Learning rate after the warm-up.
        base_lr: Factor on the rate of the plain kernels (box domain only); left out: as the others. With ``base_lr =
            0`` and ``phi_lr = 0`` the network stays at lambda = 0 what it was, but for what is not tunable (norms,
            excluded layers), which goes on learning.
        kernel_lr: Factor on the rate of the tunable kernels.
        phi_lr: Factor on the rate of the maps phi.
        warmup: Steps over which the rate rises linearly.
        final: Fraction of the rate at which the cosine ends.
        betas: Decay of AdamW's first and second moments.
        weight_decay: Of AdamW; 0 for kinds that train in phases.
        clip: Bound of the norm of the whole gradient; 0 turns it off.
    """

    lr: float = Field(default=1e-3, gt=0)
    base_lr: float | None = Field(default=None, ge=0)
    kernel_lr: float = Field(default=1.0, ge=0)
    phi_lr: float = Field(default=1.0, ge=0)
    warmup: int = Field(default=50, ge=0)
    final: float = Field(default=0.01, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, ge=0)


class RestorationData(Data):
    """As `Data`.

    Attributes:
        grey: Share of samples that are grey, true for all: for networks of three channels. Each sample (with
            ``sampler.groups`` each group) is grey with that probability: the picture's luma on three equal channels,
            with the same noise on each. The tuning parameter "grey" of ``tuning.names``, on the box, is then no
            objective's and no level's: it is 1 for grey samples and 0 for the others.
    """

    grey: float = Field(default=0.0, ge=0, le=1)


class Compute(Device):
    """Where and how.

    Attributes:
        precision: "bf16" is autocast; "auto" takes it where the processor multiplies bf16 in hardware (AMX or AVX-512
            BF16; NVIDIA GPUs of compute capability 8.0 or later), else fp32. The log says which and why; a resumed run
            keeps what it began with. Elsewhere bf16 is emulated, several times slower than fp32.
        channels_last: Memory format of the network and its input.
        compile: Use `torch.compile`.
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False


class Validation(HeldOut):
    """PSNR over lambda on held-out pictures.

    Attributes:
        degradation: What is done to them, with the keys of ``degradation``; left out: the one of training.
        lams: Points of the sweep; left out: five between the two corners, or the corners and the middle for more than
            two objectives.
        strips: Strips over lambda of the first four pictures go to TensorBoard at every so many validations and at the
            last one; 0 for never.
    """

    degradation: Degradation | None = None
    lams: list[list[float]] | None = None
    strips: int = Field(default=1, ge=0)


class Config(RunConfig):
    """Everything that decides the training of a restoration network under a multi-loss.

    The same Config on the same machine gives the same weights.

    Attributes:
        task: This task.
    """

    task: Literal["restoration"] = "restoration"
    model: Model = Model()
    tuning: Tuning = Tuning()
    sampler: Sampler = Sampler()
    data: RestorationData = RestorationData()
    degradation: Degradation = Degradation(noise=Noise())
    objectives: list[Objective] = Field(min_length=1)
    style: Style = Style()
    adversarial: Adversarial = Adversarial()
    optim: Optim = Optim()
    compute: Compute = Compute()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _agree(self) -> Config:
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives must have different names; got {names}")
        following = [objective.has_own_knob for objective in self.objectives]
        if sorted(following, reverse=True) != following or (self.tuning.phased and not all(following)):
            raise ValueError(
                "objectives that do not follow the lambda of their place must stand last, and not at all for phases; "
                f"got {following}"
            )
        count = self.num_params
        if count < sum(following) or not count or (count > len(names) and all(following)):
            raise ValueError(
                f"tuning.names must have one entry per objective, {len(names)}, or more where some do not follow "
                f"lambda; got {self.tuning.names}"
            )
        self._check_weights()
        self._check_levels(sum(following))
        for key in ("ranges", "defaults", "units", "lam"):
            given = getattr(self.tuning, key)
            if given is not None and len(given) != count:
                raise ValueError(f"tuning.{key} must have one entry per tuning parameter, {count}; got {given}")
        if self.tuning.phased and self.optim.weight_decay:
            # kernels of other phases get a gradient of 0; the decay would move them all the same
            raise ValueError(f"optim.weight_decay must be 0 for tuning.kind {self.tuning.kind!r}")
        for lam in self.validation.lams or ():
            if len(lam) != count:
                raise ValueError(f"validation.lams must have {count} numbers each, as lambda has; got {lam}")
        _ = self.spec  # raises for ranges and defaults that make no sense
        groups = self.sampler.groups
        if groups is not None and self.data.batch % groups:
            raise ValueError(f"sampler.groups must divide data.batch, {self.data.batch}; got {groups}")
        if self.degradation.downsample and not self.degradation.downsample.enlarge:
            factor = self.degradation.downsample.factors[0]
            if self.data.crop % factor:
                raise ValueError(f"data.crop must be a multiple of the down-sampling, {factor}; got {self.data.crop}")
        self._check_styles()
        self._check_adversarial()
        self._check_grey()
        return self

    def _check_weights(self) -> None:
        """Weights name knobs that exist, and targets pictures of the output's size."""
        names, smaller = self.param_names, self.degradation.downsample and not self.degradation.downsample.enlarge
        for objective in self.objectives:
            unknown = [knob for knob in objective.weight or () if knob not in names]
            if unknown:
                raise ValueError(
                    f"objectives.weight must name tuning parameters, {', '.join(names)}; got {', '.join(unknown)} in "
                    f"{objective.name!r}"
                )
            if objective.target == "noisy" and smaller:
                raise ValueError(
                    f"objectives.target must not be 'noisy' where the input is smaller than the clean picture; got it "
                    f"in {objective.name!r}"
                )

    def _check_levels(self, following: int) -> None:
        """Every knob must move something: the weight of an objective, or a level of the degradation."""
        count, moved = self.num_params, set(range(following))
        moved |= {self.param_names.index(knob) for objective in self.objectives for knob in objective.weight or ()}
        for name, degradation in (("", self.degradation), ("validation.", self.validation.degradation)):
            for key in ("blur", "noise"):
                levels = getattr(getattr(degradation, key, None), "levels", None)
                if levels is not None and len(levels) != count:
                    raise ValueError(
                        f"{name}degradation.{key}.levels must have one entry per tuning parameter, {count}; "
                        f"got {levels}"
                    )
                if not name:
                    moved |= {index for index, level in enumerate(levels or ()) if level}
        if self.grey_knob is not None:
            moved.add(self.grey_knob)
        idle = [name for index, name in enumerate(self.param_names) if index not in moved]
        if idle and self.tuning.kind != "none":
            raise ValueError(
                f"tuning.names must name knobs that move an objective or a level; got {idle}, which do not"
            )
        if not following and count == 1 and self.tuning.domain == "simplex" and self.tuning.kind != "none":
            raise ValueError(
                'tuning.domain must be "box" for a single knob, which cannot move on the simplex; got "simplex"'
            )

    def _check_grey(self) -> None:
        """Grey samples are for networks in colour, and their knob belongs to them alone."""
        if not self.data.grey:
            return
        if self.model.arguments.get("channels", 3) == 1 or self.trains_styles:
            what = "styles" if self.trains_styles else "a network of one channel"
            raise ValueError(f"data.grey must be 0 for {what}; got {self.data.grey:g}")
        knob = self.grey_knob
        if knob is None:
            return
        following = sum(objective.follows for objective in self.objectives)
        levels = [
            getattr(getattr(self.degradation, key, None), "levels", None) or [0.0] * self.num_params
            for key in ("blur", "noise")
        ]
        if knob < following or any(level[knob] for level in levels):
            raise ValueError(
                f"tuning.names must leave {PARAMETER!r} to grey samples, without an objective or a level, where "
                f"data.grey is set; got {self.param_names}"
            )

    def _check_styles(self) -> None:
        losses = {objective.loss for objective in self.objectives}
        if "style" not in losses:
            return
        targets = {objective.target for objective in self.objectives}
        if len(losses) > 1 or len(targets) > 1:
            raise ValueError(
                "objectives must all be styles over one target where one is; got "
                + ", ".join(f"{o.name}: {o.loss} ({o.target})" for o in self.objectives)
            )
        if self.validation.every:
            raise ValueError(
                f"validation.every must be 0 for styles, which PSNR says nothing about; got {self.validation.every}"
            )

    def _check_adversarial(self) -> None:
        names = [objective.name for objective in self.objectives if objective.loss == "adversarial"]
        if len(names) > 1 or (names and self.tuning.phased):
            raise ValueError(
                "objectives must be adversarial in one at most, and in none for phases; got " + ", ".join(names)
            )
        if not names and self.adversarial != Adversarial():
            raise ValueError("adversarial must be left out where no objective has the loss 'adversarial'; got settings")
        least = 2**self.adversarial.depth
        if names and self.data.crop < least:
            raise ValueError(
                f"data.crop must be at least {least} for a discriminator of depth {self.adversarial.depth}; "
                f"got {self.data.crop}"
            )

    @property
    def adversarial_objective(self) -> str | None:
        """The name of the adversarial objective, if there is one."""
        return next((objective.name for objective in self.objectives if objective.loss == "adversarial"), None)

    @property
    def trains_styles(self) -> bool:
        """True if the objectives are styles; then all of them are."""
        return self.objectives[0].loss == "style"

    @property
    def param_names(self) -> list[str]:
        """The names of the tuning parameters."""
        return self.tuning.names or [objective.name for objective in self.objectives if objective.has_own_knob]

    @property
    def num_params(self) -> int:
        """The number p of tuning parameters."""
        return len(self.param_names)

    @property
    def grey_knob(self) -> int | None:
        """Index of the tuning parameter that grey samples set, or None where there is none."""
        if not self.data.grey or self.tuning.domain != "box" or PARAMETER not in self.param_names:
            return None
        return self.param_names.index(PARAMETER)

    @property
    def spec(self) -> LambdaSpec:
        """Names, units, ranges and defaults of lambda."""
        tuning = self.tuning
        domain = "simplex" if tuning.phased else tuning.domain
        return LambdaSpec.create(
            self.num_params, domain, self.param_names, tuning.ranges, tuning.defaults, tuning.units
        )

    @property
    def fixed_lam(self) -> list[float]:
        """Lambda where the plain network is trained, in its units."""
        return self.tuning.lam or [self.spec.scales[0]] + [0.0] * (self.num_params - 1)


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
    network: Literal["resnet4", "resnet6", "resnet8", "unet"] = "unet"
    loss: PerceptualLoss = PerceptualLoss()
    terms: Terms = Terms()
    toys: Toys = Toys()
    data: PGNData = PGNData()
    optim: PGNOptim = PGNOptim()
    validation: PGNValidation = PGNValidation()


_SCHEMAS: dict[str, type[Config] | type[PGNConfig]] = {"restoration": Config, "perceptual_gradient": PGNConfig}
# former keys of a PGN's configuration -> what they are called now
_MOVED = {
    "device": "compute.device",
    "every": "log.every and checkpoints.every",
    "optim.ema": "ema.decay",
    "optim.prior_lr": "toys.prior_lr",
    "optim.priors": "toys.priors",
    "optim.toy_lr": "toys.lr",
    "optim.toys": "toys.autoencoders",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config | PGNConfig:
    """Read a configuration; its key ``task`` (default "restoration") says of which kind.

    Args:
        path: A TOML file, or the name of a packaged one (see `packaged_configs`).
        overrides: "dotted.key=value" each; the value in TOML's syntax, or else taken as a string.

    Returns:
        The checked configuration: `Config` for "restoration", `PGNConfig` for "perceptual_gradient".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, has an unknown key, or a value of the wrong type or range.

    Example:
        >>> load_config("demo", ["optim.lr=1e-4", "tuning.kind=none"]).optim.lr
        0.0001
    """
    tree = read_tree(path, packaged_configs(), overrides)
    of_pgn = sorted({*tree} & (PGNConfig.model_fields.keys() - Config.model_fields.keys()))
    if of_pgn and not {"task", "objectives"} & tree.keys():
        raise ValueError(
            f'config: task must be "perceptual_gradient" for a configuration with {", ".join(of_pgn)}; got nothing'
        )
    task = tree.get("task", "restoration")
    if task not in list(_SCHEMAS):
        raise ValueError(f"config: task must be one of {', '.join(_SCHEMAS)}; got {task!r}")
    return validate(_SCHEMAS[task], tree, _MOVED if task == "perceptual_gradient" else {})


def packaged_configs() -> dict[str, Path]:
    """Return name to file of the training configurations that ship with the package."""
    return configs_of(__package__)
