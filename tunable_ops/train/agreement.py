"""How well a predicted gradient agrees with the true one, on changed pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.losses import Perceptual
from tunable_ops.losses.pgn import PGN
from tunable_ops.losses.reduction import value_and_gradient
from tunable_ops.train.seeding import generator

__all__ = ["CHANGES", "Agreement", "agreement", "evaluate"]


def agreement(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return (angle in degrees, ratio of the norms predicted / true) between two fields, per sample [B]."""
    a, b = predicted.flatten(1).double(), true.flatten(1).double()
    norms = a.norm(dim=1), b.norm(dim=1)
    cosine = (a * b).sum(1) / (norms[0] * norms[1]).clamp_min(1e-300)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1))), norms[0] / norms[1].clamp_min(1e-300)


def _resampled(y: Tensor, source: torch.Generator) -> Tensor:
    small = F.interpolate(y, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, size=y.shape[-2:], mode="bicubic").clamp(0, 1)


def _moved(y: Tensor, source: torch.Generator) -> Tensor:
    """Blur along the rows, over 9 pixels."""
    return F.avg_pool2d(F.pad(y, (4, 4, 0, 0), mode="replicate"), (1, 9), stride=1)


CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise 25/255": lambda y, source: (y + 25 / 255 * torch.randn(y.shape, generator=source)).clamp(0, 1),
    "bicubic x4 and back": _resampled,
    "half contrast": lambda y, source: 0.5 + 0.5 * (y - 0.5),
    "its mean colour": lambda y, source: y.mean((2, 3), keepdim=True).expand_as(y),
    "uniform noise": lambda y, source: torch.rand(y.shape, generator=source),
    "motion blur, 9 pixels": _moved,
    "red and blue swapped": lambda y, source: y.flip(1),
}
"""What is made of a picture y to have an x. `distortions` knows nothing like the last two."""


class Agreement(NamedTuple):
    """Angle to the true gradient in degrees, ratio of the norms, and the angle of x - y, MSE's field, to it."""

    angle: float
    ratio: float
    pixels: float


def evaluate(pgn: PGN, loss: Perceptual, pictures: Sequence[Tensor], seed: int = 0) -> dict[str, Agreement]:
    """Compare predicted gradients with true ones: mean angles, geometric mean of the ratios of norms.

    Args:
        pgn: The network, on any device.
        loss: The loss whose gradients it predicts; moved to the network's device.
        pictures: [3, H, W] each, on the CPU, in [0, 1].
        seed: Of the noise.

    Returns:
        Change (`CHANGES`) -> `Agreement`. At 90 degrees a field knows nothing.
    """
    found, device = {}, pgn.mean.device
    loss = loss.to(device)
    for name, change in CHANGES.items():
        rows = []
        for index, picture in enumerate(pictures):
            y = picture.unsqueeze(0)
            x = change(y, generator(seed, name, index)).to(device)
            y = y.to(device)
            _, true = value_and_gradient(loss, x, y)
            angle, ratio = agreement(pgn.gradient(x, y), true)
            rows.append((float(angle), math.log(float(ratio)), float(agreement(x - y, true)[0])))
        angles, logs, pixels = zip(*rows, strict=True)
        found[name] = Agreement(fmean(angles), math.exp(fmean(logs)), fmean(pixels))
    return found
