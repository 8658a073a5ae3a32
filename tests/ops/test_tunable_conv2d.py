"""tunable_conv2d: values and all gradients against the reference, layouts, dtypes and edge cases."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import ALPHAS, CASES, Case, kernels_last
from tunable_ops import reference, tunable_conv2d

ACTIVATIONS = (None, "relu", "gelu", "silu", "leaky_relu")


def run(function: Any, tensors: list[Any], case: Case, act: str | None, grad: Tensor | None) -> list[Tensor]:
    """Return the output and the gradients of all tensors."""
    leaves = [
        None if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
    output = function(*leaves, *case.geometry, activation=act)
    wanted = [t for t in leaves if t is not None]
    return [output, *torch.autograd.grad(output, wanted, torch.ones_like(output) if grad is None else grad)]


def check(
    case: Case,
    alpha: str,
    dtype: torch.dtype,
    channels_last: bool,
    act: str | None,
    fp32_alpha: bool = False,
    backend: str = "torch",
    winograd: float = False,
) -> None:
    tensors = case.tensors(alpha, dtype, channels_last)
    if fp32_alpha:
        tensors[3] = torch.rand(tensors[3].shape)
    grad = torch.randn(case.batch, case.outputs, *case.grid).to(dtype)
    out = run(partial(tunable_conv2d, backend=backend), tensors, case, act, grad)
    base = run(reference.tunable_conv2d, tensors, case, act, grad)
    ref = run(reference.tunable_conv2d, [None if t is None else t.double() for t in tensors], case, act, grad.double())
    names = ["output", "grad_input", "grad_weight", *(["grad_bias"] if case.bias else []), "grad_alpha"]
    for name, o, r, b in zip(names, out, ref, base, strict=True):
        assert_agrees(o, r, b, name, winograd)
    if channels_last:
        assert out[0].is_contiguous(memory_format=torch.channels_last)
        assert out[1].is_contiguous(memory_format=torch.channels_last)
    else:
        assert out[0].is_contiguous()


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fp32(case: Case, alpha: str, channels_last: bool) -> None:
    check(case, alpha, torch.float32, channels_last, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fp32_alpha", [False, True], ids=["alpha16", "alpha32"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[8]], ids=str)
def test_low_precision(case: Case, alpha: str, fp32_alpha: bool, dtype: torch.dtype) -> None:
    check(case, alpha, dtype, True, None, fp32_alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_activations(alpha: str, act: str | None, dtype: torch.dtype) -> None:
    check(CASES[0], alpha, dtype, True, act)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fp64_equals_the_reference(case: Case, alpha: str) -> None:
    tensors = case.tensors(alpha)
    for act in ACTIVATIONS:
        for out, ref in zip(
            run(tunable_conv2d, tensors, case, act, None),
            run(reference.tunable_conv2d, tensors, case, act, None),
            strict=True,
        ):
            torch.testing.assert_close(out, ref, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("act", [None, "silu", "relu"])
def test_gradcheck(alpha: str, act: str | None) -> None:
    case = Case(batch=2, channels=2, outputs=2, size=(2, 3), taps=(2, 2), padding=(1, 0), kernels=2)
    tensors = [t.requires_grad_() for t in case.tensors(alpha)]

    def function(*leaves: Tensor) -> Tensor:
        return tunable_conv2d(*leaves, *case.geometry, activation=act)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_asked_for(wanted: int) -> None:
    """A gradient computed alone equals the one computed with all others; the rest stay None."""
    for alpha in ALPHAS:
        for case in (CASES[0], CASES[2]):
            tensors = case.tensors(alpha)
            full = run(tunable_conv2d, tensors, case, "silu", None)[1:]
            leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
            tunable_conv2d(*leaves, *case.geometry, activation="silu").sum().backward()
            for i, leaf in enumerate(leaves):
                assert (leaf.grad is not None) == (i == wanted)
            torch.testing.assert_close(leaves[wanted].grad, full[wanted], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("taps", [1, 3])
def test_unusual_strides(alpha: str, taps: int) -> None:
    """Sliced, transposed, expanded and channels_last tensors, and a gradient of stride 0, give the same results."""
    case = Case(channels=4, outputs=4, size=(6, 6), taps=(taps, taps), padding=(taps // 2, taps // 2))
    x, weight, bias, a = case.tensors(alpha)
    expected = run(tunable_conv2d, [x, weight, bias, a], case, None, None)
    wide = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    wide[:, ::2, 1::2, ::2] = x
    variants = [
        wide[:, ::2, 1::2, ::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.to(memory_format=torch.channels_last),
    ]
    kernels = [weight, kernels_last(weight), weight.transpose(0, 1).contiguous().transpose(0, 1)]
    for variant in variants:
        for kernel in kernels:
            out = run(tunable_conv2d, [variant, kernel, bias, a], case, None, None)
            for o, e in zip(out, expected, strict=True):
                torch.testing.assert_close(o, e)
    one = x[:1].expand(2, -1, -1, -1)
    leaf = one.detach().requires_grad_()
    tunable_conv2d(leaf, weight, bias, a, *case.geometry).sum().backward()
    torch.testing.assert_close(
        leaf.grad, run(tunable_conv2d, [x[:1].repeat(2, 1, 1, 1), weight, bias, a], case, None, None)[1]
    )


@pytest.mark.parametrize("alpha", ["shared", "sample", "map"])
def test_empty_batch(alpha: str) -> None:
    case = Case(batch=0)
    tensors = case.tensors(alpha)
    out = run(tunable_conv2d, tensors, case, "relu", None)
    ref = run(reference.tunable_conv2d, tensors, case, "relu", None)
    for o, r, t in zip(out[1:], ref[1:], tensors, strict=True):
        assert o.shape == r.shape == t.shape
        assert not o.any()
    assert out[0].shape == (0, 5, 9, 11)


def test_unbatched() -> None:
    x, weight, bias, alpha = Case(batch=1).tensors("shared")
    out = tunable_conv2d(x[0], weight, bias, alpha, padding=1)
    torch.testing.assert_close(out, tunable_conv2d(x, weight, bias, alpha, padding=1)[0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("taps, dilation", [((3, 3), 1), ((2, 4), 1), ((2, 3), 3)])
def test_padding_names(taps: tuple[int, int], dilation: int) -> None:
    x, weight, bias, alpha = Case(taps=taps).tensors("sample")
    for padding in ("same", "valid"):
        out = tunable_conv2d(x, weight, bias, alpha, padding=padding, dilation=dilation)
        ref = reference.tunable_conv2d(x, weight, bias, alpha, padding=padding, dilation=dilation)
        torch.testing.assert_close(out, ref)


def test_same_bits_twice() -> None:
    for alpha in ALPHAS:
        for case in CASES[:6]:
            tensors = case.tensors(alpha, torch.float32)
            first = run(tunable_conv2d, tensors, case, "gelu", None)
            for a, b in zip(first, run(tunable_conv2d, tensors, case, "gelu", None), strict=True):
                assert torch.equal(a, b)


def test_integer_values_are_exact() -> None:
    """Small integers are exact in every dtype, so off-by-one errors cannot hide in rounding."""
    for case in CASES:
        for alpha in ALPHAS:
            x, weight, bias, a = case.tensors(alpha, torch.float32)
            x, weight, a = (torch.randint(-3, 4, t.shape).float() for t in (x, weight, a))
            bias = None if bias is None else torch.randint(-3, 4, bias.shape).float()
            tensors = [x, weight, bias, a]
            for o, r in zip(
                run(tunable_conv2d, tensors, case, None, None),
                run(reference.tunable_conv2d, [None if t is None else t.double() for t in tensors], case, None, None),
                strict=True,
            ):
                assert torch.equal(o.double(), r)


def test_a_weight_gradient_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunable_ops.backends.torch import per_sample

    for case in (CASES[0], CASES[2], CASES[8]):
        tensors = case.tensors("sample")
        expected = run(tunable_conv2d, tensors, case, None, None)
        monkeypatch.setattr(per_sample, "CHUNK_BYTES", 1)
        for o, e in zip(run(tunable_conv2d, tensors, case, None, None), expected, strict=True):
            torch.testing.assert_close(o, e)
        monkeypatch.undo()


def test_reference_backend_by_name() -> None:
    case = CASES[5]
    tensors = case.tensors("sample")
    out = run(lambda *a, **k: tunable_conv2d(*a, **k, backend="reference"), tensors, case, "silu", None)
    for o, r in zip(out, run(reference.tunable_conv2d, tensors, case, "silu", None), strict=True):
        assert torch.equal(o, r)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[8]], ids=str)
def test_an_inplace_activation_after_it(case: Case, alpha: str, channels_last: bool) -> None:
    """Autograd refuses to modify the output of a Function in place if it takes that output for a view."""
    tensors = case.tensors(alpha, torch.float64, channels_last)

    def inplace(*args: Any, activation: str | None) -> Tensor:
        return tunable_conv2d(*args).relu_()

    for o, e in zip(
        run(inplace, tensors, case, None, None), run(tunable_conv2d, tensors, case, "relu", None), strict=True
    ):
        torch.testing.assert_close(o, e)
    with torch.no_grad():
        assert not tunable_conv2d(*tensors, *case.geometry)._is_view()
