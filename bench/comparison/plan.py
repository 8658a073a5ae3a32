"""What is trained: tasks, methods, settings, and the configuration of every training run ("unit").

lambda = (1 - t, t). Every method gets the same plain network, pictures, optimiser, seeds and number of steps: the
knobs that are trained in phases split the steps between them, and each of the separately trained networks gets the full
number. Settings were chosen once for all methods; no method was tuned by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunable_ops.train.config import Config
from tunable_ops.train.sections import validate

# Where methods are compared, and where a knob's travel is looked at.
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
FINE = tuple(k / 8 for k in range(9))
OURS, SEPARATE, MIX = "affine", "separate", "mix"


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        key: The ``tuning.kind``, `SEPARATE`, or `MIX`.
        label: Its name in tables and plots.
        trained: Whether it has training runs of its own.
    """

    key: str
    label: str
    trained: bool = True


METHODS = (
    Method(OURS, "tunable convolutions"),
    Method("dni", "DNI"),
    Method("adafm", "AdaFM"),
    Method("dynamic_net", "Dynamic-Net"),
    Method("cfsnet", "CFSNet"),
    Method(MIX, "two networks, outputs mixed", trained=False),
    Method(SEPARATE, "separate networks"),
)
KNOBS = tuple(method.key for method in METHODS if method.key not in (SEPARATE, MIX))


@dataclass(frozen=True)
class Task:
    """What the knob is for.

    Attributes:
        key: "strength" or "level".
        label: A line for headings.
        measure: What ``db`` is, for headings.
        travel: What should move one way along t, for headings.
    """

    key: str
    label: str
    measure: str
    travel: str


TASKS = (
    Task(
        "strength",
        "denoising strength: MSE to the clean picture (t = 0) and to the noisy input (t = 1), sigma 25",
        "PSNR to (1 - t) clean + t input, dB",
        "PSNR to the clean picture, dB",
    ),
    Task(
        "level",
        "noise level: MSE to the clean picture, and t says how noisy the input is",
        "PSNR to the clean picture at the noise level of t, dB",
        "energy removed from an input of sigma 25, squared grey levels",
    ),
)


@dataclass(frozen=True)
class Setting:
    """Sizes of a comparison.

    Attributes:
        name: "quick", "cpu" or "gpu".
        features: Width of the DnCNN, which runs on 2x2-unshuffled pixels.
        depth: Its number of convolutions.
        crop: Side of the training crops in pixels.
        batch: Crops per step.
        steps: Optimiser steps per unit.
        seeds: 0 to seeds - 1.
        sigma: Noise of the task "strength" in training; it is evaluated at 25.
        levels: Noise of the task "level" at t = 0 and t = 1.
        test_crop: Side of the central part of the test pictures, in pixels.
        ema: Decay of the averaged weights.
        lr: Learning rate.
        warmup: Steps of every phase in which the rate rises.
        device: "cpu", or "auto" for a GPU where there is one.
        workers: Processes that prepare batches, per unit.
    """

    name: str
    features: int
    depth: int
    crop: int
    batch: int
    steps: int
    seeds: int = 3
    sigma: tuple[float, float] = (25.0, 25.0)
    levels: tuple[float, float] = (50.0, 15.0)
    test_crop: int = 256
    ema: float = 0.98
    lr: float = 2e-3
    warmup: int = 20
    device: str = "cpu"
    workers: int = 0


SETTINGS = {
    "quick": Setting("quick", 8, 4, 24, 4, 40, seeds=2, test_crop=64, warmup=5),
    "cpu": Setting("cpu", 32, 6, 48, 16, 800),
    # Estimated, not measured: below 8 minutes a unit on an H200, bound by launches rather than by arithmetic.
    "gpu": Setting(
        "gpu",
        64,
        12,
        64,
        32,
        20000,
        sigma=(5.0, 50.0),
        ema=0.999,
        lr=1e-3,
        warmup=200,
        device="auto",
        workers=4,
    ),
}


@dataclass(frozen=True)
class Data:
    """Pictures: folders, or "skimage" for photographs inside the scikit-image package.

    Attributes:
        train: To train on.
        test: To evaluate on.
        every: Of a test folder's pictures, sorted by name, each ``every``-th is used, from the first on.
    """

    train: str = "skimage"
    test: str = "skimage"
    every: int = 4

    def described(self) -> dict[str, Any]:
        """Return the same without the folders' places, which are this machine's own."""
        return {"train": Path(self.train).name, "test": Path(self.test).name, "every": self.every}


@dataclass(frozen=True)
class Unit:
    """One training run; ``t`` is None where one network serves all of them."""

    task: str
    method: str
    seed: int
    t: float | None = None

    @property
    def id(self) -> str:
        """Name of its files."""
        return f"{self.task}-{self.method}" + ("" if self.t is None else f"-t{self.t:g}") + f"-s{self.seed}"


