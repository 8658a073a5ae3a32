"""Read pictures of every format that Pillow knows, and those of more than 8 bits with all their bits."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from torch import Tensor

from tunable_ops.images import deep
from tunable_ops.images.deep import Pixels
from tunable_ops.images.header import ANIMATIONS, read_webp_size
from tunable_ops.images.metadata import ORIENTATION, collect, from_ifd, orientation_of, png_chunks
from tunable_ops.images.picture import Frame, Metadata, Picture
from tunable_ops.images.source import (
    TIFF_MAGIC,
    Source,
    TooManyPixels,
    errors,
    format_of,
    opened_with_pillow,
    quiet,
    tiff_pages,
)

__all__ = ["open_picture", "read_image", "read_images", "read_size"]

_LOSSLESS = ("BMP", "GIF", "PNG", "PPM", "QOI", "TGA", "TIFF")


def read_image(path: str | os.PathLike[str], max_pixels: int | None = None) -> Tensor:
    """Read one picture as RGB.

    The EXIF orientation is applied. Grey and palette pictures become RGB; transparent ones are placed on white. 16-bit
    pictures keep their 16 bits (value / 65535), floating point must lie in [0, 1]. Only the first frame of an animation
    and the first page of a document are read; `open_picture` gives them all, and alpha.

    Args:
        path: The file; its content, not its extension, decides the format.
        max_pixels: Largest height times width; None: any.

    Returns:
        float32 [3, H, W] in [0, 1], contiguous.

    Raises:
        ValueError: The file is missing, is not a picture, is truncated, too large or cannot be read.
    """
    return next(_frames(Source.of(path), max_pixels, first=True)).rgb()


def read_images(
    paths: Iterable[str | os.PathLike[str]], on_bad: Callable[[Path, ValueError], None] | None = None
) -> Iterator[tuple[Path, Tensor]]:
    """Read pictures one by one, skipping and reporting unreadable ones.

    Args:
        paths: The files, for example from `find_images`.
        on_bad: Called with the path and the error of each unreadable file; None: issue a `UserWarning`.

    Yields:
        (path, picture) of each readable file, in the given order.

    Raises:
        ValueError: At the end, if no file was readable.
    """
    good = bad = 0
    for path in map(Path, paths):
        try:
            picture = read_image(path)
        except ValueError as error:
            bad += 1
            if on_bad is None:
                warnings.warn(f"{error}; skipped", UserWarning, stacklevel=2)
            else:
                on_bad(path, error)
            continue
        good += 1
        yield path, picture
    if not good:
        raise ValueError(f"images: paths must hold at least one readable image; got {bad} files, none of them readable")


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return width and height of a picture as its header says; nothing is decoded, and no orientation applied.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing or is not a picture; one that is damaged further on is not noticed.
    """
    source = Source.of(path)
    with errors(source):
        if source.start()[:4] in TIFF_MAGIC:
            import tifffile

            with quiet(), tifffile.TiffFile(source.given()) as tiff:
                page = tiff.pages[0]
                assert isinstance(page, tifffile.TiffPage)
                return page.imagewidth, page.imagelength
        with opened_with_pillow(source) as opened:
            return opened.size


def open_picture(path: str | os.PathLike[str] | bytes, max_pixels: int | None = None) -> Picture:
    """Open a picture with everything that it holds; its frames are read when they are asked for.

    Args:
        path: The file, or its bytes; the content, not an extension, decides the format.
        max_pixels: Largest height times width; None: any.

    Raises:
        ValueError: The file is missing, is not a picture, is too large (`TooManyPixels`) or cannot be read.
    """
    source = Source.of(path)
    notes: list[str] = []
    first = next(_frames(source, max_pixels, first=True, notes=notes))
    with errors(source), ExitStack() as stack:
        kind = source.start()
        if kind[:4] in TIFF_MAGIC:
            opened: Any = None
            name, count, info = "TIFF", _page_count(source), {}
        else:
            opened = stack.enter_context(opened_with_pillow(source))
            name, count, info = opened.format, getattr(opened, "n_frames", 1), opened.info
    animated = count > 1 and name in ANIMATIONS
    if count > 1 and not animated and name != "TIFF":
        notes.append(f"only the first of its {count} pictures is read")
        count = 1
    if name == "AVIF" and deep.is_deep_avif(source.read(1 << 16)):
        notes.append("AVIF of 10 or 12 bits is read with 8 bits")
    if animated and deep.is_deep_png(kind):
        notes.append("animations of 16 bits are read with 8 bits")
        first = first.with_bits(8)
    return Picture(
        path=source.path,
        format=name,
        lossless=name in _LOSSLESS or (name == "WEBP" and _is_lossless_webp(source)),
        size=first.size,
        count=count,
        animated=animated,
        bits=first.bits,
        alpha=first.has_alpha,
        loop=info.get("loop") if animated else None,
        separate_first=bool(animated and info.get("default_image")),
        metadata=first.metadata,
        notes=tuple(dict.fromkeys(notes)),
        reader=(lambda: iter([first])) if count == 1 else lambda: _frames(source, max_pixels, first=False),
    )


