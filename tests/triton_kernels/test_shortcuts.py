"""Calls that go straight to their plan: what they skip, what they still notice, and that they compute the same."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from tunable_ops.triton_kernels import INTERPRETED, unavailable_reason

from tests.triton_kernels.kernel_cases import NOT_INTERPRETED
from tunable_ops import checks, tunable_conv2d
from tunable_ops.backends.triton import plans, shortcuts

compiled = pytest.mark.skipif(unavailable_reason() is not None or INTERPRETED, reason="launches of a GPU")
interpreted = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shortcuts, "DEVICES", frozenset({"cpu"}))
    plans.forget()
    yield
    plans.forget()


@pytest.fixture
def driver() -> Iterator[Any]:
    from tunable_ops.bench import launches

    with launches.pretended() as active:
        yield active


def tensors(dtype: torch.dtype = torch.float16) -> list[Tensor]:
    last = torch.channels_last
    weight = torch.randn(2 * 16, 16, 3, 3, dtype=dtype).to(memory_format=last).unflatten(0, (2, 16))
    x = torch.randn(2, 16, 9, 8, dtype=dtype).to(memory_format=last)
    return [x, weight, torch.randn(2, 16, dtype=dtype), torch.rand(2, 2, dtype=dtype)]


def call(operands: list[Tensor], **options: Any) -> Tensor:
    return tunable_conv2d(*operands, **({"padding": 1, "backend": "triton"} | options))


@compiled
def test_a_repeated_call_skips_checks_and_choices(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(tensors())
    launches = driver.launches
    monkeypatch.delattr(checks, "check_convolution")
    again = call(tensors())
    assert again.shape == first.shape and again.stride() == first.stride()
    assert driver.launches == 2 * launches
    with pytest.raises(AttributeError, match="check_convolution"):
        call(tensors(), activation="relu")


@compiled
def test_bad_input_after_a_good_call_is_refused(driver: Any) -> None:
    x, weight, bias, alpha = tensors()
    call([x, weight, bias, alpha])
    with pytest.raises(ValueError, match=r"^tunable_conv2d: input must have|weight must be"):
        call([x[:, :15], weight, bias, alpha])
    with pytest.raises(TypeError, match=r"^tunable_conv2d: weight must have the input's dtype"):
        call([x, weight.float(), bias, alpha])
    with pytest.raises(ValueError, match=r"^tunable_conv2d: groups must be a positive int; got True"):
        call([x, weight, bias, alpha], groups=True)
    with pytest.raises(TypeError, match=r"^tunable_conv2d: input must be a Tensor"):
        call([[1.0], weight, bias, alpha])  # type: ignore[list-item]


@compiled
def test_a_gradient_is_recorded_after_calls_without(driver: Any) -> None:
    operands = tensors()
    assert call(operands).grad_fn is None
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in operands]
    for _ in range(2):
        output = call(leaves)
        grads = torch.autograd.grad(output.sum(), leaves)
        assert [g.shape for g in grads] == [t.shape for t in leaves]
    with torch.no_grad():
        assert call(leaves).grad_fn is None


def key(operands: list[Any], *options: Any) -> Any:
    return shortcuts.key_of("op", operands, options)


def test_what_is_watched_or_transformed_has_no_key() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Kind(torch.Tensor):
        pass

    x, weight, bias, alpha = tensors()
    assert key([x, weight, None, alpha]) is not None
    assert key([x.as_subclass(Kind), weight, bias, alpha]) is None
    assert key([x, weight, bias, torch._neg_view(alpha)]) is None
    assert key([x, weight, bias, alpha], [1, 1]) is None  # a list may change
    assert shortcuts.serves(x) and not shortcuts.serves(x.as_subclass(Kind)) and not shortcuts.serves([1.0])
    with torch.autocast("cpu"):
        assert key([x, weight, bias, alpha]) is None
    with TorchDispatchMode():
        assert key([x, weight, bias, alpha]) is None
    torch.func.vmap(lambda one: (key([one, weight, bias, alpha]) is None) and one)(x)
    with torch.autograd.forward_ad.dual_level():
        assert key([x, weight, bias, alpha]) is None


def test_what_a_call_depends_on_is_in_its_key() -> None:
    x, weight, bias, alpha = tensors()
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride())
    full = [t.float() for t in (x, weight, bias, alpha)]
    keys = [
        key([x, weight, bias, alpha], 1),
        key([x, weight, bias, alpha], True),
        key([x, weight, bias, alpha], (1, 1)),
        key([x, weight, bias, alpha], (True, True)),
        key([x, weight, bias, alpha], (1.0, 1)),
        key([x, weight, None, alpha], 1),
        key([x.contiguous(), weight, bias, alpha], 1),
        key([shifted, weight, bias, alpha], 1),
        key([x[:1], weight, bias, alpha], 1),
        key([x, weight, bias, alpha[0]], 1),
        key([x.bfloat16(), weight, bias, alpha], 1),
        key(full, 1),
    ]
    assert len(set(keys)) == len(keys)


@interpreted
def test_values_are_those_of_the_first_call() -> None:
    operands = tensors()
    first, *others = (call(operands) for _ in range(3))
    assert len(shortcuts._KNOWN) == 1
    assert all(torch.equal(first, other) for other in others)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in operands]
    output = call(leaves)
    assert torch.equal(output, first)
    grads = torch.autograd.grad(output.sum(), leaves)
    plans.forget()
    for ours, expected in zip(grads, torch.autograd.grad(call(leaves).sum(), leaves), strict=True):
        assert torch.equal(ours, expected)
