"""conv2d with a blended kernel: our kernels with the bias on the way, and where PyTorch's convolution stays."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tunable_ops.triton_kernels import INTERPRETED, unavailable_reason
from tunable_ops.triton_kernels.choose_algorithm import Problem, choose_blended

from tests.comparison import assert_agrees
from tests.triton_kernels.kernel_cases import NOT_INTERPRETED
from tunable_ops import backends, functional

interpreted = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)
# Name: channels, outputs, groups, taps, stride, padding.
LAYERS = {
    "pointwise": (5, 17, 1, 1, 1, 0),
    "dense": (5, 3, 1, 3, 1, 1),
    "strided": (4, 6, 1, 2, 2, 0),
    "depthwise": (17, 17, 17, 3, 1, 1),
}


def operands(layer: str, dtype: torch.dtype = torch.float16) -> tuple[list[Tensor], tuple[Any, ...]]:
    channels, outputs, groups, taps, stride, padding = LAYERS[layer]
    last = torch.channels_last
    x = torch.randn(2, channels, 7, 5, dtype=dtype).to(memory_format=last)
    kernel = torch.randn(outputs, channels // groups, taps, taps, dtype=dtype).to(memory_format=last)
    return [x, kernel, torch.randn(outputs, dtype=dtype)], ((stride,) * 2, (padding,) * 2, (1, 1), groups)


@interpreted
@pytest.mark.parametrize("layer", LAYERS)
def test_agrees(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, by the plan the second time; PyTorch's convolution is not called."""
    from tunable_ops.backends.triton import conv2d

    monkeypatch.delattr(conv2d, "convolve")
    monkeypatch.setattr(backends.triton, "is_fastest", lambda *_: True)
    for bias in (True, False):
        (x, kernel, shift), options = operands(layer)
        rest = shift if bias else None
        expected = F.conv2d(x.double(), kernel.double(), shift.double() if bias else None, *options)
        base = F.conv2d(x, kernel, rest, *options)
        for _ in range(2):
            out = functional.conv2d(x, kernel, rest, *options)
            assert_agrees(out, expected, base)
            assert out.stride() == base.stride()


def test_only_calls_without_gradients_that_the_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, kernel, bias), options = operands("pointwise", torch.float32)
    taken = []

    class Stub:
        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            taken.append(arguments)
            return arguments[0]

    monkeypatch.setattr(backends.triton, "is_fastest", lambda *_: True)
    monkeypatch.setattr(backends, "implementation", lambda backend, op: Stub)
    assert functional.conv2d(x, kernel, bias, *options) is x
    assert len(taken) == 1 and taken[0][3:] == options
    functional.conv2d(x, kernel.clone().requires_grad_(), bias, *options)
    functional.conv2d(x[0], kernel, bias, *options)
    functional.conv2d(x, kernel, bias, 1, "same")
    torch.func.vmap(lambda one: functional.conv2d(one[None], kernel, bias, *options))(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        functional.conv2d(x, kernel, bias, *options)
    assert len(taken) == 1
    with torch.no_grad():
        functional.conv2d(x, kernel.clone().requires_grad_(), bias, *options)
    assert len(taken) == 2


@pytest.mark.parametrize(
    "channels, kernel, bias, groups",
    [(4, [4, 3, 3, 3], [4], 1), (2, [4, 3, 3, 3], [4], 1), (3, [4, 3, 3, 3], [1], 1), (6, [4, 2, 3, 3], [4], 3)],
)
def test_what_does_not_fit_is_refused_as_by_pytorch(
    channels: int, kernel: list[int], bias: list[int], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.triton, "is_fastest", lambda *_: True)
    with pytest.raises(RuntimeError):
        functional.conv2d(
            torch.rand(1, channels, 6, 6), torch.rand(kernel), torch.rand(bias), (1, 1), (1, 1), (1, 1), groups
        )


def test_the_rule_follows_the_prediction() -> None:
    """The bias on the way outweighs the library's larger tiles; fp32 and contiguous 3x3 layers are the library's."""
    layer = Problem("forward", "pointwise", "shared", "bfloat16", "nhwc", 1, 1, 64, 128, 1, (1, 1), (1, 1), (64, 64))
    dense = layer._replace(kind="dense", taps=(3, 3))
    deep = layer._replace(kind="depthwise", taps=(3, 3), inputs=1, outputs=1, groups=64)
    for ours in (layer, layer._replace(layout="nchw"), dense, deep, deep._replace(dtype="float32")):
        assert choose_blended(ours) is not None
    for theirs in (layer._replace(dtype="float32"), dense._replace(layout="nchw"), dense._replace(groups=2)):
        assert choose_blended(theirs) is None


@pytest.mark.skipif(unavailable_reason() is not None or INTERPRETED, reason="plans for a GPU")
def test_a_decision_against_our_kernel_is_remembered() -> None:
    from tunable_ops.bench import launches

    from tunable_ops.backends.triton import conv2d, plans

    (x, kernel, bias), options = operands("dense", torch.float32)
    plans.forget()
    with launches.pretended() as driver:
        for _ in range(3):
            torch.testing.assert_close(conv2d.forward(x, kernel, bias, *options), F.conv2d(x, kernel, bias, *options))
    assert driver.launches == 0
    assert [plan.steps for plan in plans._PLANS.values() if isinstance(plan, plans.Plan)] == [()]
    plans.forget()
