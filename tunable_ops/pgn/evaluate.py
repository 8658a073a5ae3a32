"""How well a PGN's field agrees with the true gradient, on pictures changed in ways that training never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.losses import Perceptual
from tunable_ops.pgn.network import PGN
from tunable_ops.pgn.trainer import agreement, true_gradient
from tunable_ops.train.seeding import generator

__all__ = ["CHANGES", "evaluate_pgn"]


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


def evaluate_pgn(
    pgn: PGN, loss: Perceptual, pictures: Sequence[Tensor], seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Mean angle (degrees) between the predicted and the true gradient, and geometric mean of the ratio of norms.

    Args:
        pgn: the network.
        loss: what it imitates.
        pictures: [3, H, W] each, in [0, 1].
        seed: of the noise.

    Returns:
        change (`CHANGES`) -> (angle, ratio). At 90 degrees the field knows nothing.
    """
    found = {}
    for name, change in CHANGES.items():
        angles, ratios = [], []
        for index, picture in enumerate(pictures):
            y = picture.unsqueeze(0)
            x = change(y, generator(seed, name, index))
            angle, ratio = agreement(pgn.gradient(x, y), true_gradient(loss, x, y)[0])
            angles.append(float(angle))
            ratios.append(math.log(float(ratio)))
        found[name] = (sum(angles) / len(angles), math.exp(sum(ratios) / len(ratios)))
    return found
