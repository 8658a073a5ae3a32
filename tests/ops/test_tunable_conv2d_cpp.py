"""backend="cpp": tails of tiles, thread counts, strides, and calls that it passes on to PyTorch's own operators."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import Case, kernels_last, options_of
from tests.ops.test_tunable_conv2d import ACTIVATIONS, CASES, check, run
from tunable_ops import backends, checks, exact, functional, reference, tunable_conv1d, tunable_conv2d

pytestmark = pytest.mark.skipif(
    backends.unavailable_reason("tunable_conv2d", "cpp") is not None, reason="needs the compiled operators"
)


@pytest.fixture(autouse=True)
def direct() -> Iterator[None]:
    """Take the direct kernels; test_winograd.py has the others."""
    with exact():
        yield


ALPHAS = ("shared", "one", "sample")
WITH_MAP = (*ALPHAS, "map")
# Panels of 2 vectors of 16, 8 or 4 outputs; tiles of up to 28, 14, 12 or 6 pixels; chunks of 48 KB of weights.
TAILS = [
    Case(channels=16, outputs=16, size=(3, 28), kernels=2),
    Case(channels=15, outputs=17, size=(4, 29), kernels=2),
    Case(channels=17, outputs=31, size=(5, 14), kernels=2, taps=(1, 1), padding=(0, 0)),
    Case(channels=33, outputs=32, size=(6, 15), kernels=2, taps=(2, 2), stride=(2, 2), padding=(0, 0)),
    Case(channels=13, outputs=49, size=(7, 43), kernels=2, taps=(5, 5), padding=(2, 2)),
    Case(channels=130, outputs=33, size=(5, 13), kernels=2),
    Case(channels=3, outputs=20, size=(9, 6), kernels=2, padding=(3, 4)),
    Case(channels=24, outputs=18, groups=3, size=(4, 31), kernels=2),
    Case(channels=16, outputs=16, groups=16, size=(4, 9), kernels=2),
    Case(channels=17, outputs=17, groups=17, size=(5, 40), kernels=2, taps=(5, 4), padding=(2, 1)),
    Case(channels=40, outputs=40, groups=40, size=(9, 17), kernels=2, stride=(2, 3), dilation=(1, 2)),
    Case(channels=8, outputs=8, groups=8, size=(3, 4), kernels=2, taps=(7, 7), padding=(3, 3)),
    # Depthwise windows: 4 or 8 pixels by one or two vectors, whose last overlap those before; borders on both sides.
    Case(channels=19, outputs=19, groups=19, size=(6, 5), kernels=2, padding=(0, 1)),
    Case(channels=7, outputs=7, groups=7, size=(4, 10), kernels=2),
    Case(channels=32, outputs=32, groups=32, size=(5, 2), kernels=2, padding=(1, 4)),
    Case(channels=35, outputs=35, groups=35, size=(7, 12), kernels=2, taps=(3, 5), padding=(4, 0)),
    Case(channels=9, outputs=9, groups=9, size=(8, 11), kernels=2, taps=(5, 7), padding=(2, 5)),
    Case(channels=24, outputs=24, groups=24, size=(9, 21), kernels=2, stride=(2, 2)),
    # Phases of the input gradient that are wider than the output.
    Case(channels=4, outputs=8, size=(8, 9), taps=(1, 3), stride=(1, 3), padding=(0, 0), dilation=(1, 2)),
    # Wide 1x1 layers are aten's with one alpha.
    Case(channels=264, outputs=500, size=(5, 7), kernels=2, taps=(1, 1), padding=(0, 0)),
]


def cpp(*args: Any, **kwargs: Any) -> Tensor:
    return tunable_conv2d(*args, **kwargs, backend="cpp")


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", WITH_MAP)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees(case: Case, alpha: str, channels_last: bool) -> None:
    check(case, alpha, torch.float32, channels_last, None, backend="cpp")


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("alpha", WITH_MAP)
def test_activations(alpha: str, act: str | None) -> None:
    check(CASES[0], alpha, torch.float32, True, act, backend="cpp")


@pytest.mark.parametrize("alpha", WITH_MAP)
@pytest.mark.parametrize("case", TAILS, ids=str)
def test_tails_of_tiles(case: Case, alpha: str) -> None:
    check(case, alpha, torch.float32, True, None, backend="cpp")


HALF = [torch.bfloat16, torch.float16]
# Processors that multiply the dtype use PyTorch's convolution in it (and for depthwise bfloat16 all do, with a shared
# alpha); the rest uses float32 workspaces.
HALF_CASES = [CASES[1], CASES[5], CASES[6], CASES[8], CASES[9], TAILS[1], TAILS[3], TAILS[9]]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", HALF_CASES, ids=str)
def test_half(case: Case, alpha: str, channels_last: bool, dtype: torch.dtype) -> None:
    check(case, alpha, dtype, channels_last, None, fp32_alpha=channels_last, backend="cpp")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS[1:])
def test_activations_in_half(act: str, dtype: torch.dtype) -> None:
    for case in (CASES[0], CASES[8]):
        for alpha in ("shared", "sample"):
            check(case, alpha, dtype, True, act, backend="cpp")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_in_unusual_strides(dtype: torch.dtype) -> None:
    case = Case(channels=4, outputs=4, size=(6, 6), groups=4)
    for alpha in ("shared", "sample"):
        x, weight, bias, rows = case.tensors(alpha, dtype)
        expected = run(cpp, [x, weight, bias, rows], case, "relu", None)
        wide = torch.randn(2, 8, 12, 12).to(dtype)
        wide[:, ::2, 1::2, ::2] = x
        for variant in (wide[:, ::2, 1::2, ::2], x.mT.contiguous().mT, x.expand(2, -1, -1, -1)):
            for kernel in (kernels_last(weight), weight.transpose(0, 1).contiguous().transpose(0, 1)):
                leaves = [variant, kernel, bias.t().contiguous().t(), rows]
                for o, e in zip(run(cpp, leaves, case, "relu", None), expected, strict=True):
                    assert o.dtype is dtype
                    torch.testing.assert_close(o, e)


def test_the_blend_rounds_every_value_once() -> None:
    """Compare every number of both types with PyTorch's conversions, in blocks that end within a vector."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    for dtype in HALF:
        stack = torch.stack([bits.view(dtype), bits.view(dtype).flip(0)])[:, :-5]
        for alpha in (torch.tensor([1.0, 0.0]), torch.tensor([0.37, 0.0]), torch.tensor([-2.5e-3, 0.0])):
            blended = functional.tunable_parameter(stack.nan_to_num(), alpha)
            expected = alpha[0] * stack[0].nan_to_num().float()
            assert torch.equal(blended, expected.to(dtype))
        special = functional.tunable_parameter(stack[:1], torch.ones(1))
        assert torch.equal(special.isnan(), stack[0].isnan())
        assert torch.equal(special.isinf(), stack[0].isinf())


