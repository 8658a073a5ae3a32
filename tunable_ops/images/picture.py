"""What a picture file holds: frames of pixels, and what describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Frame", "Metadata", "Picture", "quantise"]

_BAND = 1024  # rows


@dataclass(frozen=True)
class Metadata:
    """What is carried from file to file beside the pixels.

    Args:
        icc: ICC profile.
        exif: EXIF block, from its byte-order mark on; its orientation is 1, as pixels are upright once read.
        xmp: XMP packet.
        dpi: Pixels per inch, horizontally and vertically.
        texts: Text by keyword, as in PNG.
        comment: Comment, as in JPEG and GIF.
        chunks: (name, content) of PNG chunks that describe colour or date.
        subfile: What a page of a TIFF is (NewSubfileType), such as 1 for a smaller version of another.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: dict[str, str] = field(default_factory=dict)
    comment: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    subfile: int = 0


@dataclass(frozen=True)
class Frame:
    """One frame of an animation, page of a document, or the only picture of a file.

    Args:
        pixels: uint8, uint16 or float32 [H, W, C]: grey, grey and alpha, RGB, or RGB and alpha. Alpha is not
            premultiplied; floating-point values lie in [0, 1].
        duration: Milliseconds, in an animation.
        metadata: ICC profile, EXIF, ...
        subsampled: True if the file has fewer pixels of colour than of luma (JPEG as 4:2:0 or 4:2:2, lossy WebP).
    """

    pixels: np.ndarray[Any, Any]
    duration: float | None = None
    metadata: Metadata = field(default_factory=Metadata)
    subsampled: bool = False

    @classmethod
    def of(
        cls, colour: Tensor, alpha: Tensor | None = None, *, bits: int, duration: float | None, metadata: Metadata
    ) -> Frame:
        """Round a picture [1 or 3, H, W], clamped to [0, 1], and alpha [1, H, W] to 8 or 16 bits."""
        parts = [colour] if alpha is None else [colour, alpha]
        return cls(np.concatenate([quantise(part, bits) for part in parts], axis=2), duration, metadata)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def bits(self) -> int:
        """Bits per channel that hold the pixels: 8 or 16."""
        return 8 if self.pixels.dtype == np.uint8 else 16

    @property
    def colours(self) -> int:
        """Number of channels without alpha: 1 (grey) or 3."""
        return 1 if self.pixels.shape[2] < 3 else 3

    @property
    def is_grey(self) -> bool:
        """True if there is one channel without alpha, or three that are equal in every pixel."""
        colours = self.pixels[..., : self.colours]
        return self.colours == 1 or all(np.array_equal(colours[..., 0], colours[..., k]) for k in (1, 2))

    @property
    def has_alpha(self) -> bool:
        """True if the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)

    @property
    def colour(self) -> Tensor:
        """Colours without alpha, float32 [1 or 3, H, W] in [0, 1]."""
        return _to_tensor(self.pixels[..., : self.colours])

    @property
    def alpha(self) -> Tensor | None:
        """Opacity, float32 [1, H, W] in [0, 1], or None for a picture without."""
        return _to_tensor(self.pixels[..., self.colours :]) if self.has_alpha else None

    def rgb(self) -> Tensor:
        """Return the picture on white, float32 [3, H, W] in [0, 1]."""
        colour, alpha = self.colour, self.alpha
        if alpha is not None:
            colour = colour * alpha + (1 - alpha)
        return colour.expand(3, -1, -1).contiguous()

    def with_bits(self, bits: int) -> Frame:
        """Return the same frame with 8 or 16 bits."""
        if (self.pixels.dtype, bits) in ((np.uint8, 8), (np.uint16, 16)):
            return self
        return Frame(quantise(_to_tensor(self.pixels), bits), self.duration, self.metadata)

    def opaque(self) -> Frame:
        """Return the frame without alpha, laid on white."""
        if not self.has_alpha:
            return self
        alpha = self.alpha
        assert alpha is not None
        return Frame(quantise(self.colour * alpha + (1 - alpha), self.bits), self.duration, self.metadata)


@dataclass(frozen=True)
class Picture:
    """A picture file; its frames are read one by one, when they are asked for.

    Args:
        path: The file; None for a picture in memory.
        format: Format as Pillow names it, such as "PNG".
        lossless: True if the file was written without loss.
        size: Height and width of the first frame.
        count: Number of frames or pages.
        animated: True if the frames are an animation, False for pages.
        bits: Bits per channel of the first frame, 8 or 16.
        alpha: True if the first frame has transparency.
        loop: How often an animation plays, 0 for ever; None if the file does not say.
        separate_first: True if the first frame is shown only where the animation cannot be (APNG).
        metadata: That of the first frame.
        notes: What this library cannot carry, in a sentence each.
        reader: Reads the frames.
    """

    path: Path | None
    format: str
    lossless: bool
    size: tuple[int, int]
    count: int
    animated: bool
    bits: int
    alpha: bool
    loop: int | None
    separate_first: bool
    metadata: Metadata
    notes: tuple[str, ...]
    reader: Callable[[], Iterator[Frame]] = field(repr=False)

    def frames(self) -> Iterator[Frame]:
        """Read the frames, from the first.

        Raises:
            ValueError: The file is damaged.
        """
        return self.reader()


def quantise(values: Tensor, bits: int) -> np.ndarray[Any, Any]:
    """Round [C, H, W], clamped to [0, 1], to unsigned integers [H, W, C] of 8 or 16 bits."""
    top, dtype = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    channels, height, width = values.shape
    pixels = np.empty((height, width, channels), dtype)
    for row in range(0, height, _BAND):  # large pictures need little memory besides themselves
        part = values.detach()[:, row : row + _BAND].float().clamp(0, 1).mul(top).round().permute(1, 2, 0)
        pixels[row : row + _BAND] = part.cpu().numpy()
    return pixels


def _to_tensor(pixels: np.ndarray[Any, Any]) -> Tensor:
    values = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C"))
    return values if pixels.dtype == np.float32 else values.div_(255 if pixels.dtype == np.uint8 else 65535)
