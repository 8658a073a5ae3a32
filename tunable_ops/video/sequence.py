"""Numbered pictures as a video: `frames/%05d.png`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from tunable_ops import images
from tunable_ops.images import Frame
from tunable_ops.video.shot import Mark, Shape, Shot, checksum

__all__ = ["Sequence", "is_pattern", "numbered"]

_FIELD = re.compile(r"%0?(\d*)d")


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """Return True if a name stands for numbered pictures: one %d, %4d or %05d in its last part."""
    return len(_FIELD.findall(Path(path).name)) == 1


def numbered(pattern: Path, number: int) -> Path:
    """Return the file of a number."""
    return pattern.with_name(pattern.name % number)


class Sequence:
    """The pictures of a pattern, in the order of their numbers, as frames.

    Args:
        pattern: Such as `frames/%05d.png`.
        rate: Frames per second.
        max_pixels: Refuse larger pictures.

    Attributes:
        shape: Size, format, rate, ...
        first: The lowest number.
        notes: What the pictures hold and frames do not, in a sentence each.

    Raises:
        ValueError: There are none, a number is missing, or the first is no picture.
    """

    left_out: frozenset[str] = frozenset()
    interlaced = False

    def __init__(self, pattern: Path, rate: Fraction, max_pixels: int | None = None) -> None:
        self.path, self.max_pixels = pattern, max_pixels
        numbers = _numbers(pattern)
        if not numbers:
            raise ValueError(f"video: pattern must match numbered pictures; got {str(pattern)!r} without one")
        self.first, last = numbers[0], numbers[-1]
        if last - self.first + 1 != len(numbers):
            known = set(numbers)
            gap = next(number for number in range(self.first, last) if number not in known)
            raise ValueError(
                f"video: pictures must be numbered without a gap; got {str(pattern)!r} with {len(numbers)} from "
                f"{self.first} to {last}, but no {numbered(pattern, gap).name!r}"
            )
        picture = images.open_picture(numbered(pattern, self.first), max_pixels)
        height, width = picture.size
        deep = "48le" if picture.bits > 8 else "24"
        self.bits = picture.bits
        self.shape = Shape(
            width=width,
            height=height,
            pixel_format=("rgba64le" if deep == "48le" else "rgba") if picture.alpha else f"rgb{deep}",
            time_base=1 / rate,
            rate=rate,
            count=len(numbers),
            seconds=float(len(numbers) / rate),
        )
        self.notes: list[str] = []

    def frames(self, done: Mark | None = None) -> Iterator[Shot]:
        """Yield the frames after those that are done.

        Raises:
            ValueError: A file is no picture, is too large, or of another size; or the last frame that is done changed.
        """
        count = done.count if done is not None else 0
        if done is not None and count and checksum(self._frame(count - 1).colour) != done.check:
            raise ValueError(
                f"video: {numbered(self.path, self.first + count - 1).name!r} must be what it was in the run before; "
                "got another: start anew (--restart)"
            )
        for number in range(count, self.shape.count or 0):
            frame = self._frame(number)
            yield Shot(frame.colour, frame.alpha, number, 1, metadata=frame.metadata)

    def samples(self, count: int) -> Iterator[Shot]:
        """Yield up to `count` frames, spread over the sequence, for measurements."""
        total = self.shape.count or 0
        for number in sorted({int(total * (k + 0.5) / count) for k in range(count)}):
            frame = self._frame(number)
            yield Shot(frame.colour, None, number, subsampled=frame.subsampled)

    def _frame(self, number: int) -> Frame:
        path = numbered(self.path, self.first + number)
        picture = images.open_picture(path, self.max_pixels)
        if picture.size != (self.shape.height, self.shape.width):
            height, width = picture.size
            raise ValueError(
                f"video: pictures must have one size, {self.shape.width}x{self.shape.height}; got {width}x{height} for "
                f"{path.name!r}"
            )
        return next(picture.frames())


def _numbers(pattern: Path) -> list[int]:
    """Return the numbers of a pattern's files, sorted."""
    field = _FIELD.search(pattern.name)
    if field is None or not pattern.parent.is_dir():
        return []
    before, after = pattern.name[: field.start()] % (), pattern.name[field.end() :] % ()
    name = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    found = (match for entry in os.scandir(pattern.parent) if (match := name.fullmatch(entry.name)))
    return sorted(int(match[1]) for match in found if match[0] == pattern.name % int(match[1]))
