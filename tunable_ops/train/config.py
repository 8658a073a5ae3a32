"""Training configurations, one per task: TOML files, checked in full before any work starts.

`Config` and `PGNConfig` document every key. A key that does not exist is an error that names its dotted path and the
nearest right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tunable_ops.modules import LambdaSpec
from tunable_ops.modules.convert import USUAL_PARAMETERS
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
    """The plain network: ``name`` in `tunable_ops.models.ARCHITECTURES`, and the arguments of its class.

    ``weights`` is a file to start from: weights of the plain network under its own names (safetensors), or a
    checkpoint of this package, plain or converted as the configuration says.
    """

    name: str = "dncnn"
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None


class Tuning(Section):
    """How the network is made tunable; the arguments of `tunable_ops.convert`.

    ``parameters`` are patterns of the network's own parameters that become tunable too (SwinIR's position tables:
    "*.relative_position_bias_table"). ``kind="none"`` trains the plain network itself with the fixed weights ``lam``
    of the objectives (default: the first objective alone). ``names`` are the names of the tuning parameters (default:
    those of the objectives that follow lambda); names beyond these objectives are knobs of the degradation alone.
    ``ranges`` ([low, high] of each, default [0, 1]), ``defaults`` and ``lam`` are in the ``units`` ("of 255",
    "pixels"); on the box an objective's weight is lambda divided by the largest end of its range.

    The other kinds are those of `tunable_ops.control`, ``control`` their arguments: trained in as many phases as there
    are objectives, each with an equal part of the steps and a schedule of its own.
    """

    kind: Literal["affine", "identity", "none", "dni", "adafm", "dynamic_net", "cfsnet"] = "affine"
    control: dict[str, Any] = Field(default_factory=dict)
    domain: Literal["simplex", "box"] = "simplex"
    num_kernels: int | None = Field(default=None, ge=1)
    include: list[str] | None = None
    exclude: list[str] = Field(default_factory=list)
    parameters: list[str] = Field(default_factory=lambda: list(USUAL_PARAMETERS))
    names: list[str] | None = None
    ranges: list[tuple[float, float]] | None = None
    defaults: list[float] | None = None
    units: list[str] | None = None
    lam: list[float] | None = None

    @property
    def phased(self) -> bool:
        """True if the knob is one of `tunable_ops.control`, trained objective after objective."""
        return self.kind not in ("affine", "identity", "none")

    @model_validator(mode="after")
    def _fit(self) -> Tuning:
        if self.control and not self.phased:
            raise ValueError(f"tuning.control must be left out for kind {self.kind!r}; got {self.control}")
        foreign = [key for key in ("num_kernels", "include", "exclude", "ranges", "units") if getattr(self, key)]
        foreign += ["parameters"] * (self.parameters != list(USUAL_PARAMETERS))
        if self.phased and (foreign or self.domain != "simplex"):
            raise ValueError(
                f"tuning must leave {', '.join(foreign) or 'domain'} alone for kind {self.kind!r}, which has arguments "
                "of its own in tuning.control and lives on the simplex"
            )
        return self


class Sampler(Section):
    """How lambda is drawn: ``kind`` over the domain (null: its own), with probability ``corners`` one of its corners.

    ``groups``: how many are drawn per batch and process, each for an equal part of it (null: one per sample). Few make
    a step faster on a CPU, where per-sample kernels cost most, and its gradient noisier. ``balanced`` makes each draw
    come with its mirror images, cyclic shifts (1 - lambda on the box), so that every batch weighs the objectives alike.
    """

    kind: Literal["simplex", "uniform"] | None = None
    corners: float = Field(default=0.1, ge=0, le=1)
    groups: int | None = Field(default=None, ge=1)
    balanced: bool = True


class Objective(Section):
    """One objective of the multi-loss.

    ``loss`` is a function of `tunable_ops.losses` with its ``arguments``; ``target`` what the output is compared
    with: the "clean" picture, the "noiseless" one (blurred and down-sampled only), or the "input" of the network;
    ``scale`` a fixed factor that brings objectives to comparable sizes. Objective i has the weight lambda_i. Objectives
    with ``follows = false`` come after those that do; their weight is 1 whatever lambda is: for knobs of the
    degradation, whose levels follow lambda.

    The losses on features take the arguments of their class: "perceptual" (`losses.Perceptual`; network "vgg16"
    if none is given), "lpips", "dists", and "perceptual_gradient", whose ``path`` is a file of `losses.PGN` (default:
    the one that ships) and ``anchored`` as there.

    With ``loss = "style"`` the objective is the style of ``picture``, a file, or "skimage:NAME" for one that
    scikit-image ships; ``target`` is then the content. Where one objective is a style all are, and share `Style`.
    """

    name: str
    loss: Literal[
        "mse", "l1", "charbonnier", "ssim", "tv", "perceptual", "perceptual_gradient", "lpips", "dists", "style"
    ] = "mse"
    target: Literal["clean", "noiseless", "input"] = "clean"
    scale: float = Field(default=1.0, gt=0)
    follows: bool = True
    arguments: dict[str, float | int | str | bool | list[str] | dict[str, float]] = Field(default_factory=dict)
    picture: str | None = None

    @model_validator(mode="after")
    def _picture_of_a_style(self) -> Objective:
        if (self.loss == "style") != (self.picture is not None):
            raise ValueError(
                f"objectives.picture must be given for the loss 'style' and no other; got {self.picture!r} for the "
                f"loss {self.loss!r} of {self.name!r}"
            )
        if self.loss == "style" and self.arguments:
            raise ValueError(f"objectives.arguments must be empty for the loss 'style'; got {self.arguments}")
        return self


class Style(Section):
    """What style objectives share; the rest of `tunable_ops.losses.StyleTransfer`.

    ``size``: shorter side to which the style pictures are brought, in pixels: with small ones the strokes are small.
    ``layers``: of the Gram matrices; ``content_layer``, ``content``: layer and weight of the content term;
    ``smooth``: weight of the total variation. ``network``, ``pool``, ``weights``: the features and where their weights
    come from (null: see `tunable_ops.losses.weights`).
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
    """AdamW, its rate warmed up linearly over ``warmup`` steps, then a cosine from ``lr`` down to ``lr * final``.

    ``kernel_lr`` and ``phi_lr`` are factors on the rate of the tunable kernels and of the maps phi; ``base_lr`` on
    that of the plain kernels (box domain only; null: as the others). With ``base_lr = 0`` and ``phi_lr = 0`` the
    network stays at lambda = 0 what it was, but for what is not tunable (norms, excluded layers), which goes on
    learning. ``clip`` bounds the norm of the whole gradient; 0 turns it off.
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


class Compute(Device):
    """Where and how: ``precision`` "auto" is bf16 autocast on CUDA, fp32 elsewhere."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False


