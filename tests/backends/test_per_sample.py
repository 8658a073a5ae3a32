"""Every algorithm for a per-sample alpha agrees with the reference, wherever the rule may pick it."""

import pytest
import torch

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import CASES, Case
from tunable_ops import reference
from tunable_ops.backends.torch import per_sample, tunable_conv2d
from tunable_ops.backends.torch.choose_algorithm import choose_algorithm

BMM = [c for c in CASES if c.taps == (1, 1) and c.stride == (1, 1) and c.padding == (0, 0)]


def expected(case: Case, tensors: list, grad: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    output = reference.tunable_conv2d(*leaves, *case.geometry)
    return [output, *torch.autograd.grad(output, [t for t in leaves if t is not None], grad.to(dtype))]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "algorithm, case",
    [(name, case) for name in ("grouped", "loop", "fold", "bmm") for case in (BMM if name == "bmm" else CASES)],
    ids=str,
)
def test_agrees(case: Case, algorithm: str, channels_last: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensors = case.tensors("sample", dtype, channels_last)
        grad = torch.randn(case.batch, case.outputs, *case.grid).to(dtype)
        ref, base = expected(case, tensors, grad, torch.float64), expected(case, tensors, grad, dtype)
        out = tunable_conv2d.forward(*tensors, *case.geometry, "none", algorithm)
        if algorithm != "fold" or dtype == torch.float32:  # fold rounds every kernel's product: not for low precision
            assert_agrees(out, ref[0], base[0], algorithm)
        if algorithm not in per_sample.BACKWARD:
            continue
        mask = [True, True, case.bias, True]
        grads = tunable_conv2d.backward(grad, None, *tensors, *case.geometry, "none", mask, algorithm)
        for name, g, r, b in zip(
            "xwba" if case.bias else "xwa", [g for g in grads if g is not None], ref[1:], base[1:], strict=True
        ):
            assert_agrees(g, r, b, f"{algorithm} grad {name}")


def test_the_rule_names_an_algorithm_that_serves_the_case() -> None:
    for case in CASES:
        for channels_last in (False, True):
            for dtype in (torch.float32, torch.bfloat16):
                x, weight, _, _ = case.tensors("sample", dtype, channels_last)
                for backward in (False, True):
                    name = choose_algorithm(x, weight, case.geometry[:3], case.groups, backward=backward)
                    assert name in (per_sample.BACKWARD if backward else per_sample.FORWARD)
                    assert name != "bmm" or case in BMM
                    assert name != "fold" or dtype == torch.float32
