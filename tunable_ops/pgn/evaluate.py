"""How well a PGN's field agrees with the true gradient, on pictures changed in ways that training never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.losses import Perceptual
from tunable_ops.pgn.network import PGN
from tunable_ops.pgn.trainer import agreement, true_gradient
from tunable_ops.train.seeding import generator

__all__ = ["CHANGES", "Agreement", "evaluate_pgn"]


def _resampled(y: Tensor, source: torch.Generator) -> Tensor:
    small = F.interpolate(y, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, size=y.shape[-2:], mode="bicubic").clamp(0, 1)


CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise 25/255": lambda y, source: (y + 25 / 255 * torch.randn(y.shape, generator=source)).clamp(0, 1),
    "bicubic x4 and back": _resampled,
    "half contrast": lambda y, source: 0.5 + 0.5 * (y - 0.5),
    "its mean colour": lambda y, source: y.mean((2, 3), keepdim=True).expand_as(y),
    "uniform noise": lambda y, source: torch.rand(y.shape, generator=source),
}
"""What is made of a picture y to have an x."""


class Agreement(NamedTuple):
    """Angle to the true gradient in degrees, ratio of the norms, and the angle that x - y, MSE's field, has to it."""

    angle: float
    ratio: float
    pixels: float


def evaluate_pgn(pgn: PGN, loss: Perceptual, pictures: Sequence[Tensor], seed: int = 0) -> dict[str, Agreement]:
    """How the predicted gradients agree with the true ones: mean angles, geometric mean of the ratios of norms.

    Args:
        pgn: the network.
        loss: what it imitates.
        pictures: [3, H, W] each, in [0, 1].
        seed: of the noise.

    Returns:
        change (`CHANGES`) -> `Agreement`. At 90 degrees a field knows nothing.
    """
    found = {}
    for name, change in CHANGES.items():
        rows = []
        for index, picture in enumerate(pictures):
            y = picture.unsqueeze(0)
            x = change(y, generator(seed, name, index))
            true, _ = true_gradient(loss, x, y)
            angle, ratio = agreement(pgn.gradient(x, y), true)
            rows.append((float(angle), math.log(float(ratio)), float(agreement(x - y, true)[0])))
        angles, logs, pixels = zip(*rows, strict=True)
        found[name] = Agreement(fmean(angles), math.exp(fmean(logs)), fmean(pixels))
    return found