def test_integer_values_are_exact() -> None:
    """Small integers are exact in fp32, so off-by-one errors cannot hide in rounding."""
    for case in (*CASES, *TAILS):
        for alpha in WITH_MAP:
            for channels_last in (False, True):
                tensors = case.tensors(alpha, torch.float32, channels_last)
                for t in tensors:
                    if t is not None:
                        t.copy_(torch.randint(-2, 3, t.shape))
                doubles = [None if t is None else t.double() for t in tensors]
                expected = run(reference.tunable_conv2d, doubles, case, None, None)
                for o, r in zip(run(cpp, tensors, case, None, None), expected, strict=True):
                    assert torch.equal(o.double(), r), case


def test_the_same_bits_with_every_number_of_threads() -> None:
    threads = torch.get_num_threads()
    for case in (
        Case(batch=1, channels=16, outputs=33, size=(40, 41), kernels=2),
        Case(batch=5, channels=40, outputs=24, size=(33, 40), kernels=2, taps=(1, 1), padding=(0, 0)),
        Case(batch=3, channels=48, outputs=48, groups=48, size=(40, 40), kernels=2),
        Case(batch=3, channels=24, outputs=48, size=(40, 40), kernels=2, taps=(2, 2), stride=(2, 2), padding=(0, 0)),
    ):
        # With a shared alpha all but the last use PyTorch's convolution, which does not guarantee this.
        for alpha in ("shared", "sample") if case.stride == (2, 2) else ("sample",):
            tensors = case.tensors(alpha, torch.float32, channels_last=True)
            results = []
            for count in (1, 2, 3, 5):
                torch.set_num_threads(count)
                try:
                    results.append(run(cpp, tensors, case, "relu", None))
                finally:
                    torch.set_num_threads(threads)
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_asked_for(wanted: int) -> None:
    for alpha in WITH_MAP:
        for case in (CASES[0], CASES[2], CASES[8]):
            tensors = case.tensors(alpha, torch.float32, channels_last=True)
            full = run(cpp, tensors, case, "silu", None)[1:]
            leaves = [
                t.clone(memory_format=torch.preserve_format).requires_grad_(i == wanted) for i, t in enumerate(tensors)
            ]
            cpp(*leaves, *case.geometry, activation="silu").sum().backward()
            for i, leaf in enumerate(leaves):
                assert (leaf.grad is not None) == (i == wanted)
            assert torch.equal(leaves[wanted].grad, full[wanted])


