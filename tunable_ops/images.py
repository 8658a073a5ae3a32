"""Find, read and write pictures, and put them side by side.

A picture is a float32 tensor [3, H, W], RGB, in [0, 1]. Values are those of the file: colour profiles and gamma curves
are not applied. Needs Pillow.
"""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

__all__ = ["EXTENSIONS", "find_images", "read_image", "read_images", "strip", "write_image"]

EXTENSIONS = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Extensions of pictures in a folder, in upper or lower case."""

_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".webp": ("WEBP", {"lossless": True}),
}
_GAP = 6  # pixels between the columns of a strip
_SMALLEST_FONT = 13


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """List the pictures of a folder, sorted by name.

    Subfolders and hidden files are left out. Files are recognised by their extension (`EXTENSIONS`) and not opened.

    Args:
        path: Folder; or a file, which is returned whatever its extension.

    Raises:
        ValueError: The path does not exist, or the folder has no pictures.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ValueError(f"images: path must be an existing file or folder; got {str(root)!r}, which does not exist")
    found = sorted(
        (file for file in _listdir(root) if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")),
        key=lambda file: file.name,
    )
    if not found:
        inside = any(entry.is_dir() for entry in _listdir(root, files=False))
        hint = "; subfolders are not searched: name them one by one" if inside else ""
        raise ValueError(
            f"images: path must be a folder with pictures ({' '.join(EXTENSIONS)}); got {str(root)!r} without one{hint}"
        )
    return found


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read one picture as RGB.

    The EXIF orientation is applied. Grey and palette pictures become RGB; transparent ones are placed on white. 16-bit
    grey keeps its 16 bits (value / 65535), 16-bit colour is read with 8 bits (a limit of Pillow), 32-bit float must be
    in [0, 1]. Only the first frame of an animation is read.

    Args:
        path: The file; its content, not its extension, decides the format.

    Returns:
        float32 [3, H, W] in [0, 1], contiguous.

    Raises:
        ValueError: The file is missing, is not a picture, is truncated, or cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"images: path must be a file; got the folder {str(file)!r} (find_images lists its pictures)")
    if not file.exists():
        raise ValueError(f"images: path must be a readable image; got {str(file)!r}, which does not exist")
    try:
        with Image.open(file) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
        return _to_tensor(picture)
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything, even SyntaxError
        why = "not a picture, or an unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(
            f"images: path must be a readable image; got {str(file)!r} ({why or type(error).__name__})"
        ) from error


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


