"""Eager calls go past the dispatcher only where nothing between the wrapper and the kernel has anything to do."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tunable_ops
from tests.ops.conv2d_cases import Case
from tunable_ops import backends, functional, reference, tunable_conv2d

HAVE_CPP = backends.unavailable_reason("tunable_conv2d", "cpp") is None
NAMES = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(not HAVE_CPP, reason="needs the compiled operators"))]


def leaves(case: Case, alpha: str, channels_last: bool = False) -> list[Any]:
    return [None if t is None else t.requires_grad_() for t in case.tensors(alpha, torch.float32, channels_last)]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("alpha", ["shared", "sample", "map"])
@pytest.mark.parametrize("taps", [(1, 1), (3, 3)], ids=str)
def test_a_backward_pass_inside_autocast_computes_in_the_dtype_of_the_forward(
    taps: tuple[int, int], alpha: str, backend: str
) -> None:
    case = Case(channels=8, outputs=16, taps=taps, padding=(taps[0] // 2,) * 2)
    tensors = leaves(case, alpha)
    output = tunable_conv2d(*tensors, *case.geometry, activation="silu", backend=backend)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, tensors, grad, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(output, tensors, grad)
    assert all(map(torch.equal, inside, expected))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_vmap_over_gradients(channels_last: bool) -> None:
    case = Case(channels=4, outputs=6)
    tensors = leaves(case, "sample", channels_last)
    output = tunable_conv2d(*tensors, *case.geometry)
    grads = torch.randn(3, *output.shape)
    rows = torch.func.vmap(lambda g: torch.autograd.grad(output, tensors, g, retain_graph=True))(grads)
    for i in range(3):
        for row, single in zip(rows, torch.autograd.grad(output, tensors, grads[i], retain_graph=True), strict=True):
            torch.testing.assert_close(row[i], single)


def test_compiled_autograd_traces_the_backward_pass() -> None:
    case = Case(channels=4, outputs=6)
    tensors = leaves(case, "sample")
    expected = torch.autograd.grad(tunable_conv2d(*tensors, *case.geometry).square().sum(), tensors)
    loss = tunable_conv2d(*tensors, *case.geometry).square().sum()
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        loss.backward()
    for leaf, grad in zip(tensors, expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_lazy_negatives_are_resolved() -> None:
    """The imaginary part of a conjugate is a view with a bit that says "negate me"; kernels read memory."""
    case = Case()
    x, weight, bias, alpha = case.tensors("sample", torch.float32)
    negated = [torch._neg_view(t.neg()) for t in (x, weight, bias, alpha)]
    for backend in ("torch", None):
        out = tunable_conv2d(*negated, *case.geometry, backend=backend)
        torch.testing.assert_close(out, reference.tunable_conv2d(x, weight, bias, alpha, *case.geometry))


def test_alpha_in_another_16_bit_type_under_autocast() -> None:
    x, weight, bias, alpha = torch.randn(2, 3), torch.randn(2, 4, 3), torch.randn(2, 4), torch.rand(2)
    half = [t.half() for t in (x, weight, bias, alpha)]
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(enabled):
            assert tunable_ops.tunable_linear(*half).dtype == torch.bfloat16


def test_blending_first_is_a_question_for_any_device() -> None:
    assert functional.blends_first(torch.randn(2, 8, 8, 3, 3), 2, torch.float32, (1, 1), 1)


BAD: list[tuple[str, Any]] = [
    ("tunable_conv2d_cpp_backward", lambda t, o: (t[4], None, *t[:4], *o, [])),
    ("tunable_conv2d_cpp_backward", lambda t, o: (t[4], None, *t[:4], *o, [True])),
    ("tunable_conv2d_cpp_backward", lambda t, o: (t[4], None, *t[:4], *o[:-1], 1, [True] * 4)),
    ("tunable_conv2d_cpp_backward", lambda t, o: (t[4][:, :1], None, *t[:4], *o, [True] * 4)),
    ("tunable_conv2d_cpp", lambda t, o: (*t[:4], 1, 1, 2**63 - 1, 1, 1, 1, 1, 0)),
    ("tunable_conv2d_cpp", lambda t, o: (*t[:4], 1, 1, 1, 1, 2**62, 1, 1, 0)),
    ("tunable_conv2d_cpp", lambda t, o: (t[0], t[1], t[2][:, :1], t[3], *o)),
    ("tunable_conv_transpose2d_cpp", lambda t, o: (*t[:4], 1, 1, 0, 0, 0, 0, 1, 77)),
    ("tunable_parameters_cpp", lambda t, o: ([t[1], t[2]], t[3][0], [10**9, 0], None)),
    ("tunable_parameters_cpp", lambda t, o: ([t[1], t[2]], t[3][0], [], None)),
    ("tunable_parameters_cpp_into", lambda t, o: ([t[2]], t[3][0], [0], [torch.empty(2)])),
    ("tunable_parameters_cpp_backward", lambda t, o: ([t[2][0]], [t[2]], t[3][0], [0], [])),
    ("tunable_parameters_cpp_backward", lambda t, o: ([t[2][0, :1]], [t[2]], t[3][0], [0], [True, True])),
]


@pytest.mark.skipif(not HAVE_CPP, reason="needs the compiled operators")
@pytest.mark.parametrize("name, change", BAD, ids=range(len(BAD)))
def test_compiled_operators_refuse_what_does_not_fit(name: str, change: Any) -> None:
    """Exported programs call them without the wrapper: no argument may lead a kernel out of its tensors."""
    case = Case(channels=4, outputs=4)
    tensors: list[Tensor] = [*case.tensors("sample", torch.float32, True), torch.randn(case.batch, 4, *case.grid)]
    options = (*case.geometry[0], *case.geometry[1], *case.geometry[2], 1, 0)
    with pytest.raises(RuntimeError, match="must"):
        getattr(torch.ops.tunable_ops, name)(*change(tensors, options))
