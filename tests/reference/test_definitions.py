"""Rounding of the definitions and their second derivatives; tests/ops/test_oracles.py has values and gradients."""

import pytest
import torch

from tunable_ops import reference

D = torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_blend_accumulates_in_fp32_and_rounds_once(dtype: torch.dtype) -> None:
    """Rounding after every kernel would lose 1: in fp16 2048 + 1 = 2048, in bf16 256 + 1 = 256."""
    big = 2048.0 if dtype == torch.float16 else 256.0
    stack = torch.tensor([[big], [1.0], [1.0], [-big]], dtype=dtype)
    assert reference.tunable_parameter(stack, torch.ones(4)).item() == 2.0
    assert reference.tunable_parameter(stack, torch.ones(4, dtype=dtype)).item() == 2.0


def test_gradients_of_any_order() -> None:
    x, w = torch.randn(2, 2, 3, 3, dtype=D, requires_grad=True), torch.randn(2, 2, 2, 2, 2, dtype=D, requires_grad=True)
    bias, alpha = torch.randn(2, 2, dtype=D, requires_grad=True), torch.rand(2, 2, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(reference.tunable_conv2d, (x, w, bias, alpha))
    assert torch.autograd.gradgradcheck(reference.tunable_conv2d, (x, w, bias, alpha))
