"""What is measured of a trained network.

``db`` at the five positions of the grid, per picture:

- task "strength": PSNR to the interpolated target ``(1 - t) clean + t input``. With MSE objectives the multi-loss is
  ``(1-t) mse(y, clean) + t mse(y, input) = mse(y, target) + t (1-t) mse(clean, input)``, whose last term does not
  depend on y: this PSNR is the multi-loss at lambda, but for a constant. The output is not clamped, as in training.
- task "level": PSNR to the clean picture, the noise of the input being that of t; the output is clamped to [0, 1].
- task "perception": the multi-loss itself, ``-10 log10``: 0.1 dB are 2.3 percent of it.
- task "box": PSNR to the mean of the four targets of the box with their weights at lambda, as for "strength".

Every PSNR counts the rounding to 8 bits, ``1 / (12 * 255^2)``, on top of the error: it ends at 58.9 dB, beyond which
differences show in no file. (Near t = 1 of "strength" networks approach the identity, whose PSNR is infinite.)

Beside it, at the same positions: ``loss``, the multi-loss at lambda; ``psnr`` and ``lpips``, of the clamped output to
the clean picture.

``travel`` at nine positions: what a hand on the knob sees. It must fall along t.

- "strength", on inputs of sigma 25: PSNR to the clean picture, output clamped.
- "level", on inputs of sigma 25: the energy that the network removes, ``mean |output - input|^2`` in squared grey
  levels of 255: the network is told of less noise in the same picture.
- "perception": the perceptual loss. Its pictures are the central 128 x 128.
- "box": ``mean |output - (sharp + noise)|^2`` in squared grey levels: the end of the path at t = 1.

``terms`` at these nine: the first two objectives' losses, means over the pictures, of which `hypervolume` makes one
number; ``reference``: the losses of the input.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tunable_ops.bench.comparison.configure import config_of
from tunable_ops.bench.comparison.plan import (
    FINE,
    GRID,
    OURS,
    TASK,
    Data,
    Setting,
    Unit,
    lam_for,
    lam_of,
)

from tunable_ops import losses
from tunable_ops.modules import LambdaWarning, TunableModel
from tunable_ops.train.build import build_criterion, objective_weights
from tunable_ops.train.config import Config, Degradation, Noise
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import degrade
from tunable_ops.train.seeding import generator

SIGMA = 25.0
SMALL = 128  # side of the pictures of "perception", whose losses cost most
ROUNDING = 1 / (12 * 255**2)
_SEED = 0  # of the test noise: the same for every unit
Pictures = list[tuple[str, Tensor]]


class Mix(nn.Module):
    """``y = sum_i lambda_i * net_i(x)``: the knob that needs no training, and a network per objective.

    Args:
        networks: One per objective, plain.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        """Run all networks on x [B, C, H, W]; lam is [p]."""
        return torch.stack([weight * net(x) for weight, net in zip(lam, self.networks, strict=True)]).sum(0)


def respond(net: nn.Module, x: Tensor, lam: Sequence[float]) -> Tensor:
    """Return the output for a picture [3, H, W], not clamped, on the CPU; a plain network ignores lambda."""
    device = next(net.parameters()).device
    batch = x.unsqueeze(0).to(device)
    with torch.no_grad(), warnings.catch_warnings():
        # phases on the box: the changes of both ends add up outside the simplex
        warnings.simplefilter("ignore", LambdaWarning)
        y = net(batch, torch.tensor(lam, device=device)) if isinstance(net, TunableModel | Mix) else net(batch)
    return y[0].float().cpu()


