"""Encode frames as PNG, JPEG, WebP, TIFF, GIF, BMP or PPM, with their metadata."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from tunable_ops.images.metadata import EXIF_IFD, GPS_IFD, entries, patched
from tunable_ops.images.picture import Frame, Metadata

__all__ = ["KINDS", "Kind", "encode", "fits"]

_NAMES = {EXIF_IFD: "ExifTag", GPS_IFD: "GPSTag"}
_SEGMENT = 65000  # bytes of metadata that a segment of a JPEG file holds, besides its header
_ALL = frozenset({"ICC profile", "EXIF", "XMP"})


class Kind(NamedTuple):
    """What a kind of file can hold: bits per channel, alpha, several frames, a quality, which metadata."""

    bits: int
    alpha: bool
    many: bool
    quality: bool = False
    metadata: frozenset[str] = frozenset()


KINDS = {
    "png": Kind(16, alpha=True, many=True, metadata=_ALL | {"text"}),
    "jpg": Kind(8, alpha=False, many=False, quality=True, metadata=_ALL),
    "webp": Kind(8, alpha=True, many=True, quality=True, metadata=_ALL),
    "tiff": Kind(16, alpha=True, many=True, metadata=_ALL),
    "gif": Kind(8, alpha=True, many=True),
    "bmp": Kind(8, alpha=False, many=False),
    "ppm": Kind(16, alpha=False, many=False),
}


def encode(kind: str, frames: Sequence[Frame], quality: int | None, loop: int | None, separate_first: bool) -> bytes:
    """Return the bytes of a file; `frames` have no more bits and channels than it holds.

    Args:
        kind: A name in `KINDS`.
        frames: One, or several where the kind holds them.
        quality: 1 to 100, or None.
        loop: How often an animation plays, or None.
        separate_first: True if the first frame of an APNG is not part of the animation.
    """
    if kind == "tiff":
        return _tiff(frames)
    frame = frames[0]
    if kind == "ppm":
        name, top = ("P5", "P6")[frame.colours == 3], 255 if frame.bits == 8 else 65535
        header = f"{name}\n{frame.size[1]} {frame.size[0]}\n{top}\n".encode()
        return header + frame.pixels.astype(">u2" if frame.bits == 16 else "u1").tobytes()
    if len(frames) > 1:
        frames = _alike(frames)
        frame = frames[0]
    if kind == "png" and frame.bits == 16 and len(frames) == 1:
        return _deep_png(frame)
    options = _options(kind, frame, quality)
    if kind == "gif":
        pictures, transparent = [_palette(frame) for frame in frames], any(frame.has_alpha for frame in frames)
        options |= {"transparency": 255, "disposal": 2} if transparent else {}
    else:
        pictures = [_to_pillow(frame.with_bits(8)) for frame in frames]
    if len(frames) > 1:
        options |= _animation(kind, frames, loop, separate_first)
    stream = io.BytesIO()
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
    if len(frames) > 1:
        options["append_images"] = pictures[1:]
    pictures[0].save(stream, format=formats[kind], **options)
    return stream.getvalue()


def _alike(frames: Sequence[Frame]) -> list[Frame]:
    """Give all frames of an animation the same channels and bits.

    Raises:
        ValueError: They differ in size.
    """
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        text = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"images: frames of an animation must have one size; got {text}: use tiff")
    alpha, colours = any(frame.has_alpha for frame in frames), max(frame.colours for frame in frames)
    result = []
    for frame in (frame.with_bits(8) for frame in frames):
        pixels = frame.pixels
        colour, opacity = pixels[..., : frame.colours], pixels[..., frame.colours :]
        if frame.colours < colours:
            colour = np.repeat(colour, colours, axis=2)
        if alpha and not frame.has_alpha:
            opacity = np.full_like(pixels[..., :1], 255)
        result.append(Frame(np.concatenate([colour, opacity], axis=2), frame.duration, frame.metadata))
    return result


def _animation(kind: str, frames: Sequence[Frame], loop: int | None, separate_first: bool) -> dict[str, Any]:
    durations = [frame.duration or 0 for frame in frames]
    options: dict[str, Any] = {"save_all": True}
    if kind == "png":
        options |= {"duration": durations[1:] if separate_first else durations, "disposal": 0, "blend": 0}
        options |= {"default_image": separate_first, "loop": loop or 0}
    else:
        options["duration"] = [round(duration) for duration in durations]
        if kind == "webp":  # key frames only: differences lose alpha where the colours under it are equal
            options |= {"kmin": 0, "kmax": 1}
        if kind == "webp" or loop is not None:
            options["loop"] = loop or 0
    return options


def _options(kind: str, frame: Frame, quality: int | None) -> dict[str, Any]:
    """Return what Pillow's writer needs besides the pixels."""
    metadata = frame.metadata
    options: dict[str, Any] = {}
    if kind == "jpg":
        options |= {"quality": 95 if quality is None else quality, "subsampling": 0}
    elif kind == "webp":
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
    if kind in ("png", "jpg", "webp"):
        if (profile := _profile(metadata, frame)) is not None:
            options["icc_profile"] = profile
        if (exif := _exif(metadata, frame, kind)) is not None and fits(kind, exif):
            options["exif"] = b"Exif\0\0" + exif
        if metadata.xmp is not None and kind != "png" and fits(kind, metadata.xmp):
            options["xmp"] = metadata.xmp
    if metadata.dpi is not None and kind in ("png", "jpg", "bmp"):
        options["dpi"] = metadata.dpi
    if metadata.comment is not None and kind in ("jpg", "gif"):
        options["comment"] = metadata.comment
    if kind == "png":
        options["pnginfo"] = _png_info(metadata)
    return options


