"""The blend of a layer and its gradients on the Triton kernels."""

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameter as torch_backend
from tunable_ops.backends.torch.layout import as_matrix, from_matrix
from tunable_ops.triton_kernels.launch import cdiv
from tunable_ops.triton_kernels.tunable_parameter import (
    BLOCK,
    plan_tunable_parameter_backward,
    plan_tunable_parameter_forward,
)

# Stacks of more kernels are blended by a matrix product.
MAX_KERNELS = 16


def forward(parameter: Tensor, alpha: Tensor) -> Tensor:
    """Return sum_p alpha[..., p] parameter[p], [*shape] or [B, *shape], with the kernel layout of `parameter`."""
    if parameter.shape[0] > MAX_KERNELS:
        return torch_backend.forward(parameter, alpha)
    return blend(parameter, None, alpha)[0]


def backward(
    grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of parameter and alpha; None where `mask` is False."""
    if parameter.shape[0] > MAX_KERNELS or grad_output.numel() == 0 or not any(mask):
        return torch_backend.backward(grad_output, parameter, alpha, mask)
    rows = alpha if alpha.dim() == 2 else alpha[None]
    gradient = as_matrix(grad_output if alpha.dim() == 2 else grad_output[None], like=parameter).contiguous()
    contraction = Contraction(parameter, mask[0], 1)
    shares = gradient.new_empty(contraction.blocks, *rows.shape, dtype=torch.float32) if mask[1] else None
    contraction.add(gradient[:, None], rows, shares)
    return contraction.result(), None if shares is None else shares.sum(0).view(alpha.shape).to(alpha.dtype)


def blend(weight: Tensor, bias: Tensor | None, alpha: Tensor) -> tuple[Tensor, Tensor | None]:
    """Blend kernels and biases of a layer in one launch.

    Args:
        weight: [P, *shape].
        bias: [P, O] or None.
        alpha: [P] or [B, P].

    Returns:
        [*shape] with the kernel layout of `weight`, and [O] or None; for alpha [B, P] both with a leading batch.
    """
    matrix = _rows(weight)
    rows = alpha if alpha.dim() == 2 else alpha[None]
    kernel = matrix.new_empty(rows.shape[0], matrix.shape[1])
    bias_rows = None if bias is None else _rows(bias)
    shift = None if bias_rows is None else bias_rows.new_empty(rows.shape[0], bias_rows.shape[1])
    if kernel.numel() > 0:
        plan_tunable_parameter_forward(matrix, bias_rows, rows, kernel, shift).run()
    if alpha.dim() == 1:
        return from_matrix(kernel[0], weight), None if shift is None else shift[0]
    return from_matrix(kernel, weight), shift


class Contraction:
    """The sums grad_weight[p] = sum_b alpha[b,p] G[b] and grad_alpha[b,p] = <G[b], weight[p]>, in chunks of samples.

    Args:
        stack: [P, *shape].
        need_stack: True to compute the gradient of the stack.
        chunks: Number of calls of `add`; for more than one, the sum is kept in fp32.
    """

    def __init__(self, stack: Tensor, need_stack: bool, chunks: int) -> None:
        self.matrix = _rows(stack)
        self.stack = stack
        self.blocks = cdiv(self.matrix.shape[1], BLOCK)
        dtype = stack.dtype if chunks == 1 else torch.float32
        self.gradient = torch.empty_like(self.matrix, dtype=dtype) if need_stack else None
        self.started = False

    def add(self, gradient: Tensor, alpha: Tensor, rows: Tensor | None) -> None:
        """Add G of n samples, the sum over `gradient` [n, splits, N]; write `rows` [blocks, n, P] if given."""
        plan_tunable_parameter_backward(gradient, self.matrix, alpha, self.gradient, rows, self.started).run()
        self.started = True

    def result(self) -> Tensor | None:
        """Return the gradient of the stack, None if not needed."""
        return None if self.gradient is None else from_matrix(self.gradient.to(self.stack.dtype), self.stack)


def _rows(stack: Tensor) -> Tensor:
    """Return [P, *shape] as [P, N] with dense rows at any distance."""
    matrix = as_matrix(stack)
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()
