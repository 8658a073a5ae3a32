"""Painted masks: from the strokes on a canvas to a share of lambda at every pixel."""

from __future__ import annotations

import base64
import binascii

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import images
from tunable_ops.app import pictures
from tunable_ops.app.settings import Refused

__all__ = ["FEATHER", "feathered", "ink", "painted"]

FEATHER = 4
"""Pixels by which the edge of a painted mask fades, on both sides."""
_START = "data:image/png;base64,"
_MOST_PIXELS = 1 << 22  # of a canvas
_SAME = 1.5 / 255  # what a browser may change of ink that nobody touches


def ink(mask: Tensor) -> Tensor:
    """Return how opaque a mask [1, H, W] is drawn on the canvas, [1, h, w], a multiple of 1 / 255 in [0, 1]."""
    return pictures.shrunk(mask).clamp(0, 1).mul(255).round().div(255)


def painted(url: str, size: tuple[int, int], under: Tensor | None = None) -> Tensor | None:
    """Return the mask [1, H, W] of what was painted in any colour, or None for nothing.

    A mask from a file that strokes lie on keeps its bits and its edges where none has changed it:
    ``max(under * (1 - erased), added)``, of strokes with soft edges.

    Args:
        url: The canvas, as a URL that holds a PNG file.
        size: H and W of the picture, which may be larger than what was painted on.
        under: The mask [1, H, W] whose `ink` the canvas began with.

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
    alpha = torch.zeros(1, *size) if alpha is None else alpha
    drawn = None if under is None else ink(under)
    if under is None or drawn is None or drawn.shape != alpha.shape:
        mask = _soft(alpha, size)
    else:
        other = (alpha - drawn).abs() > _SAME
        added = torch.where(other & (alpha > drawn), alpha, 0.0)
        erased = torch.where(other & (alpha < drawn), 1 - alpha / drawn.clamp(min=1 / 255), 0.0)
        # Past the edge of the mask, too: nothing of the edge is to stay where strokes have erased it.
        near = F.max_pool2d(erased[None], 2 * FEATHER + 3, 1, FEATHER + 1)[0]
        erased = torch.where((drawn == 0) & (alpha == 0), near, erased)
        mask = torch.maximum(under * (1 - _soft(erased, size)), _soft(added, size))
    return mask if bool(mask.any()) else None


def _soft(layer: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a layer of strokes in the size of the picture, with soft edges."""
    if tuple(layer.shape[1:]) != tuple(size):
        layer = F.interpolate(layer[None], size, mode="bilinear", antialias=True)[0]
    return feathered(layer)


def feathered(mask: Tensor, radius: int = FEATHER) -> Tensor:
    """Return a mask [1, H, W] with soft edges; exactly 0 from `radius` pixels outside on, 1 as deep inside."""
    padded = F.pad(mask[None], (radius,) * 4, mode="replicate")
    soft = F.avg_pool2d(padded, 2 * radius + 1, 1)[0]
    return torch.where(soft < 1e-4, 0.0, torch.where(soft > 1 - 1e-4, 1.0, soft))
