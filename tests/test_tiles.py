"""Tiles: the partition of unity, equality with the whole image, alignment, scale, bad input."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunable_ops.tiles import _weights, apply_tiled, tile_windows


@st.composite
def cuts(draw):
    multiple = draw(st.integers(1, 8))
    tile = multiple * draw(st.integers(1, 12))
    overlap = draw(st.integers(0, tile - multiple))
    return draw(st.integers(1, 200)), tile, overlap, multiple


@given(cuts())
@settings(max_examples=200, deadline=None)
def test_windows_cover_the_axis_aligned_and_share_the_overlap(cut):
    size, tile, overlap, multiple = cut
    windows = tile_windows(*cut)
    assert windows[0][0] == 0 and windows[-1][1] == size
    assert all(start % multiple == 0 and 0 < stop - start <= tile for start, stop in windows)
    for left, right in pairwise(windows):
        assert left[0] < right[0] and left[1] < right[1]
        assert left[1] - right[0] >= overlap


@given(cuts(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_weights_are_a_partition_of_unity_inside_the_discarded_border(cut, scale):
    size, _, overlap, _ = cut
    windows = tile_windows(*cut)
    total = torch.zeros(scale * size, dtype=torch.float64)
    for i, ((start, stop), (first, weights)) in enumerate(
        zip(windows, _weights(windows, overlap, scale, total), strict=True)
    ):
        used = weights.nonzero().flatten() + first
        assert weights.min() >= 0
        if i > 0:
            assert used.min() >= scale * (start + overlap // 3)
        if i < len(windows) - 1:
            assert used.max() < scale * (stop - overlap // 3)
        total[first : first + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)


def conv_stack(depth, channels=4):
    torch.manual_seed(depth)
    layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1)).double().eval()


@pytest.mark.parametrize("size", [(47, 101), (49, 100), (32, 33), (20, 120), (31, 32)])
def test_equals_the_whole_image_when_the_receptive_radius_is_discarded(size):
    net = conv_stack(5)  # radius 5
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    calls = []

    def function(x):
        calls.append(x.shape)
        return net(x)

    tiled = apply_tiled(function, image, tile=32, overlap=15)  # discards 5
    with torch.no_grad():
        torch.testing.assert_close(tiled, net(image), rtol=0, atol=1e-14)
    assert len(calls) == len(tile_windows(size[0], 32, 15)) * len(tile_windows(size[1], 32, 15))
    assert (len(calls) == 1) == (max(size) <= 32)


def test_one_pixel_less_discarded_is_noticed():
    net, image = conv_stack(5), torch.rand(1, 3, 52, 92, dtype=torch.float64)  # cut with an overlap of 12 exactly
    tiled = apply_tiled(net, image, tile=32, overlap=12)  # discards 4
    with torch.no_grad():
        assert (tiled - net(image)).abs().max() > 1e-9


class Strided(nn.Module):
    """Pixel-unshuffle 2, a strided convolution, and back up: right only at multiples of 4."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(12, 8, 2, stride=2)
        self.up = nn.ConvTranspose2d(8, 12, 2, stride=2)

    def forward(self, x):
        """[B, 3, H, W] -> the same, for any H and W."""
        height, width = x.shape[-2:]
        x = nn.functional.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
        y = nn.functional.pixel_shuffle(self.up(self.down(nn.functional.pixel_unshuffle(x, 2))), 2)
        return y[..., :height, :width]


def test_starts_aligned_to_multiple_keep_strided_networks_exact():
    net = Strided().double()
    image = torch.rand(1, 3, 57, 83, dtype=torch.float64)
    with torch.no_grad():
        whole = net(image)
    torch.testing.assert_close(apply_tiled(net, image, 32, 12, multiple=4), whole, rtol=0, atol=1e-14)
    assert (apply_tiled(net, image, 31, 12, multiple=1) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [2, 3])
def test_scale_is_taken_from_the_output(scale):
    net = nn.Sequential(conv_stack(3), nn.Conv2d(3, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)).double()
    image = torch.rand(1, 3, 41, 50, dtype=torch.float64)
    with torch.no_grad():
        whole = net(image)
    tiled = apply_tiled(net, image, tile=24, overlap=13)
    assert tiled.shape == (1, 3, 41 * scale, 50 * scale)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-14)


def test_global_statistics_leave_no_step_at_the_seams():
    # every tile comes out with another offset: its own mean. Steps between pixels stay those of the fade.
    image = torch.linspace(0, 1, 256).expand(1, 1, 64, 256).contiguous()

    def function(x):
        return torch.zeros_like(x) + x.mean()

    tiled = apply_tiled(function, image, tile=64, overlap=48)
    hard = apply_tiled(function, image, tile=64, overlap=0)
    assert hard.diff(dim=-1).abs().max() > 0.2
    # neighbours' means differ by their distance / 256; smoothstep's steepest slope is 1.5 / fade of 16 pixels
    assert tiled.diff(dim=-1).abs().max() <= 16 / 255 * 1.5 / 16 + 1e-6


