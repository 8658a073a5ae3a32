"""Training configurations, one per task: TOML files, checked in full before any work starts.

The docstrings of `Config`, `PGNConfig` and their sections document every key; docs/configuration.md is made of them
(`tunable_ops.train.keys`). A key that does not exist is an error that names its dotted path and the nearest right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tunable_ops.grey import PARAMETER
from tunable_ops.modules import LambdaSpec
from tunable_ops.train.adversarial import Adversarial
from tunable_ops.train.degradations import Degradation, Noise
from tunable_ops.train.objectives import Objective, Style
from tunable_ops.train.optim import Optim, kernel_rates
from tunable_ops.train.pgn_config import PGNConfig
from tunable_ops.train.sections import (
    Data,
    Device,
    HeldOut,
    RunConfig,
    configs_of,
    read_tree,
    validate,
)
from tunable_ops.train.tuning import Model, Sampler, Tuning

__all__ = ["Config", "Data", "PGNConfig", "load_config", "packaged_configs"]


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
        lams: Points of the sweep, in the units of lambda; left out: five between the two corners or the ends of one
            knob, else all corners and the middle.
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
        weigh_samples: "by_damage" divides the multi-loss of every sample by ``mean((input - clean)**2) +
            (15 / 255)**2``: slight damage then counts like heavy damage, which otherwise decides a mean square. All
            objectives of a sample share the factor, so what lies between two targets stays a straight line, unlike
            with "log_mse".
    """

    task: Literal["restoration"] = "restoration"
    weigh_samples: Literal["alike", "by_damage"] = "alike"
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
    def _consistent(self) -> Config:
        _check_consistency(self)
        # the factors themselves are kept with the run, so a later default does not change what it was
        rates = kernel_rates(self.optim, self.tuning, self.num_params)
        object.__setattr__(self, "optim", self.optim.model_copy(update=rates))
        return self

    @property
    def adversarial_objective(self) -> str | None:
        """The name of the adversarial objective, if there is one."""
        return next((objective.name for objective in self.objectives if objective.loss == "adversarial"), None)

    @property
    def channels(self) -> int:
        """The channels of the pictures: 3, or 1 for grey ones."""
        return self.model.channels or self.model.arguments.get("channels", 3)

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


def _check_consistency(config: Config) -> None:
    """Check that objectives, knobs, degradation and data of a restoration training go together.

    Raises:
        ValueError: They do not; the message names the key.
    """
    _check_names(config)
    _check_weights(config)
    _check_levels(config)
    _check_lambda(config)
    _check_batches(config)
    _check_styles(config)
    _check_adversarial(config)
    _check_grey(config)


def _check_names(config: Config) -> None:
    """Objectives and knobs have names, as many as are needed, and the order that lambda has."""
    names = [objective.name for objective in config.objectives]
    if len(set(names)) < len(names):
        raise ValueError(f"objectives must have different names; got {names}")
    following = [objective.has_own_knob for objective in config.objectives]
    if sorted(following, reverse=True) != following or (config.tuning.phased and not all(following)):
        raise ValueError(
            "objectives that do not follow the lambda of their place must stand last, and not at all for phases; "
            f"got {following}"
        )
    count = config.num_params
    if count < sum(following) or not count or (count > len(names) and all(following)):
        raise ValueError(
            f"tuning.names must have one entry per objective, {len(names)}, or more where some do not follow "
            f"lambda; got {config.tuning.names}"
        )


def _check_lambda(config: Config) -> None:
    """All that is said of lambda has an entry per parameter, and makes sense."""
    count = config.num_params
    for key in ("ranges", "defaults", "units", "lam"):
        given = getattr(config.tuning, key)
        if given is not None and len(given) != count:
            raise ValueError(f"tuning.{key} must have one entry per tuning parameter, {count}; got {given}")
    for lam in config.validation.lams or ():
        if len(lam) != count:
            raise ValueError(f"validation.lams must have {count} numbers each, as lambda has; got {lam}")
    _ = config.spec  # raises for ranges and defaults that make no sense


