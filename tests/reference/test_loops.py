"""The definitions against explicit loops in float64, on sizes that all differ."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tunable_ops import reference

D = torch.float64
ACTIVATIONS = {
    None: lambda v: v,
    "relu": lambda v: max(v, 0.0),
    "leaky_relu": lambda v: v if v > 0 else 0.01 * v,
    "silu": lambda v: v / (1 + math.exp(-v)),
    "gelu": lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
}


def weight_of(alpha: Tensor, b: int, p: int, pixel: tuple[int, ...]) -> float:
    """alpha for sample b, kernel p and an output pixel, whatever its rank."""
    if alpha.dim() == 1:
        return alpha[p].item()
    return alpha[(b, p, *pixel)].item() if alpha.dim() > 2 else alpha[b, p].item()


def loop_conv(x: Tensor, w: Tensor, bias: Tensor, alpha: Tensor, stride, padding, dilation, groups, act) -> Tensor:
    """The formula, one multiply-add at a time, in any number of dimensions."""
    kernels, outputs, channels, *taps = w.shape
    batch, _, *size = x.shape
    grid = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, taps, stride, strict=True)
    ]
    y = torch.zeros(batch, outputs, *grid, dtype=D)
    for b, o, *pixel in itertools.product(range(batch), range(outputs), *map(range, grid)):
        total = 0.0
        for p in range(kernels):
            value = bias[p, o].item()
            for c, *tap in itertools.product(range(channels), *map(range, taps)):
                where = [i * s + t * d - q for i, s, t, d, q in zip(pixel, stride, tap, dilation, padding, strict=True)]
                if all(0 <= i < n for i, n in zip(where, size, strict=True)):
                    channel = o // (outputs // groups) * channels + c
                    value += x[(b, channel, *where)].item() * w[(p, o, c, *tap)].item()
            total += weight_of(alpha, b, p, tuple(pixel)) * value
        y[(b, o, *pixel)] = ACTIVATIONS[act](total)
    return y


def alphas(kind: str, batch: int, kernels: int, grid: tuple[int, ...]) -> Tensor:
    shapes = {"shared": (kernels,), "one": (1, kernels), "sample": (batch, kernels), "map": (batch, kernels, *grid)}
    return torch.randn(shapes[kind], dtype=D)


CONVS = {
    1: (reference.tunable_conv1d, (7,), (3,), (2,), (1,), (2,)),
    2: (reference.tunable_conv2d, (5, 6), (2, 3), (2, 1), (1, 2), (1, 2)),
    3: (reference.tunable_conv3d, (3, 4, 5), (2, 1, 3), (1, 2, 1), (1, 0, 1), (2, 1, 1)),
}


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["shared", "one", "sample", "map"])
@pytest.mark.parametrize("ndim, groups", [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_convolutions(ndim: int, groups: int, kind: str, act: str | None) -> None:
    function, size, taps, stride, padding, dilation = CONVS[ndim]
    batch, channels, outputs, kernels = 2, 4, 6, 3
    x = torch.randn(batch, channels, *size, dtype=D)
    w, bias = torch.randn(kernels, outputs, channels // groups, *taps, dtype=D), torch.randn(kernels, outputs, dtype=D)
    grid = function(x, w, bias, torch.ones(kernels, dtype=D), stride, padding, dilation, groups).shape[2:]
    alpha = alphas(kind, batch, kernels, grid)
    expected_alpha = alpha.expand(batch, -1) if kind == "one" else alpha
    expected = loop_conv(x, w, bias, expected_alpha, stride, padding, dilation, groups, act)
    torch.testing.assert_close(function(x, w, bias, alpha, stride, padding, dilation, groups, act), expected)


@pytest.mark.parametrize("kind", ["shared", "one", "sample", "map"])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose2d(groups: int, kind: str) -> None:
    stride, padding, extra, dilation = (2, 3), (1, 0), (1, 0), (1, 2)
    batch, channels, outputs, kernels, size, taps = 2, 4, 6, 3, (3, 2), (3, 2)
    x = torch.randn(batch, channels, *size, dtype=D)
    w, bias = torch.randn(kernels, channels, outputs // groups, *taps, dtype=D), torch.randn(kernels, outputs, dtype=D)
    grid = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(size, stride, padding, dilation, taps, extra, strict=True)
    )
    alpha = alphas(kind, batch, kernels, grid)
    full = alpha.expand(batch, -1) if kind == "one" else alpha
    y = torch.zeros(batch, outputs, *grid, dtype=D)
    for b, p, o, i, j in itertools.product(range(batch), range(kernels), range(outputs), *map(range, grid)):
        y[b, o, i, j] += weight_of(full, b, p, (i, j)) * bias[p, o]
    for b, p, c, h, v, o, r, t in itertools.product(
        range(batch), range(kernels), range(channels), *map(range, size), range(outputs // groups), *map(range, taps)
    ):
        i, j = h * stride[0] + r * dilation[0] - padding[0], v * stride[1] + t * dilation[1] - padding[1]
        if 0 <= i < grid[0] and 0 <= j < grid[1]:
            channel = c // (channels // groups) * (outputs // groups) + o
            y[b, channel, i, j] += weight_of(full, b, p, (i, j)) * x[b, c, h, v] * w[p, c, o, r, t]
    out = reference.tunable_conv_transpose2d(x, w, bias, alpha, stride, padding, extra, groups, dilation)
    torch.testing.assert_close(out, y)


@pytest.mark.parametrize("kind", ["shared", "one", "sample"])
def test_linear(kind: str) -> None:
    batch, rows, channels, outputs, kernels = 2, 3, 4, 5, 3
    x, w = torch.randn(batch, rows, channels, dtype=D), torch.randn(kernels, outputs, channels, dtype=D)
    bias, alpha = torch.randn(kernels, outputs, dtype=D), alphas(kind, batch, kernels, ())
    full = alpha.expand(batch, -1) if kind == "one" else alpha
    y = torch.zeros(batch, rows, outputs, dtype=D)
    for b, r, o, p in itertools.product(range(batch), range(rows), range(outputs), range(kernels)):
        value = bias[p, o] + sum(x[b, r, c] * w[p, o, c] for c in range(channels))
        y[b, r, o] += weight_of(full, b, p, ()) * value
    torch.testing.assert_close(reference.tunable_linear(x, w, bias, alpha), y)


def test_parameter() -> None:
    stack, alpha = torch.randn(3, 4, 5, dtype=D), torch.randn(2, 3, dtype=D)
    expected = torch.stack([sum(alpha[b, p] * stack[p] for p in range(3)) for b in range(2)])  # type: ignore[misc]
    torch.testing.assert_close(reference.tunable_parameter(stack, alpha), expected)
    torch.testing.assert_close(reference.tunable_parameter(stack, alpha[0]), expected[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_blend_accumulates_in_fp32_and_rounds_once(dtype: torch.dtype) -> None:
    """Rounding after every kernel would lose 1: in fp16 2048 + 1 = 2048, in bf16 256 + 1 = 256."""
    big = 2048.0 if dtype == torch.float16 else 256.0
    stack = torch.tensor([[big], [1.0], [1.0], [-big]], dtype=dtype)
    assert reference.tunable_parameter(stack, torch.ones(4)).item() == 2.0
    assert reference.tunable_parameter(stack, torch.ones(4, dtype=dtype)).item() == 2.0


def test_gradients_of_any_order() -> None:
    x, w = torch.randn(2, 2, 3, 3, dtype=D, requires_grad=True), torch.randn(2, 2, 2, 2, 2, dtype=D, requires_grad=True)
    bias, alpha = torch.randn(2, 2, dtype=D, requires_grad=True), torch.rand(2, 2, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(reference.tunable_conv2d, (x, w, bias, alpha))
    assert torch.autograd.gradgradcheck(reference.tunable_conv2d, (x, w, bias, alpha))
