"""Collect what describes a picture: ICC profile, EXIF, XMP, resolution, text."""

from __future__ import annotations

import re
import struct
from typing import Any, BinaryIO

from PIL import Image

from tunable_ops.images.picture import Metadata

__all__ = [
    "EXIF_IFD",
    "GPS_IFD",
    "ORIENTATION",
    "collect",
    "entries",
    "from_ifd",
    "orientation_of",
    "patched",
    "png_chunks",
]

ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
_ICC, _XMP, _IPTC = 34675, 700, 33723
_WIDTH, _HEIGHT, _INTEROP = 0xA002, 0xA003, 0xA005
# of a TIFF directory, what describes the picture and not where its pixels are
_DESCRIBING = (
    269,
    270,
    271,
    272,
    285,
    305,
    306,
    315,
    316,
    33432,
    _IPTC,
    18246,
    18249,
    40091,
    40092,
    40093,
    40094,
    40095,
)
_CHUNKS = (b"cHRM", b"gAMA", b"sRGB", b"cICP", b"tIME")


def orientation_of(opened: Image.Image) -> int:
    """Return the EXIF orientation 1 to 8, 1 if there is none or it cannot be read."""
    try:
        value = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block is no reason to refuse the picture
        return 1
    return value if value in range(1, 9) else 1


def collect(opened: Image.Image, chunks: tuple[tuple[bytes, bytes], ...] = ()) -> Metadata:
    """Collect the metadata of a picture that Pillow has loaded."""
    info = opened.info
    texts = {
        key: str(value)
        for key, value in getattr(opened, "text", {}).items()
        if key != "XML:com.adobe.xmp" and not key.startswith("Raw profile type ")
    }
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    comment = info.get("comment")
    return Metadata(
        icc=info.get("icc_profile") or None,
        exif=_exif_of(opened),
        xmp=_upright_xmp(xmp),
        dpi=_resolution(info.get("dpi") or _exif_resolution(opened), orientation_of(opened)),
        texts=texts,
        comment=comment.encode() if isinstance(comment, str) else comment,
        chunks=chunks,
    )


def from_ifd(directory: Image.Exif) -> Metadata:
    """Collect the metadata of a page from its TIFF directory."""
    icc, xmp = directory.get(_ICC), directory.get(_XMP)
    return Metadata(
        icc=bytes(icc) if icc else None,
        exif=describing_tags(directory),
        xmp=_upright_xmp(bytes(xmp) if isinstance(xmp, (bytes, tuple)) else xmp),
        dpi=_resolution(_inches(directory), directory.get(ORIENTATION, 1)),
        subfile=int(directory.get(254, 0)) & 7,
    )


def describing_tags(directory: Image.Exif) -> bytes | None:
    """Return an EXIF block of the tags of a TIFF directory that describe the picture."""
    exif = Image.Exif()
    for tag in _DESCRIBING:
        if tag in directory:
            exif[tag] = directory[tag]
    for tag in (EXIF_IFD, GPS_IFD):
        part = entries(directory, tag)
        if part:
            exif.get_ifd(tag).update(part)
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    return block if len(block) > 14 else None


def _inches(directory: Image.Exif) -> tuple[float, float] | None:
    """Return the resolution of a directory in pixels per inch."""
    unit = {2: 1.0, 3: 2.54}.get(directory.get(296, 2))
    x, y = directory.get(282), directory.get(283)
    return (float(x) * unit, float(y) * unit) if unit and x and y else None


def entries(exif: Image.Exif, tag: int) -> dict[int, Any]:
    """Return the directory of EXIF or GPS tags, with what is below it in place of offsets."""
    part = dict(exif.get_ifd(tag))
    if isinstance(part.get(_INTEROP), int):
        part[_INTEROP] = exif.get_ifd(_INTEROP)
    return part


def patched(exif: bytes, size: tuple[int, int] | None = None) -> bytes | None:
    """Set the orientation of an EXIF block to 1, leave its thumbnail out, and enter a new size.

    All other bytes stay where they are, because notes of camera makers hold offsets.

    Args:
        exif: The block, from its byte-order mark on.
        size: Height and width; None leaves what is there.

    Returns:
        The new block, or None if it is damaged.
    """
    block = bytearray(exif)
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(block[:4])]
        (start,) = struct.unpack_from(order + "I", block, 4)
        end = _patch_directory(block, order, start, size)
        if end + 4 <= len(block):
            struct.pack_into(order + "I", block, end, 0)  # no second directory: its thumbnail shows the old picture
    except (KeyError, struct.error):
        return None
    return bytes(block)


def _patch_directory(block: bytearray, order: str, start: int, size: tuple[int, int] | None) -> int:
    """Patch one directory; return the offset of its link to the next."""
    (count,) = struct.unpack_from(order + "H", block, start)
    wanted = {ORIENTATION: 1}
    if size is not None:
        wanted |= {_HEIGHT: size[0], _WIDTH: size[1]}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", block, at)
        if tag == EXIF_IFD:
            (inner,) = struct.unpack_from(order + "I", block, at + 8)
            _patch_directory(block, order, inner, size)
        elif tag in wanted and number == 1 and (kind == 4 or (kind == 3 and wanted[tag] < 1 << 16)):
            struct.pack_into(order + ("H" if kind == 3 else "I"), block, at + 8, wanted[tag])
    return start + 2 + 12 * count


def png_chunks(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """Return the chunks of a PNG file that describe colour or date."""
    found = []
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name in _CHUNKS:
            found.append((name, file.read(length)))
            file.seek(4, 1)
        else:
            file.seek(length + 4, 1)
    return tuple(found)


def _exif_resolution(opened: Image.Image) -> tuple[float, float] | None:
    """Return the resolution that EXIF has, for formats without a place of their own."""
    try:
        return _inches(opened.getexif()) if opened.format in ("WEBP", "AVIF") else None
    except Exception:  # damaged
        return None


def _exif_of(opened: Image.Image) -> bytes | None:
    try:
        if opened.format == "TIFF":
            return describing_tags(opened.getexif())
        exif = opened.info.get("exif")
        if not exif:
            directory = opened.getexif()
            exif = directory.tobytes() if len(directory) else None
    except Exception:  # damaged
        return None
    return patched(exif.removeprefix(b"Exif\0\0")) if exif else None


def _upright_xmp(xmp: Any) -> bytes | None:
    if not xmp:
        return None
    packet = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    return re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", packet)


def _resolution(dpi: Any, orientation: int) -> tuple[float, float] | None:
    """Return the resolution of the upright picture; None if it makes no sense."""
    try:
        x, y = float(dpi[0]), float(dpi[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    if not (0 < x < 1e7 and 0 < y < 1e7):
        return None
    return (y, x) if orientation >= 5 else (x, y)
