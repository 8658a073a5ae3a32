"""conv1d, conv3d, conv_transpose2d, linear and parameter: rounding, edges and bad input of each.

On a CPU most of these run the code of the definitions; `test_oracles.py` is the test that is independent of it.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tunable_ops
from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import kernels_last
from tunable_ops import reference

D = torch.float64
P, B = 3, 2
# name -> (input shape, weight shape, bias, positional options, output grid, the alphas it takes)
FAMILY: dict[str, tuple[Any, ...]] = {
    "tunable_conv1d": ((B, 4, 61), (P, 6, 2, 3), True, (2, 1, 2, 2), (30,)),
    "tunable_conv3d": ((B, 4, 5, 6, 7), (P, 6, 2, 3, 2, 1), True, ((1, 2, 1), (1, 0, 1), 1, 2), (5, 3, 9)),
    "tunable_conv_transpose2d": ((B, 4, 5, 6), (P, 4, 3, 3, 2), True, ((2, 1), (1, 0), (1, 0), 2, 1), (10, 7)),
    # Kernels that do not overlap: with a per-sample alpha, a 1x1 convolution whose outputs are blocks of pixels. Fewer
    # pixels than weights, because all pixels share the rounded weights and the comparison assumes independent errors.
    "tunable_conv_transpose2d, blocks": ((B, 8, 3, 4), (P, 8, 6, 2, 3), True, ((2, 3),), (6, 12)),
    "tunable_linear": ((B, 5, 4), (P, 6, 4), True, (), ()),
}
ALPHAS = ("shared", "one", "sample", "map")


def operator(name: str) -> str:
    return name.split(",")[0]


def tensors(name: str, alpha: str, dtype: torch.dtype = D) -> list[Tensor]:
    shape, weight, _, _, grid = FAMILY[name]
    outputs = 6
    alphas = {"shared": (P,), "one": (1, P), "sample": (B, P), "map": (B, P, *grid)}
    fan_in = torch.tensor(weight[2:]).prod().item()
    return [
        torch.randn(shape).to(dtype),
        (torch.randn(weight) / fan_in**0.5).to(dtype),
        torch.randn(P, outputs).to(dtype),
        torch.rand(alphas[alpha]).to(dtype),
    ]


def run(function: Callable[..., Tensor], name: str, given: list[Tensor], act: str | None) -> list[Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in given]
    output = function(*leaves, *FAMILY[name][3], activation=act)
    return [output, *torch.autograd.grad(output.sum(), leaves)]


PAIRS = [(name, alpha) for name in FAMILY for alpha in ALPHAS if FAMILY[name][4] or alpha != "map"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, alpha", PAIRS)
def test_values_and_gradients(name: str, alpha: str, dtype: torch.dtype) -> None:
    given = tensors(name, alpha, dtype)
    function, definition = getattr(tunable_ops, operator(name)), getattr(reference, operator(name))
    for act in (None, "gelu"):
        out, base = run(function, name, given, act), run(definition, name, given, act)
        ref = run(definition, name, [t.double() for t in given], act)
        for label, o, r, b in zip(("output", "input", "weight", "bias", "alpha"), out, ref, base, strict=True):
            assert_agrees(o, r, b, f"{name} {label}")


@pytest.mark.parametrize("name, alpha", PAIRS)
def test_gradcheck(name: str, alpha: str) -> None:
    given = [t.requires_grad_() for t in tensors(name, alpha)]

    def function(*leaves: Tensor) -> Tensor:
        return getattr(tunable_ops, operator(name))(*leaves, *FAMILY[name][3], activation="silu")

    assert torch.autograd.gradcheck(function, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize("name, alpha", PAIRS)
def test_compile_func_and_named_reference(name: str, alpha: str) -> None:
    torch._dynamo.reset()
    given, options = tensors(name, alpha), FAMILY[name][3]
    function = getattr(tunable_ops, operator(name))
    expected = getattr(reference, operator(name))(*given, *options)
    torch.testing.assert_close(function(*given, *options), expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(function(*given, *options, backend="reference"), expected)
    compiled = torch.compile(lambda *a: function(*a, *options), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), expected, rtol=1e-11, atol=1e-11)
    x, w, b, a = given
    grad = torch.func.grad(lambda v: function(x, w, b, v, *options).square().sum())(a)
    leaf = a.clone().requires_grad_()
    function(x, w, b, leaf, *options).square().sum().backward()
    torch.testing.assert_close(grad, leaf.grad)


@pytest.mark.parametrize("name", FAMILY)
def test_unbatched_and_empty(name: str) -> None:
    x, w, b, a = tensors(name, "shared")
    function, options = getattr(tunable_ops, operator(name)), FAMILY[name][3]
    torch.testing.assert_close(function(x[0], w, b, a, *options), function(x, w, b, a, *options)[0])
    for alpha in (a, torch.rand(0, P, dtype=D)):
        leaves = [t.clone().requires_grad_() for t in (x[:0], w, b, alpha)]
        out = function(*leaves, *options)
        assert out.shape == (0, *function(x, w, b, a, *options).shape[1:])
        out.sum().backward()
        assert not any(leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("name", FAMILY)
def test_no_bias(name: str) -> None:
    x, w, b, a = tensors(name, "sample")
    function, options = getattr(tunable_ops, operator(name)), FAMILY[name][3]
    torch.testing.assert_close(function(x, w, None, a, *options), function(x, w, 0 * b, a, *options))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_conv1d_and_conv3d_padding_names() -> None:
    for name, size, taps in (("tunable_conv1d", (8,), (4,)), ("tunable_conv3d", (5, 6, 4), (2, 3, 4))):
        x, w, a = torch.randn(B, 2, *size, dtype=D), torch.randn(P, 3, 2, *taps, dtype=D), torch.rand(B, P, dtype=D)
        for padding in ("same", "valid"):
            out = getattr(tunable_ops, operator(name))(x, w, None, a, padding=padding)
            assert (out.shape[2:] == x.shape[2:]) == (padding == "same")
            ref = getattr(reference, operator(name))(x, w, None, a, padding=padding)
            torch.testing.assert_close(out, ref)


def test_conv3d_and_linear_on_unusual_strides() -> None:
    for name in ("tunable_conv3d", "tunable_linear", "tunable_conv1d", "tunable_conv_transpose2d"):
        x, w, b, a = tensors(name, "sample")
        expected = run(getattr(tunable_ops, operator(name)), name, [x, w, b, a], None)
        wide = torch.zeros(*x.shape, 2, dtype=D)
        wide[..., 0] = x
        kernel = w.transpose(0, 1).contiguous().transpose(0, 1)
        for o, e in zip(
            run(getattr(tunable_ops, operator(name)), name, [wide[..., 0], kernel, b, a], None), expected, strict=True
        ):
            torch.testing.assert_close(o, e)


def test_parameter_values_and_gradients() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in ((), (1,), (7,), (2, 1, 5), (6, 4, 3, 2)):
            for rows in ((), (1,), (5,)):
                stack, alpha = torch.randn(P, *shape).to(dtype), torch.rand(*rows, P).to(dtype)
                given = [stack] if len(shape) != 4 else [stack, kernels_last(stack)]
                for variant in given:
                    results = []
                    for function, cast in (
                        (tunable_ops.tunable_parameter, dtype),
                        (reference.tunable_parameter, D),
                        (reference.tunable_parameter, dtype),
                    ):
                        leaves = [t.detach().to(cast).clone().requires_grad_() for t in (variant, alpha)]
                        out = function(*leaves)
                        grad = torch.linspace(-1, 1, out.numel(), dtype=D).view(out.shape).to(cast)
                        results.append([out, *torch.autograd.grad(out, leaves, grad)])
                    for o, r, b in zip(*results, strict=True):
                        assert_agrees(o, r, b, f"parameter {shape} {rows}")


def test_parameter_gradcheck() -> None:
    stack, alpha = torch.randn(P, 2, 3, dtype=D, requires_grad=True), torch.rand(4, P, dtype=D, requires_grad=True)
    for a in (alpha, alpha.detach()[0].requires_grad_()):
        assert torch.autograd.gradcheck(tunable_ops.tunable_parameter, (stack, a))
        assert torch.autograd.gradgradcheck(tunable_ops.tunable_parameter, (stack, a))


A = torch.zeros(P)
ERRORS = {
    "conv1d input": (
        "tunable_conv1d",
        (torch.zeros(4, 5, 6, 7), torch.zeros(P, 2, 5, 3), None, A),
        {},
        ValueError,
        "input must be [B, C, L] or [C, L]; got shape [4, 5, 6, 7]",
    ),
    "conv1d map": (
        "tunable_conv1d",
        (torch.zeros(1, 2, 9), torch.zeros(P, 2, 2, 3), None, torch.zeros(1, P, 9)),
        {},
        ValueError,
        "alpha must have the output's size [7] where it is a map",
    ),
    "conv1d stride": (
        "tunable_conv1d",
        (torch.zeros(1, 2, 9), torch.zeros(P, 2, 2, 3), None, A),
        {"stride": (1, 1)},
        ValueError,
        "stride must be an int or 1 ints; got (1, 1)",
    ),
    "conv1d small": (
        "tunable_conv1d",
        (torch.zeros(1, 2, 2), torch.zeros(P, 2, 2, 3), None, A),
        {},
        ValueError,
        "input must be at least as large as the dilated kernel",
    ),
    "conv1d activation": (
        "tunable_conv1d",
        (torch.zeros(1, 2, 9), torch.zeros(P, 2, 2, 3), None, A),
        {"activation": "x"},
        ValueError,
        "activation must be None or one of",
    ),
    "conv1d backend": (
        "tunable_conv1d",
        (torch.zeros(1, 2, 9), torch.zeros(P, 2, 2, 3), None, A),
        {"backend": "triton"},
        RuntimeError,
        "backend must be one that can run here; got 'triton'",
    ),
    "conv3d weight": (
        "tunable_conv3d",
        (torch.zeros(1, 2, 3, 3, 3), torch.zeros(P, 2, 2, 3, 3), None, A),
        {},
        ValueError,
        "weight must be [P, O, C/groups, *k] with 3 tap sizes",
    ),
    "conv3d backend": (
        "tunable_conv3d",
        (torch.zeros(1, 2, 3, 3, 3), torch.zeros(P, 2, 2, 1, 1, 1), None, A),
        {"backend": "triton"},
        RuntimeError,
        "backend must be one that can run here; got 'triton'",
    ),
    "transpose weight": (
        "tunable_conv_transpose2d",
        (torch.zeros(1, 2, 3, 3), torch.zeros(P, 3, 2, 3, 3), None, A),
        {},
        ValueError,
        "weight must be [P, C, O/groups, *k] with C = 2",
    ),
    "transpose output_padding": (
        "tunable_conv_transpose2d",
        (torch.zeros(1, 2, 3, 3), torch.zeros(P, 2, 2, 3, 3), None, A),
        {"output_padding": 1},
        ValueError,
        "output_padding must be smaller than stride or dilation; got 1",
    ),
    "transpose padding": (
        "tunable_conv_transpose2d",
        (torch.zeros(1, 2, 1, 1), torch.zeros(P, 2, 2, 1, 1), None, A),
        {"padding": 1},
        ValueError,
        "input must give an output of at least one pixel",
    ),
    "transpose same": (
        "tunable_conv_transpose2d",
        (torch.zeros(1, 2, 3, 3), torch.zeros(P, 2, 2, 3, 3), None, A),
        {"padding": "same"},
        TypeError,
        "padding must be an int or 2 ints; got 'same'",
    ),
    "linear weight": (
        "tunable_linear",
        (torch.zeros(2, 4), torch.zeros(P, 4), None, A),
        {},
        ValueError,
        "weight must be [P, O, C], none of them 0; got shape [3, 4]",
    ),
    "linear input": (
        "tunable_linear",
        (torch.zeros(2, 5), torch.zeros(P, 6, 4), None, A),
        {},
        ValueError,
        "input must be [*, C] with C = 4, as the weight has it; got shape [2, 5]",
    ),
    "linear bias": (
        "tunable_linear",
        (torch.zeros(2, 4), torch.zeros(P, 6, 4), torch.zeros(6), A),
        {},
        ValueError,
        "bias must be [P, O] = [3, 6]",
    ),
    "linear map": (
        "tunable_linear",
        (torch.zeros(2, 4), torch.zeros(P, 6, 4), None, torch.zeros(2, P, 3)),
        {},
        ValueError,
        "alpha must be [P] or [B, P]; got shape [2, 3, 3]",
    ),
    "linear batch": (
        "tunable_linear",
        (torch.zeros(2, 4), torch.zeros(P, 6, 4), None, torch.zeros(5, P)),
        {},
        ValueError,
        "with B = 2, as the input has it; got shape [5, 3]",
    ),
    "linear unbatched": (
        "tunable_linear",
        (torch.zeros(4), torch.zeros(P, 6, 4), None, torch.zeros(1, P)),
        {},
        ValueError,
        "alpha must be [P] for an unbatched input",
    ),
    "parameter type": ("tunable_parameter", ([1.0], A), {}, TypeError, "parameter must be a Tensor; got list"),
    "parameter dtype": (
        "tunable_parameter",
        (torch.zeros(P).long(), A),
        {},
        TypeError,
        "parameter must be float32, float16",
    ),
    "parameter scalar": (
        "tunable_parameter",
        (torch.zeros(()), A),
        {},
        ValueError,
        "parameter must be [P, *shape], P >= 1; got shape []",
    ),
    "parameter P": (
        "tunable_parameter",
        (torch.zeros(2, 4), A),
        {},
        ValueError,
        "alpha must be [P] or [B, P] with P = 2",
    ),
    "parameter rank": (
        "tunable_parameter",
        (torch.zeros(P, 4), torch.zeros(1, 1, P)),
        {},
        ValueError,
        "alpha must be [P] or [B, P] with P = 3",
    ),
    "parameter alpha dtype": (
        "tunable_parameter",
        (torch.zeros(P, 4), A.half()),
        {},
        TypeError,
        "alpha must be float32 or have the parameter's dtype",
    ),
    "parameter device": (
        "tunable_parameter",
        (torch.zeros(P, 4), A.to("meta")),
        {},
        ValueError,
        "alpha must be on the parameter's device, cpu; got meta",
    ),
    "parameter backend": (
        "tunable_parameter",
        (torch.zeros(P, 4), A),
        {"backend": "fast"},
        ValueError,
        "backend must be None or one of",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input(case: str) -> None:
    name, args, kwargs, error, text = ERRORS[case]
    with pytest.raises(error, match=re.escape(text)) as caught:
        getattr(tunable_ops, operator(name))(*args, **kwargs)
    assert str(caught.value).startswith(f"{name}: ")
    assert type(caught.value) is error


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("name", FAMILY)
def test_empty_batches_whatever_precision_the_process_allows(name: str, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        x, w, b, _ = tensors(name, "shared", torch.float32)
        leaves = [t.requires_grad_() for t in (x[:0].clone(), w, b, torch.rand(0, P))]
        getattr(tunable_ops, operator(name))(*leaves, *FAMILY[name][3]).sum().backward()
        assert not any(leaf.grad.any() for leaf in leaves)
        assert tunable_ops.tunable_parameter(torch.rand(2, 0), torch.rand(2)).shape == (0,)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", ["tunable_conv3d", "tunable_conv_transpose2d", "tunable_conv_transpose2d, blocks"])
def test_the_output_keeps_the_memory_format(name: str, alpha: str) -> None:
    x, w, b, a = tensors(name, alpha)
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    out = getattr(tunable_ops, operator(name))(x.to(memory_format=last), w, b, a, *FAMILY[name][3])
    assert out.is_contiguous(memory_format=last)
    expected = getattr(tunable_ops, operator(name))(x, w, b, a, *FAMILY[name][3])
    assert expected.is_contiguous()
    torch.testing.assert_close(out, expected)
