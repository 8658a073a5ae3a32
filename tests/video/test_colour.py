"""Frames to RGB and back: values, ranges, matrices, transparency, and the same bits twice."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.clips import av
from tunable_ops.video import ColourTags
from tunable_ops.video.colour import Colours

FORMATS = [
    *("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "nv12", "gray", "gray10le"),
    *("rgb24", "gbrp", "bgr0", "yuva420p", "rgba", "ya8"),
]


def smooth(channels=3, height=38, width=50, seed=0):
    noise = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed))
    return 0.2 + 0.6 * F.avg_pool2d(noise[None], 9, 1, 4, count_include_pad=False)[0]


def planes(frame):
    """The visible part of each plane."""
    deep = 2 if frame.format.components[0].bits > 8 else 1
    packed = len(frame.planes) == 1 and len(frame.format.components)
    if frame.format.name == "bgr0":
        packed = 4
    if frame.format.name == "nv12":
        return [_rows(frame.planes[0], frame.width, np.uint8), _rows(frame.planes[1], frame.width, np.uint8)]
    kind = np.uint16 if deep == 2 else np.uint8
    return [_rows(plane, plane.width * (packed or 1), kind) for plane in frame.planes]


def _rows(plane, values, kind):
    return np.frombuffer(plane, kind).reshape(plane.height, -1)[:, :values].astype(int)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("tags", [ColourTags(), ColourTags(1, 1), ColourTags(9, 2)], ids=["unsaid", "709", "2020-full"])
def test_there_and_back(pixel_format, tags):
    """A frame that is read and written again keeps its values, but for the interpolation of chroma."""
    colours = Colours()
    colour = smooth(1 if pixel_format.startswith(("gray", "ya")) else 3)
    frame = colours.write(colour, None, pixel_format, tags)
    read, alpha = colours.read(frame)
    assert ColourTags.of(frame) == tags
    assert (alpha is not None) == (pixel_format in ("yuva420p", "rgba", "ya8"))
    halved = any(word in pixel_format for word in ("420", "422", "nv12"))
    assert (read - colour).abs().max() < (0.05 if halved else 0.011)
    again = colours.write(read, alpha, pixel_format, tags)
    for place, (old, new) in enumerate(zip(planes(frame), planes(again), strict=True)):
        off = np.abs(old - new).max()
        luma = 2 if "10" in pixel_format else 1  # of 1023 or 255
        assert off <= (4 * luma if halved and place else luma), f"plane {place} is off by {off}"


def test_matrix_and_range_are_those_that_are_said():
    """Pure red in BT.709 and BT.601, limited and full, from their published equations."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 16, 16)
    for matrix, kr, kb in ((1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)):
        for limits in (1, 2):
            frame = Colours().write(red, None, "yuv444p", ColourTags(matrix, limits))
            y, cb, cr = (float(plane[8, 8]) for plane in planes(frame))
            scale, low, chroma = (219, 16, 224) if limits == 1 else (255, 0, 255)
            assert abs(y - (low + scale * kr)) <= 1, (matrix, limits)
            assert abs(cb - (128 - chroma * kr / (2 * (1 - kb)))) <= 1, (matrix, limits)
            assert abs(cr - min(255, 128 + chroma / 2)) <= 1, (matrix, limits)


def test_neutral_chroma_is_exactly_grey():
    frame = av.VideoFrame(64, 48, "yuv420p")
    values = np.random.default_rng(0).integers(0, 255, frame.planes[0].buffer_size, np.uint8)
    frame.planes[0].update(values.tobytes())
    for plane in frame.planes[1:]:
        plane.update(bytes([128]) * plane.buffer_size)
    colour, _ = Colours().read(frame)
    assert torch.equal(colour, colour[:1].expand(3, -1, -1))


def test_transparency_is_kept():
    alpha = smooth(1, seed=1)
    frame = Colours().write(smooth(), alpha, "yuva420p", ColourTags())
    _, read = Colours().read(frame)
    assert (read - alpha).abs().max() < 0.004


def test_the_same_bits_in_fresh_converters():
    """swscale with threads gave wrong pixels in one call of ten after its context had begun."""
    colour = smooth()
    first = None
    for turn in range(60):
        colours = Colours()
        for tags in (ColourTags(2, 1 + turn % 2), ColourTags(2, 1)):
            read, _ = colours.read(colours.write(colour, None, "gbrp", tags))
        first = read if first is None else first
        assert torch.equal(read, first), turn


def test_a_matrix_that_is_none_is_refused():
    frame = av.VideoFrame(64, 48, "yuv420p")
    frame.colorspace = 8
    with pytest.raises(ValueError, match=r"^video: matrix must be one of Y'CbCr .*; got number 8 of H.273"):
        Colours().read(frame)


@pytest.mark.parametrize(
    "source, target, tags, expected",
    [
        ("rgb24", "yuv420p", ColourTags(0, 2), ColourTags(5, 1)),
        ("rgb24", "yuv420p", ColourTags(), ColourTags(5, 1)),
        ("yuv420p", "gbrp", ColourTags(1, 1, 1, 1), ColourTags(0, 2, 1, 1)),
        ("yuvj420p", "yuv420p", ColourTags(), ColourTags(2, 2)),
        ("yuv420p", "yuv444p", ColourTags(1, 1, 1, 1), ColourTags(1, 1, 1, 1)),
    ],
)
def test_tags_follow_a_change_of_format(source, target, tags, expected):
    assert tags.fitting(target, source, (48, 64)) == expected
    if expected.matrix == 5:
        assert tags.fitting(target, source, (1080, 1920)).matrix == 1
