"""The blend of a layer and its gradients on the Triton kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameter as torch_backend
from tunable_ops.backends.torch.layout import as_matrix, from_matrix
from tunable_ops.backends.triton import plans
from tunable_ops.triton_kernels.contraction import choose_tiles
from tunable_ops.triton_kernels.launch import multiprocessors
from tunable_ops.triton_kernels.tunable_parameter import (
    plan_tunable_parameter_backward,
    plan_tunable_parameter_forward,
    plan_tunable_parameter_sum,
    shares_of,
)

# Stacks of more kernels are blended by a matrix product.
MAX_KERNELS = 16


def forward(parameter: Tensor, alpha: Tensor) -> Tensor:
    """Return sum_p alpha[..., p] parameter[p], [*shape] or [B, *shape], with the kernel layout of `parameter`."""
    (result,) = plans.run(_forward, (parameter, alpha), ())
    assert result is not None
    return result


def _forward(parameter: Tensor, alpha: Tensor) -> plans.Results:
    if parameter.shape[0] > MAX_KERNELS:
        return (torch_backend.forward(parameter, alpha),)
    return (blend(parameter, None, alpha)[0],)


def backward(
    grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of parameter and alpha; None where `mask` is False."""
    return plans.run(_backward, (grad_output, parameter, alpha), (mask,))  # type: ignore[return-value]


def _backward(grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: tuple[bool, bool]) -> plans.Results:
    if parameter.shape[0] > MAX_KERNELS or grad_output.numel() == 0 or not any(mask):
        return torch_backend.backward(grad_output, parameter, alpha, mask)
    rows = alpha if alpha.dim() == 2 else alpha[None]
    gradient = as_matrix(grad_output if alpha.dim() == 2 else grad_output[None], like=parameter).contiguous()
    contraction = Contraction(parameter, None, rows, (mask[0], False, mask[1]))
    contraction.add(slice(None), gradient, None)
    grad, _, grad_alpha = contraction.result()
    return grad, None if grad_alpha is None else grad_alpha.view(alpha.shape)


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

    The biases of a layer are contracted with their own G beside its kernels: grad_alpha is the sum of both.

    Args:
        weight: [P, *shape].
        bias: [P, O] or None.
        alpha: [B, P].
        mask: True for the gradients of weight, bias and alpha that are needed.
        splits: Partial sums that make up a G[b], of the weight and of the bias.
        samples: Samples of the first call of `add`, and the most of one; default: all.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        alpha: Tensor,
        mask: Sequence[bool],
        splits: int = 1,
        samples: int | None = None,
    ) -> None:
        batch, kernels = alpha.shape
        samples = samples or batch
        self.stacks = [None if stack is None else _rows(stack) for stack in (weight, bias)]
        self.likes, self.alpha, self.started = (weight, bias), alpha, False
        sizes = [0 if stack is None else stack.shape[1] for stack in self.stacks]
        self.tiles = choose_tiles(sizes[0], samples * splits, kernels, multiprocessors(weight))
        self.grads = [
            None if stack is None or not need else stack.new_empty(stack.shape)
            for stack, need in zip(self.stacks, mask, strict=False)
        ]
        # A single slot of a single call holds the sum itself.
        self.summed = self.tiles.slots > 1 or samples < batch
        self.parts = [
            grad if grad is None else self._fp32(self.tiles.slots, *grad.shape) if self.summed else grad[None]
            for grad in self.grads
        ]
        self.shares = self._fp32(batch, kernels, shares_of(*sizes, splits, self.tiles)) if mask[2] else None

    def _fp32(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.alpha.device)

    def add(self, samples: slice, gradient: Tensor, shift: Tensor | None) -> None:
        """Add G of some samples, [n * splits, N], and of the biases, [n * splits, O]; both contiguous."""
        (weight, bias), (part, bias_part) = self.stacks, self.parts
        assert weight is not None
        operands = (gradient, weight, part, shift, bias, bias_part)
        shares = None if self.shares is None else self.shares[samples]
        plan_tunable_parameter_backward(*operands, self.alpha[samples], shares, self.tiles, self.started).run()
        self.started = True

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of weight, bias and alpha, None where not needed."""
        grad_alpha = None if self.shares is None else self.alpha.new_empty(self.alpha.shape)
        (part, bias_part), (grad, bias_grad) = self.parts if self.summed else (None, None), self.grads
        if any(t is not None for t in (part, bias_part, self.shares)):
            plan_tunable_parameter_sum(part, grad, bias_part, bias_grad, self.shares, grad_alpha).run()
        laid = (
            None if g is None or s is None else from_matrix(g, s) for g, s in zip(self.grads, self.likes, strict=True)
        )
        return *laid, grad_alpha  # type: ignore[return-value]


def _rows(stack: Tensor) -> Tensor:
    """Return [P, *shape] as [P, N] with dense rows at any distance."""
    matrix = as_matrix(stack)
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()
