"""What is trained: tasks, methods, settings, and the list of training runs ("units"); `configure` has their details.

A position t of the knob stands for a lambda (`lam_of`): (1 - t, t), or on the box a path along two of its edges. Every
method gets the same plain network, pictures, optimiser, seeds and number of steps. The knobs that are trained in
phases split the steps between them; they have a second row with twice as many. Each of the separately trained networks
gets the full number. Settings were chosen once for all methods; no method was tuned by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunable_ops.control import PHASED

# Where methods are compared, and where a knob's travel is looked at.
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
FINE = tuple(k / 8 for k in range(9))
OURS, SEPARATE, MIX = "affine", "separate", "mix"
BACKBONES = ("dncnn", "edsr")


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        key: Its name in files.
        label: Its name in tables and plots.
        kind: The ``tuning.kind``, `SEPARATE`, or `MIX`.
        factor: How many times the steps of the setting it gets.
    """

    key: str
    label: str
    kind: str
    factor: int = 1

    @property
    def phased(self) -> bool:
        """True if it is trained at the ends alone, one after the other."""
        return self.kind in PHASED


_LABELS = {"dni": "DNI", "adafm": "AdaFM", "dynamic_net": "Dynamic-Net", "cfsnet": "CFSNet"}
METHODS = (
    Method(OURS, "tunable convolutions", OURS),
    Method("film", "FiLM", "film"),
    Method("planes", "planes of lambda", "planes"),
    Method("cresmd", "CResMD", "cresmd"),
    Method("low_rank", "low-rank kernels", "low_rank"),
    *(Method(kind, label, kind) for kind, label in _LABELS.items()),
    *(Method(f"{kind}_2x", f"{label}, twice the steps", kind, 2) for kind, label in _LABELS.items()),
    Method(MIX, "two networks, outputs mixed", MIX),
    Method(SEPARATE, "separate networks", SEPARATE),
)
METHOD = {method.key: method for method in METHODS}
KNOBS = tuple(method.key for method in METHODS if method.key not in (SEPARATE, MIX))


@dataclass(frozen=True)
class Task:
    """What the knob is for.

    Attributes:
        key: In files.
        label: A line for headings.
        measure: What ``db`` is, for headings.
        travel: What should move one way along t, for headings.
        box: Whether lambda is on the box, else on the simplex.
        front: Whether its first two objectives pull apart, so that their losses along the knob are a front.
    """

    key: str
    label: str
    measure: str
    travel: str
    box: bool = False
    front: bool = True


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
        front=False,
    ),
    Task(
        "perception",
        "perception against distortion: x2 super-resolution, L1 (t = 0) to a perceptual loss (t = 1)",
        "multi-loss at lambda = (1 - t, t), as -10 log10, dB",
        "perceptual loss",
    ),
    Task(
        "box",
        "denoise and deblur on the box: noise removed (t = 0), both (t = 1/2), blur removed (t = 1)",
        "PSNR to the targets of the corners of the box, mixed as lambda says, dB",
        "squared distance to the sharp picture with the noise of the input, squared grey levels",
        box=True,
    ),
)
TASK = {task.key: task for task in TASKS}