def test_half_precision_is_rounded_once():
    image = torch.rand(1, 3, 40, 40).to(torch.bfloat16)
    tiled = apply_tiled(lambda x: x * 1.0, image, tile=16, overlap=8)
    assert tiled.dtype == torch.bfloat16
    assert torch.equal(tiled, image)


def test_memory_format_and_slices_of_the_image_do_not_matter():
    net = conv_stack(3)
    base = torch.rand(1, 3, 60, 100, dtype=torch.float64)
    image = base[..., 3:50, 1::2]
    expected = apply_tiled(net, image.contiguous(), 24, 9)
    assert torch.equal(apply_tiled(net, image, 24, 9), expected)
    last = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(apply_tiled(net, last, 24, 9), expected, rtol=0, atol=1e-14)


def test_runs_without_gradients():
    net = conv_stack(3)
    assert not apply_tiled(net, torch.rand(1, 3, 20, 20, dtype=torch.float64)).requires_grad


@pytest.mark.parametrize("shape", [(0, 3, 20, 20), (1, 3, 1, 1), (1, 3, 1, 70)])
def test_empty_batch_and_single_pixels(shape):
    image = torch.rand(shape)
    assert torch.equal(apply_tiled(lambda x: x.clone(), image, tile=32, overlap=0), image)


IMAGE = torch.rand(1, 3, 40, 40)


@pytest.mark.parametrize(
    ("image", "options", "error", "text"),
    [
        ("x", {}, TypeError, r"image must be a tensor; got str"),
        (IMAGE.to(torch.uint8), {}, TypeError, r"image must be floating point; got torch.uint8"),
        (IMAGE[0], {}, ValueError, r"image must be \[B, C, H, W\]; got \[3, 40, 40\]"),
        (IMAGE[..., :0], {}, ValueError, r"image must have at least one pixel; got \[1, 3, 40, 0\]"),
        (IMAGE, {"tile": 0}, ValueError, r"tile must be a positive multiple of 1 \(multiple\); got 0"),
        (
            IMAGE,
            {"tile": 30, "multiple": 4, "overlap": 8},
            ValueError,
            r"tile must be a positive multiple of 4 .*got 30",
        ),
        (IMAGE, {"tile": 32, "overlap": 32}, ValueError, r"overlap must lie in 0\.\.31 .*got 32: use larger tiles"),
        (IMAGE, {"tile": 32, "overlap": 30, "multiple": 4}, ValueError, r"overlap must lie in 0\.\.28 .*got 30"),
        (IMAGE, {"tile": 32, "overlap": -1}, ValueError, r"overlap must lie in 0\.\.31 .*got -1"),
        (IMAGE, {"multiple": 0}, ValueError, r"multiple must be at least 1; got 0"),
        (IMAGE, {"tile": 32.0}, TypeError, r"tile must be an int; got 32.0"),
        (IMAGE, {"overlap": True}, TypeError, r"overlap must be an int; got True"),
    ],
)
def test_bad_input(image, options, error, text):
    with pytest.raises(error, match=f"apply_tiled: {text}"):
        apply_tiled(lambda x: x, image, **options)


def test_bad_size():
    with pytest.raises(ValueError, match=r"apply_tiled: size must be at least 1; got 0"):
        tile_windows(0, 32, 8)


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda x: x.shape, TypeError, r"function must return a floating-point tensor; got Size"),
        (lambda x: x.long(), TypeError, r"function must return a floating-point tensor; got torch.int64"),
        (
            lambda x: x[..., 1:-1, 1:-1],
            ValueError,
            r"integer s >= 1; got \[1, 3, 30, 30\] for a tile \[1, 3, 32, 32\]",
        ),
        (lambda x: x.mean(1), ValueError, r"integer s >= 1; got \[1, 32, 32\]"),
        (lambda x: x.repeat(1, 1, 1, 2), ValueError, r"integer s >= 1; got \[1, 3, 32, 64\]"),
        (lambda x: x.repeat(2, 1, 1, 1), ValueError, r"integer s >= 1; got \[2, 3, 32, 32\]"),
    ],
)
def test_bad_function(function, error, text):
    with pytest.raises(error, match=f"apply_tiled: .*{text}"):
        apply_tiled(function, IMAGE, tile=32, overlap=8)


def test_function_that_changes_its_mind_is_named():
    sizes = iter([1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"must return \[1, 3, 32, 32\] for a tile 32x32, as for the first tile; got"):
        apply_tiled(lambda x: x.repeat(1, next(sizes), 1, 1), IMAGE, tile=32, overlap=8)
