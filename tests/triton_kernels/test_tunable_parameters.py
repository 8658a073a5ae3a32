"""Blends of many stacks in Triton's interpreter: values, gradients, and existing outputs, at the tails of blocks."""

import pytest
import torch
from torch import Tensor
from tunable_ops.triton_kernels import INTERPRETED

from tests.triton_kernels.kernel_cases import NOT_INTERPRETED
from tunable_ops import reference

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)


def make_stacks(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return stacks of about one block, aligned and not; with kernels in channels_last, far apart, and not dense."""
    shapes = [(2, 1023), (3, 1024), (1, 2049), (2, 2048), (2, 3, 5), (4, 8, 8), (3, 1)]
    stacks = [torch.randn(shape).to(dtype) for shape in shapes]
    last = torch.randn(3 * 4, 5, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    return [*stacks, last.unflatten(0, (3, 4)), torch.randn(2, 1030).to(dtype)[:, 3:1027]]


STARTS = [0, 2, 0, 1, 3, 1, 0, 2, 3]  # values are shared, one is not used


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("out", [None, torch.float32, torch.float16], ids=str)
def test_values(dtype: torch.dtype, out: torch.dtype | None) -> None:
    from tunable_ops.backends.triton import tunable_parameters as backend

    stacks, alpha = make_stacks(dtype), torch.rand(6)
    for _ in range(2):  # the second time from the cached plan
        blends = backend.forward(stacks, alpha, STARTS, out)
        for stack, blend, expected in zip(
            stacks, blends, reference.tunable_parameters(stacks, alpha, STARTS, out), strict=True
        ):
            torch.testing.assert_close(blend, expected)
            assert blend.stride() == torch.empty_like(stack[0]).stride()


def test_into() -> None:
    from tunable_ops.backends.triton import tunable_parameters as backend

    stacks, alpha = make_stacks(), torch.rand(6)
    outputs = [torch.full_like(stack[0], torch.nan) for stack in stacks]
    addresses = [output.data_ptr() for output in outputs]
    for _ in range(2):
        backend.blend_into(stacks, alpha, STARTS, outputs)
        for output, expected in zip(outputs, reference.tunable_parameters(stacks, alpha, STARTS), strict=True):
            torch.testing.assert_close(output, expected)
        alpha = alpha.flip(0)
    assert [output.data_ptr() for output in outputs] == addresses


@pytest.mark.parametrize("need_alpha", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gradients(dtype: torch.dtype, need_alpha: bool) -> None:
    from tunable_ops.backends.torch import tunable_parameters as expected_backend
    from tunable_ops.backends.triton import tunable_parameters as backend

    stacks, alpha = make_stacks(), torch.rand(6)
    mask = [*(i not in (1, 3) for i in range(len(stacks))), need_alpha]
    for seed in range(2):
        torch.manual_seed(seed)
        grads = [torch.randn_like(stack[0]).to(dtype) for stack in stacks]
        grads[5] = grads[5].T
        found = backend.backward(grads, stacks, alpha, STARTS, mask)
        exact = [[t.double() for t in group] for group in (grads, stacks, [alpha])]
        references = expected_backend.backward(exact[0], exact[1], exact[2][0], STARTS, mask)
        for grad, expected in zip(found, references, strict=True):
            # alpha's are sums of up to 5000 products of size 1: each rounds by 2**-24 of a sum of 70
            torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-4)
        again = backend.backward(grads, stacks, alpha, STARTS, mask)
        assert all(map(torch.equal, found, again))


def test_tables_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones raise, in place of a launch per stack; those that a graph reads outlive newer ones."""
    from tunable_ops.backends.triton import tunable_parameters as backend

    monkeypatch.setattr(backend, "_PLANS", {})
    monkeypatch.setattr(backend, "_CAPTURED", {})
    monkeypatch.setattr(backend, "_MAX_PLANS", 2)
    stacks, alpha = [torch.randn(2, 5), torch.randn(2, 7)], torch.rand(2)
    outputs = [torch.empty(5), torch.empty(7)]
    grads = [torch.randn(5), torch.randn(7)]
    calls = (
        lambda: backend.forward(stacks, alpha, [0, 0], None),
        lambda: backend.blend_into(stacks, alpha, [0, 0], outputs),
        lambda: backend.backward(grads, stacks, alpha, [0, 0], [True, False, True]),
    )
    message = "^tunable_parameters: the first call with given stacks must come before a CUDA graph is captured; got one"
    for call in calls:
        monkeypatch.setattr(backend, "_capturing", lambda tensor: True)
        with pytest.raises(RuntimeError, match=message):
            call()
        monkeypatch.setattr(backend, "_capturing", lambda tensor: False)
        call()
        (kept,) = list(backend._PLANS.values())[-1:]
        monkeypatch.setattr(backend, "_capturing", lambda tensor: True)
        call()
        assert any(kept is plan for plan in backend._CAPTURED.values())
    monkeypatch.setattr(backend, "_capturing", lambda tensor: False)
    others = [[torch.randn(2, 3)] for _ in range(3)]
    for other in others:
        backend.forward(other, alpha, [0], None)
    assert len(backend._PLANS) == 2 and len(backend._CAPTURED) == 3
    monkeypatch.setattr(backend, "_capturing", lambda tensor: True)
    for call in calls:
        call()


def test_what_the_kernels_do_not_serve_goes_to_torch() -> None:
    from tunable_ops.backends.triton import tunable_parameters as backend

    stacks = [torch.randn(2, 5).double(), torch.randn(2, 4, 6)[:, :, ::2], torch.randn(2, 0), torch.randn(2, 7)]
    alpha, starts = torch.rand(2), [0] * 4
    for blend, expected in zip(
        backend.forward(stacks, alpha, starts, None), reference.tunable_parameters(stacks, alpha, starts), strict=True
    ):
        torch.testing.assert_close(blend, expected)