def units(setting: Setting) -> list[Unit]:
    """Return all training runs, seed by seed: what is there after a stop is a comparison with fewer seeds."""
    found = []
    for seed in range(setting.seeds):
        for task in TASKS:
            found += [Unit(task.key, key, seed) for key in KNOBS]
            found += [Unit(task.key, SEPARATE, seed, t) for t in GRID]
    return found


def mixes(setting: Setting) -> list[Unit]:
    """Return what is evaluated without a training of its own: outputs of two separate networks, mixed."""
    return [Unit(task.key, MIX, seed) for seed in range(setting.seeds) for task in TASKS]


def lam_of(t: float) -> list[float]:
    """Return lambda at a position of the knob."""
    return [1 - t, t]


def placement(kind: str, depth: int) -> dict[str, Any]:
    """Return where a knob of `tunable_ops.control` sits in DnCNN's chain, whose k-th convolution is ``model.{2 k}``.

    AdaFM: after every convolution, as published, with filters of 5 x 5 (the largest published, as recalled).
    Dynamic-Net: three blocks, as published, after the second, the middle and the last but one convolution. CFSNet: a
    tuning block beside every convolution of the chain that keeps its width. The paper's networks have residual blocks
    there, which this chain lacks.
    """
    if kind == "adafm":
        return {"kernel_size": 5}
    if kind == "dynamic_net":
        return {"after": [f"model.{2 * k}" for k in sorted({1, depth // 2, depth - 2})]}
    if kind == "cfsnet":
        return {"after": [f"model.{2 * k}" for k in range(1, depth - 1)]}
    return {}


def config_of(unit: Unit, setting: Setting, data: Data) -> Config:
    """Return the configuration of a training run.

    A separate network minimises the multi-loss at its own lambda, on inputs whose noise follows that lambda where the
    task says so.

    Raises:
        ValueError: As the configuration.
    """
    strength = unit.task == "strength"
    noise: dict[str, Any] = {"sigma": list(setting.sigma)} if strength else {"levels": list(setting.levels)}
    names, targets = (("clean", "input"), ("clean", "input")) if strength else (("first", "second"), ("clean",) * 2)
    tuning: dict[str, Any] = {"kind": unit.method}
    if unit.method == SEPARATE:
        assert unit.t is not None
        tuning = {"kind": "none", "lam": lam_of(unit.t)}
    elif control := placement(unit.method, setting.depth):
        tuning["control"] = control
    tree = {
        "seed": unit.seed,
        "model": {"name": "dncnn", "arguments": _arguments(setting)},
        "tuning": tuning,
        # as often as the grid has them
        "sampler": {"corners": 2 / len(GRID)},
        "objectives": [{"name": n, "loss": "mse", "target": t} for n, t in zip(names, targets, strict=True)],
        "data": {"source": data.train, "crop": setting.crop, "batch": setting.batch, "workers": setting.workers},
        "degradation": {"noise": noise},
        "optim": {"steps": setting.steps, "lr": setting.lr, "warmup": setting.warmup},
        "ema": {"decay": setting.ema},
        "log": {"tensorboard": False},
        "checkpoints": {"every": max(1, setting.steps // 4)},
        "validation": {"every": 0},
        "compute": {"device": setting.device, "channels_last": setting.device != "cpu"},
    }
    return validate(Config, tree)


def _arguments(setting: Setting) -> dict[str, Any]:
    return {"features": setting.features, "depth": setting.depth, "downscale": 2, "mean": 0.5}


def steps_of(method: str, setting: Setting) -> dict[str, Any]:
    """Return the optimiser steps behind a method's row.

    Returns:
        ``total``: of all its trainings for one seed; ``each``: in words, for the table.
    """
    steps = setting.steps
    if method == SEPARATE:
        return {"total": steps * len(GRID), "each": f"{len(GRID)} x {steps}"}
    if method == MIX:
        return {"total": 2 * steps, "each": f"2 x {steps}"}
    if method == OURS:
        return {"total": steps, "each": f"{steps}"}
    return {"total": steps, "each": f"{steps // 2} + {steps - steps // 2}"}


def setting_named(name: str) -> Setting:
    """Return one of `SETTINGS`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in SETTINGS:
        raise ValueError(f"comparison: --setting must be one of {', '.join(SETTINGS)}; got {name!r}")
    return SETTINGS[name]


def check_depth(setting: Setting) -> None:
    """Refuse a chain that has no place for the blocks.

    Raises:
        ValueError: Fewer than 4 convolutions.
    """
    if setting.depth < 4:
        raise ValueError(f"comparison: depth must be at least 4, for blocks to have places; got {setting.depth}")