def _check_batches(config: Config) -> None:
    if config.tuning.phased and config.optim.weight_decay:
        # kernels of other phases get a gradient of 0; the decay would move them all the same
        raise ValueError(f"optim.weight_decay must be 0 for tuning.kind {config.tuning.kind!r}")
    for objective in config.objectives:
        if objective.crop is not None and objective.crop > config.data.crop:
            raise ValueError(
                f"objectives.crop must be at most data.crop, {config.data.crop}; got {objective.crop} for "
                f"{objective.name!r}"
            )
    groups = config.sampler.groups
    if groups is not None and config.data.batch % groups:
        raise ValueError(f"sampler.groups must divide data.batch, {config.data.batch}; got {groups}")
    if config.degradation.downsample and not config.degradation.downsample.enlarge:
        factor = config.degradation.downsample.factors[0]
        if config.data.crop % factor:
            raise ValueError(f"data.crop must be a multiple of the down-sampling, {factor}; got {config.data.crop}")


def _check_weights(config: Config) -> None:
    """Weights name knobs that exist, and targets pictures of the output's size."""
    names, smaller = config.param_names, config.degradation.downsample and not config.degradation.downsample.enlarge
    if config.weigh_samples == "by_damage" and smaller:
        raise ValueError(
            'weigh_samples must be "alike" where the input is smaller than the clean picture; got "by_damage"'
        )
    for objective in config.objectives:
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


def _check_levels(config: Config) -> None:
    """Every knob must move something: the weight of an objective, or a level of the degradation."""
    following = sum(objective.has_own_knob for objective in config.objectives)
    count, moved = config.num_params, set(range(following))
    moved |= {config.param_names.index(knob) for objective in config.objectives for knob in objective.weight or ()}
    for name, degradation in (("", config.degradation), ("validation.", config.validation.degradation)):
        for key in ("blur", "noise"):
            levels = getattr(getattr(degradation, key, None), "levels", None)
            if levels is not None and len(levels) != count:
                raise ValueError(
                    f"{name}degradation.{key}.levels must have one entry per tuning parameter, {count}; got {levels}"
                )
            if not name:
                moved |= {index for index, level in enumerate(levels or ()) if level}
    if config.grey_knob is not None:
        moved.add(config.grey_knob)
    idle = [name for index, name in enumerate(config.param_names) if index not in moved]
    if idle and config.tuning.kind != "none":
        raise ValueError(f"tuning.names must name knobs that move an objective or a level; got {idle}, which do not")
    if not following and count == 1 and config.tuning.domain == "simplex" and config.tuning.kind != "none":
        raise ValueError(
            'tuning.domain must be "box" for a single knob, which cannot move on the simplex; got "simplex"'
        )


def _check_grey(config: Config) -> None:
    """Grey samples are for networks in colour, and their knob belongs to them alone."""
    if not config.data.grey:
        return
    if config.channels == 1 or config.trains_styles:
        what = "styles" if config.trains_styles else "a network of one channel"
        raise ValueError(f"data.grey must be 0 for {what}; got {config.data.grey:g}")
    knob = config.grey_knob
    if knob is None:
        return
    following = sum(objective.has_own_knob for objective in config.objectives)
    weighed = any(PARAMETER in (objective.weight or ()) for objective in config.objectives)
    levels = [
        getattr(getattr(config.degradation, key, None), "levels", None) or [0.0] * config.num_params
        for key in ("blur", "noise")
    ]
    if knob < following or weighed or any(level[knob] for level in levels):
        raise ValueError(
            f"tuning.names must leave {PARAMETER!r} to grey samples, without an objective or a level, where "
            f"data.grey is set; got {config.param_names}"
        )


def _check_styles(config: Config) -> None:
    losses = {objective.loss for objective in config.objectives}
    if "style" not in losses:
        return
    targets = {objective.target for objective in config.objectives}
    if len(losses) > 1 or len(targets) > 1:
        raise ValueError(
            "objectives must all be styles over one target where one is; got "
            + ", ".join(f"{o.name}: {o.loss} ({o.target})" for o in config.objectives)
        )
    if config.validation.every:
        raise ValueError(
            f"validation.every must be 0 for styles, which PSNR says nothing about; got {config.validation.every}"
        )


def _check_adversarial(config: Config) -> None:
    names = [objective.name for objective in config.objectives if objective.loss == "adversarial"]
    if len(names) > 1 or (names and config.tuning.phased):
        raise ValueError(
            "objectives must be adversarial in one at most, and in none for phases; got " + ", ".join(names)
        )
    if not names and config.adversarial != Adversarial():
        raise ValueError("adversarial must be left out where no objective has the loss 'adversarial'; got settings")
    least = 2**config.adversarial.depth
    if names and config.data.crop < least:
        raise ValueError(
            f"data.crop must be at least {least} for a discriminator of depth {config.adversarial.depth}; "
            f"got {config.data.crop}"
        )


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