def fits(kind: str, block: bytes) -> bool:
    """Return True if a kind of file has room for an EXIF or XMP block of this length."""
    return kind != "jpg" or len(block) <= _SEGMENT


def _profile(metadata: Metadata, frame: Frame) -> bytes | None:
    """Return the ICC profile if it is one for the frame's channels."""
    space = None if metadata.icc is None else metadata.icc[16:20]
    return metadata.icc if space == (b"GRAY" if frame.colours == 1 else b"RGB ") else None


def _exif(metadata: Metadata, frame: Frame, kind: str = "") -> bytes | None:
    if metadata.exif is not None:
        return patched(metadata.exif, frame.size)
    if kind != "webp" or metadata.dpi is None:
        return None
    resolution = Image.Exif()  # WebP has no other place for it
    resolution[282], resolution[283], resolution[296] = *metadata.dpi, 2
    return resolution.tobytes().removeprefix(b"Exif\0\0")


def _png_info(metadata: Metadata) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, content in metadata.chunks:
        info.add(name, content)
    texts = dict(metadata.texts)
    if metadata.comment:
        texts.setdefault("Comment", metadata.comment.decode("utf-8", "replace"))
    for key, text in texts.items():
        info.add_text(key, text)
    if metadata.xmp is not None:
        info.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    return info


