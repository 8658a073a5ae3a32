"""Sizes that a network is run at: pictures padded to a bucket, the results cropped back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["PADDINGS", "Sizes", "pad"]

PADDINGS = ("reflect", "replicate")


class Sizes:
    """The sizes that pictures are padded to.

    Args:
        sizes: None: every picture as it is. A number: its multiples. Pairs (height, width): the smallest that holds the
            picture, by area.
        padding: What the pixels below and to the right of the picture are: its own, mirrored at the last row or column
            ("reflect"), or the last ones repeated ("replicate").

    Raises:
        TypeError, ValueError: They are none of these.
    """

    def __init__(self, sizes: int | Sequence[tuple[int, int]] | None = None, padding: str = "reflect") -> None:
        if padding not in PADDINGS:
            raise ValueError(f"Runner: padding must be one of {', '.join(PADDINGS)}; got {padding!r}")
        self.padding, self.given = padding, sizes
        self.multiple = 1
        self.buckets: list[tuple[int, int]] = []
        if sizes is None:
            return
        if isinstance(sizes, int):
            if isinstance(sizes, bool) or sizes < 1:
                raise ValueError(f"Runner: sizes must be at least 1; got {sizes}")
            self.multiple = sizes
            return
        try:
            self.buckets = sorted({(int(h), int(w)) for h, w in sizes}, key=lambda size: (size[0] * size[1], size))
        except (TypeError, ValueError) as error:
            raise TypeError(f"Runner: sizes must be a number or pairs (height, width); got {sizes!r}") from error
        if not self.buckets or any(min(size) < 1 for size in self.buckets):
            raise ValueError(f"Runner: sizes must hold pairs of at least 1; got {sizes!r}")

    def padded(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the size that a picture is padded to; None if no bucket holds it."""
        if not self.buckets:
            return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple
        return next(((h, w) for h, w in self.buckets if h >= height and w >= width), None)

    def side(self, step: int) -> int:
        """Return the side of the largest square that a bucket holds, a multiple of `step`."""
        return max((min(size) for size in self.buckets), default=0) // step * step

    def limit(self, most: int, step: int) -> int:
        """Keep the sizes without a side above a limit.

        Args:
            most: Pixels.
            step: What the side of the square is a multiple of.

        Returns:
            The side of the largest square that stays within it when padded; 0 where there is none.
        """
        if self.buckets:
            self.buckets = [size for size in self.buckets if max(size) <= most]
            return self.side(step)
        return most // self.multiple * self.multiple // step * step

    def run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``function(x)`` [B, O, s H, s W], computed at the padded size.

        Raises:
            ValueError: No bucket holds the picture.
        """
        height, width = x.shape[-2:]
        size = self.padded(height, width)
        if size is None:
            raise ValueError(f"Runner: sizes must hold the picture; got {height}x{width} for {self.buckets}")
        if size == (height, width):
            return function(x)
        out = function(pad(x, size, self.padding))
        scale = out.shape[-1] // size[1]
        # a copy: a view would keep the whole in memory, and is no longer dense
        return out[..., : scale * height, : scale * width].clone()


def pad(x: Tensor, size: tuple[int, int], padding: str) -> Tensor:
    """Return [B, C, *size] with the picture at the top left.

    Mirrors as often as it takes: unlike `torch.nn.functional.pad`, more than one picture's size may be added.

    Args:
        x: [B, C, H, W].
        size: At least (H, W).
        padding: One of `PADDINGS`.

    Example:
        >>> pad(torch.arange(3.0).view(1, 1, 1, 3), (1, 8), "reflect").flatten().tolist()
        [0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0]
    """
    for axis, length in zip((-2, -1), size, strict=True):
        if x.shape[axis] < length:
            x = x.index_select(axis, _places(x.shape[axis], length, padding).to(x.device))
    return x


def _places(old: int, new: int, padding: str) -> Tensor:
    """Return for each position of the new axis that of the old one."""
    places = torch.arange(new)
    if padding == "replicate" or old == 1:
        return places.clamp(max=old - 1)
    period = 2 * (old - 1)
    places = places % period
    return torch.minimum(places, period - places)
