"""The wgmma kernel on a GPU of compute capability 9.0: compiled at its first use, checked, exact, captured.

Tests whose names contain `sanitizer` are the smallest that reach the kernel, for compute-sanitizer.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import Case, options_of
from tunable_ops import reference, tunable_conv2d
from tunable_ops.backends import wgmma
from tunable_ops.reference.activation import CODES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and wgmma.unavailable_reason() is not None,
        reason=f"the wgmma kernel cannot run: {wgmma.unavailable_reason()}",
    ),
]
DTYPES = (torch.float16, torch.bfloat16)
# Edges of tiles in pixels, channels and outputs; every shape of the kernel; one step per tile and many.
CASES = [
    Case(channels=8, outputs=40, size=(9, 66), kernels=2, padding=(2, 1)),
    Case(channels=16, outputs=16, size=(33, 130), kernels=2, taps=(7, 7), padding=(3, 0)),
    Case(batch=3, channels=24, outputs=32, size=(130, 70), kernels=3, taps=(3, 2)),
    Case(channels=32, outputs=56, size=(64, 64), kernels=2),
    Case(batch=17, channels=64, outputs=64, size=(65, 67), kernels=2),
    Case(batch=5, channels=128, outputs=64, size=(40, 200), kernels=4),
    Case(batch=3, channels=128, outputs=128, size=(30, 65), kernels=2),
    Case(channels=64, outputs=136, size=(16, 8), kernels=5, taps=(1, 1), padding=(0, 0)),
    Case(channels=64, outputs=128, size=(127, 63), kernels=2),
    Case(channels=64, outputs=64, size=(1, 1), kernels=2),
]


def integers(like: Tensor) -> Tensor:
    return torch.empty_like(like).copy_(torch.randint(-1, 2, like.shape))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, case: Case, act: str | None = None) -> Tensor:
    return torch.ops.tunable_ops.tunable_conv2d_wgmma(x, weight, bias, a, *options_of(case)[:-1], CODES[act])


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, case: Case) -> Tensor:
    return torch.ops.tunable_ops.tunable_conv2d_wgmma_input(grad, x, weight, a, *options_of(case)[:-1])


def on_gpu(tensors: list[Any]) -> list[Any]:
    return [None if t is None else t.cuda() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_are_exact(case: Case, dtype: torch.dtype) -> None:
    """Three runs are bit-identical too: a race would rarely repeat."""
    for alpha in ("shared", "sample"):
        x, weight, bias, a = (integers(t).to(dtype) for t in case.tensors(alpha, dtype, True))
        grad = torch.randint(-1, 2, (case.batch, case.outputs, *case.grid)).to(dtype)
        leaf = x.double().requires_grad_()
        ref = reference.tunable_conv2d(leaf, weight.double(), bias.double(), a.double(), *case.geometry)
        (expected,) = torch.autograd.grad(ref, leaf, grad.double())
        x, weight, bias, a, grad = on_gpu([x, weight, bias, a, grad])
        for _ in range(3):
            assert torch.equal(forward(x, weight, bias, a, case).cpu(), ref.to(dtype))
            assert torch.equal(input_gradient(grad, x, weight, a, case).cpu(), expected.to(dtype))


@pytest.mark.parametrize("act", [None, "relu", "gelu", "silu", "leaky_relu"])
def test_the_default_agrees(act: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the public function, which must choose the kernel in both directions."""
    used = []
    for name in ("forward", "input_gradient"):
        kept = getattr(wgmma, name)
        monkeypatch.setattr(wgmma, name, lambda *args, kept=kept, name=name: used.append(name) or kept(*args))
    case = CASES[4]
    x, weight, bias, a = on_gpu(case.tensors("sample", torch.bfloat16, True))
    grad = torch.randn(case.batch, case.outputs, *case.grid, device="cuda").bfloat16()
    grad = grad.contiguous(memory_format=torch.channels_last)

    def both(function: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        leaf = tensors[0].detach().requires_grad_()
        out = function(leaf, *tensors[1:], *case.geometry, activation=act)
        return out, torch.autograd.grad(out, leaf, grad.to(out.dtype))[0]

    ref = both(reference.tunable_conv2d, *(t.double() for t in (x, weight, bias, a)))
    base = both(reference.tunable_conv2d, x, weight, bias, a)
    for i, (o, r, b) in enumerate(zip(both(tunable_conv2d, x, weight, bias, a), ref, base, strict=True)):
        assert_agrees(o, r, b, f"result {i}")
    assert used == ["forward", "input_gradient"]


def test_nan_passes_relu() -> None:
    case = CASES[3]
    x, weight, bias, a = on_gpu(case.tensors("shared", torch.float16, True))
    x[1, 5, 20, 30] = float("nan")
    out = forward(x, weight, bias, a, case, "relu")
    expected = reference.tunable_conv2d(x.float(), *(t.float() for t in (weight, bias, a)), *case.geometry)
    assert torch.equal(out.isnan(), expected.isnan()) and bool(out.isnan().any())


@pytest.mark.parametrize("warm", [True, False])
def test_graph_capture(warm: bool) -> None:
    """A kernel that is first needed while a graph is captured is compiled and checked there."""
    case = Case(channels=64, outputs=64 if warm else 48, size=(33, 65), kernels=2)
    x, weight, bias, a = on_gpu(case.tensors("sample", torch.bfloat16, True))
    if warm:
        forward(x, weight, bias, a, case)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward(x, weight, bias, a, case)
    x.copy_(torch.randn_like(x))
    a.copy_(torch.rand_like(a))
    graph.replay()
    assert torch.equal(captured, forward(x, weight, bias, a, case))


def test_threads_launch_layers_of_different_sizes() -> None:
    """Their blocks differ in shared memory; the limit of one launch must not be another's."""
    cases = [CASES[3], CASES[4], CASES[5], CASES[8]] * 2
    tensors = [on_gpu(case.tensors("shared", torch.float16, True)) for case in cases]
    expected = [forward(*t, case) for t, case in zip(tensors, cases, strict=True)]
    torch.cuda.synchronize()

    def repeat(i: int) -> bool:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = [forward(*tensors[i], cases[i]) for _ in range(50)]
        stream.synchronize()
        return all(torch.equal(out, expected[i]) for out in found)

    with ThreadPoolExecutor(len(cases)) as pool:
        assert all(pool.map(repeat, range(len(cases))))


@pytest.mark.parametrize("case", [CASES[0], CASES[7]], ids=str)
def test_sanitizer(case: Case) -> None:
    x, weight, bias, a = (integers(t).half() for t in case.tensors("sample", torch.float16, True))
    ref = reference.tunable_conv2d(*(t.double() for t in (x, weight, bias, a)), *case.geometry)
    out = forward(*on_gpu([x, weight, bias, a]), case)
    assert torch.equal(out.cpu(), ref.half())