def _deep_png(frame: Frame) -> bytes:
    """Encode 16 bits, with the chunks that Pillow writes for the same metadata."""
    import imagecodecs

    stream = io.BytesIO()
    pixels = np.zeros((1, 1, 3), np.uint8) if frame.colours == 3 else np.zeros((1, 1), np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG", **_options("png", frame, None))
    small, at, chunks = stream.getvalue(), 8, b""
    while at < len(small):
        (length,) = struct.unpack_from(">I", small, at)
        if small[at + 4 : at + 8] not in (b"IHDR", b"IDAT", b"IEND"):
            chunks += small[at : at + length + 12]
        at += length + 12
    content = imagecodecs.png_encode(_flat(frame.pixels), level=6)
    return bytes(content[:33] + chunks + content[33:])  # after the signature and IHDR


def _palette(frame: Frame) -> Image.Image:
    """Reduce a frame to a palette, whose last entry is transparent where alpha is below one half."""
    colour = Image.fromarray(_flat(frame.pixels[..., : frame.colours])).convert("RGB")
    if not frame.has_alpha:
        return colour.quantize(256, dither=Image.Dither.NONE)
    picture = colour.quantize(255, dither=Image.Dither.NONE)
    hidden = Image.fromarray(np.where(frame.pixels[..., -1] < 128, 255, 0).astype(np.uint8))
    picture.paste(255, mask=hidden)
    return picture


def _to_pillow(frame: Frame) -> Image.Image:
    return Image.fromarray(_flat(frame.pixels))


def _flat(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels as writers want them: grey without an axis of channels."""
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _tiff(frames: Sequence[Frame]) -> bytes:
    import tifffile

    stream = io.BytesIO()
    size = sum(frame.pixels.nbytes for frame in frames)
    with tifffile.TiffWriter(stream, byteorder="<", bigtiff=size > 2**32 - 2**25) as writer:
        for frame in frames:
            metadata = frame.metadata
            options: dict[str, Any] = {}
            if metadata.dpi is not None:
                options |= {"resolution": metadata.dpi, "resolutionunit": "INCH"}
            if (profile := _profile(metadata, frame)) is not None:
                options["iccprofile"] = profile
            writer.write(
                _flat(frame.pixels),
                photometric="rgb" if frame.colours == 3 else "minisblack",
                planarconfig="contig" if frame.pixels.shape[2] > 1 else None,
                extrasamples=("unassalpha",) if frame.has_alpha else None,
                compression="zlib",
                predictor=True,
                metadata=None,
                software=False,
                extratags=_tags(metadata, frame),
                contiguous=False,
                subfiletype=metadata.subfile,
                **options,
            )
    return _with_directories(stream.getvalue(), frames)


def _directory(metadata: Metadata, frame: Frame) -> Image.Exif:
    exif = Image.Exif()
    block = _exif(metadata, frame)
    if block is not None:
        exif.load(b"Exif\0\0" + block)
    return exif


def _tags(metadata: Metadata, frame: Frame) -> list[tuple[Any, ...]]:
    """Return the tags of EXIF's first directory and XMP; the directories below it get a place to be filled in."""
    exif = _directory(metadata, frame)
    tags: list[tuple[Any, ...]] = []
    for tag, value in exif.items():
        if isinstance(value, str):
            text = value.encode() + b"\0"
            tags.append((tag, 2, len(text), text, True))
        elif isinstance(value, bytes):
            tags.append((tag, 7 if tag == 33723 else 1, len(value), value, True))
    # by name: by number tifffile leaves them out
    tags += [(_NAMES[tag], 4, 1, 0, True) for tag in _NAMES if exif.get_ifd(tag)]
    if metadata.xmp is not None:
        tags.append((700, 1, len(metadata.xmp), metadata.xmp, True))
    return tags


def _with_directories(content: bytes, frames: Sequence[Frame]) -> bytes:
    """Append the EXIF and GPS directories of all pages of a little-endian TIFF file, and enter their offsets."""
    result = bytearray(content)
    wide = content[2] == 43  # BigTIFF
    count_format, entry, link = ("<Q", 20, "<Q") if wide else ("<H", 12, "<I")
    (at,) = struct.unpack_from(link, content, 8 if wide else 4)
    for frame in frames:
        exif = _directory(frame.metadata, frame)
        (count,) = struct.unpack_from(count_format, content, at)
        at += struct.calcsize(count_format)
        for place in range(at, at + count * entry, entry):
            (tag,) = struct.unpack_from("<H", content, place)
            if tag in _NAMES and len(result) < 1 << 31:
                result += b"\0" * (len(result) % 2)
                directory = TiffImagePlugin.ImageFileDirectory_v2(ifh=b"II*\0\x08\0\0\0", group=tag)
                for key, value in entries(exif, tag).items():
                    directory[key] = value
                struct.pack_into("<I", result, place + entry - struct.calcsize(link), len(result))
                result += directory.tobytes(len(result))
        (at,) = struct.unpack_from(link, content, at + count * entry)
    return bytes(result)
