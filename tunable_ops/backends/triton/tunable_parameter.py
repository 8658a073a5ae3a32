"""The blend and its contraction on the Triton kernels: of one layer, and of a whole network in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameter as torch_backend
from tunable_ops.backends.torch.layout import as_matrix, from_matrix
from tunable_ops.triton_kernels.launch import cdiv
from tunable_ops.triton_kernels.tunable_parameter import (
    BLOCK,
    make_table,
    plan_tunable_parameter_backward,
    plan_tunable_parameter_forward,
    plan_tunable_parameter_many,
)

# More kernels than this are left to a matrix product.
MAX_KERNELS = 16
# Tables of `blend_many` by the addresses in them, the last few: making one means copying to the GPU.
_TABLES: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
_MAX_TABLES = 16


def forward(parameter: Tensor, alpha: Tensor) -> Tensor:
    """sum_p alpha[..., p] parameter[p]: [*shape] or [B, *shape], with the kernels' layout of `parameter`."""
    if parameter.shape[0] > MAX_KERNELS:
        return torch_backend.forward(parameter, alpha)
    return blend(parameter, None, alpha)[0]


def backward(
    grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of parameter and alpha, each only where `mask` asks for it."""
    if parameter.shape[0] > MAX_KERNELS or grad_output.numel() == 0 or not any(mask):
        return torch_backend.backward(grad_output, parameter, alpha, mask)
    rows = alpha if alpha.dim() == 2 else alpha[None]
    gradient = as_matrix(grad_output if alpha.dim() == 2 else grad_output[None], like=parameter).contiguous()
    contraction = Contraction(parameter, mask[0], 1)
    shares = gradient.new_empty(contraction.blocks, *rows.shape, dtype=torch.float32) if mask[1] else None
    contraction.add(gradient[:, None], rows, shares)
    return contraction.result(), None if shares is None else shares.sum(0).view(alpha.shape).to(alpha.dtype)


def blend_many(stacks: Sequence[Tensor], alphas: Sequence[Tensor], blends: Sequence[Tensor]) -> list[int]:
    """Writes sum_p alphas[i][p] stacks[i][p] into blends[i], all of one dtype in one launch.

    Returns:
        The indices of those left to the caller: other dtypes, or layouts that differ between a stack and its blend.
    """
    left, groups = [], dict[torch.dtype, list[int]]()
    for i, (stack, plain) in enumerate(zip(stacks, blends, strict=True)):
        same = stack.dtype == plain.dtype and stack.is_cuda == plain.is_cuda and _lie_alike(stack, plain)
        if same and stack.dtype in (torch.float32, torch.float16, torch.bfloat16):
            groups.setdefault(stack.dtype, []).append(i)
        else:
            left.append(i)
    for dtype, members in groups.items():
        firsts = [0]
        for i in members:
            firsts.append(firsts[-1] + alphas[i].shape[0])
        flat = torch.cat([alphas[i] for i in members]).to(torch.float32)
        parts = ((stacks[i].data_ptr(), blends[i].data_ptr(), blends[i].numel(), *stacks[i].shape[:1]) for i in members)
        key = (id(dtype), stacks[members[0]].get_device(), *(number for part in parts for number in part))
        if key not in _TABLES:
            while len(_TABLES) >= _MAX_TABLES:
                _TABLES.pop(next(iter(_TABLES)))
            matrices = [as_matrix(stacks[i]) for i in members]
            _TABLES[key] = make_table(matrices, [blends[i] for i in members], firsts[:-1])
        plan_tunable_parameter_many(*_TABLES[key], flat, dtype).run()
    return left


def _lie_alike(stack: Tensor, plain: Tensor) -> bool:
    """Whether every kernel of the stack lies without gaps, and in the order of its blend."""
    if plain.numel() == 0 or stack.numel() != stack.shape[0] * plain.numel():
        return False
    matrix = as_matrix(stack)
    if matrix.data_ptr() != stack.data_ptr() or (matrix.stride(1) != 1 and matrix.shape[1] > 1):
        return False
    if stack.is_contiguous():
        return plain.is_contiguous()
    return plain.shape == stack.shape[1:] and plain.stride() == stack.stride()[1:]


def blend(weight: Tensor, bias: Tensor | None, alpha: Tensor) -> tuple[Tensor, Tensor | None]:
    """Blends kernels and biases of a layer in one launch, with the kernels' layout of `weight`.

    Args:
        weight: [P, *shape].
        bias: [P, O] or None.
        alpha: [P] or [B, P].

    Returns:
        [*shape] and [O] or None, with the batch in front for [B, P].
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
    """grad_weight[p] = sum_b alpha[b,p] G[b] and grad_alpha[b,p] = <G[b], weight[p]>, chunk of samples by chunk.

    Args:
        stack: [P, *shape].
        need_stack: Whether the gradient of the stack is asked for.
        chunks: How many times `add` will be called; from two on, the sum is kept in fp32.
    """

    def __init__(self, stack: Tensor, need_stack: bool, chunks: int) -> None:
        self.matrix = _rows(stack)
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


def _rows(stack: Tensor) -> Tensor:
    """[P, *shape] as [P, N], each row without gaps; the rows themselves may be anywhere."""
    matrix = as_matrix(stack)
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()
