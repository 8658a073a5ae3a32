"""Write pictures with everything that their format can hold."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunable_ops.images.encode import KINDS, encode, fits
from tunable_ops.images.picture import Frame, Metadata, Picture, quantise

__all__ = [
    "SUFFIXES",
    "check_picture",
    "check_size",
    "default_kind",
    "encode_picture",
    "kind_of",
    "losses",
    "write_image",
    "write_picture",
]

SUFFIXES = {
    ".png": "png",
    ".apng": "png",
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".jpe": "jpg",
    ".jfif": "jpg",
    ".bmp": "bmp",
    ".ppm": "ppm",
    ".pgm": "ppm",
    ".pnm": "ppm",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".gif": "gif",
}
_OWN = {"PNG": "png", "TIFF": "tiff", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}
_ANIMATED = {"PNG": "png", "WEBP": "webp", "GIF": "gif"}
_SIDES = {"webp": 16383, "jpg": 65535, "gif": 65535}  # pixels; what the format can hold


def write_image(image: Tensor, path: str | os.PathLike[str], *, bits: int = 8, quality: int | None = None) -> Path:
    """Write one picture, rounded to 8 or 16 bits per channel: round(255 * clamp(image, 0, 1)).

    The file appears only when it is complete. JPEG is written at quality 95 without chroma subsampling, all other
    formats are lossless (GIF up to 256 colours, WebP unless `quality` is given).

    Args:
        image: [3, H, W] or [1, H, W] (grey), floating point, any device; values outside [0, 1] are clamped.
        path: File to write; its extension selects the format: .png .jpg .jpeg .bmp .ppm .tif .tiff .webp .gif; without
            an extension, .png is added. The folder must exist.
        bits: 8, or 16 for PNG, TIFF and PPM.
        quality: 1 to 100, for JPEG and lossy WebP.

    Returns:
        The path of the file.

    Raises:
        TypeError: `image` is not a floating-point tensor.
        ValueError: Wrong shape, NaN or infinity, an unknown extension, bits or quality that the format does not have,
            or a folder that does not exist.
        OSError: The file cannot be written.
    """
    check_picture("image", image)
    if bits not in (8, 16):
        raise ValueError(f"images: bits must be 8 or 16; got {bits!r}")
    file = Path(path)
    if not file.suffix:
        file = file.with_name(file.name + ".png")
    if KINDS[kind_of(file)].bits < bits:
        raise ValueError(f"images: bits must be 8 for {file.suffix}; got {bits}: use .png or .tiff")
    return write_picture([Frame(quantise(image, bits))], file, quality=quality)


def write_picture(
    frames: Iterable[Frame],
    path: str | os.PathLike[str],
    *,
    quality: int | None = None,
    loop: int | None = None,
    separate_first: bool = False,
    warn: bool = True,
) -> Path:
    """Write frames with their alpha, bits and metadata.

    What the format cannot hold is left out with a `UserWarning` that names it. The file appears only when it is
    complete.

    Args:
        frames: One; or an animation (PNG, WebP, GIF) or pages (TIFF).
        path: File to write; its extension selects the format, as for `write_image`. The folder must exist.
        quality: 1 to 100, for JPEG (default 95) and lossy WebP (default: lossless).
        loop: How often an animation plays, 0 for ever; None to leave it out.
        separate_first: True if the first frame is not part of the animation (APNG).
        warn: Issue the warnings.

    Returns:
        The path of the file.

    Raises:
        ValueError: No frames, several where the format holds one, too large a picture, an unknown extension, or a
            folder that does not exist.
        OSError: The file cannot be written.
    """
    file = Path(path)
    kind = kind_of(file)
    if not file.parent.is_dir():
        raise ValueError(f"images: path must lie in an existing folder; got {str(file)!r}: create the folder first")
    if quality is not None and not (KINDS[kind].quality and 1 <= quality <= 100):
        raise ValueError(f"images: quality must be 1 to 100, for .jpg or .webp; got {quality!r} for {file.name!r}")
    kept = list(frames)
    for loss in _losses(kept, len(kept), kind) if warn and kept else ():
        warnings.warn(f"{file.name!r}: {loss}", UserWarning, stacklevel=2)
    try:
        _store(encode_picture(kept, kind, quality=quality, loop=loop, separate_first=separate_first), file)
    except OSError as error:
        text = f"images: path must be writable; got {str(file)!r} ({error.strerror or error})"
        raise WriteError(error.errno, text) from error
    return file


def encode_picture(
    frames: Sequence[Frame],
    kind: str,
    *,
    quality: int | None = None,
    loop: int | None = None,
    separate_first: bool = False,
) -> bytes:
    """Return the bytes of the file that `write_picture` writes; what the format cannot hold is left out.

    Args:
        frames: One, or several where the format holds them.
        kind: A name in `KINDS`: png, jpg, webp, tiff, gif, bmp or ppm.
        quality: 1 to 100, for JPEG (default 95) and lossy WebP (default: lossless).
        loop: How often an animation plays, 0 for ever; None to leave it out.
        separate_first: True if the first frame is not part of the animation (APNG).

    Raises:
        ValueError: No frames, several where the format holds one, frames of an animation that differ in size, or too
            large a picture.
    """
    if not frames:
        raise ValueError("images: frames must hold at least one; got none")
    for frame in frames:
        check_size(kind, *frame.size, count=len(frames))
    return encode(kind, [_fitting(frame, kind) for frame in frames], quality, loop, separate_first)


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return the kind of file that an extension selects: png, jpg, webp, tiff, gif, bmp or ppm.

    Raises:
        ValueError: The extension is none of a format that can be written.
    """
    file = Path(path)
    kind = SUFFIXES.get(file.suffix.lower())
    if kind is None:
        raise ValueError(f"images: path must end in one of {' '.join(SUFFIXES)}; got {file.name!r}")
    return kind


