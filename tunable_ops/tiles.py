"""Apply a network to large images tile by tile, without seams."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["apply_tiled", "tile_windows"]


@torch.no_grad()
def apply_tiled(
    function: Callable[[Tensor], Tensor], image: Tensor, tile: int = 512, overlap: int = 64, multiple: int = 1
) -> Tensor:
    r"""Compute function(image) from overlapping tiles.

    Along each axis the image is cut into windows [a_i, b_i) of at most `tile` pixels; neighbours overlap by at least
    `overlap` pixels (`tile_windows`). d = overlap // 3 pixels are discarded at every inner edge, and the results are
    cross-faded over the f = overlap - 2 d pixels in the middle of the overlap:

        c_i    = (a_{i+1} + b_i) / 2                           middle of the overlap of windows i and i+1
        t_i(x) = clamp((x + 1/2 - c_i) / f + 1/2, 0, 1)
        r_i(x) = t_i^2 (3 - 2 t_i)                             0 before, 1 after; r_{-1} = 1, r_{n-1} = 0
        w_i(x) = r_{i-1}(x) - r_i(x)                           weight of window i
        out(y, x) = sum_ij w_i(y) w_j(x) function(window ij)(y, x)

    The sum over i telescopes to r_{-1} - r_{n-1} = 1, and since all ramps have the same shape and c_i increases, no
    weight is negative: a partition of unity. Window i has weight only at least d pixels inside its inner edges.
    So if an output pixel depends on input pixels at most d away (seven 3x3 convolutions: d = 7), the result is that for
    the whole image, up to the rounding of the cross-fade; with a larger receptive field, or global statistics, it
    changes smoothly from tile to tile. With overlap = 0 tiles are placed edge to edge.

    No gradients are computed. Memory holds the output (in float32 for half precision, rounded at the end) and what one
    tile needs. The output is on the image's device, whatever device the function uses. A map that belongs to the image
    (of lambda, or of noise levels) can be passed as additional channels:
    `apply_tiled(lambda x: net(x[:, :3], x[:, 3:]), torch.cat([image, map], 1))`.

    Args:
        function: [B, C, h, w] -> [B, O, s h, s w] with an integer s >= 1 (super-resolution), determined from the first
            tile.
        image: [B, C, H, W], floating point.
        tile: Largest height and width of a window in pixels; a multiple of `multiple`.
        overlap: Smallest overlap of neighbours in pixels, from 0 to tile - multiple.
        multiple: Windows start at multiples of this number: the total stride (or unshuffling factor) of the network.

    Returns:
        [B, O, s H, s W], in the dtype that the function returns.

    Raises:
        TypeError: `image`, or what `function` returns, is not a floating-point tensor.
        ValueError: `image` has the wrong rank or is empty, sizes do not fit together, or an output is not s times as
            large as its input.

    Example:
        >>> image = torch.rand(1, 3, 70, 90)
        >>> same = apply_tiled(lambda x: x.flip(1), image, tile=32, overlap=12)
        >>> torch.allclose(same, image.flip(1), atol=1e-6)
        True
    """
    _check_image(image)
    height, width = image.shape[-2:]
    rows = tile_windows(height, tile, overlap, multiple)
    columns = tile_windows(width, tile, overlap, multiple)
    out: Tensor | None = None
    scale, dtype = 1, image.dtype
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            part = function(image[..., top:bottom, left:right])
            if out is None:
                scale, dtype = _scale(part, image, bottom - top, right - left), part.dtype
                shape = (*part.shape[:2], scale * height, scale * width)
                wide = torch.promote_types(dtype, torch.float32)
                out = torch.zeros(shape, dtype=wide, device=image.device)
                row_weights = _weights(rows, overlap, scale, out)
                column_weights = _weights(columns, overlap, scale, out)
            expected = (*out.shape[:2], scale * (bottom - top), scale * (right - left))
            if tuple(part.shape) != expected:
                raise ValueError(
                    f"apply_tiled: function must return {list(expected)} for a tile {bottom - top}x{right - left}, "
                    f"as for the first tile; got {list(part.shape)}"
                )
            (y0, wy), (x0, wx) = row_weights[i], column_weights[j]
            used = part[..., y0 - scale * top :, x0 - scale * left :][..., : len(wy), : len(wx)]
            target = out[..., y0 : y0 + len(wy), x0 : x0 + len(wx)]
            target.addcmul_(used.to(target), wy[:, None] * wx)
    assert out is not None
    return out.to(dtype)


def tile_windows(size: int, tile: int, overlap: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Cut one axis into windows (start, stop) of at most `tile` pixels, spread evenly.

    Starts are multiples of `multiple`, neighbours overlap by at least `overlap` pixels, and the last window ends at
    `size`.

    Args:
        size: Length of the axis, at least 1.
        tile: Largest window, a positive multiple of `multiple`.
        overlap: Smallest overlap, from 0 to tile - multiple.
        multiple: Factor of the starts, at least 1.

    Raises:
        TypeError: An argument is not an int.
        ValueError: An argument is out of range.

    Example:
        >>> tile_windows(100, tile=48, overlap=16, multiple=4)
        [(0, 48), (24, 72), (52, 100)]
    """
    for name, value in (("size", size), ("tile", tile), ("overlap", overlap), ("multiple", multiple)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"apply_tiled: {name} must be an int; got {value!r}")
    if size < 1:
        raise ValueError(f"apply_tiled: size must be at least 1; got {size}")
    if multiple < 1:
        raise ValueError(f"apply_tiled: multiple must be at least 1; got {multiple}")
    if tile < 1 or tile % multiple:
        raise ValueError(f"apply_tiled: tile must be a positive multiple of {multiple} (multiple); got {tile}")
    if not 0 <= overlap <= tile - multiple:
        raise ValueError(
            f"apply_tiled: overlap must lie in 0..{tile - multiple} (tile - multiple); got {overlap}: "
            "use larger tiles or less overlap"
        )
    if size <= tile:
        return [(0, size)]
    last = -(-(size - tile) // multiple)  # start of the last window, in units of `multiple`
    count = -(-last // ((tile - overlap) // multiple))  # steps from the first window to the last
    starts = [multiple * (i * last // count) for i in range(count + 1)]
    return [(start, min(start + tile, size)) for start in starts]


def _weights(windows: list[tuple[int, int]], overlap: int, scale: int, like: Tensor) -> list[tuple[int, Tensor]]:
    """Return for each window its first output pixel with weight, and the weights from there on."""
    fade = overlap - 2 * (overlap // 3)
    middles = [(right[0] + left[1]) / 2 for left, right in pairwise(windows)]
    reach = fade / 2
    result = []
    for i, (start, stop) in enumerate(windows):
        first = start if i == 0 else max(start, int(middles[i - 1] - reach))
        end = stop if i == len(middles) else min(stop, int(-(-(middles[i] + reach) // 1)))
        x = (torch.arange(scale * first, scale * end, dtype=torch.float64) + 0.5) / scale
        rise = torch.ones_like(x) if i == 0 else _ramp(x - middles[i - 1], fade)
        fall = torch.zeros_like(x) if i == len(middles) else _ramp(x - middles[i], fade)
        result.append((scale * first, (rise - fall).to(like)))
    return result


def _ramp(x: Tensor, fade: int) -> Tensor:
    t = (x / fade + 0.5).clamp(0, 1) if fade else (x > 0).to(x.dtype)
    return t * t * (3 - 2 * t)


def _check_image(image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"apply_tiled: image must be a tensor; got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"apply_tiled: image must be floating point; got {image.dtype}")
    if image.ndim != 4:
        raise ValueError(f"apply_tiled: image must be [B, C, H, W]; got {list(image.shape)}")
    if 0 in image.shape[-2:]:
        raise ValueError(f"apply_tiled: image must have at least one pixel; got {list(image.shape)}")


def _scale(part: object, image: Tensor, height: int, width: int) -> int:
    if not isinstance(part, Tensor) or not part.is_floating_point():
        kind = part.dtype if isinstance(part, Tensor) else type(part).__name__
        raise TypeError(f"apply_tiled: function must return a floating-point tensor; got {kind}")
    given = [image.shape[0], image.shape[1], height, width]
    scale = part.shape[-1] // width if part.ndim == 4 else 0
    if scale < 1 or part.shape[0] != image.shape[0] or tuple(part.shape[2:]) != (scale * height, scale * width):
        raise ValueError(
            f"apply_tiled: function must return [B, O, s h, s w] with an integer s >= 1; got {list(part.shape)} "
            f"for a tile {given}"
        )
    return scale
