"""The blend and its gradients: one small matrix product each, accumulated in fp32 (fp64 for fp64)."""

import torch
from torch import Tensor

from tunable_ops.backends.torch.exact import exact_matmul
from tunable_ops.backends.torch.layout import as_matrix, from_matrix


def forward(parameter: Tensor, alpha: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return sum_p alpha[..., p] parameter[p], [*shape] or [B, *shape], with the kernel layout of `parameter`."""
    matrix = as_matrix(parameter)
    accumulate = torch.promote_types(parameter.dtype, torch.float32)
    blended = exact_matmul(alpha.to(accumulate), matrix.to(accumulate))
    return from_matrix(blended.to(dtype or parameter.dtype), parameter)


def backward(
    grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of parameter and alpha; None where `mask` is False."""
    shared = alpha.dim() == 1
    gradient, weights = (grad_output[None], alpha[None]) if shared else (grad_output, alpha)
    grad_parameter, grad_alpha = contract(gradient, parameter, weights, *mask)
    if grad_parameter is not None:
        grad_parameter = grad_parameter.to(parameter.dtype)
    if grad_alpha is not None:
        grad_alpha = grad_alpha.to(alpha.dtype).reshape(alpha.shape)
    return grad_parameter, grad_alpha


def contract(
    gradient: Tensor, parameter: Tensor, alpha: Tensor, need_parameter: bool, need_alpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return sum_b alpha[b, p] G[b] and <G[b], parameter[p]> for G [B, *shape], in the accumulation dtype."""
    accumulate = torch.promote_types(parameter.dtype, torch.float32)
    rows = as_matrix(gradient, like=parameter).to(accumulate)
    grad_parameter = grad_alpha = None
    if need_parameter:
        grad_parameter = from_matrix(exact_matmul(alpha.mT.to(accumulate), rows), parameter)
    if need_alpha:
        grad_alpha = exact_matmul(rows, as_matrix(parameter).to(accumulate).mT)
    return grad_parameter, grad_alpha
