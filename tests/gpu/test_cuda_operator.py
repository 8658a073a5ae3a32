"""The CUDA operators on a GPU: the shared cases, exactness, determinism, streams, graphs and TF32.

Tests whose names contain `sanitizer` are the smallest that reach every kernel, for compute-sanitizer.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import CASES, Case, options_of
from tunable_ops import backends, reference, tunable_conv2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and backends.unavailable_reason("tunable_conv2d", "cuda") is not None,
        reason=str(backends.unavailable_reason("tunable_conv2d", "cuda")),
    ),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Edges of tiles in pixels, channels and outputs; phases; segments; blends in the kernel and before it.
VECTORS = [
    Case(channels=32, outputs=40, kernels=2),
    Case(batch=3, channels=16, outputs=24, size=(10, 7), kernels=4),
    Case(channels=72, outputs=72, size=(6, 13), kernels=3, taps=(3, 2)),
    Case(channels=64, outputs=64, size=(65, 67), kernels=2),
    Case(batch=4, channels=64, outputs=128, size=(127, 63), kernels=2),  # tiles of 128 pixels
    Case(channels=128, outputs=136, size=(31, 33), kernels=5, stride=(2, 2)),
    Case(channels=16, outputs=8, size=(11, 10), kernels=2, taps=(4, 3), stride=(3, 2), padding=(2, 1), dilation=(2, 3)),
    Case(channels=16, outputs=8, size=(8, 8), kernels=2, taps=(1, 1), stride=(2, 3), padding=(0, 0)),
    Case(channels=48, outputs=32, size=(5, 9), kernels=2, groups=2),
    Case(channels=3, outputs=64, size=(64, 65), kernels=2),
    Case(channels=64, outputs=3, size=(64, 65), kernels=2),
    Case(batch=1, channels=256, outputs=256, size=(7, 5), kernels=16, taps=(1, 1), padding=(0, 0)),
]
DEPTHWISE = [
    Case(channels=64, outputs=64, size=(33, 65), kernels=2, groups=64),
    Case(channels=72, outputs=72, size=(9, 5), kernels=2, groups=72),
    Case(channels=24, outputs=24, size=(9, 17), kernels=3, groups=24, taps=(5, 4), stride=(2, 1), padding=(2, 0)),
    Case(channels=16, outputs=16, size=(20, 20), kernels=2, groups=16, taps=(7, 7), padding=(3, 3)),
]
SANITIZER = [
    Case(channels=3, outputs=5, size=(5, 6), kernels=2),
    Case(channels=8, outputs=8, size=(5, 6), kernels=2),
    Case(channels=8, outputs=40, size=(5, 6), kernels=5, stride=(2, 1)),
    Case(channels=8, outputs=8, size=(5, 6), kernels=2, groups=8),
    Case(channels=5, outputs=5, size=(5, 6), kernels=2, groups=5, taps=(2, 2), stride=(2, 2)),
]


def run(function: Any, tensors: list[Any], case: Case, act: str | None, grad: Tensor, **options: Any) -> list[Tensor]:
    """Return the output and the gradients of all tensors."""
    leaves = [None if t is None else t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
    wanted = [t.requires_grad_() for t in leaves if t is not None]
    output = function(*leaves, *case.geometry, activation=act, **options)
    return [output, *torch.autograd.grad(output, wanted, grad)]


def on_gpu(tensors: list[Any]) -> list[Any]:
    return [None if t is None else t.cuda() for t in tensors]


def check(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool, act: str | None = None) -> None:
    """Check against float64, relative to the error of plain PyTorch on the same device."""
    tensors = on_gpu(case.tensors(alpha, dtype, channels_last))
    grad = torch.randn(case.batch, case.outputs, *case.grid).to(dtype).cuda()
    out = run(tunable_conv2d, tensors, case, act, grad, backend="cuda")
    base = run(reference.tunable_conv2d, tensors, case, act, grad)
    wide = [None if t is None else t.double() for t in tensors]
    ref = run(reference.tunable_conv2d, wide, case, act, grad.double())
    for i, (o, r, b) in enumerate(zip(out, ref, base, strict=True)):
        assert_agrees(o, r, b, f"result {i}")
    if channels_last:
        assert out[0].is_contiguous(memory_format=torch.channels_last)
        assert out[1].is_contiguous(memory_format=torch.channels_last)


def integers(like: Tensor, most: int) -> Tensor:
    return torch.empty_like(like).copy_(torch.randint(-most, most + 1, like.shape))


def check_exact(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Check that results equal the reference rounded once, on integers so small that all sums are exact in fp32."""
    tensors = [None if t is None else integers(t, 1).to(dtype) for t in case.tensors(alpha, dtype, channels_last)]
    grad = torch.randint(-1, 2, (case.batch, case.outputs, *case.grid)).to(dtype)
    wide = [None if t is None else t.double() for t in tensors]
    ref = run(reference.tunable_conv2d, wide, case, None, grad.double())
    out = run(tunable_conv2d, on_gpu(tensors), case, None, grad.cuda(), backend="cuda")
    for i, (o, r) in enumerate(zip(out, ref, strict=True)):
        assert torch.equal(o.cpu(), r.to(dtype)), f"result {i}: {(o.cpu().double() - r).abs().max()}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ["shared", "one", "sample"])
@pytest.mark.parametrize("case", [*CASES, *VECTORS, *DEPTHWISE], ids=str)
def test_values_and_gradients(case: Case, alpha: str, channels_last: bool, dtype: torch.dtype) -> None:
    check(case, alpha, dtype, channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["relu", "gelu", "silu", "leaky_relu"])