def test_unusual_strides_change_no_bit() -> None:
    case = Case(channels=4, outputs=4, size=(6, 6))
    x, weight, bias, alpha = case.tensors("sample", torch.float32)
    expected = run(cpp, [x, weight, bias, alpha], case, None, None)
    wide = torch.randn(2, 8, 12, 12)
    wide[:, ::2, 1::2, ::2] = x
    for variant in (wide[:, ::2, 1::2, ::2], x.mT.contiguous().mT, x.to(memory_format=torch.channels_last)):
        for kernel in (weight, kernels_last(weight), weight.transpose(0, 1).contiguous().transpose(0, 1)):
            turned = alpha.t().contiguous().t()
            for o, e in zip(
                run(cpp, [variant, kernel, bias.t().contiguous().t(), turned], case, None, None), expected, strict=True
            ):
                assert torch.equal(o, e)


@pytest.mark.parametrize(
    "alpha, dtype",
    [*((alpha, dtype) for alpha in ("shared", "sample") for dtype in (torch.float32, *HALF)), ("map", torch.float32)],
    ids=str,
)
def test_empty_batch(alpha: str, dtype: torch.dtype) -> None:
    case = Case(batch=0)
    out = run(cpp, case.tensors(alpha, dtype), case, "relu", None)
    assert out[0].shape == (0, 5, 9, 11)
    assert not any(o.any() for o in out)


@pytest.mark.parametrize("bias", [False, True])
def test_kernels_of_few_outputs_share_a_convolution(bias: bool) -> None:
    """Of five kernels, three are convolved at once, then two."""
    case = Case(channels=3, outputs=20, size=(7, 9), kernels=5, bias=bias)
    check(case, "map", torch.float32, True, "relu", backend="cpp")


def test_a_map_of_any_strides() -> None:
    case = Case(channels=4, outputs=5, size=(6, 7))
    x, weight, bias, alpha = case.tensors("map", torch.float32, channels_last=True)
    expected = run(cpp, [x, weight, bias, alpha], case, "relu", None)
    for turned in (alpha.to(memory_format=torch.channels_last), alpha.mT.contiguous().mT):
        results = run(cpp, [x, weight, bias.t().contiguous().t(), turned], case, "relu", None)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    with pytest.raises(RuntimeError, match="an alpha that is a map in float32 alone"):
        cpp(x.bfloat16(), weight.bfloat16(), None, alpha, *case.geometry)


def test_a_nan_spreads_as_in_torch() -> None:
    """Zero padding is skipped, not multiplied by; relu keeps NaN."""
    case = Case(channels=5, outputs=6)
    x, weight, bias, alpha = case.tensors("sample", torch.float32, channels_last=True)
    x[0, 2, 4, 5] = float("nan")
    out = cpp(x, weight, bias, alpha, *case.geometry, activation="relu")
    ref = reference.tunable_conv2d(x, weight, bias, alpha, *case.geometry, activation="relu")
    assert torch.equal(out.isnan(), ref.isnan())


