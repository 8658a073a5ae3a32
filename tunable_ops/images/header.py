"""What the header of a picture says of the work that decoding it is, for those who read pictures of strangers."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from tunable_ops.images.source import (
    Source,
    TooManyPixels,
    UnknownFormat,
    errors,
    format_of,
    opened_with_pillow,
    quiet,
    tiff_pages,
)

__all__ = ["ANIMATIONS", "Header", "read_header", "read_webp_size"]

ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")
"""The formats, as Pillow names them, of which all frames are read."""
_CHANNELS = 4  # at most, of what is not TIFF


class Header(NamedTuple):
    """What a file claims to be.

    Args:
        format: Format as Pillow names it, such as "PNG".
        size: Height and width of the first frame, as stored: no orientation is applied.
        frames: Number of frames or pages.
        pixels: Height times width of all frames or pages.
        values: Numbers that decoding them all makes: channels, depth and the padding of tiles counted.
    """

    format: str
    size: tuple[int, int]
    frames: int
    pixels: int
    values: int


def read_header(
    path: str | os.PathLike[str] | bytes, formats: tuple[str, ...] | None = None, max_frames: int | None = None
) -> Header:
    """Read what a picture claims to be, without decoding any of it.

    Args:
        path: The file, or its bytes; the content, not an extension, decides the format.
        formats: Formats that may be opened, of "PNG", "JPEG", "WEBP" and "TIFF": all others are refused by their first
            bytes, so that no decoder of another format sees them. None: any that Pillow knows.
        max_frames: Frames or pages that are allowed; None: any.

    Raises:
        ValueError: The file is missing, is not a picture or of another format (`UnknownFormat`), has too many frames
            (`TooManyPixels`), or its header is damaged.

    Example:
        >>> from tunable_ops.images import Frame, encode_picture
        >>> import numpy as np
        >>> read_header(encode_picture([Frame(np.zeros((7, 9, 3), np.uint8))], "png")).size
        (7, 9)
    """
    source = Source.of(path)
    with errors(source):
        kind = format_of(source.start())
        if formats is not None and kind not in formats:
            why = f"not a picture, or none of {', '.join(formats)}"
            raise UnknownFormat(why, why)
        if kind == "TIFF":
            return _tiff_header(source, max_frames)
        header = _webp_header(source.read()) if kind == "WEBP" else _pillow_header(source)
        if max_frames is not None and header.frames > max_frames:
            raise TooManyPixels("", f"it has more than {max_frames} frames or pages")
        return header


def _pillow_header(source: Source) -> Header:
    with opened_with_pillow(source) as opened:
        name = "JPEG" if opened.format == "MPO" else str(opened.format)
        width, height = opened.size
        count = getattr(opened, "n_frames", 1) if name in ANIMATIONS else 1
    return _header(name, height, width, count)


def _header(name: str, height: int, width: int, count: int) -> Header:
    pixels = height * width * count
    return Header(name, (height, width), count, pixels, _CHANNELS * pixels)


def read_webp_size(content: bytes) -> tuple[int, int]:
    """Return height and width of the canvas of a WebP file.

    Raises:
        ValueError: Its header is damaged.
    """
    return _webp_header(content).size


def _webp_header(content: bytes) -> Header:
    """Read a WebP file chunk by chunk: its decoder takes memory for the whole canvas as soon as it is made."""
    at, size, count = 12, None, 0
    while at + 8 <= len(content):
        name, (length,) = content[at : at + 4], struct.unpack_from("<I", content, at + 4)
        count += name == b"ANMF"
        size = size or _webp_size(name, content[at + 8 : at + 18])
        at += 8 + length + length % 2
    if size is None:
        raise ValueError("its header is damaged")
    return _header("WEBP", *size, max(count, 1))


def _webp_size(name: bytes, chunk: bytes) -> tuple[int, int] | None:
    """Return height and width as the start of a chunk has them; None for another chunk."""
    if len(chunk) < 10 and name in (b"VP8X", b"VP8 "):
        return None
    if name == b"VP8X":
        return int.from_bytes(chunk[7:10], "little") + 1, int.from_bytes(chunk[4:7], "little") + 1
    if name == b"VP8 " and chunk[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", chunk, 6)
        return height & 0x3FFF, width & 0x3FFF
    if name == b"VP8L" and len(chunk) >= 5 and chunk[0] == 0x2F:
        bits = int.from_bytes(chunk[1:5], "little")
        return ((bits >> 14) & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return None


def _tiff_header(source: Source, most: int | None) -> Header:
    """Add up what all pages claim."""
    import tifffile

    pixels = values = 0
    size = (0, 0)
    with quiet(), tifffile.TiffFile(source.given()) as tiff:
        for count, page in enumerate(tiff_pages(tiff, most), 1):
            size = size if count > 1 else (page.imagelength, page.imagewidth)
            pixels += page.imagelength * page.imagewidth
            samples = max(page.samplesperpixel, _CHANNELS)
            tile = page.tilelength * page.tilewidth * max(page.tiledepth, 1) if page.is_tiled else 0
            values += samples * max(page.imagelength * page.imagewidth * max(page.imagedepth, 1), tile)
    return Header("TIFF", size, count, pixels, values)
