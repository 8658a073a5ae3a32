"""Painted masks: from the layers of an editor to a share of lambda at every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FEATHER", "feathered", "painted"]

FEATHER = 4
"""Pixels by which the edge of a painted mask fades, on both sides."""


def painted(layers: Sequence[Any], size: tuple[int, int]) -> Tensor | None:
    """Return the mask [1, H, W] of what was painted in any colour, or None for nothing.

    Args:
        layers: RGBA pictures, uint8 [h, w, 4], or None, as an editor returns them.
        size: H and W of the picture, which may be larger than what was painted on.
    """
    opaque = [np.asarray(layer)[..., 3] for layer in layers if layer is not None]
    if not opaque or not any(bool(layer.any()) for layer in opaque):
        return None
    mask = torch.from_numpy(np.maximum.reduce(opaque).astype(np.float32) / 255)[None]
    if tuple(mask.shape[1:]) != tuple(size):
        mask = F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0]
    return feathered(mask)


def feathered(mask: Tensor, radius: int = FEATHER) -> Tensor:
    """Return a mask [1, H, W] with soft edges; exactly 0 from `radius` pixels outside on, 1 as deep inside."""
    padded = F.pad(mask[None], (radius,) * 4, mode="replicate")
    soft = F.avg_pool2d(padded, 2 * radius + 1, 1)[0]
    return torch.where(soft < 1e-4, 0.0, torch.where(soft > 1 - 1e-4, 1.0, soft))
