"""Loop oracles in float64: every operator of the family and its gradients, one multiply-add at a time.

Nothing here comes from the package or from torch: the values follow the formulas of the docstrings, the gradients are
their derivatives written out by hand, and an activation is its definition.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy import ndarray

Index = tuple[int, ...]


def _normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def _normal_density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# name -> (value, derivative), both of the value before the activation
ACTIVATIONS: dict[str | None, tuple[Callable[[float], float], Callable[[float], float]]] = {
    None: (lambda z: z, lambda z: 1.0),
    "relu": (lambda z: max(z, 0.0), lambda z: 1.0 if z > 0 else 0.0),
    "leaky_relu": (lambda z: z if z > 0 else 0.01 * z, lambda z: 1.0 if z > 0 else 0.01),
    "silu": (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * (1 - _sigmoid(z)))),
    "gelu": (lambda z: z * _normal_cdf(z), lambda z: _normal_cdf(z) + z * _normal_density(z)),
}


@dataclass(frozen=True)
class Tap:
    """One product in a sum over taps: weight[p, tap] * input[b, source] is added to output[b, out]."""

    out: Index
    source: Index
    tap: Index


class Oracle:
    """The result of ``act(sum_p alpha[b,p,pixel] * (sum_taps weight[p,tap] * input[b,source] + bias[p,o]))``.

    With an alpha per batch or sample this is the blend of the kernels, because a convolution is linear in its weight.

    Args:
        taps: Every product that contributes to an output.
        shape: [O, *grid], of one sample's output.
        input: [B, C, *].
        weight: [P, *].
        bias: [P, O] or None.
        alpha: [P], [1, P], [B, P] or [B, P, *grid].
        activation: A key of `ACTIVATIONS`.
    """

    def __init__(
        self,
        taps: Iterable[Tap],
        shape: Index,
        input: ndarray,
        weight: ndarray,
        bias: ndarray | None,
        alpha: ndarray,
        activation: str | None,
    ) -> None:
        self.taps, self.input, self.weight, self.bias, self.alpha = list(taps), input, weight, bias, alpha
        self._act, self._slope = ACTIVATIONS[activation]
        self._samples, self._kernels, self._outputs = range(len(input)), range(len(weight)), list(np.ndindex(shape))
        self._separate = np.zeros((len(input), len(weight), *shape))  # what each kernel alone would give
        for b, p in product(self._samples, self._kernels):
            for t in self.taps:
                self._separate[(b, p, *t.out)] += weight[(p, *t.tap)] * input[(b, *t.source)]
            if bias is not None:
                for out in self._outputs:
                    self._separate[(b, p, *out)] += bias[p, out[0]]
        self._blended = np.zeros((len(input), *shape))
        for b, out, p in product(self._samples, self._outputs, self._kernels):
            self._blended[(b, *out)] += alpha[self._place(b, p, out)] * self._separate[(b, p, *out)]

    @property
    def output(self) -> ndarray:
        """Output [B, O, *grid]."""
        return np.vectorize(self._act, otypes=[float])(self._blended)

    def gradients(self, grad_output: ndarray) -> dict[str, ndarray]:
        """Return the gradients of ``sum(output * grad_output)`` by argument name."""
        grads = {"input": np.zeros_like(self.input), "weight": np.zeros_like(self.weight)}
        if self.bias is not None:
            grads["bias"] = np.zeros_like(self.bias)
        grads["alpha"] = np.zeros_like(self.alpha)
        inner = np.vectorize(self._slope, otypes=[float])(self._blended) * grad_output  # before the activation
        for b, p in product(self._samples, self._kernels):
            for out in self._outputs:
                place, grad = self._place(b, p, out), inner[(b, *out)]
                grads["alpha"][place] += grad * self._separate[(b, p, *out)]
                if self.bias is not None:
                    grads["bias"][p, out[0]] += grad * self.alpha[place]
            for t in self.taps:
                grad = inner[(b, *t.out)] * self.alpha[self._place(b, p, t.out)]
                grads["input"][(b, *t.source)] += grad * self.weight[(p, *t.tap)]
                grads["weight"][(p, *t.tap)] += grad * self.input[(b, *t.source)]
        return grads

    def _place(self, b: int, p: int, out: Index) -> Index:
        """Return the index of the value of alpha that weights kernel p at this output."""
        if self.alpha.ndim == 1:
            return (p,)
        if self.alpha.ndim == 2:
            return (b if len(self.alpha) > 1 else 0, p)
        return (b, p, *out[1:])


def convolution(
    input: ndarray,
    weight: ndarray,
    bias: ndarray | None,
    alpha: ndarray,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> Oracle:
    """Convolve in any number of dimensions: input [B, C, *size], weight [P, O, C/groups, *kernel]."""
    _, outputs, channels, *kernel = weight.shape
    size = input.shape[2:]
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":  # the odd pixel goes to the end
        before, after = [s // 2 for s in spans], [s - s // 2 for s in spans]
    else:
        before = after = [0] * len(size) if isinstance(padding, str) else list(padding)
    grid = [(n + a + e - s - 1) // t + 1 for n, a, e, s, t in zip(size, before, after, spans, stride, strict=True)]
    taps = []
    for o, c, *rest in product(range(outputs), range(channels), *map(range, grid), *map(range, kernel)):
        pixel, tap = rest[: len(size)], rest[len(size) :]
        source = [i * s + t * d - a for i, s, t, d, a in zip(pixel, stride, tap, dilation, before, strict=True)]
        if all(0 <= i < n for i, n in zip(source, size, strict=True)):
            group = o // (outputs // groups)
            taps.append(Tap((o, *pixel), (group * channels + c, *source), (o, c, *tap)))
    return Oracle(taps, (outputs, *grid), input, weight, bias, alpha, activation)


def transposed_convolution(
    input: ndarray,
    weight: ndarray,
    bias: ndarray | None,
    alpha: ndarray,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    activation: str | None,
) -> Oracle:
    """Spread every input pixel over its kernel: input [B, C, H, W], weight [P, C, O/groups, kh, kw]."""
    _, channels, outputs, *kernel = weight.shape
    size = input.shape[2:]
    options = zip(size, stride, padding, dilation, kernel, output_padding, strict=True)
    grid = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, p, d, k, e in options]
    taps = []
    for c, o, *rest in product(range(channels), range(outputs), *map(range, size), *map(range, kernel)):
        source, tap = rest[: len(size)], rest[len(size) :]
        pixel = [i * s + t * d - p for i, s, t, d, p in zip(source, stride, tap, dilation, padding, strict=True)]
        if all(0 <= i < n for i, n in zip(pixel, grid, strict=True)):
            group = c // (channels // groups)
            taps.append(Tap((group * outputs + o, *pixel), (c, *source), (c, o, *tap)))
    return Oracle(taps, (outputs * groups, *grid), input, weight, bias, alpha, activation)


def linear(input: ndarray, weight: ndarray, bias: ndarray | None, alpha: ndarray, activation: str | None) -> Oracle:
    """Apply a matrix to rows of channels: input [B, C, rows], weight [P, O, C], output [B, O, rows]."""
    _, outputs, channels = weight.shape
    rows = input.shape[2]
    taps = [Tap((o, r), (c, r), (o, c)) for o, c, r in product(range(outputs), range(channels), range(rows))]
    return Oracle(taps, (outputs, rows), input, weight, bias, alpha, activation)


def parameter(stack: ndarray, alpha: ndarray, grad_output: ndarray) -> tuple[ndarray, dict[str, ndarray]]:
    """Blend ``y[..., i] = sum_p alpha[..., p] * stack[p, i]``; return the values and the gradients."""
    rows = alpha.shape[:-1]
    output = np.zeros((*rows, *stack.shape[1:]))
    grads = {"parameter": np.zeros_like(stack), "alpha": np.zeros_like(alpha)}
    for row, p, i in product(np.ndindex(rows), range(len(stack)), np.ndindex(stack.shape[1:])):
        output[(*row, *i)] += alpha[(*row, p)] * stack[(p, *i)]
        grads["parameter"][(p, *i)] += alpha[(*row, p)] * grad_output[(*row, *i)]
        grads["alpha"][(*row, p)] += stack[(p, *i)] * grad_output[(*row, *i)]
    return output, grads


def parameters(
    stacks: Sequence[ndarray], alpha: ndarray, starts: Sequence[int], grad_outputs: Sequence[ndarray]
) -> tuple[list[ndarray], list[ndarray], ndarray]:
    """Blend each stack with its part of alpha; return the values, the stacks' gradients and alpha's."""
    outputs, grads, grad_alpha = [], [], np.zeros_like(alpha)
    for stack, start, grad_output in zip(stacks, starts, grad_outputs, strict=True):
        output, grad_stack = np.zeros(stack.shape[1:]), np.zeros_like(stack)
        for p, i in product(range(len(stack)), np.ndindex(stack.shape[1:])):
            output[i] += alpha[start + p] * stack[(p, *i)]
            grad_stack[(p, *i)] += alpha[start + p] * grad_output[i]
            grad_alpha[start + p] += stack[(p, *i)] * grad_output[i]
        outputs.append(output)
        grads.append(grad_stack)
    return outputs, grads, grad_alpha
