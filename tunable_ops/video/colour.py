"""Frames of a video as tensors and back: Y'CbCr to RGB with the matrix and the range that the video names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ColourTags", "Colours", "has_alpha", "is_grey_format", "is_subsampled"]

_UNSPECIFIED = 2  # of matrix, primaries and transfer; of the range it is 0
_LIMITED, _FULL = 1, 2
_MATRICES = (1, 4, 5, 6, 7, 9)  # that swscale knows, numbered as in H.273
_HDR = {16: "PQ", 18: "HLG"}
_HIGH_DEFINITION = 720  # lines from which a video without a matrix is taken for BT.709, as players do


@dataclass(frozen=True)
class ColourTags:
    """What a video says about its colours, in the numbers of ITU-T H.273.

    Args:
        matrix: Of Y'CbCr; 2 if it is not said.
        range: 1 limited, 2 full, 0 if it is not said.
        primaries: Of RGB.
        transfer: From light to R'G'B'.
    """

    matrix: int = _UNSPECIFIED
    range: int = 0
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED

    @classmethod
    def of(cls, source: Any) -> ColourTags:
        """Return the tags of a frame, a stream or a codec context of PyAV."""
        return cls(int(source.colorspace), int(source.color_range), int(source.color_primaries), int(source.color_trc))

    def fitting(self, pixel_format: str, source_format: str, size: tuple[int, int]) -> ColourTags:
        """Return the tags for frames that change their format: those of RGB and of Y'CbCr differ.

        Args:
            pixel_format: Format of what is written.
            source_format: Format of the source, whose tags these are.
            size: Height and width.
        """
        rgb, was_rgb = _is_rgb(pixel_format), _is_rgb(source_format) or self.matrix == 0
        if rgb and not was_rgb:
            return replace(self, matrix=0, range=_FULL)
        if was_rgb and not rgb:
            return replace(self, matrix=_usual_matrix(*size), range=_LIMITED)
        if source_format.startswith("yuvj"):
            return replace(self, range=_FULL)
        return self

    @property
    def high_dynamic_range(self) -> str | None:
        """Name of the transfer if it is one of high dynamic range."""
        return _HDR.get(self.transfer)

    def put(self, target: Any) -> None:
        """Set them on a frame, a stream or a codec context of PyAV."""
        target.colorspace, target.color_range = self.matrix, self.range
        target.color_primaries, target.color_trc = self.primaries, self.transfer


class Colours:
    """Convert frames to RGB and back, in float32 in between.

    Chroma is interpolated bicubically, and all arithmetic is at full accuracy: a frame that goes there and back keeps
    its luma but for a rounding in a hundred values. R'G'B' stays in the video's own primaries and transfer.
    """

    def __init__(self) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self._in, self._out = VideoReformatter(), VideoReformatter()
        self._flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

    def read(self, frame: Any) -> tuple[Tensor, Tensor | None]:
        """Return RGB, or grey for a format without colour, and alpha.

        Args:
            frame: `av.VideoFrame`.

        Returns:
            float32 [3 or 1, H, W] in [0, 1], and [1, H, W] or None.

        Raises:
            ValueError: The matrix is none of Y'CbCr.
        """
        name = frame.format.name
        alpha = has_alpha(name)
        matrix, full = self._meaning(frame, ColourTags.of(frame))
        planar = self._in.reformat(
            frame,
            format="gbrapf32le" if alpha else "gbrpf32le",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=full,
            dst_color_range=_FULL,
            interpolation=self._flags,
            threads=1,  # swscale's threads race with the start of a context: wrong pixels in one call of ten
        )
        green, blue, red, *rest = (_plane(planar, index) for index in range(4 if alpha else 3))
        parts = [green] if is_grey_format(name) else [red, green, blue]
        colour = torch.from_numpy(np.stack(parts)).clamp_(0, 1)
        return colour, torch.from_numpy(rest[0].copy())[None] if alpha else None

    def write(self, colour: Tensor, alpha: Tensor | None, pixel_format: str, tags: ColourTags) -> Any:
        """Return a frame of a format, with tags.

        Args:
            colour: [1 or 3, H, W]; values outside [0, 1] are clamped.
            alpha: [1, H, W], for a format with alpha; None is opaque.
            pixel_format: Name of a format, as PyAV and FFmpeg have it.
            tags: Colour tags of the frame.
        """
        import av

        height, width = colour.shape[1:]
        with_alpha = has_alpha(pixel_format)
        planar = av.VideoFrame(width, height, "gbrapf32le" if with_alpha else "gbrpf32le")
        values = colour.detach().float().clamp(0, 1).cpu().expand(3, -1, -1).numpy()
        for index, channel in enumerate((1, 2, 0)):
            _plane(planar, index)[...] = values[channel]
        if with_alpha:
            _plane(planar, 3)[...] = 1 if alpha is None else alpha[0].clamp(0, 1).cpu().numpy()
        frame = av.VideoFrame(width, height, pixel_format)
        matrix, full = self._meaning(frame, tags)
        result = self._out.reformat(
            planar,
            format=pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=_FULL,
            dst_color_range=full,
            interpolation=self._flags,
            threads=1,  # swscale's threads race with the start of a context: wrong pixels in one call of ten
        )
        tags.put(result)
        return result

    @staticmethod
    def _meaning(frame: Any, tags: ColourTags) -> tuple[int, int]:
        """Return matrix and range to convert with: what is not said is guessed from format and size."""
        name = frame.format.name
        rgb, grey = _is_rgb(name), is_grey_format(name)
        full = tags.range or (_FULL if rgb or grey or name.startswith("yuvj") else _LIMITED)
        if rgb or grey or tags.matrix in _MATRICES:
            return tags.matrix if tags.matrix in _MATRICES else 5, full
        if tags.matrix not in (_UNSPECIFIED, 0, 3, 10):  # reserved; constant luminance is close to the common form
            raise ValueError(
                f"video: matrix must be one of Y'CbCr (BT.601, BT.709, BT.2020, ...); got number {tags.matrix} of H.273"
            )
        if tags.matrix == 10:
            return 9, full
        return _usual_matrix(frame.height, frame.width), full


def has_alpha(pixel_format: str) -> bool:
    """Return True if a pixel format has transparency."""
    from av import VideoFormat

    return "a" in pixel_format.removeprefix("gray").replace("pal8", "") and any(
        component.is_alpha for component in VideoFormat(pixel_format).components
    )


def is_grey_format(pixel_format: str) -> bool:
    """Return True if a pixel format has luma alone."""
    return pixel_format.startswith(("gray", "mono", "ya8", "ya16"))


def is_subsampled(pixel_format: str) -> bool:
    """Return True if a pixel format has fewer pixels of colour than of luma."""
    from av import VideoFormat

    form = VideoFormat(pixel_format, 64, 64)
    return not is_grey_format(pixel_format) and (0 < form.chroma_width(64) < 64 or 0 < form.chroma_height(64) < 64)


def _is_rgb(pixel_format: str) -> bool:
    from av import VideoFormat

    return VideoFormat(pixel_format).is_rgb or pixel_format == "pal8"


def _usual_matrix(height: int, width: int) -> int:
    """Return the matrix of a video that names none: BT.709 for high definition, BT.601 below."""
    return 1 if min(height, width) >= _HIGH_DEFINITION else 5


def _plane(frame: Any, index: int) -> np.ndarray[Any, Any]:
    """Return a plane of a frame of float32 as an array [H, W] over its memory."""
    plane = frame.planes[index]
    rows = np.frombuffer(plane, np.float32).reshape(plane.height, plane.line_size // 4)
    return rows[:, : frame.width]
