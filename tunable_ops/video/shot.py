"""What is between reading and writing: frames, and the marks at which work goes on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunable_ops.video.colour import ColourTags

if TYPE_CHECKING:
    from tunable_ops.images import Metadata

__all__ = ["DamageError", "Mark", "Shape", "Shot", "checksum"]


def checksum(colour: Tensor) -> int:
    """Return a checksum of a picture's values."""
    return zlib.crc32(colour.contiguous().view(-1).view(torch.uint8).numpy().data)


class DamageError(ValueError):
    """The video is damaged, at a place that the message names."""


@dataclass(frozen=True)
class Shot:
    """A frame.

    Args:
        colour: float32 [3 or 1, H, W] in [0, 1].
        alpha: Opacity, [1, H, W], or None.
        pts: When it is shown, in the source's time base.
        duration: For how long, 0 if that is not known.
        moved: True if this or an earlier timestamp is not that of the file.
        metadata: Of a picture of a sequence.
        subsampled: True if the file has fewer pixels of colour than of luma; known of samples alone.
    """

    colour: Tensor
    alpha: Tensor | None
    pts: int
    duration: int = 0
    moved: bool = False
    metadata: Metadata | None = None
    subsampled: bool = False

    @property
    def grey(self) -> bool:
        """True if it has one channel, or three that are equal in every pixel."""
        return self.colour.shape[0] == 1 or bool((self.colour[1:] == self.colour[:1]).all())

    @property
    def check(self) -> int:
        """Checksum of the colours."""
        return checksum(self.colour)


@dataclass(frozen=True)
class Mark:
    """The last of the frames that are done: how many there are, its timestamp and its checksum.

    Args:
        count: Number of frames that are done.
        pts: Timestamp of the last one.
        check: Its checksum.
        moved: True if timestamps are not those of the file, so that it cannot be sought by them.
    """

    count: int
    pts: int
    check: int
    moved: bool = False


@dataclass(frozen=True)
class Shape:
    """What a source says of its frames.

    Args:
        width: Pixels in a row.
        height: Rows.
        pixel_format: Name of the format, as FFmpeg has it.
        time_base: Seconds of a step of the timestamps.
        rate: Frames per second, on average.
        count: Number of frames, where it is known or can be estimated.
        seconds: Length, where it is known.
        aspect: Width of a pixel over its height.
        tags: Colours.
        matrix: Nine integers of the display matrix (rotation), or None.
    """

    width: int
    height: int
    pixel_format: str
    time_base: Fraction
    rate: Fraction
    count: int | None = None
    seconds: float | None = None
    aspect: Fraction | None = None
    tags: ColourTags = field(default_factory=ColourTags)
    matrix: tuple[int, ...] | None = None
