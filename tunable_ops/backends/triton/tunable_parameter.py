"""The blend and its contraction on the Triton kernels."""

import torch
from torch import Tensor

from tunable_ops.backends.torch.layout import as_matrix, from_matrix
from tunable_ops.triton_kernels.launch import cdiv
from tunable_ops.triton_kernels.tunable_parameter import (
    BLOCK,
    plan_tunable_parameter_backward,
    plan_tunable_parameter_forward,
)


def blend(weight: Tensor, bias: Tensor | None, alpha: Tensor) -> tuple[Tensor, Tensor | None]:
    """Blends kernels and biases of a layer in one launch, with the kernels' layout of `weight`.

    Args:
        weight: [P, *shape].
        bias: [P, O] or None.
        alpha: [P] or [B, P].

    Returns:
        [*shape] and [O] or None, with the batch in front for [B, P].
    """
    matrix = as_matrix(weight)
    rows = alpha if alpha.dim() == 2 else alpha[None]
    kernel = matrix.new_empty(rows.shape[0], matrix.shape[1])
    bias_rows = None if bias is None else as_matrix(bias)
    shift = None if bias_rows is None else bias_rows.new_empty(rows.shape[0], bias_rows.shape[1])
    if kernel.numel() > 0:
        plan_tunable_parameter_forward(matrix, bias_rows, rows, kernel, shift).run()
    if alpha.dim() == 1:
        return from_matrix(kernel[0], weight), None if shift is None else shift[0]
    return from_matrix(kernel, weight), shift


class Contraction:
    """grad_weight[p] = sum_b alpha[b,p] G[b] and grad_alpha[b,p] = <G[b], weight[p]>, chunk of samples by chunk.

    Args:
        stack: [P, *shape].
        need_stack: Whether the gradient of the stack is asked for.
        chunks: How many times `add` will be called; from two on, the sum is kept in fp32.
    """

    def __init__(self, stack: Tensor, need_stack: bool, chunks: int) -> None:
        self.matrix = as_matrix(stack)
        self.stack = stack
        self.blocks = cdiv(self.matrix.shape[1], BLOCK)
        dtype = stack.dtype if chunks == 1 else torch.float32
        self.gradient = torch.empty_like(self.matrix, dtype=dtype) if need_stack else None
        self.started = False

    def add(self, gradient: Tensor, alpha: Tensor, rows: Tensor | None) -> None:
        """Adds G of some samples, as the sum of `gradient` [n, splits, N]; writes rows [blocks, n, P] where given."""
        plan_tunable_parameter_backward(gradient, self.matrix, alpha, self.gradient, rows, self.started).run()
        self.started = True

    def result(self) -> Tensor | None:
        """The gradient of the stack."""
        return None if self.gradient is None else from_matrix(self.gradient.to(self.stack.dtype), self.stack)
