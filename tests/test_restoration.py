"""Frames of pictures through networks: channels, tiles, alpha."""

import doctest

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed (tunable-ops[train])")

from tunable_ops import images, restoration
from tunable_ops.images import Frame
from tunable_ops.restoration import restored, run_network


@pytest.mark.parametrize("module", [restoration, images.header])
def test_examples(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("tile", [0, 32])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_takes_its_channels_and_the_picture_keeps_its_own(tile, colours, channels):
    seen = []

    def network(x):
        seen.append(tuple(x.shape[:2]))
        return torch.nn.functional.interpolate(1 - x, scale_factor=2, mode="nearest")

    image = torch.rand(colours, 40, 50)
    output = run_network(network, image, channels, tile, 16)
    want = (1 - image).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(output, want, rtol=0, atol=1e-6)
    assert set(seen) == {(3, 1) if channels == 1 and colours == 3 else (1, channels)}
    assert (len(seen) > 1) == bool(tile)


def test_what_is_no_picture_is_refused():
    image = torch.rand(3, 20, 20)
    with pytest.raises(ValueError, match=r"must return pictures of 1 or 3 channels; got \[1, 2, 20, 20\]"):
        run_network(lambda x: x[:, :2], image)
    with pytest.raises(ValueError, match="must return finite values"):
        run_network(lambda x: x * torch.inf, image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [None, 8, 16])
def test_a_restored_frame_keeps_bits_duration_and_alpha_as_large_as_its_colours(channels, bits):
    frame = Frame(np.full((4, 5, channels), 200, np.uint8), 40)
    output = torch.full((frame.colours, 8, 10), 0.5)
    found = restored(frame, output, bits)
    assert found.pixels.shape == (8, 10, channels) and found.duration == 40
    assert found.bits == (bits or 8)
    if frame.has_alpha:
        assert abs(float(found.alpha.mean()) - 200 / 255) < 1e-3