def _frames(source: Source, max_pixels: int | None, first: bool, notes: list[str] | None = None) -> Iterator[Frame]:
    """Read the frames or pages of a file; only the first one where `first` says so."""
    notes = [] if notes is None else notes
    with errors(source):
        start = source.start()
        if start[:4] in TIFF_MAGIC:
            yield from _pages(source, max_pixels, first, notes)
        else:
            if max_pixels is not None and format_of(start) == "WEBP":
                height, width = read_webp_size(source.read())  # its decoder takes memory for the canvas at once
                _check_pixels((width, height), max_pixels)
            yield from _pillow_frames(source, start, max_pixels, first, notes)


def _pillow_frames(
    source: Source, start: bytes, max_pixels: int | None, first: bool, notes: list[str]
) -> Iterator[Frame]:
    with opened_with_pillow(source) as opened:
        _check_pixels(opened.size, max_pixels)
        count = 1 if first or opened.format not in ANIMATIONS else getattr(opened, "n_frames", 1)
        chunks: tuple[tuple[bytes, bytes], ...] = ()
        subsampled = not _is_lossless_webp(source) if opened.format == "WEBP" else _is_subsampled(opened)
        if opened.format == "PNG":
            with source.open() as stream:
                chunks = png_chunks(stream)
        for index in range(count):
            opened.seek(index)
            opened.load()
            metadata = collect(opened, chunks)
            if opened.info.get("exif") and metadata.exif is None:
                notes.append("its EXIF block is damaged and left out")
            if 0x0404 in (opened.info.get("photoshop") or {}):
                notes.append("its IPTC block is left out; XMP and EXIF are kept")
            if opened.mode in ("CMYK", "LAB"):
                metadata = replace(metadata, icc=None)  # of the inks; the pixels are sRGB now
            whole = opened.mode.startswith("I") and "transparency" not in opened.info  # Pillow keeps 16 bits of grey
            if count == 1 and deep.is_deep_png(start) and not whole:
                pixels = deep.read_png(source.read())
            elif deep.is_deep_pnm(start):
                pixels = deep.read_pnm(source.read())
            elif deep.is_deep_jpeg2000(start):
                pixels = deep.read_jpeg2000(source.read())
            else:
                pixels = _pixels(opened, notes)
            duration = opened.info.get("duration")
            yield Frame(_upright(pixels, orientation_of(opened)), duration, metadata, subsampled)


def _is_subsampled(opened: Any) -> bool:
    """Return True for a JPEG file in colour whose chroma has fewer pixels than its luma."""
    if opened.format not in ("JPEG", "MPO") or opened.layers != 3:
        return False
    (_, across, down, *_), *chroma = opened.layer
    return any(layer[1] < across or layer[2] < down for layer in chroma)


def _pages(source: Source, max_pixels: int | None, first: bool, notes: list[str]) -> Iterator[Frame]:
    """Read the pages of a TIFF file: with tifffile those of more than 8 bits, with Pillow the others."""
    import tifffile

    with quiet(), tifffile.TiffFile(source.given()) as tiff, source.open() as stream, ExitStack() as stack:
        opened: Image.Image | None = None
        for index, page in enumerate(tiff_pages(tiff)):
            if first and index:
                return
            _check_pixels((page.imagewidth, page.imagelength), max_pixels)
            metadata, orientation = _page_metadata(stream, page.offset, tiff.byteorder, tiff.is_bigtiff)
            opened = None if deep.is_deep_tiff(page) else opened or _opened_page(source, stack)
            if opened is None:
                pixels = deep.read_tiff_page(page)
                if int(page.photometric) == 5:
                    notes.append(_CMYK_NOTE)
                    metadata = replace(metadata, icc=None)
            else:
                opened.seek(index)
                opened.load()
                if opened.mode in ("CMYK", "LAB"):
                    metadata = replace(metadata, icc=None)
                pixels, orientation = _pixels(opened, notes), orientation_of(opened)  # Pillow may have turned it
            if len(page.extrasamples) > (pixels.shape[2] in (2, 4)):
                notes.append("channels beside colour and alpha are left out")
            yield Frame(_upright(pixels, orientation), None, metadata)


