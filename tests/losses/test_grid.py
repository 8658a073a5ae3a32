"""losses.grid against loops, and what it is for: it sees a pattern of the stride, and little of anything else."""

import re

import pytest
import torch

from tunable_ops import losses

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loop_grid(output, target, period, window):
    """The definition, place by place and window by window."""
    error = output - target
    rows, columns = (side // period for side in error.shape[2:])
    height, width = min(window, rows), min(window, columns)
    found = []
    for sample in error:
        squares = []
        for channel in sample:
            for top in range(0, rows - height + 1, max(height // 2, 1)):
                for left in range(0, columns - width + 1, max(width // 2, 1)):
                    means = torch.stack(
                        [
                            channel[a::period, b::period][top : top + height, left : left + width].mean()
                            for a in range(period)
                            for b in range(period)
                        ]
                    )
                    squares.append((means - means.mean()).square().mean())
        found.append(torch.stack(squares).mean())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("size", "period", "window"), [((32, 48), 4, 4), ((35, 29), 4, 3), ((8, 8), 4, 8), ((13, 7), 3, 1), ((2, 9), 2, 2)]
)
def test_matches_the_definition(size, period, window):
    output, target = draw(2, 3, *size), draw(2, 3, *size, seed=1)
    # Loops slice with the period: of a size that is no multiple of it, only whole periods count.
    whole = [side // period * period for side in size]
    cut = [each[..., : whole[0], : whole[1]] for each in (output, target)]
    expected = loop_grid(*cut, period, window)
    torch.testing.assert_close(losses.grid(output, target, period, window), expected, rtol=1e-10, atol=1e-14)


def test_sees_a_grid_and_neither_edges_nor_noise():
    clean = torch.zeros(1, 1, 128, 128, dtype=F64)
    pattern = draw(1, 1, 4, 4).repeat(1, 1, 32, 32)
    noise = draw(1, 1, 128, 128, seed=3)
    ramp = torch.linspace(0, 1, 128, dtype=F64).expand(1, 1, 128, 128)
    amplitude = (pattern - pattern.mean()).square().mean()
    torch.testing.assert_close(losses.grid(clean + pattern, clean)[0], amplitude, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses.grid(clean + 0.5, clean)[0], torch.zeros((), dtype=F64))
    assert losses.grid(clean + noise, clean) < 1.3 / 64 * noise.square().mean()
    assert losses.grid(clean + ramp, clean) < 1e-3 * ramp.square().mean()


def test_derivatives():
    output, target = draw(1, 2, 9, 8).requires_grad_(), draw(1, 2, 9, 8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: losses.grid(a, b, 2, 2), (output, target))
    assert torch.autograd.gradgradcheck(lambda a, b: losses.grid(a, b, 2, 2), (output, target))


def test_half_types_and_an_empty_batch():
    output = draw(1, 1, 8, 8)
    half = losses.grid(output.half(), torch.zeros(1, 1, 8, 8).half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), losses.grid(output, torch.zeros_like(output)), rtol=1e-2, atol=1e-4)
    assert losses.grid(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8)).shape == (0,)


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((1, 3, 8, 8), {"period": 1}, "grid: period must be at least 2; got 1"),
        ((1, 3, 8, 8), {"window": 0}, "grid: window must be at least 1; got 0"),
        ((1, 3, 3, 8), {}, "grid: output must be [B, C, H, W] with H and W of at least period = 4; got [1, 3, 3, 8]"),
        ((3, 8, 8), {}, "grid: output must be [B, C, H, W] with H and W of at least period = 4; got [3, 8, 8]"),
    ],
)
def test_refuses(shape, arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        losses.grid(torch.zeros(shape), torch.zeros(shape), **arguments)
