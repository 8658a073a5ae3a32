"""Algorithms for a per-sample alpha agree with the reference wherever the rule may choose them."""

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
    [(name, case) for name in ("grouped", "loop", "bmm") for case in (BMM if name == "bmm" else CASES)],
    ids=str,
)
def test_agrees(case: Case, algorithm: str, channels_last: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensors = case.tensors("sample", dtype, channels_last)
        grad = torch.randn(case.batch, case.outputs, *case.grid).to(dtype)
        ref, base = expected(case, tensors, grad, torch.float64), expected(case, tensors, grad, dtype)
        out = tunable_conv2d.forward(*tensors, *case.geometry, "none", algorithm)
        assert_agrees(out, ref[0], base[0], algorithm)
        mask = [True, True, case.bias, True]
        grads = tunable_conv2d.backward(grad, None, *tensors, *case.geometry, "none", mask, algorithm)
        for name, g, r, b in zip(
            "xwba" if case.bias else "xwa", [g for g in grads if g is not None], ref[1:], base[1:], strict=True
        ):
            assert_agrees(g, r, b, f"{algorithm} grad {name}")


def test_the_rule_names_an_algorithm_that_serves_the_case() -> None:
    assert set(per_sample.FORWARD) == set(per_sample.BACKWARD)
    for case in CASES:
        for channels_last in (False, True):
            x, weight, _, _ = case.tensors("sample", torch.float32, channels_last)
            name = choose_algorithm(x, weight, case.geometry[:3], case.groups)
            assert name in per_sample.FORWARD
            assert name != "bmm" or case in BMM


def test_the_rule_knows_layout_and_size() -> None:
    for size, last, contiguous in ((8, "grouped", "grouped"), (64, "loop", "grouped")):
        case = Case(channels=64, outputs=64, size=(size, size), kernels=2)
        for channels_last, name in ((True, last), (False, contiguous)):
            x, weight, _, _ = case.tensors("sample", torch.float32, channels_last)
            assert choose_algorithm(x, weight, case.geometry[:3], 1) == name
