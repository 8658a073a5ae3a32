"""Distorted pictures: what a restoration begins with, for a PGN to be right there as well.

Toys show a PGN where gradients lead, but not the pictures from which a denoiser or an editor sets out. Here these are
drawn at random: noise, lost detail or too much of it, lost contrast or colour, one or two of these in turn, from
almost nothing to all of the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tunable_ops.train.degradations import add_noise, bicubic_downsample

__all__ = ["distort"]

TWICE = 0.5  # share with a second distortion on top
NEARER = 0.5  # share that is moved back towards the picture
NEAREST = 0.05  # how much of the difference is left at least, uniform in the logarithm
BOUNDED = 0.5  # share clipped to [0, 1]


def distort(y: Tensor, source: torch.Generator) -> Tensor:
    """Distort one picture at random.

    Args:
        y: [1, 3, H, W] on the CPU, in [0, 1].
        source: Of all draws.

    Returns:
        [1, 3, H, W]; half of the results are clipped to [0, 1].
    """
    x = _any(y, source)
    if _uniform(source) < TWICE:
        x = _any(x, source)
    if _uniform(source) < NEARER:
        x = y + (x - y) * _log_uniform(source, NEAREST, 1)
    return x.clamp(0, 1) if _uniform(source) < BOUNDED else x


def _any(x: Tensor, source: torch.Generator) -> Tensor:
    kinds: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (_noisy, _coarse, _sharpened, _faded, _mixed)
    return kinds[int(torch.randint(len(kinds), (), generator=source))](x, source)


def _uniform(source: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=source))


def _log_uniform(source: torch.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** _uniform(source))


def _noisy(x: Tensor, source: torch.Generator) -> Tensor:
    """Add white noise of 2 to 100 / 255."""
    return add_noise(x, torch.tensor([_log_uniform(source, 2, 100)]), source)


def _coarse(x: Tensor, source: torch.Generator) -> Tensor:
    """Shrink by 1.5 to 8, and enlarge again."""
    return bicubic_downsample(x, _log_uniform(source, 1.5, 8), enlarge=True)


def _sharpened(x: Tensor, source: torch.Generator) -> Tensor:
    """Exaggerate what shrinking by 1.5 to 8 would lose, up to three times."""
    return x + _uniform(source, 0, 2) * (x - _coarse(x, source))


def _faded(x: Tensor, source: torch.Generator) -> Tensor:
    """Leave 0 to 100 % of the contrast, around the mean colour or around a grey."""
    around = x.mean((2, 3), keepdim=True) if _uniform(source) < 0.5 else torch.full_like(x, _uniform(source))
    return around + _uniform(source) * (x - around)


def _mixed(x: Tensor, source: torch.Generator) -> Tensor:
    """Replace 20 to 100 % by uniform noise."""
    return x + _uniform(source, 0.2, 1) * (torch.rand(x.shape, generator=source) - x)