@dataclass(frozen=True)
class Setting:
    """Sizes of a comparison.

    Attributes:
        name: "quick", "cpu", "long" or "gpu".
        features: Width of the network.
        depth: Number of convolutions of the DnCNN, which runs on 2x2-unshuffled pixels.
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
        backbone: "dncnn" or "edsr".
        blocks: Number of residual blocks of the EDSR.
        tasks: Keys of `TASKS`.
        methods: Keys of `METHODS`; `OURS` and `SEPARATE` are always among them.
        blur: Width of the Gaussian blur of the task "box", in pixels.
        noise: Standard deviation of its noise, of 255.
        perceptual: Loss of the task "perception" at t = 1: "alex" for LPIPS with AlexNet, which costs next to nothing,
            or "vgg16" for the perceptual loss of VGG16, which takes many times as long as the networks.
        layers: Layers of the latter.
        lpips: Whether LPIPS is measured: AlexNet's, or VGG16's where a network was trained with AlexNet's.
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
    backbone: str = "dncnn"
    blocks: int = 4
    tasks: tuple[str, ...] = ("level", "perception", "box")
    methods: tuple[str, ...] = tuple(method.key for method in METHODS)
    blur: float = 1.5
    noise: float = 15.0
    perceptual: str = "alex"
    layers: tuple[str, ...] | str = "relus"
    lpips: bool = True


SETTINGS = {
    "quick": Setting(
        "quick", 8, 4, 24, 4, 40, seeds=2, test_crop=64, warmup=5, blocks=3, perceptual="vgg16", layers=("relu2_2",)
    ),
    "cpu": Setting("cpu", 32, 6, 48, 16, 800),
    "long": Setting("long", 32, 6, 48, 16, 3200, seeds=8, warmup=40, ema=0.99),
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
        blocks=8,
        perceptual="vgg16",
    ),
}


@dataclass(frozen=True)
class Data:
    """Pictures: folders, or "skimage" for photographs inside the scikit-image package.

    Attributes:
        train: To train on.
        test: To evaluate on.
        every: Of a test folder's pictures, sorted by name, each ``every``-th is used, from the first on.
        weights: File of VGG16's weights, for its perceptual loss; None: looked for (`losses.weights`).
    """

    train: str = "skimage"
    test: str = "skimage"
    every: int = 4
    weights: str | None = None

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


def methods_of(task: str, setting: Setting) -> list[Method]:
    """Return the methods of a task, in the order of the tables: CFSNet has two ends, and none for the box."""
    chosen = (OURS, SEPARATE, *setting.methods)
    return [m for m in METHODS if m.key in chosen and not (TASK[task].box and m.kind == "cfsnet")]


def units(setting: Setting) -> list[Unit]:
    """Return all training runs, seed by seed: what is there after a stop is a comparison with fewer seeds."""
    found = []
    for seed in range(setting.seeds):
        for task in setting.tasks:
            for method in methods_of(task, setting):
                if method.key == SEPARATE:
                    found += [Unit(task, SEPARATE, seed, t) for t in GRID]
                elif method.key != MIX:
                    found.append(Unit(task, method.key, seed))
    return found


def mixes(setting: Setting) -> list[Unit]:
    """Return what is evaluated without a training of its own: outputs of two separate networks, mixed."""
    seeds = range(setting.seeds if MIX in setting.methods else 0)
    return [Unit(task, MIX, seed) for seed in seeds for task in setting.tasks]


def lam_of(task: str, t: float) -> list[float]:
    """Return lambda at a position of the knob: (1 - t, t); on the box from (1, 0) over (1, 1) to (0, 1)."""
    return [min(1.0, 2 - 2 * t), min(1.0, 2 * t)] if TASK[task].box else [1 - t, t]


def lam_for(method: str, task: str, t: float) -> list[float]:
    """Return what a method's network is called with at a position.

    That is `lam_of`, but for outputs that are mixed, (1 - t, t), and for phases on the box: their main network is that
    of lambda = (0, 0), which keeps the input, so the three coefficients are (1 - lam_0 - lam_1, lam_0, lam_1); at
    (1, 1) the changes of both ends add up.
    """
    lam = lam_of(task, t)
    if method == MIX:
        return [1 - t, t]
    return [1 - sum(lam), *lam] if TASK[task].box and METHOD[method].phased else lam


def steps_of(method: str, task: str, setting: Setting) -> dict[str, Any]:
    """Return the optimiser steps behind a method's row.

    Returns:
        ``total``: of all its trainings for one seed; ``each``: in words, for the table.
    """
    steps = METHOD[method].factor * setting.steps
    if method == SEPARATE:
        return {"total": steps * len(GRID), "each": f"{len(GRID)} x {steps}"}
    if method == MIX:
        return {"total": 2 * steps, "each": f"2 x {steps}"}
    if not METHOD[method].phased:
        return {"total": steps, "each": f"{steps}"}
    phases = 3 if TASK[task].box else 2
    shares = [steps // phases] * (phases - 1)
    return {"total": steps, "each": " + ".join(map(str, [*shares, steps - sum(shares)]))}


def setting_named(name: str, **changes: Any) -> Setting:
    """Return one of `SETTINGS`, with some of its attributes changed.

    Raises:
        ValueError: There is none of that name, or a value is out of range.
    """
    if name not in SETTINGS:
        raise ValueError(f"comparison: --setting must be one of {', '.join(SETTINGS)}; got {name!r}")
    setting = replace(SETTINGS[name], **changes)
    check(setting)
    return setting


def check(setting: Setting) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: An unknown backbone, task or method, none of them, a number below 1, or a network that has no place
            for the blocks.
    """
    for name, given, known in (
        ("--backbone", [setting.backbone], BACKBONES),
        ("--tasks", setting.tasks, tuple(TASK)),
        ("--methods", setting.methods, tuple(METHOD)),
        ("perceptual", [setting.perceptual], ("alex", "vgg16")),
    ):
        if not given or len(set(given)) < len(given) or not set(given) <= set(known):
            raise ValueError(f"comparison: {name} must name {', '.join(known)}, each once; got {', '.join(given)}")
    for name, number in (("--seeds", setting.seeds), ("--steps", setting.steps)):
        if number < 1:
            raise ValueError(f"comparison: {name} must be at least 1; got {number}")
    if setting.backbone == "dncnn" and setting.depth < 4:
        raise ValueError(f"comparison: depth must be at least 4, for blocks to have places; got {setting.depth}")
    if setting.backbone == "edsr" and setting.blocks < 3:
        raise ValueError(f"comparison: blocks must be at least 3, for blocks to have places; got {setting.blocks}")