def test_second_order() -> None:
    case = Case(batch=2, channels=2, outputs=3, size=(4, 5), kernels=2)
    gradients = []
    for function in (cpp, reference.tunable_conv2d):
        torch.manual_seed(1)
        leaves = [t.requires_grad_() for t in case.tensors("sample", torch.float32)]
        first = torch.autograd.grad(function(*leaves, *case.geometry).square().sum(), leaves, create_graph=True)
        gradients.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_opcheck() -> None:
    for alpha, channels_last in (("sample", False), ("sample", True), ("map", True)):
        tensors = [t.requires_grad_() for t in CASES[0].tensors(alpha, torch.float32, channels_last)]
        torch.library.opcheck(
            torch.ops.tunable_ops.tunable_conv2d_cpp.default, (*tensors, *options_of(CASES[0], "relu"))
        )


def test_conv1d_reaches_it() -> None:
    x, weight, bias, alpha = torch.randn(3, 4, 20), torch.randn(2, 6, 4, 3), torch.randn(2, 6), torch.rand(3, 2)
    out = tunable_conv1d(x, weight, bias, alpha, padding=1, backend="cpp")
    torch.testing.assert_close(out, reference.tunable_conv1d(x, weight, bias, alpha, padding=1))


def test_a_second_derivative_of_the_default() -> None:
    """Eager calls bypass the Autograd key; create_graph must still find the definition."""
    case = Case(batch=2, channels=2, outputs=3, size=(4, 5), kernels=2)
    for alpha in ("shared", "one", "sample"):
        gradients = []
        for function in (tunable_conv2d, reference.tunable_conv2d):
            torch.manual_seed(1)
            leaves = [t.requires_grad_() for t in case.tensors(alpha, torch.float32, channels_last=True)]
            loss = function(*leaves, *case.geometry, activation="silu").square().sum()
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            gradients.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_past_the_dispatcher_no_bit_changes(alpha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (CASES[0], CASES[5], CASES[8], Case(channels=4, outputs=8, groups=2, kernels=2)):
        for act in (None, "relu", "gelu"):
            for channels_last in (True, False):
                tensors = case.tensors(alpha, torch.float32, channels_last)
                straight = run(tunable_conv2d, tensors, case, act, None)
                with monkeypatch.context() as patch:
                    patch.setattr(torch._C, "_has_torch_function", lambda tensors: True)
                    dispatched = run(tunable_conv2d, tensors, case, act, None)
                assert all(torch.equal(a, b) and a.shape == b.shape for a, b in zip(straight, dispatched, strict=True))


def test_modes_see_the_operator() -> None:
    case = Case()
    for channels_last, name in ((True, "cpp"), (False, "torch")):
        tensors = case.tensors("sample", torch.float32, channels_last)
        with FlopCounterMode(display=False) as counter:
            tunable_conv2d(*tensors, *case.geometry)
        assert counter.get_total_flops() > 0
        assert f"tunable_ops.tunable_conv2d_{name}" in map(str, counter.get_flop_counts()["Global"])


@pytest.mark.parametrize("alpha", ["shared", "sample"])
@pytest.mark.parametrize("case", [CASES[0], CASES[8], TAILS[1], TAILS[3]], ids=str)
def test_channels_last_from_end_to_end(case: Case, alpha: str) -> None:
    """Results have the format of their tensors, and no picture is converted to another format on the way."""
    last = torch.channels_last
    leaves = [t.requires_grad_() for t in case.tensors(alpha, torch.float32, channels_last=True)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        out = cpp(*leaves, *case.geometry)
        grad_input, grad_weight, *_ = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert out.is_contiguous(memory_format=last) and grad_input.is_contiguous(memory_format=last)
    assert grad_weight.stride() == leaves[1].stride()
    copies = [event.input_shapes[0] for event in profile.events() if event.name in ("aten::copy_", "aten::clone")]
    assert list(out.shape) not in copies and list(grad_input.shape) not in copies


TRANSPOSED = [
    ((2, 6, 5, 7), (3, 6, 5, 2, 2), (2, 0, 0, 1)),  # blocks
    ((3, 8, 5, 6), (3, 8, 2, 3, 3), (2, 1, 1, 2)),
    ((2, 17, 5, 6), (3, 17, 1, 4, 4), (2, 1, 0, 17)),  # depthwise
    ((2, 20, 9, 6), (3, 20, 33, 3, 3), (1, 1, 0, 1)),
    ((2, 6, 4, 7), (3, 6, 5, 2, 3), ((1, 2), (0, 1), (0, 1), 1)),
]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("shape, taps, options", TRANSPOSED)
def test_transposed_without_gradients(shape: Any, taps: Any, options: Any, alpha: str) -> None:
    stride, padding, more, groups = options
    rows = {"shared": (3,), "one": (1, 3), "sample": (shape[0], 3)}[alpha]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    tensors = [x, torch.randn(taps), torch.randn(3, taps[2] * groups), torch.rand(rows)]
    for act in ACTIVATIONS:
        arguments = (stride, padding, more, groups, 1)
        assert serves_transposed(*tensors, *arguments)
        out = functional.tunable_conv_transpose2d(*tensors, *arguments, activation=act)
        arguments = (*arguments, act)
        base = reference.tunable_conv_transpose2d(*tensors, *arguments)
        ref = reference.tunable_conv_transpose2d(*(t.double() for t in tensors), *arguments)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_agrees(out, ref, base, f"output, {act}")


def serves_transposed(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any) -> bool:
    call = checks.check_transposed("test", input, weight, bias, alpha, *options, None)
    return backends.cpp.serves_transposed(input, weight, bias, alpha, call)


def test_the_transposed_calls_that_it_leaves_alone() -> None:
    x = torch.randn(2, 4, 4, 5).contiguous(memory_format=torch.channels_last)
    weight, alpha = torch.randn(2, 4, 4, 2, 2), torch.rand(2)
    assert serves_transposed(x, weight, None, alpha, 2, 0, 0, 1, 1)
    for stride, padding, more, dilation in (
        (3, 0, 0, 1),  # pixels without a tap
        (2, 0, 1, 3),
        (2, 0, 0, 2),
    ):
        assert not serves_transposed(x, weight, None, alpha, stride, padding, more, 1, dilation)
    assert not serves_transposed(x.contiguous(), weight, None, alpha, 2, 0, 0, 1, 1)
    assert not serves_transposed(x[:0], weight, None, alpha, 2, 0, 0, 1, 1)
    assert not serves_transposed(*(t.double() for t in (x, weight)), None, alpha, 2, 0, 0, 1, 1)
    assert not serves_transposed(x, weight.requires_grad_(), None, alpha, 2, 0, 0, 1, 1)


def test_the_blend_of_any_stack() -> None:
    alpha = torch.rand(3)
    stack = torch.randn(3, 5, 70, 3, 3)
    for variant in (
        stack,
        kernels_last(stack),
        stack.mT,
        stack[:, :1],
        stack[:1].expand(3, -1, -1, -1, -1),
        stack[::2],
        stack[..., 1:],
        stack[:, 0, 0, 0, 0],
    ):
        weights = alpha[: variant.shape[0]]
        blended = functional.tunable_parameter(variant, weights, backend="cpp")
        assert blended.stride() == functional.tunable_parameter(variant, weights, backend="torch").stride()
        torch.testing.assert_close(blended, torch.einsum("p,p...->...", weights, variant))
    for refused, weights, text in ((stack.double(), alpha, "it serves float32"), (stack, torch.rand(2, 3), "alpha")):
        with pytest.raises(RuntimeError, match=text):
            functional.tunable_parameter(refused, weights, backend="cpp")


def test_nan_before_a_relu_shows_in_the_gradient() -> None:
    x = torch.full((1, 2, 4, 4), float("nan")).to(memory_format=torch.channels_last).requires_grad_()
    weight, alpha = torch.rand(2, 3, 2, 3, 3), torch.tensor([0.3, 0.7])
    tunable_conv2d(x, weight, None, alpha, activation="relu", backend="cpp").sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
