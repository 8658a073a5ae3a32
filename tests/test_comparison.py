"""The comparison helper accepts good results and catches seeded faults, in every dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.comparison import assert_agrees

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def case(dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a good result of a blended 3x3 convolution, its float64 reference and the baseline."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 16, 12, 11, generator=generator).to(dtype)
    weight = (torch.randn(2, 8, 16, 3, 3, generator=generator) / 12).to(dtype)
    alpha = torch.rand(2, generator=generator)
    ref = F.conv2d(x.double(), torch.tensordot(alpha.double(), weight.double(), 1))
    kernel = torch.tensordot(alpha, weight.float(), 1).to(dtype)
    good = F.conv2d(x.float(), kernel.float()).to(dtype)
    return good, ref, F.conv2d(x, kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_good_results_pass(dtype: torch.dtype) -> None:
    for seed in range(40):
        assert_agrees(*case(dtype, seed))


FAULTS = {
    "gain 1.003": lambda y: y * 1.003,
    "offset 0.002": lambda y: y + 0.002,
    "one pixel wrong": lambda y: y.index_fill(3, torch.tensor([3]), 0.0),
    "last column missing": lambda y: torch.cat([y[..., :-1], torch.zeros_like(y[..., -1:])], -1),
    "shifted by one": lambda y: y.roll(1, 3),
    "channels swapped": lambda y: y.flip(1),
    "sample swapped": lambda y: y.flip(0),
    "one value off by 5 %": lambda y: y + 0.05 * y.abs().max() * F.one_hot(torch.tensor(7), y.numel()).view_as(y),
    "noise of twice the rounding": lambda y: y * (1 + 4 * torch.finfo(torch.bfloat16).eps * torch.randn_like(y)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype, winograd", [*((dtype, False) for dtype in DTYPES), (torch.float32, True)], ids=str)
def test_seeded_faults_are_caught(fault: str, dtype: torch.dtype, winograd: bool) -> None:
    good, ref, base = case(dtype, 0)
    with pytest.raises(AssertionError, match="result"):
        assert_agrees(FAULTS[fault](good.double()).to(dtype), ref, base, winograd=winograd)


def test_winograds_class_is_for_fp32_alone() -> None:
    with pytest.raises(AssertionError, match="fp32"):
        assert_agrees(*case(torch.bfloat16, 0), winograd=True)


def test_nan_shape_and_dtype_are_caught() -> None:
    good, ref, base = case(torch.float32, 0)
    with pytest.raises(AssertionError, match="finite"):
        assert_agrees(torch.full_like(good, torch.nan), ref, base)
    with pytest.raises(AssertionError, match="shapes"):
        assert_agrees(good[1:], ref, base)
    with pytest.raises(AssertionError, match="dtypes"):
        assert_agrees(good.half(), ref, base)


def test_a_failure_prints_its_values() -> None:
    good, ref, base = case(torch.float32, 0)
    with pytest.raises(AssertionError, match=r"max [0-9.e+-]+ > [0-9.e+-]+"):
        assert_agrees(good + 1, ref, base)