class Validation(HeldOut):
    """PSNR over lambda on held-out pictures.

    ``degradation`` defaults to the one of training. ``lams`` defaults to five points between the two corners, or to
    the corners and the middle for more than two objectives.
    """

    degradation: Degradation | None = None
    lams: list[list[float]] | None = None


class Config(RunConfig):
    """Everything that decides the training of a restoration network under a multi-loss.

    The same Config on the same machine gives the same weights.
    """

    task: Literal["restoration"] = "restoration"
    model: Model = Model()
    tuning: Tuning = Tuning()
    sampler: Sampler = Sampler()
    degradation: Degradation = Degradation(noise=Noise())
    objectives: list[Objective] = Field(min_length=1)
    style: Style = Style()
    optim: Optim = Optim()
    compute: Compute = Compute()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _agree(self) -> Config:
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives must have different names; got {names}")
        following = [objective.follows for objective in self.objectives]
        if sorted(following, reverse=True) != following or (self.tuning.phased and not all(following)):
            raise ValueError(
                f"objectives that do not follow lambda must stand last, and not at all for phases; got {following}"
            )
        count = self.num_params
        if count < sum(following) or not count or (count > len(names) and all(following)):
            raise ValueError(
                f"tuning.names must have one entry per objective, {len(names)}, or more where some do not follow "
                f"lambda; got {self.tuning.names}"
            )
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
        return self

    def _check_levels(self, following: int) -> None:
        """Every knob must move something: the weight of an objective, or a level of the degradation."""
        count, moved = self.num_params, set(range(following))
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
        idle = [name for index, name in enumerate(self.param_names) if index not in moved]
        if idle and self.tuning.kind != "none":
            raise ValueError(
                f"tuning.names must name knobs that move an objective or a level; got {idle}, which do not"
            )
        if not following and count == 1 and self.tuning.domain == "simplex" and self.tuning.kind != "none":
            raise ValueError(
                'tuning.domain must be "box" for a single knob, which cannot move on the simplex; got "simplex"'
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

    @property
    def trains_styles(self) -> bool:
        """True if the objectives are styles; then all of them are."""
        return self.objectives[0].loss == "style"

    @property
    def param_names(self) -> list[str]:
        """The names of the tuning parameters."""
        return self.tuning.names or [objective.name for objective in self.objectives if objective.follows]

    @property
    def num_params(self) -> int:
        """The number p of tuning parameters."""
        return len(self.param_names)

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

    ``dtype`` is what its network computes in while training: with bfloat16 the true gradient turns by 4 to 9 degrees
    (at distances of 0.1 to 0.01), at random, and takes two thirds of the time on a CPU that multiplies bfloat16.
    """

    network: Literal["vgg16", "vgg19"] = "vgg19"
    layers: str | list[str] = "relus"
    pool: Literal["avg", "max"] = "avg"
    weights: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class Terms(Section):
    """Weights of the three terms: of the field's error, of the proxy's perceptual loss, and of its L1 distance."""

    field: float = Field(default=2.0**26, ge=0)
    proxy: float = Field(default=0.2, ge=0)
    l1: float = Field(default=0.5, ge=0)


class Toys(Section):
    """What is driven by the network's own gradients (`tunable_ops.train.toys`).

    Of the three autoencoders ``autoencoders`` take part at a step, in turn, and one of the ``priors`` image priors
    where there are any; ``lr`` and ``prior_lr`` are their rates.
    """

    autoencoders: int = Field(default=3, ge=1, le=3)
    lr: float = Field(default=1e-3, gt=0)
    priors: int = Field(default=0, ge=0)
    prior_lr: float = Field(default=3e-3, gt=0)


class PGNOptim(Steps):
    """Adam; ``lr`` falls along a cosine to ``lr * final``. Gradients are clipped at ``clip`` times their running norm.

    ``steps`` may change between a stop and its resumption: the rate then follows the cosine of the new length.
    """

    steps: int = Field(default=200_000, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    final: float = Field(default=0.02, ge=0, le=1)
    clip: float = Field(default=5.0, gt=0)


class PGNData(Data):
    """As `Data`, with the published size of crops and batches."""

    crop: int = Field(default=224, ge=8)
    batch: int = Field(default=4, ge=1)
    rotations: bool = False


class PGNValidation(HeldOut):
    """The angle between predicted and true gradients on held-out pictures."""

    crop: int = Field(default=128, ge=0)


class PGNConfig(RunConfig):
    """Everything that decides the training of a perceptual gradient network (`tunable_ops.losses.PGN`)."""

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
