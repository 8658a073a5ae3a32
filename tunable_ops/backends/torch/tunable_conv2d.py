"""tunable_conv2d made of PyTorch's own operators: blend first, then as few convolutions as possible.

Shared alpha: one blend, one convolution. Per-sample alpha: the algorithm that `choose_algorithm` returns. Map: one
convolution with P*O outputs, then a weighted sum. The backward pass computes one weight gradient G per sample (or a
single one for a shared alpha) and contracts it:
grad_weight[p] = sum_b alpha[b,p] G[b], grad_alpha[b,p] = <G[b], weight[p]> + bias term.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends.torch import per_sample
from tunable_ops.backends.torch import tunable_parameter as blend
from tunable_ops.backends.torch.choose_algorithm import choose_algorithm
from tunable_ops.backends.torch.layout import empty_stack_like, output_format
from tunable_ops.convolution import convolve, convolve_backward, is_strided_pointwise, pick, put_back
from tunable_ops.reference.activation import activation_backward, apply_activation

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    algorithm: str | None = None,
) -> Tensor:
    """Run the operator; for measurements, `algorithm` overrides the choice for a per-sample alpha."""
    if is_strided_pointwise(weight.shape[3:], stride):
        form = output_format(input, weight)
        picked = pick(input, stride, padding).contiguous(memory_format=form)
        output = forward(picked, weight, bias, alpha, (1, 1), (0, 0), (1, 1), groups, activation, algorithm)
        return output.contiguous(memory_format=form)
    geometry: per_sample.Geometry = (stride, padding, dilation)
    if alpha.dim() == 4:
        products = _map_products(input, weight, bias, geometry, groups)
        accumulate = torch.promote_types(input.dtype, torch.float32)
        products, weights = products.to(accumulate), alpha.to(accumulate)
        output = products[:, 0] * weights[:, 0, None]
        for p in range(1, products.shape[1]):
            output.addcmul_(products[:, p], weights[:, p, None])
        output = output.to(input.dtype)
    elif alpha.dim() == 1:
        kernel, shift = blend.forward(weight, alpha), None if bias is None else blend.forward(bias, alpha)
        output = convolve(input, kernel, shift, *geometry, groups=groups)
    elif input.shape[0] == 0:
        output = convolve(input, weight[0], None, *geometry, groups=groups)
    else:
        algorithm = algorithm or choose_algorithm(input, weight, geometry, groups)
        output = per_sample.FORWARD[algorithm](input, weight, bias, alpha, geometry, groups)
    return apply_activation(output, activation).contiguous(memory_format=output_format(input, weight))


def backward(
    grad_output: Tensor,
    saved: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    mask: Sequence[bool],
    algorithm: str | None = None,
) -> Gradients:
    """Return the gradients of input, weight, bias and alpha; None where `mask` is False."""
    if is_strided_pointwise(weight.shape[3:], stride):
        form = output_format(input, weight)
        picked = pick(input, stride, padding).contiguous(memory_format=form)
        options: Any = ((1, 1), (0, 0), (1, 1), groups, activation, mask, algorithm)
        grad, *others = backward(grad_output, saved, picked, weight, bias, alpha, *options)
        if grad is not None:
            grad = put_back(grad, input, stride, padding).contiguous(memory_format=form)
        return grad, others[0], others[1], others[2]
    geometry: per_sample.Geometry = (stride, padding, dilation)
    if saved is not None:
        grad_output = activation_backward(grad_output, saved, activation)
    grad_output = grad_output.contiguous(memory_format=output_format(input, weight))
    if alpha.dim() == 4:
        return _map_backward(grad_output, input, weight, bias, alpha, geometry, groups, mask)
    wanted = [mask[0], mask[1] or mask[3], bias is not None and (mask[2] or mask[3])]
    if alpha.dim() == 1:
        kernel = blend.forward(weight, alpha)
        grad_input, gradient, grad_sum = convolve_backward(grad_output, input, kernel, geometry, groups, wanted)
        pieces = iter([(alpha[None], _stacked(gradient), _stacked(grad_sum))])
    else:
        grad_input = torch.empty_like(input, memory_format=output_format(input, weight)) if mask[0] else None
        algorithm = algorithm or choose_algorithm(input, weight, geometry, groups)
        pieces = per_sample.BACKWARD[algorithm](grad_output, input, weight, alpha, geometry, groups, wanted, grad_input)
    grad_weight, grad_bias, grad_alpha = _contract(pieces, weight, bias, alpha, mask)
    if grad_input is not None:
        grad_input = grad_input.contiguous(memory_format=output_format(input, weight))
    return grad_input, grad_weight, grad_bias, grad_alpha


def _stacked(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient[None]


def _contract(
    pieces: Iterator[tuple[Tensor, Tensor | None, Tensor | None]],
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Contract (alpha [n, P], G [n, O, C/g, kh, kw], bias gradient [n, O]) of all chunks in a fixed order."""
    accumulate = torch.promote_types(weight.dtype, torch.float32)
    sums: list[Tensor | None] = [None, None]  # of the gradients of weight and bias
    grad_alpha: list[Tensor] = []
    for part, *gradients in pieces:
        row = torch.zeros_like(part, dtype=accumulate)
        for i, (stack, gradient) in enumerate(zip((weight, bias), gradients, strict=True)):
            if stack is None or gradient is None:
                continue
            grad_stack, grad_part = blend.contract(gradient, stack, part, mask[1 + i], mask[3])
            row = row if grad_part is None else row + grad_part
            total = sums[i]
            sums[i] = grad_stack if total is None or grad_stack is None else total.add_(grad_stack)
        grad_alpha.append(row)
    if not grad_alpha:  # an empty batch
        grad_alpha = [torch.zeros_like(alpha, dtype=accumulate)]
        sums = [None if stack is None else empty_stack_like(stack).zero_() for stack in (weight, bias)]
    grad_weight, grad_bias = (
        g.to(weight.dtype) if g is not None and m else None for g, m in zip(sums, mask[1:3], strict=True)
    )
    alphas = torch.cat(grad_alpha).reshape(alpha.shape).to(alpha.dtype) if mask[3] else None
    return grad_weight, grad_bias, alphas


