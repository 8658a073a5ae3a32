"""Frames of pictures through a network, whatever their channels and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.grey import on_grey
from tunable_ops.tiles import apply_tiled

if TYPE_CHECKING:
    from tunable_ops.images import Frame

__all__ = ["MULTIPLE", "mask_of", "restored", "run_network"]

MULTIPLE = 16
"""Tiles start at multiples of this: suits networks of total stride 2, 4, 8 and 16."""


@torch.no_grad()
def run_network(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    channels: int = 3,
    tile: int = 512,
    overlap: int = 64,
    multiple: int = MULTIPLE,
) -> Tensor:
    """Run a network on a picture in colour or grey, in tiles.

    A grey picture goes through a network for colour as `grey.on_grey` says; a network of one channel runs on each of
    three, which are then samples of one batch.

    Args:
        network: [B, channels, h, w] -> [B, O, s h, s w], O = 1 or 3.
        image: [3, H, W], or [1, H, W] in grey.
        channels: Channels that the network takes, 1 or 3.
        tile: Size of tiles in pixels, as for `tiles.apply_tiled`; 0: the whole picture.
        overlap: Their overlap in pixels.
        multiple: Tiles start at multiples of this.

    Returns:
        [3, s H, s W], or [1, s H, s W] in grey, on the CPU.

    Raises:
        ValueError: The network returns other channels, or NaN or infinity; as for `tiles.apply_tiled`.

    Example:
        >>> run_network(lambda x: 1 - x, torch.full((1, 4, 5), 0.25)).unique()
        tensor([0.7500])
    """
    grey, alone = image.shape[0] == 1, channels == 1
    function = on_grey(network, channels) if grey else network
    batch = image[:, None] if alone and not grey else image[None]
    result = apply_tiled(function, batch, tile, overlap, multiple) if tile else function(batch).cpu()
    output = result[:, 0] if alone and not grey else result[0]
    if output.shape[0] not in (1, 3):
        raise ValueError(f"run_network: network must return pictures of 1 or 3 channels; got {list(result.shape)}")
    if not bool(torch.isfinite(output.sum())) and not bool(torch.isfinite(output).all()):
        raise ValueError("run_network: network must return finite values; got NaN or infinity")
    return output


def mask_of(frame: Frame) -> Tensor:
    """Return the mask that a picture stands for, [1, H, W]: 1 where it is white, 0 where black or transparent.

    Colours count by their mean. Values are rounded to 16 bits, so that a mask that was saved is the same mask.
    """
    mask = frame.colour.mean(0, keepdim=True)
    if frame.alpha is not None:
        mask = mask * frame.alpha
    return mask.mul(65535).round().div(65535)


def restored(frame: Frame, output: Tensor, bits: int | None = None) -> Frame:
    """Return a frame with what a network has made of its colours, and all else that it had.

    Args:
        frame: What was read.
        output: [1 or 3, s H, s W]; one channel is written with the channels that the frame has. Alpha is enlarged with
            the colours.
        bits: 8 or 16; None for those of the frame.
    """
    return type(frame).of(
        output.expand(frame.colours, -1, -1) if output.shape[0] == 1 else output,
        _resized(frame.alpha, output.shape[1:]),
        bits=bits or frame.bits,
        duration=frame.duration,
        metadata=frame.metadata,
    )


def _resized(alpha: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """Enlarge alpha [1, H, W] as the network did the colours."""
    if alpha is None or tuple(alpha.shape[1:]) == tuple(size):
        return alpha
    return F.interpolate(alpha[None], tuple(size), mode="bicubic")[0].clamp(0, 1)
