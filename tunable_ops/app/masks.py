"""Painted masks: from the strokes on a canvas to a share of lambda at every pixel."""

from __future__ import annotations

import base64
import binascii

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import images
from tunable_ops.app.settings import Refused

__all__ = ["FEATHER", "feathered", "painted"]

FEATHER = 4
"""Pixels by which the edge of a painted mask fades, on both sides."""
_START = "data:image/png;base64,"
_MOST_PIXELS = 1 << 22  # of a canvas


def painted(url: str, size: tuple[int, int]) -> Tensor | None:
    """Return the mask [1, H, W] of what was painted in any colour, or None for nothing.

    Args:
        url: The canvas, as a URL that holds a PNG file.
        size: H and W of the picture, which may be larger than what was painted on.

    Raises:
        Refused: It is no such URL.
    """
    if not url:
        return None
    try:
        content = base64.b64decode(url.removeprefix(_START), validate=True)
        images.read_header(content, ("PNG",), 1)
        alpha = next(images.open_picture(content, _MOST_PIXELS).frames()).alpha
    except (binascii.Error, ValueError) as error:
        raise Refused(f"the strokes must be a PNG file of the page's canvas; got {url[:30]!r}") from error
    if alpha is None or not bool(alpha.any()):
        return None
    mask = alpha
    if tuple(mask.shape[1:]) != tuple(size):
        mask = F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0]
    return feathered(mask)


def feathered(mask: Tensor, radius: int = FEATHER) -> Tensor:
    """Return a mask [1, H, W] with soft edges; exactly 0 from `radius` pixels outside on, 1 as deep inside."""
    padded = F.pad(mask[None], (radius,) * 4, mode="replicate")
    soft = F.avg_pool2d(padded, 2 * radius + 1, 1)[0]
    return torch.where(soft < 1e-4, 0.0, torch.where(soft > 1 - 1e-4, 1.0, soft))
