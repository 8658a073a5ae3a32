"""What is measured of a trained network.

``db`` at the five positions of the grid, per picture:

- task "strength": PSNR to the interpolated target ``(1 - t) clean + t input``. With MSE objectives the multi-loss is
  ``(1-t) mse(y, clean) + t mse(y, input) = mse(y, target) + t (1-t) mse(clean, input)``, whose last term does not
  depend on y: this PSNR is the multi-loss at lambda, but for a constant. The output is not clamped, as in training.
- task "level": PSNR to the clean picture, the noise of the input being that of t; the output is clamped to [0, 1].

Every PSNR counts the rounding to 8 bits, ``1 / (12 * 255^2)``, on top of the error: it ends at 58.9 dB, beyond which
differences show in no file. (Near t = 1 of "strength" networks approach the identity, whose PSNR is infinite.)

``travel`` at nine positions, on inputs of sigma 25: what a hand on the knob sees. It must fall along t.

- "strength": PSNR to the clean picture, output clamped.
- "level": the energy that the network removes, ``mean |output - input|^2`` in squared grey levels of 255: the network
  is told of less noise in the same picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tunable_ops.bench.comparison.plan import FINE, GRID, Data, Setting, Unit, lam_of

from tunable_ops.modules import TunableModel
from tunable_ops.train.config import Degradation, Noise
from tunable_ops.train.data import held_out
from tunable_ops.train.evaluate import degraded_pictures

SIGMA = 25.0
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
    with torch.no_grad():
        y = net(batch, torch.tensor(lam, device=device)) if isinstance(net, TunableModel | Mix) else net(batch)
    return y[0].float().cpu()


def test_pictures(data: Data, setting: Setting) -> Pictures:
    """Return the pictures that all units are evaluated on: a fixed part of a folder, the central crop of each.

    Raises:
        ValueError: As `tunable_ops.train.data.held_out`.
    """
    if data.every < 1:
        raise ValueError(f"comparison: --every must be at least 1; got {data.every}")
    pictures = held_out(data.test, setting.test_crop)
    return pictures if data.test == "skimage" else pictures[:: data.every]


def evaluate(net: nn.Module, unit: Unit, setting: Setting, pictures: Pictures) -> dict[str, Any]:
    """Measure a network at every t, or a separately trained one at its own.

    Returns:
        ``ts`` and ``db``: positions, and per position a number per picture; ``travel_ts`` and ``travel`` likewise.

    Raises:
        RuntimeError: A number is not finite.
    """
    net.eval()
    ts = GRID if unit.t is None else (unit.t,)
    travel_ts = FINE if unit.t is None else (unit.t,)
    at = _strength if unit.task == "strength" else _level
    db, travel = at(net, ts, travel_ts, setting, pictures)
    for name, rows in (("db", db), ("travel", travel)):
        if not all(math.isfinite(value) for row in rows for value in row):
            raise RuntimeError(f"comparison: {name} of {unit.id} must be finite; got {rows}")
    return {"ts": list(ts), "db": db, "travel_ts": list(travel_ts), "travel": travel}


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


_Rows = list[list[float]]


def _error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean())


def _strength(
    net: nn.Module, ts: Sequence[float], travel_ts: Sequence[float], setting: Setting, pictures: Pictures
) -> tuple[_Rows, _Rows]:
    noise = Degradation(noise=Noise(sigma=(SIGMA, SIGMA)))
    inputs = degraded_pictures(pictures, noise, _SEED)
    db: _Rows = []
    travel: _Rows = []
    for t in sorted({*ts, *travel_ts}):
        outputs = [respond(net, x, lam_of(t)) for _, _, x in inputs]
        pairs = list(zip(outputs, inputs, strict=True))
        if t in ts:
            db.append([decibels(_error(y, (1 - t) * clean + t * x)) for y, (_, clean, x) in pairs])
        if t in travel_ts:
            travel.append([decibels(_error(y.clamp(0, 1), clean)) for y, (_, clean, _) in pairs])
    return db, travel


def _level(
    net: nn.Module, ts: Sequence[float], travel_ts: Sequence[float], setting: Setting, pictures: Pictures
) -> tuple[_Rows, _Rows]:
    follows = Degradation(noise=Noise(levels=list(setting.levels)))
    db = [
        [
            decibels(_error(respond(net, x, lam_of(t)).clamp(0, 1), clean))
            for _, clean, x in degraded_pictures(pictures, follows, _SEED, lam_of(t))
        ]
        for t in ts
    ]
    inputs = degraded_pictures(pictures, Degradation(noise=Noise(sigma=(SIGMA, SIGMA))), _SEED)
    travel = [[255**2 * _error(respond(net, x, lam_of(t)), x) for _, _, x in inputs] for t in travel_ts]
    return db, travel