def _opened_page(source: Source, stack: ExitStack) -> Image.Image | None:
    """Open a TIFF file with Pillow; None if it does not know this layout."""
    try:
        return stack.enter_context(opened_with_pillow(source))
    except Image.UnidentifiedImageError:
        return None


def _page_count(source: Source) -> int:
    import tifffile

    with quiet(), tifffile.TiffFile(source.given()) as tiff:
        return sum(1 for _ in tiff_pages(tiff))


def _page_metadata(stream: Any, offset: int, order: str, big: bool) -> tuple[Metadata, int]:
    directory = Image.Exif()
    directory.endian, directory.bigtiff = order, big
    try:
        directory.load_from_fp(stream, offset)
        orientation = directory.get(ORIENTATION, 1)
        return from_ifd(directory), orientation if orientation in range(1, 9) else 1
    except Exception:  # damaged tags are no reason to refuse the picture
        return Metadata(), 1


def _check_pixels(size: tuple[int, int], max_pixels: int | None) -> None:
    if max_pixels is not None and size[0] * size[1] > max_pixels:
        why = f"{size[0]}x{size[1]} pixels are more than the limit of {max_pixels}"
        raise TooManyPixels(why, why)


_CMYK_NOTE = "CMYK inks without a profile become RGB by a simple formula"


def _pixels(picture: Image.Image, notes: list[str]) -> Pixels:
    """Return the pixels of a loaded picture as uint8, uint16 or float32 [H, W, C]."""
    mode = picture.mode
    if mode == "F" or mode.startswith("I"):
        return _deep_grey(picture)
    if mode in ("CMYK", "LAB"):
        return np.asarray(_to_srgb(picture, notes))
    if picture.has_transparency_data:
        pixels = np.asarray(picture.convert("RGBA"))
        return pixels[..., [0, 3]] if mode in ("1", "L", "LA", "La") else pixels
    if mode in ("1", "L"):
        return np.asarray(picture.convert("L"))[..., None]
    return np.asarray(picture.convert("RGB"))


def _to_srgb(picture: Image.Image, notes: list[str]) -> Image.Image:
    """Convert inks (CMYK) or Lab to sRGB, with the file's profile if it has one."""
    profile: Any = picture.info.get("icc_profile")
    srgb = ImageCms.createProfile("sRGB")
    try:
        if picture.mode == "LAB":
            return _converted(picture, ImageCms.createProfile("LAB"), srgb)
        if profile:
            return _converted(picture, ImageCms.getOpenProfile(io.BytesIO(profile)), srgb)
    except ImageCms.PyCMSError:
        pass  # the profile is damaged, or of other inks
    notes.append(_CMYK_NOTE)
    return picture.convert("RGB")


def _converted(picture: Image.Image, source: Any, target: Any) -> Image.Image:
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    converted = ImageCms.profileToProfile(picture, source, target, intent, "RGB", flags=flags)
    assert converted is not None
    return converted


def _deep_grey(picture: Image.Image) -> Pixels:
    """Convert grey with more than 8 bits: I;16 in any byte order, I (16-bit values in 32 bits), F (float)."""
    values = np.asarray(picture.convert("I") if picture.mode.startswith("I;") else picture)[..., None]
    top = 1 if picture.mode == "F" else 65535
    if not bool(((values >= 0) & (values <= top)).all()):
        raise ValueError(f"{picture.mode} values must lie in [0, {top}]; got {values.min():g} to {values.max():g}")
    return values.astype(np.float32 if picture.mode == "F" else np.uint16)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels that are stored with an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _is_lossless_webp(source: Source) -> bool:
    """Return True if the first picture of a WebP file is coded without loss (VP8L)."""
    start = source.start()
    position = {kind: start.find(kind, 12) for kind in (b"VP8 ", b"VP8L")}
    if position[b"VP8 "] < 0 and position[b"VP8L"] < 0:
        content = source.read()  # a large profile or animation header comes first
        position = {kind: content.find(kind, 12) for kind in position}
    return position[b"VP8L"] >= 0 and not 0 <= position[b"VP8 "] < position[b"VP8L"]
