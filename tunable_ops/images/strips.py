"""Put pictures side by side, each below its label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tunable_ops.images.picture import quantise
from tunable_ops.images.write import check_picture

__all__ = ["strip"]

_GAP = 6  # pixels between the columns of a strip
_SMALLEST_FONT = 13


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
        check_picture(f"images[{index}]", image)
    if height is not None and height < 1:
        raise ValueError(f"images: height must be at least 1 pixel; got {height}")
    tall = max(image.shape[1] for image in images) if height is None else height
    pictures = [_resized(_to_pillow(image).convert("RGB"), tall) for image in images]
    drawn = np.asarray(_draw_strip(pictures, labels, tall))
    return torch.from_numpy(drawn.copy()).permute(2, 0, 1).contiguous().float() / 255


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
    return Image.fromarray(np.squeeze(quantise(image, 8), 2) if image.shape[0] == 1 else quantise(image, 8))
