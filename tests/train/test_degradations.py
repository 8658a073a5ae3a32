"""Degradations: statistics of the noise, blur against the Gaussian, sizes, and draws from the generator alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from tunable_ops.train.degradations import (
    Blur,
    Degradation,
    Downsample,
    Noise,
    add_noise,
    bicubic_downsample,
    degrade,
    gaussian_blur,
)
from tunable_ops.train.seeding import derive_seed, generator


def test_noise_has_the_strength_asked_for() -> None:
    x = torch.full((3, 3, 128, 128), 0.5)
    noise = add_noise(x, torch.tensor([0.0, 10.0, 50.0]), generator(0, "t")) - x
    count = x[0].numel()
    assert torch.equal(noise[0], torch.zeros_like(noise[0]))
    for sample, sigma in ((1, 10 / 255), (2, 50 / 255)):
        assert abs(float(noise[sample].mean())) < 5 * sigma / math.sqrt(count)
        assert abs(float(noise[sample].std()) / sigma - 1) < 5 / math.sqrt(2 * count)
    # white: neighbours do not go together
    neighbours = (noise[2, :, :, 1:] * noise[2, :, :, :-1]).mean() / noise[2].var()
    assert abs(float(neighbours)) < 5 / math.sqrt(count)


def test_strengths_fill_the_range_and_differ_between_samples() -> None:
    x = torch.full((400, 1, 16, 16), 0.5)
    out = degrade(x, Degradation(noise=Noise(sigma=(10, 50))), generator(0, "t")).input
    sigma = (out - x).flatten(1).std(dim=1) * 255
    assert sigma.min() > 8
    assert sigma.max() < 56
    assert abs(float(sigma.mean()) - 30) < 5 * 40 / math.sqrt(12 * 400)
    assert abs(float(sigma.std()) - 40 / math.sqrt(12)) < 1.5


def test_clipping_is_a_choice() -> None:
    x = torch.ones(1, 1, 32, 32)
    assert degrade(x, Degradation(noise=Noise(clip=True)), generator(0)).input.max() <= 1
    assert degrade(x, Degradation(noise=Noise()), generator(0)).input.max() > 1.05


@pytest.mark.parametrize("sigma", [0.7, 1.6])
def test_blur_is_the_gaussian(sigma: float) -> None:
    x = torch.zeros(1, 2, 41, 41)
    x[0, :, 20, 20] = 1
    out = gaussian_blur(x, torch.tensor([sigma]))
    ticks = torch.arange(41) - 20.0
    radius = math.ceil(3 * sigma)
    line = torch.exp(-0.5 * (ticks / sigma) ** 2) * (ticks.abs() <= radius)
    expected = torch.outer(line / line.sum(), line / line.sum())
    torch.testing.assert_close(out[0, 1], expected, rtol=1e-5, atol=1e-7)


def test_blur_per_sample_and_none_at_zero() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 20, 17)
    out = gaussian_blur(x, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(out[0], x[0], rtol=0, atol=1e-6)
    for b, sigma in ((1, 1.0), (2, 2.0)):
        alone = gaussian_blur(x[b : b + 1], torch.tensor([sigma]))
        # the common kernel reaches 6 pixels, that of sigma 1 alone only 3
        torch.testing.assert_close(out[b : b + 1], alone, rtol=0, atol=5e-3)
    constant = gaussian_blur(torch.full((1, 1, 9, 9), 0.3), torch.tensor([2.0]))
    torch.testing.assert_close(constant, torch.full_like(constant, 0.3))


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("enlarge", [False, True])
def test_downsampling_sizes_and_constants(factor: int, enlarge: bool) -> None:
    x = torch.full((1, 3, 24, 32), 0.4)
    out = bicubic_downsample(x, factor, enlarge=enlarge)
    assert out.shape[-2:] == ((24, 32) if enlarge else (24 // factor, 32 // factor))
    torch.testing.assert_close(out, torch.full_like(out, 0.4))
    if factor > 1:
        odd = bicubic_downsample(torch.rand(1, 3, 25, 31), factor, enlarge=enlarge)
        assert odd.shape[-2:] == ((25, 31) if enlarge else (round(25 / factor), round(31 / factor)))


def test_downsampling_keeps_smooth_pictures() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    small = bicubic_downsample(ramp, 2)
    expected = F.avg_pool2d(ramp, 2)
    torch.testing.assert_close(small[..., 8:-8], expected[..., 8:-8], rtol=0, atol=1e-4)


def test_chain_order_and_the_noiseless_picture() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    config = Degradation(
        blur=Blur(sigma=(1, 1)), downsample=Downsample(factors=[2], enlarge=False), noise=Noise(sigma=(20, 20))
    )
    pair = degrade(x, config, generator(1, "t"))
    expected = bicubic_downsample(gaussian_blur(x, torch.tensor([1.0, 1.0])), 2)
    torch.testing.assert_close(pair.noiseless, expected, rtol=0, atol=0)
    assert abs(float((pair.input - pair.noiseless).std()) * 255 - 20) < 1
    assert torch.equal(degrade(x, Degradation(), generator(0)).input, x)


def test_mixed_factors() -> None:
    x = torch.rand(8, 1, 16, 16)
    out = degrade(x, Degradation(downsample=Downsample(factors=[1, 4])), generator(3, "t")).input
    untouched = [torch.equal(out[b], x[b]) for b in range(8)]
    assert any(untouched)
    assert not all(untouched)


def test_draws_come_from_the_generator_alone() -> None:
    x = torch.rand(4, 3, 16, 16)
    config = Degradation(blur=Blur(), downsample=Downsample(factors=[1, 2]), noise=Noise(sigma=(0, 50)))
    state = torch.random.get_rng_state()
    first = degrade(x, config, generator(7, 3)).input
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(degrade(x, config, generator(7, 3)).input, first)
    assert not torch.equal(degrade(x, config, generator(7, 4)).input, first)


def test_derived_seeds_differ_and_stay() -> None:
    seeds = {
        derive_seed(s, kind, step, rank) for s in range(3) for kind in "ab" for step in range(20) for rank in range(3)
    }
    assert len(seeds) == 3 * 2 * 20 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "crops", 5, 1) == derive_seed(0, "crops", 5, 1) == 6449292471667866433