def test_pictures(data: Data, setting: Setting) -> Pictures:
    """Return the pictures that all units are evaluated on: a fixed part of a folder, the central crop of each.

    Sides are even, for the enlargement by 2.

    Raises:
        ValueError: As `tunable_ops.train.data.held_out`.
    """
    if data.every < 1:
        raise ValueError(f"comparison: --every must be at least 1; got {data.every}")
    pictures = held_out(data.test, setting.test_crop)
    kept = pictures if data.test == "skimage" else pictures[:: data.every]
    return [(name, p[:, : p.shape[1] // 2 * 2, : p.shape[2] // 2 * 2]) for name, p in kept]


def evaluate(net: nn.Module, unit: Unit, setting: Setting, data: Data, pictures: Pictures) -> dict[str, Any]:
    """Measure a network at every t, or a separately trained one at its own.

    Returns:
        ``ts``, and ``db``, ``loss``, ``psnr`` and ``lpips`` (None where it is not measured): per position a number per
        picture; ``travel_ts`` and ``travel`` likewise, ``terms`` per position a number per objective; ``reference``.

    Raises:
        RuntimeError: A number is not finite.
    """
    net.eval()
    judge = _judge(unit.task, setting, data)
    ts = GRID if unit.t is None else (unit.t,)
    travel_ts = FINE if unit.t is None else (unit.t,)
    found: dict[str, Any] = {"db": [], "loss": [], "psnr": [], "lpips": [], "travel": [], "terms": []}
    for t in sorted({*ts, *travel_ts}):
        lam = lam_for(unit.method, unit.task, t)
        looks = [judge.look(respond(net, shot.x, lam), shot) for shot in judge.shots(pictures, None)]
        if t in travel_ts:
            found["travel"].append([judge.travel(look) for look in looks])
            found["terms"].append(_means([judge.terms(look) for look in looks]))
        if t in ts:
            if unit.task == "level":  # whose input is another one
                looks = [judge.look(respond(net, shot.x, lam), shot) for shot in judge.shots(pictures, t)]
            scores = [judge.score(look, t) for look in looks]
            for name, values in zip(("db", "loss", "psnr", "lpips"), zip(*scores, strict=True), strict=True):
                found[name].append(list(values))
    for name, rows in found.items():
        if not all(math.isfinite(value) for row in rows for value in row):
            raise RuntimeError(f"comparison: {name} of {unit.id} must be finite; got {rows}")
    if not setting.lpips:
        found["lpips"] = None
    inputs = [judge.look(shot.enlarged, shot) for shot in judge.shots(pictures, None)]
    reference = _means([judge.terms(look) for look in inputs])
    return {"ts": list(ts), "travel_ts": list(travel_ts), **found, "reference": reference}


class Shot(NamedTuple):
    """A picture and what is made of it: the input, and the targets [3, H, W] by their names."""

    x: Tensor
    targets: dict[str, Tensor]

    @property
    def enlarged(self) -> Tensor:
        """The input at the size of the targets."""
        if self.x.shape == self.targets["clean"].shape:
            return self.x
        return F.interpolate(self.x[None], size=self.targets["clean"].shape[-2:], mode="bicubic")[0]


class Look(NamedTuple):
    """An output [3, H, W] for a shot, and the loss of each objective by its name."""

    y: Tensor
    shot: Shot
    losses: dict[str, float]


class Judge:
    """The measures of one task.

    Args:
        config: Of a network that is trained at all lambda.
        task: Key in `TASKS`.
        lpips: Whether to measure it, with the other network where one is trained with LPIPS itself.
    """

    def __init__(self, config: Config, task: str, lpips: bool) -> None:
        self.config, self.task = config, task
        self.criterion = build_criterion(config)
        trained_with = [objective.loss for objective in config.objectives]
        self.lpips = losses.LPIPS("vgg" if "lpips" in trained_with else "alex", bounded=False) if lpips else None

    def shots(self, pictures: Pictures, t: float | None) -> list[Shot]:
        """Return the inputs at a position; None: those of the travel, the same at every one."""
        degradation, lam = self.config.degradation, None
        if self.task in ("strength", "level") and (t is None or self.task == "strength"):
            degradation = Degradation(noise=Noise(sigma=(SIGMA, SIGMA)))
        elif t is not None:
            lam = torch.tensor(lam_of(self.task, t))
        found = []
        for index, (_, picture) in enumerate(pictures):
            clean = _central(picture, SMALL) if self.task == "perception" else picture
            made = degrade(clean[None], degradation, generator(_SEED, "evaluation", index), lam)
            named = {"clean": clean[None], "noiseless": made.noiseless, "noisy": made.noisy, "input": made.input}
            found.append(Shot(made.input[0], {name: v[0] for name, v in named.items() if v is not None}))
        return found

    def look(self, y: Tensor, shot: Shot) -> Look:
        """Return an output with its losses."""
        targets = {o.name: shot.targets[o.target][None] for o in self.config.objectives}
        with torch.no_grad():
            _, terms = self.criterion(y[None], targets, torch.ones(len(targets)))
        return Look(y, shot, {name: float(value) for name, value in terms.items()})

    def score(self, look: Look, t: float) -> tuple[float, float, float, float]:
        """Return db, the multi-loss, PSNR and LPIPS (0 where it is not measured) of an output at a position."""
        y, shot, found = look
        clean, weights = shot.targets["clean"], self.weights(t)
        psnr = decibels(_error(y.clamp(0, 1), clean))
        objectives = list(zip(self.config.objectives, weights.tolist(), strict=True))
        loss = sum(weight * objective.scale * found[objective.name] for objective, weight in objectives)
        if self.task == "level":
            db = psnr
        elif self.task == "perception":
            db = -10 * math.log10(loss) if loss > 0 else math.nan
        else:
            mixed = torch.stack([weight * shot.targets[o.target].double() for o, weight in objectives]).sum(0)
            db = decibels(_error(y, mixed))
        distance = 0.0
        if self.lpips is not None:
            with torch.no_grad():
                distance = float(self.lpips(y.clamp(0, 1)[None], clean[None]))
        return db, loss, psnr, distance

    def travel(self, look: Look) -> float:
        """Return what must fall along t."""
        y, shot, found = look
        if self.task == "strength":
            return decibels(_error(y.clamp(0, 1), shot.targets["clean"]))
        if self.task == "perception":
            return found["perceptual"]
        return 255**2 * _error(y, shot.x if self.task == "level" else shot.targets["noisy"])

    def terms(self, look: Look) -> list[float]:
        """Return the losses of the two objectives between which t leads."""
        names = ("noiseless", "noisy") if self.task == "box" else [o.name for o in self.config.objectives[:2]]
        return [look.losses[name] for name in names]

    def weights(self, t: float) -> Tensor:
        """Return the objectives' weights at a position."""
        return objective_weights(self.config.objectives, self.config.param_names, torch.tensor(lam_of(self.task, t)))


@functools.lru_cache(maxsize=8)
def _judge(task: str, setting: Setting, data: Data) -> Judge:
    return Judge(config_of(Unit(task, OURS, 0), setting, data), task, setting.lpips)


def decibels(error: Tensor | float) -> float:
    """Return the PSNR in dB of a mean squared error on the scale 0..1, rounding to 8 bits included."""
    return -10 * math.log10(float(error) + ROUNDING)


def falling(rows: Sequence[Sequence[float]]) -> float:
    """Return the share of steps along t, [positions][pictures], that go down."""
    steps = [b < a for before, after in itertools.pairwise(rows) for a, b in zip(before, after, strict=True)]
    return sum(steps) / len(steps)


def unevenness(values: Sequence[float]) -> float:
    """Return the largest step between neighbours over the mean one, in size; 1 if the knob acts evenly over its travel.

    Raises:
        ValueError: Nothing moves.
    """
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    if not sum(steps) > 0:
        raise ValueError(f"comparison: values must move along t; got {list(values)}")
    return max(steps) / (sum(steps) / len(steps))


def hypervolume(terms: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Return which share of the losses below a reference point is dominated by a front, 0 to 1.

    Args:
        terms: Losses of two objectives at each position.
        reference: The largest losses that count, both positive.
    """
    points = sorted((a / reference[0], b / reference[1]) for a, b in terms)
    volume, lowest = 0.0, 1.0
    for a, b in points:
        if a < 1 and b < lowest:
            volume += (1 - a) * (lowest - b)
            lowest = b
    return volume


def front_of(task: str, terms: Sequence[Sequence[float]], reference: Sequence[float]) -> float | None:
    """Return the hypervolume of a task's front within the input's losses; None where there is no front.

    Where the input is one of the targets, its loss is that of the other objective.
    """
    if not TASK[task].front:
        return None
    largest = max(reference)
    return hypervolume(terms, [value or largest for value in reference])


def _central(picture: Tensor, side: int) -> Tensor:
    """Return the central part of a picture, with even sides and at even places."""
    top, left = (max(0, n - side) // 4 * 2 for n in picture.shape[-2:])
    return picture[:, top : top + side, left : left + side]


def _error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean())


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]