def check_size(kind: str, height: int, width: int, count: int = 1) -> None:
    """Check that a kind of file can hold pictures of this size and number.

    Raises:
        ValueError: It cannot.
    """
    limit = _SIDES.get(kind)
    if limit is not None and max(height, width) > limit:
        raise ValueError(f"images: a side must be at most {limit} pixels in {kind}; got {width}x{height}: use png")
    if count > 1 and not KINDS[kind].many:
        raise ValueError(f"images: {kind} holds one picture; got {count} frames: use tiff, png or webp")


def default_kind(picture: Picture, bits: int, size: tuple[int, int]) -> str:
    """Return the kind of file that loses nothing of what becomes of a picture: its own if that can, else png.

    Args:
        picture: What was read.
        bits: 8 or 16, to be written.
        size: Height and width, to be written.
    """
    kind = _ANIMATED.get(picture.format) if picture.animated else _OWN.get(picture.format)
    if kind is None or not (picture.lossless or picture.animated):
        return "png"
    if max(size) > _SIDES.get(kind, max(size)) or (picture.count > 1 and not KINDS[kind].many):
        return "png"
    can, metadata = KINDS[kind], picture.metadata
    fits = (can.alpha or not picture.alpha) and bits <= can.bits and (can.metadata or metadata.icc is None)
    return kind if fits or picture.animated else "png"


def losses(picture: Picture, kind: str, bits: int | None = None, colours: int | None = None) -> list[str]:
    """List what is lost if a picture is written as this kind of file, in a sentence each, with the way to keep it.

    Args:
        picture: What was read.
        kind: png, jpg, webp, tiff, gif, bmp or ppm.
        bits: 8 or 16 if the number of bits is chosen; None for that of the picture.
        colours: Channels without alpha that are written, 1 or 3; None for those of the picture.
    """
    bits = picture.bits if bits is None else 8
    lost = _losses_of(kind, picture.metadata, bits, picture.alpha, picture.count, picture.animated, colours == 3)
    if colours == 3 and picture.metadata.icc is not None and picture.metadata.icc[16:20] == b"GRAY":
        lost.append("the ICC profile is one for grey and does not fit the picture in colour: left out")
    return [*picture.notes, *lost]


def _losses(frames: Sequence[Frame], count: int, kind: str) -> list[str]:
    alpha, bits = any(frame.has_alpha for frame in frames), max(frame.bits for frame in frames)
    animated = any(frame.duration is not None for frame in frames)
    many = kind == "gif" and any(_has_many_colours(frame) for frame in frames)
    return _losses_of(kind, frames[0].metadata, bits, alpha, count, animated, many)


def _has_many_colours(frame: Frame) -> bool:
    """Return True if a frame has more colours than the palette of a GIF."""
    return frame.colours == 3 and len(np.unique(frame.pixels[..., :3].reshape(-1, 3), axis=0)) > 256


def _losses_of(
    kind: str, metadata: Metadata, bits: int, alpha: bool, count: int, animated: bool, many_colours: bool
) -> list[str]:
    can = KINDS[kind]
    lost = []
    if alpha and not can.alpha:
        lost.append(f"{kind} has no transparency: laid on white; png, tiff and webp keep it")
    if bits > can.bits:
        lost.append(f"{kind} has 8 bits: 16 are rounded; png and tiff keep them")
    if (count > 1 or many_colours) and kind == "gif":
        lost.append("gif has 256 colours a frame: the nearest are taken; png and webp keep all")
    if count > 1 and animated and kind == "tiff":
        lost.append("tiff has no durations: frames become pages; png and webp keep them")
    if count > 1 and not animated and kind != "tiff":
        lost.append(f"pages become the frames of an animation in {kind}; tiff keeps them")
    missing = [
        name
        for name, value in (("ICC profile", metadata.icc), ("EXIF", metadata.exif), ("XMP", metadata.xmp))
        if value and not (name in can.metadata and (name == "ICC profile" or fits(kind, value)))
    ]
    if metadata.texts and "text" not in can.metadata:
        missing.append("text")
    if metadata.comment and kind not in ("png", "jpg", "gif"):
        missing.append("comment")
    if any(name != b"tIME" for name, _ in metadata.chunks) and metadata.icc is None and kind != "png":
        missing.append("colour space (gAMA, cHRM, sRGB)")
    if missing:
        lost.append(f"{kind} does not hold this picture's {', '.join(missing)}; png does")
    return lost


def _fitting(frame: Frame, kind: str) -> Frame:
    """Reduce a frame to what the format can hold."""
    can = KINDS[kind]
    frame = frame if can.alpha else frame.opaque()
    return frame.with_bits(min(frame.bits, can.bits))


def _store(content: bytes, file: Path) -> None:
    """Write a file that appears only when it is complete."""
    partial = file.with_name(f".{secrets.token_hex(8)}.tmp")  # in the same folder, so that renaming is atomic
    try:
        with open(partial, "xb") as stream:
            stream.write(content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


class WriteError(OSError):
    """A file that cannot be written; `errno` is the system's."""

    def __str__(self) -> str:
        """Return the message without the number."""
        return str(self.args[1])


def check_picture(name: str, image: Tensor) -> None:
    """Check a picture that goes into a file or a strip.

    Raises:
        TypeError: It is not a floating-point tensor.
        ValueError: Its shape is not [1 or 3, H, W], or it has NaN or infinity.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"images: {name} must be a tensor; got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"images: {name} must be floating point in [0, 1]; got {image.dtype}")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"images: {name} must be [3, H, W] or [1, H, W]; got {list(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"images: {name} must be finite; got NaN or infinity")