def write_image(image: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write one picture with 8 bits per channel: round(255 * clamp(image, 0, 1)).

    The file appears only when it is complete. JPEG is written at quality 95 without chroma subsampling, all other
    formats are lossless.

    Args:
        image: [3, H, W] or [1, H, W] (grey), floating point, any device; values outside [0, 1] are clamped.
        path: File to write; its extension selects the format: .png .jpg .jpeg .bmp .ppm .tif .tiff .webp; without an
            extension, .png is added. The folder must exist.

    Returns:
        The path of the file.

    Raises:
        TypeError: `image` is not a floating-point tensor.
        ValueError: Wrong shape, NaN or infinity, an unknown extension, or a folder that does not exist.
        OSError: The file cannot be written.
    """
    _check_picture("image", image)
    file = Path(path)
    if not file.suffix:
        file = file.with_name(file.name + ".png")
    if file.suffix.lower() not in _WRITERS:
        raise ValueError(f"images: path must end in one of {' '.join(_WRITERS)}; got {file.name!r}")
    if not file.parent.is_dir():
        raise ValueError(f"images: path must lie in an existing folder; got {str(file)!r}: create the folder first")
    name, options = _WRITERS[file.suffix.lower()]
    picture = _to_pillow(image)
    partial = file.with_name(f".{secrets.token_hex(8)}.tmp")  # in the same folder, so that renaming is atomic
    try:
        with open(partial, "xb") as stream:
            picture.save(stream, format=name, **options)
        os.replace(partial, file)
    except OSError as error:
        raise OSError(f"images: path must be writable; got {str(file)!r} ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return file


def strip(images: Sequence[Tensor], labels: Sequence[str], height: int | None = None) -> Tensor:
    """Put pictures side by side on white, each below its label.

    Args:
        images: [3, H, W] or [1, H, W] each, floating point, in [0, 1] (clamped). All are resized to the same height
            (bicubic), keeping their proportions.
        labels: One per picture; may contain line breaks. A column is at least as wide as its label.
        height: Height of the pictures in pixels; None: that of the tallest.

    Returns:
        float32 [3, H', W'] on the CPU, with 8-bit values.

    Raises:
        TypeError: A picture is not a floating-point tensor.
        ValueError: No pictures, not as many labels as pictures, a wrong shape, or a height below 1.
    """
    if not images:
        raise ValueError("images: images must hold at least one picture; got none")
    if len(labels) != len(images):
        raise ValueError(f"images: labels must be one per picture; got {len(labels)} labels, {len(images)} pictures")
    for index, image in enumerate(images):
        _check_picture(f"images[{index}]", image)
    if height is not None and height < 1:
        raise ValueError(f"images: height must be at least 1 pixel; got {height}")
    tall = max(image.shape[1] for image in images) if height is None else height
    pictures = [_resized(_to_pillow(image).convert("RGB"), tall) for image in images]
    return _to_tensor(_draw_strip(pictures, labels, tall))


def _draw_strip(pictures: Sequence[Image.Image], labels: Sequence[str], tall: int) -> Image.Image:
    font, boxes = _fit_font(pictures, labels, max(_SMALLEST_FONT, tall // 16))
    margin = max(4, int(font.size) // 3)
    band = int(max(box[3] for box in boxes)) + 2 * margin
    columns = [max(picture.width, int(box[2]) + 2 * margin) for picture, box in zip(pictures, boxes, strict=True)]
    canvas = Image.new("RGB", (sum(columns) + _GAP * (len(columns) - 1), band + tall), "white")
    draw = ImageDraw.Draw(canvas)
    left = 0
    for picture, label, box, column in zip(pictures, labels, boxes, columns, strict=True):
        at = (left + (column - box[2]) / 2, margin)
        draw.multiline_text(at, label, font=font, fill="black", align="center")
        canvas.paste(picture, (left + (column - picture.width) // 2, band))
        left += column + _GAP
    return canvas


def _fit_font(
    pictures: Sequence[Image.Image], labels: Sequence[str], size: int
) -> tuple[ImageFont.FreeTypeFont, list[tuple[float, float, float, float]]]:
    """Return the largest font up to `size` for which no label is wider than its picture, and the labels' boxes."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    while True:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        boxes = [draw.multiline_textbbox((0, 0), label, font=font, align="center") for label in labels]
        fits = all(box[2] <= picture.width for picture, box in zip(pictures, boxes, strict=True))
        if fits or size <= _SMALLEST_FONT:
            return font, boxes
        size -= 1


def _resized(picture: Image.Image, height: int) -> Image.Image:
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _to_pillow(image: Tensor) -> Image.Image:
    values = (image.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    channels, height, width = values.shape
    raw = values.permute(1, 2, 0).contiguous().numpy(force=True).tobytes()
    return Image.frombytes("RGB" if channels == 3 else "L", (width, height), raw)


def _to_tensor(picture: Image.Image) -> Tensor:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _deep_to_tensor(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(page, picture)
    picture = picture.convert("RGB")
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous().float() / 255


def _deep_to_tensor(picture: Image.Image) -> Tensor:
    """Convert grey with more than 8 bits: I;16 in any byte order, I (16-bit values in 32 bits), F (float)."""
    scale, dtype = (1.0, torch.float32) if picture.mode == "F" else (65535.0, torch.int32)
    if picture.mode.startswith("I;"):
        picture = picture.convert("I")
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=dtype).view(picture.height, picture.width) / scale
    if not bool(((values >= 0) & (values <= 1)).all()):
        low, high = values.min() * scale, values.max() * scale
        raise ValueError(f"{picture.mode} values must lie in [0, {scale:g}]; got {low:g} to {high:g}")
    return values.float().expand(3, -1, -1).contiguous()


def _check_picture(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"images: {name} must be a tensor; got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"images: {name} must be floating point in [0, 1]; got {image.dtype}")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"images: {name} must be [3, H, W] or [1, H, W]; got {list(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"images: {name} must be finite; got NaN or infinity")


def _listdir(folder: Path, files: bool = True) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not files or entry.is_file()]
    except OSError as error:
        raise ValueError(
            f"images: path must be a readable folder; got {str(folder)!r} ({error.strerror or error})"
        ) from error
