"""The operators as PyTorch's own, in the form that graphs of other runtimes hold: any batch, no loop over samples.

One alpha for the batch is a blend and a plain convolution. One per sample, or a map, is one convolution with all P*O
outputs and a weighted sum, because groups are constants in such graphs. Values are those of the definitions, up to the
order of sums. Exports to ONNX take these forms by themselves; `decompositions` has them for other exports.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.reference.activation import TABLE


def tunable_parameter(parameter: Tensor, alpha: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Blend a stack [P, *shape] with alpha [P] or [B, P]: in fp32 (fp64 for fp64), rounded once."""
    accumulate = torch.promote_types(parameter.dtype, torch.float32)
    # Not a matrix product, which runtimes may compute in TF32.
    weights = _lengthen(alpha.to(accumulate), parameter.dim() - 1)
    return (weights * parameter.to(accumulate)).sum(alpha.dim() - 1).to(dtype or parameter.dtype)


def tunable_parameters(
    parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Blend many stacks, each with its own part of alpha [A]."""
    return [
        tunable_parameter(stack, alpha[start : start + stack.shape[0]], dtype)
        for stack, start in zip(parameters, starts, strict=True)
    ]


def tunable_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any) -> Tensor:
    """Convolve, given the arguments of the operators' schemas: stride, padding, dilation, groups, activation."""
    *sizes, groups, activation = options
    stride, padding, dilation = (list(sizes[i : i + 2]) for i in (0, 2, 4))
    dilation = [1 if taps == 1 else d for taps, d in zip(weight.shape[3:], dilation, strict=True)]  # known_faults.md

    def conv(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, stride, padding, dilation, groups)

    return blend_and_convolve(conv, input, weight, bias, alpha, groups, activation)


def tunable_conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any
) -> Tensor:
    """Apply the transposed convolution: stride, padding, output padding, groups, activation."""
    *sizes, groups, activation = options
    stride, padding, more = (list(sizes[i : i + 2]) for i in (0, 2, 4))

    def conv(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv_transpose2d(x, w, b, stride, padding, more, groups)

    return blend_and_convolve(conv, input, weight, bias, alpha, None, activation)


def blend_and_convolve(
    conv: Callable[[Any, Any, Any], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    groups: int | None,
    activation: int,
) -> Tensor:
    """Apply any `conv(input, weight, bias)`.

    Args:
        conv: The convolution.
        input: [B, C, *size].
        weight: [P, O, C/groups, *taps], or [P, C, O/groups, *taps] of a transposed one.
        bias: [P, O] or None.
        alpha: [P], [B, P] or a map [B, P, *grid].
        groups: Those of `conv`; None: not one convolution with P*O outputs but P of O, as transposed ones need it.
        activation: Code of the activation.
    """
    act = TABLE[activation].forward
    if alpha.dim() == 1:
        shift = None if bias is None else tunable_parameter(bias, alpha)
        return act(conv(input, tunable_parameter(weight, alpha), shift))
    if groups is None:
        each = [conv(input, weight[p], None if bias is None else bias[p]) for p in range(weight.shape[0])]
        products = torch.stack(each, 1)
    else:
        merged = conv(input, _merge(weight, groups), None if bias is None else _merge(bias, groups))
        products = _split(merged, weight.shape[0], groups)
    accumulate = torch.promote_types(input.dtype, torch.float32)
    weights = alpha.to(accumulate).unsqueeze(2)  # [B, P, 1, *grid]
    if alpha.dim() == 2:
        weights = _lengthen(weights, input.dim() - 2)
    return act((products.to(accumulate) * weights).sum(1).to(input.dtype))


def _lengthen(tensor: Tensor, count: int) -> Tensor:
    """Return a view with `count` dimensions of size 1 at the end."""
    for _ in range(count):
        tensor = tensor.unsqueeze(-1)  # not by reshape, which asks whether the batch is 1
    return tensor


def _merge(stack: Tensor, groups: int) -> Tensor:
    """Return [P, O, *] as [P*O, *], with all outputs of a group next to each other."""
    if groups == 1:
        return stack.flatten(0, 1)
    return stack.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)


def _split(products: Tensor, kernels: int, groups: int) -> Tensor:
    """Return [B, P*O, *grid] as [B, P, O, *grid], undoing `_merge`."""
    if groups == 1:
        return products.unflatten(1, (kernels, -1))
    return products.unflatten(1, (groups, kernels, -1)).transpose(1, 2).flatten(2, 3)
