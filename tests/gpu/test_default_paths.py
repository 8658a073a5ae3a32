"""Every path that a call takes by default on a GPU is run and compared; which these are is checked without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import Case
from tunable_ops import backends, functional, reference, tunable_conv2d

pytest.importorskip("triton")
from tests.gpu import default_paths

# The algorithms of default paths, and where each is compared with the definition on a GPU besides by the cases.
ALGORITHMS = {
    "fused": "test_triton.py",
    "premix": "test_triton.py",
    "library": "test_triton.py",
    "wgmma": "test_wgmma.py",
}


def test_the_cases_take_every_path() -> None:
    taken = set().union(*(default_paths.taken(*case) for case in default_paths.cases()))
    missing = sorted(default_paths.reachable() - taken)
    assert missing == []
    assert len(taken) > 60
    assert {path.algorithm for path in taken} == set(ALGORITHMS)
    by_wgmma = {path for path in taken if path.algorithm == "wgmma"}
    assert {(path.hopper, path.direction) for path in by_wgmma} == {(True, "forward"), (True, "input")}
    assert {path.alpha for path in by_wgmma} == {"shared", "sample"}


def test_the_cases_take_no_path_that_is_not_listed() -> None:
    """What the rule was not asked for would be a path that nobody knows of."""
    taken = set().union(*(default_paths.taken(*case) for case in default_paths.cases()))
    assert taken <= default_paths.reachable()


@contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Backends that believe in a device of compute capability 9.0 and a complete build."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        patch.setattr(backends.cuda, "_missing", None)
        patch.setattr(backends.triton, "_missing", None)
        yield


def fake_calls() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Input, weight and alpha of calls on a GPU, without memory."""
    found = []
    with FakeTensorMode():
        for dtype in (*default_paths.DTYPES, torch.float64):
            for layout in (torch.contiguous_format, torch.channels_last):
                for kernels, alpha in ((2, (2,)), (2, (3, 2)), (2, (3, 2, 8, 8)), (17, (17,))):
                    x = torch.empty(3, 16, 8, 8, device="cuda", dtype=dtype, memory_format=layout)
                    weight = torch.empty(kernels, 16, 16, 3, 3, device="cuda", dtype=dtype)
                    found.append((x, weight, torch.empty(alpha, device="cuda")))
    return found


# The backends that serve calls on a GPU by default, and where they are compared with the definition there.
COVERED = {
    "triton": "test_a_default_path_agrees, test_triton.py",
    "cuda": "test_cuda_operator.py",
    "torch": "test_what_no_kernel_serves_agrees",
}


def test_the_backends_of_defaults_are_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_calls()
    with as_on_a_gpu(monkeypatch):
        found = {backends.select("tunable_conv2d", None, *tensors) for tensors in calls}
    assert found <= set(COVERED), "a backend that is a default now needs its comparison on a GPU"
    assert {"triton", "torch"} <= found


def _gradients(function: Any, tensors: list[Any], case: Case, grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    output = function(*leaves, *case.geometry)
    return [output, *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def _agrees(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool) -> None:
    tensors = [t.cuda() for t in case.tensors(alpha, dtype, channels_last)]
    grad = torch.randn(case.batch, case.outputs, *case.grid, device="cuda").to(dtype)
    out = _gradients(tunable_conv2d, tensors, case, grad)
    base = _gradients(reference.tunable_conv2d, tensors, case, grad)
    ref = _gradients(reference.tunable_conv2d, [t.double() for t in tensors], case, grad)
    for name, o, r, b in zip(("output", "x", "w", "b", "a"), out, ref, base, strict=True):
        assert_agrees(o, r, b, f"{case} {alpha} {name}")


@pytest.mark.gpu
@pytest.mark.compiles(4)
@pytest.mark.parametrize("case, alpha, dtype, channels_last", list(default_paths.cases()), ids=str)
def test_a_default_path_agrees(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool) -> None:
    _agrees(case, alpha, dtype, channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("alpha", default_paths.ALPHAS)
def test_what_no_kernel_serves_agrees(alpha: str) -> None:
    """More kernels than a launch takes, and double precision, go to PyTorch's own operators."""
    _agrees(Case(channels=8, outputs=8, size=(9, 11), kernels=17), alpha, torch.float32, True)
    case = Case(channels=8, outputs=8, size=(9, 11), kernels=2)
    tensors = [t.cuda() for t in case.tensors(alpha, torch.float64, True)]
    output = tunable_conv2d(*tensors, *case.geometry)
    torch.testing.assert_close(output, reference.tunable_conv2d(*tensors, *case.geometry))


@pytest.mark.gpu
@pytest.mark.compiles(4)
@pytest.mark.parametrize("samples", [1, 5])
def test_blends_and_their_gradients_agree(samples: int) -> None:
    """The default of `tunable_parameter`, by itself."""
    for dtype in default_paths.DTYPES:
        stack = torch.randn(3, 40, 33, device="cuda").to(dtype).requires_grad_()
        alpha = torch.rand((3,) if samples == 1 else (samples, 3), device="cuda").requires_grad_()
        results = []
        for function, wide in ((functional.tunable_parameter, False), (_blend, False), (_blend, True)):
            leaves = [t.detach().to(torch.float64 if wide else t.dtype).requires_grad_() for t in (stack, alpha)]
            output = function(*leaves)
            torch.manual_seed(0)
            grad = torch.randn(output.shape, device="cuda").to(dtype).to(output.dtype)
            results.append([output, *torch.autograd.grad(output, leaves, grad)])
        for o, b, r in zip(*results, strict=True):
            assert_agrees(o, r, b.to(o.dtype))


def _blend(stack: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.tensordot(alpha, stack.to(alpha.dtype), 1).to(stack.dtype)