def _map_products(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: per_sample.Geometry, groups: int
) -> Tensor:
    """Return conv_p(x) + bias_p for all kernels, [B, P, O, OH, OW], by one convolution."""
    kernels, outputs = weight.shape[:2]
    merged_bias = None if bias is None else _merge_groups(bias, groups)
    products = convolve(input, _merge_groups(weight, groups), merged_bias, *geometry, groups=groups)
    return _split_groups(products, kernels, outputs, groups)


def _merge_groups(stack: Tensor, groups: int) -> Tensor:
    """Return [P, O, *] as [P*O, *], with all outputs of a group next to each other."""
    kernels, outputs, *rest = stack.shape
    grouped = stack.reshape(kernels, groups, outputs // groups, *rest).transpose(0, 1)
    return grouped.reshape(kernels * outputs, *rest)


def _split_groups(products: Tensor, kernels: int, outputs: int, groups: int) -> Tensor:
    """Return [B, P*O, OH, OW] as [B, P, O, OH, OW], undoing `_merge_groups`."""
    batch, _, *size = products.shape
    split = products.reshape(batch, groups, kernels, outputs // groups, *size).transpose(1, 2)
    return split.reshape(batch, kernels, outputs, *size)


def _map_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    geometry: per_sample.Geometry,
    groups: int,
    mask: Sequence[bool],
) -> Gradients:
    """Return the gradients for a map, through the convolution with P*O outputs."""
    batch, outputs, *size = grad_output.shape
    kernels = weight.shape[0]
    accumulate = torch.promote_types(input.dtype, torch.float32)
    grad_alpha = None
    if mask[3]:
        products = _map_products(input, weight, bias, geometry, groups).to(accumulate)
        grad_alpha = torch.einsum("bohw,bpohw->bphw", grad_output.to(accumulate), products)
        grad_alpha = grad_alpha.to(alpha.dtype).contiguous()
    spread = (alpha[:, :, None].to(accumulate) * grad_output[:, None].to(accumulate)).to(input.dtype)
    spread = spread.reshape(batch, kernels, groups, outputs // groups, *size).transpose(1, 2)
    spread = spread.reshape(batch, kernels * outputs, *size)
    wanted = [mask[0], mask[1], mask[2]]
    grad_input, grad_weight, grad_bias = convolve_backward(
        spread, input, _merge_groups(weight, groups), geometry, groups, wanted
    )
    if grad_input is not None:
        grad_input = grad_input.contiguous(memory_format=output_format(input, weight))
    if grad_weight is not None:
        grad_weight = empty_stack_like(weight).copy_(_unmerge_groups(grad_weight, weight.shape, groups))
    if grad_bias is not None and bias is not None:
        grad_bias = _unmerge_groups(grad_bias, bias.shape, groups).contiguous()
    return grad_input, grad_weight, grad_bias, grad_alpha


def _unmerge_groups(merged: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    kernels, outputs, *rest = shape
    return merged.reshape(groups, kernels, outputs // groups, *rest).transpose(0, 1).reshape(shape)
