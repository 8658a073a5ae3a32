"""Pictures of any size for networks that work on blocks of pixels: the edges, in eager calls and in exported graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def extend(x: Tensor, side: int, mode: str = "replicate", least: int = 0) -> Tensor:
    """Extend [B, C, H, W] at the right and the bottom to multiples of `side`.

    Args:
        x: [B, C, H, W].
        side: Pixels of a block.
        mode: What is added: "replicate", the border, or "constant", zeros.
        least: The smallest size of the result, a multiple of `side`.

    Returns:
        x itself where it fits. While an export records a graph for every size, the graph holds the arithmetic.
    """
    height, width = x.shape[-2:]
    if not (isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)):
        pad_h, pad_w = (max(-size % side, least - size) for size in (height, width))
        return F.pad(x, (0, pad_w, 0, pad_h), mode=mode) if pad_h or pad_w else x
    rows, columns = (whole_size(size, side, least) for size in (height, width))
    if mode == "constant":
        return F.pad(x, (0, columns - width, 0, rows - height))
    for dim, size, whole in ((-2, height, rows), (-1, width, columns)):
        x = x.index_select(dim, torch.arange(whole, device=x.device).clamp(max=size - 1))
    return x


def whole_size(size: Any, side: int, least: int = 0) -> Any:
    """Return the size, a number or a symbol of an export, rounded up to a multiple of `side`, at least `least`."""
    whole = (size + side - 1) // side * side
    return torch.sym_max(whole, least) if least else whole