@pytest.mark.parametrize("case", [CASES[0], VECTORS[0], DEPTHWISE[0]], ids=str)
def test_activations(case: Case, act: str, dtype: torch.dtype) -> None:
    for alpha in ("shared", "sample"):
        check(case, alpha, dtype, True, act)
        tensors = on_gpu(case.tensors(alpha, dtype, True))
        out = tunable_conv2d(*tensors, *case.geometry, activation=act, backend="cuda")
        base = reference.tunable_conv2d(*tensors, *case.geometry, activation=act)
        ref = reference.tunable_conv2d(*(t.double() for t in tensors), *case.geometry, activation=act)
        assert_agrees(out, ref, base, "output without gradients: the activation is in the kernel")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, *VECTORS, *DEPTHWISE], ids=str)
def test_integers_are_exact(case: Case, dtype: torch.dtype) -> None:
    for alpha, channels_last in (("shared", True), ("sample", True), ("sample", False)):
        check_exact(case, alpha, dtype, channels_last)


@pytest.mark.parametrize("case", VECTORS[:4], ids=str)
def test_tf32_follows_the_setting(case: Case) -> None:
    x, weight, bias, a = on_gpu(case.tensors("sample", torch.float32, True))
    ref = reference.tunable_conv2d(*(t.double() for t in (x, weight, bias, a)), *case.geometry)
    before = torch.backends.cudnn.conv.fp32_precision
    errors = {}
    try:
        for setting in ("ieee", "tf32"):
            torch.backends.cudnn.conv.fp32_precision = setting
            out = tunable_conv2d(x, weight, bias, a, *case.geometry, backend="cuda")
            errors[setting] = ((out - ref).abs().max() / ref.abs().max()).item()
            check_exact(case, "sample", torch.float32, True)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert errors["ieee"] < 2e-6 < errors["tf32"] < 2e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CASES[0], VECTORS[3], VECTORS[4], DEPTHWISE[0]], ids=str)
def test_same_bits_twice(case: Case, dtype: torch.dtype) -> None:
    for alpha in ("shared", "sample"):
        tensors = on_gpu(case.tensors(alpha, dtype, True))
        grad = torch.randn(case.batch, case.outputs, *case.grid).to(dtype).cuda()
        first = run(tunable_conv2d, tensors, case, "silu", grad, backend="cuda")
        for _ in range(3):
            for one, two in zip(first, run(tunable_conv2d, tensors, case, "silu", grad, backend="cuda"), strict=True):
                assert torch.equal(one, two)


def test_kernels_run_on_the_current_stream() -> None:
    """The input is written late on another stream, and the kernels must wait for it there."""
    case = VECTORS[3]
    x, weight, bias, a = on_gpu(case.tensors("sample", torch.float16, True))
    expected = tunable_conv2d(x, weight, bias, a, *case.geometry, backend="cuda")
    stream = torch.cuda.Stream()
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        out = tunable_conv2d(late, weight, bias, a, *case.geometry, backend="cuda")
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("case", [VECTORS[0], VECTORS[5], DEPTHWISE[0]], ids=str)
def test_graph_capture(case: Case) -> None:
    """Forward and backward are replayed with new values in the same memory."""
    x, weight, bias, a = on_gpu(case.tensors("sample", torch.bfloat16, True))
    grad = torch.randn(case.batch, case.outputs, *case.grid, device="cuda").bfloat16()
    op, back = torch.ops.tunable_ops.tunable_conv2d_cuda, torch.ops.tunable_ops.tunable_conv2d_cuda_backward
    options = options_of(case)

    def both() -> list[Tensor]:
        return [op(x, weight, bias, a, *options), *back(grad, None, x, weight, bias, a, *options, [True] * 4)]

    both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    x.copy_(torch.randn_like(x))
    a.copy_(torch.rand_like(a))
    graph.replay()
    for one, two in zip(captured, both(), strict=True):
        assert torch.equal(one, two)


def test_another_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    case = VECTORS[0]
    tensors = case.tensors("sample", torch.float16, True)
    out = [tunable_conv2d(*(t.to(f"cuda:{i}") for t in tensors), *case.geometry, backend="cuda") for i in (0, 1)]
    assert torch.equal(out[0].cpu(), out[1].cpu())


def test_compiled_and_under_autocast() -> None:
    case = VECTORS[0]
    x, weight, bias, a = on_gpu(case.tensors("sample", torch.float32, True))

    def function(x: Tensor) -> Tensor:
        return tunable_conv2d(x, weight, bias, a, *case.geometry, activation="relu", backend="cuda")

    expected = function(x)
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(x), expected)
    with torch.autocast("cuda", torch.bfloat16):
        assert function(x).dtype is torch.bfloat16


def test_what_it_does_not_serve_is_named() -> None:
    case = Case()
    for tensors, text in (
        (case.tensors("map", torch.float32), "no alpha that is a map"),
        (case.tensors("shared", torch.float64), "float32, float16 and bfloat16"),
    ):
        with pytest.raises(RuntimeError, match=text):
            tunable_conv2d(*on_gpu(tensors), *case.geometry, backend="cuda")
    with pytest.raises(RuntimeError, match="these are on cpu"):
        tunable_conv2d(*case.tensors("shared", torch.float32), *case.geometry, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SANITIZER, ids=str)
def test_sanitizer(case: Case, dtype: torch.dtype) -> None:
    for alpha in ("shared", "sample"):
        check_exact(case, alpha, dtype, True)
