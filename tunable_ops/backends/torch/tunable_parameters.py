"""The blends of many stacks, one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameter as single


def forward(
    parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], dtype: torch.dtype | None
) -> list[Tensor]:
    """sum_p alpha[starts[i] + p] parameters[i][p], each with the layout of the stack's kernels."""
    return [
        single.forward(parameter, alpha[start : start + parameter.shape[0]], dtype)
        for parameter, start in zip(parameters, starts, strict=True)
    ]


def blend_into(parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], outputs: Sequence[Tensor]) -> None:
    """The same, into tensors that are there."""
    for parameter, start, output in zip(parameters, starts, outputs, strict=True):
        output.copy_(single.forward(parameter, alpha[start : start + parameter.shape[0]], output.dtype))


def backward(
    grad_outputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    alpha: Tensor,
    starts: Sequence[int],
    mask: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the parameters and, last, of alpha; each only where `mask` asks for it, empty elsewhere."""
    grads = []
    grad_alpha = torch.zeros_like(alpha) if mask[-1] else alpha.new_empty(0)
    for grad_output, parameter, start, wanted in zip(grad_outputs, parameters, starts, mask[:-1], strict=True):
        part = slice(start, start + parameter.shape[0])
        grad, share = single.backward(grad_output, parameter, alpha[part], (wanted, mask[-1]))
        grads.append(parameter.new_empty(0) if grad is None else grad)
        if share is not None:
            grad_alpha[part] += share
    return [*grads, grad_alpha]
