"""Blends of many stacks, one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameter as single


def forward(
    parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], dtype: torch.dtype | None
) -> list[Tensor]:
    """Return sum_p alpha[starts[i] + p] parameters[i][p] for each stack, with the layout of its kernels."""
    return [
        single.forward(parameter, alpha[start : start + parameter.shape[0]], dtype)
        for parameter, start in zip(parameters, starts, strict=True)
    ]


def blend_into(parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], outputs: Sequence[Tensor]) -> None:
    """Write what `forward` returns into existing tensors."""
    for parameter, start, output in zip(parameters, starts, outputs, strict=True):
        output.copy_(single.forward(parameter, alpha[start : start + parameter.shape[0]], output.dtype))


def backward(
    grad_outputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    alpha: Tensor,
    starts: Sequence[int],
    mask: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of the parameters and, last, of alpha; empty where `mask` is False."""
    grads = []
    grad_alpha = torch.zeros_like(alpha) if mask[-1] else alpha.new_empty(0)
    for grad_output, parameter, start, wanted in zip(grad_outputs, parameters, starts, mask[:-1], strict=True):
        part = slice(start, start + parameter.shape[0])
        grad, share = single.backward(grad_output, parameter, alpha[part], (wanted, mask[-1]))
        grads.append(parameter.new_empty(0) if grad is None else grad)
        if share is not None:
            grad_alpha[part] += share
    return [*grads, grad_alpha]
