"""Read pictures of more than 8 bits per channel, which Pillow would reduce to 8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = [
    "Pixels",
    "is_deep_avif",
    "is_deep_jpeg2000",
    "is_deep_png",
    "is_deep_pnm",
    "is_deep_tiff",
    "read_jpeg2000",
    "read_png",
    "read_pnm",
    "read_tiff_page",
    "unit",
]

Pixels = np.ndarray[Any, Any]
_MINISWHITE, _MINISBLACK, _RGB, _CMYK = 0, 1, 2, 5


def is_deep_png(start: bytes) -> bool:
    """Return True for the first 25 bytes of a PNG file of 16 bits per channel."""
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and start[24:25] == b"\x10"


def read_png(content: bytes) -> Pixels:
    """Read a PNG file as uint16 [H, W, C]."""
    import imagecodecs

    pixels = imagecodecs.png_decode(content)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def is_deep_pnm(start: bytes) -> bool:
    """Return True for the first bytes of a binary PPM or PGM file of more than 8 bits."""
    return start[:2] in (b"P5", b"P6") and (header := _pnm_header(start)) is not None and header[2] > 255


def read_pnm(content: bytes) -> Pixels:
    """Read a binary PPM or PGM file of 16 bits as uint16 [H, W, C]."""
    header = _pnm_header(content)
    assert header is not None
    width, height, top, at = header
    channels = 1 if content[:2] == b"P5" else 3
    values = np.frombuffer(content, ">u2", width * height * channels, at).reshape(height, width, channels)
    return _scaled(values, top)


def _pnm_header(content: bytes) -> tuple[int, int, int, int] | None:
    """Return width, height, largest value and the offset of the pixels."""
    numbers: list[int] = []
    at = 2
    while len(numbers) < 3:
        if content[at : at + 1].isspace():
            at += 1
        elif content[at : at + 1] == b"#":
            at = content.find(b"\n", at)
            if at < 0:
                return None
        else:
            end = at
            while content[end : end + 1].isdigit():
                end += 1
            if end == at or end - at > 9:
                return None
            numbers.append(int(content[at:end]))
            at = end
    return numbers[0], numbers[1], numbers[2], at + 1


def is_deep_jpeg2000(start: bytes) -> bool:
    """Return True for the first 256 bytes of a JPEG 2000 file of more than 8 bits, unsigned."""
    return 8 < _jpeg2000_bits(start) <= 16


def read_jpeg2000(content: bytes) -> Pixels:
    """Read a JPEG 2000 file of 9 to 16 bits as uint16 [H, W, C]."""
    import imagecodecs

    pixels = imagecodecs.jpeg2k_decode(content)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return _scaled(pixels, (1 << _jpeg2000_bits(content)) - 1)


def _jpeg2000_bits(content: bytes) -> int:
    """Return the bits per channel: those of the first one in the SIZ marker; 0 for another file, or signed values."""
    at = content.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(content) < at + 43 or not content.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return 0
    precision = content[at + 42]
    return 0 if precision & 0x80 else precision + 1


def is_deep_avif(start: bytes) -> bool:
    """Return True for the first 65,536 bytes of an AVIF file of more than 8 bits, as its decoder configuration says."""
    at = start.find(b"av1C")
    return 0 <= at < len(start) - 6 and bool(start[at + 6] & 0x40)


def is_deep_tiff(page: TiffPage) -> bool:
    """Return True for a page of more than 8 bits per channel."""
    return page.bitspersample > 8


def read_tiff_page(page: TiffPage) -> Pixels:
    """Read a page as uint8, uint16 or float32 [H, W, C], as it is stored.

    Raises:
        ValueError: Neither grey, RGB nor CMYK, or values that no picture has.
    """
    photometric = int(page.photometric)
    base = {_MINISWHITE: 1, _MINISBLACK: 1, _RGB: 3, _CMYK: 4}.get(photometric)
    if base is None:
        raise ValueError(f"{page.photometric!s} of {page.bitspersample} bits is not supported")
    pixels = page.asarray()
    if page.samplesperpixel == 1:
        pixels = pixels.reshape(page.imagelength, page.imagewidth, 1)
    elif int(page.planarconfig) == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = _scaled(pixels, (1 << page.bitspersample) - 1) if pixels.dtype.kind == "u" else _floats(pixels)
    if pixels.ndim != 3 or pixels.shape[2] < base or 0 in pixels.shape:
        raise ValueError(f"its tags contradict each other: {list(pixels.shape)} values for {base} channels")
    extra = [int(kind) for kind in page.extrasamples][: pixels.shape[2] - base]
    colour, alpha = pixels[..., :base], None
    if 1 in extra or 2 in extra:
        kind = 1 if 1 in extra else 2
        alpha = pixels[..., base + extra.index(kind)][..., None]
        if kind == 1:
            colour = _divided(colour, alpha)
    if photometric == _CMYK:
        inks = unit(colour)
        colour = _like((1 - inks[..., :3]) * (1 - inks[..., 3:]), colour)
    elif photometric == _MINISWHITE:
        colour = _like(1 - unit(colour), colour)
    return colour if alpha is None else np.concatenate([colour, alpha], axis=2)


def unit(pixels: Pixels) -> Pixels:
    """Return pixels as float32 in [0, 1]."""
    if pixels.dtype == np.float32:
        return pixels
    return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max


def _like(values: Pixels, pixels: Pixels) -> Pixels:
    """Convert float32 in [0, 1] to the type of `pixels`."""
    if pixels.dtype == np.float32:
        return values
    return (values.clip(0, 1) * np.iinfo(pixels.dtype).max).round().astype(pixels.dtype)


def _divided(colour: Pixels, alpha: Pixels) -> Pixels:
    """Undo the multiplication of colours by alpha."""
    opacity = unit(alpha)
    return _like(unit(colour) / np.where(opacity > 0, opacity, 1), colour)


def _scaled(values: Pixels, top: int) -> Pixels:
    """Scale unsigned integers up to `top` to uint16, unless they fit 8 bits exactly."""
    if top in (255, 65535):
        return values.astype(np.uint8 if top == 255 else np.uint16)
    return (values.astype(np.float64) * (65535 / top)).round().clip(0, 65535).astype(np.uint16)


def _floats(values: Pixels) -> Pixels:
    """Return floating-point values that lie in [0, 1] as float32.

    Raises:
        ValueError: They do not, or are signed integers.
    """
    if values.dtype.kind != "f":
        raise ValueError(f"values must be unsigned integers or floating point; got {values.dtype}")
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"F values must lie in [0, 1]; got {values.min():g} to {values.max():g}")
    return values.astype(np.float32)
