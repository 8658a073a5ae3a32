"""The blends of a whole network in one launch, and their gradients in two.

A table on the GPU lists the address and size of every stack; a second one assigns each block of the launch a part of a
stack. Both depend on the stacks alone: blends and gradients lie in workspaces whose addresses are arguments. Sums are
accumulated in fp32 in a fixed order and rounded once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.launch import Launch, cdiv
from tunable_ops.triton_kernels.specialise import POINTERS

BLOCK = 1024  # 8 elements a thread: accesses of 128 bits
SUM_BLOCK = 128
# Offsets that are multiples of this many elements allow 16-byte accesses for every dtype.
ALIGNMENT = 8
# Columns of the table: address of the stack, elements of a kernel, stride between kernels, number of kernels, index of
# the first alpha, number of complete and aligned blocks, first block, number of blocks, offset of the blend (or its
# gradient) from the base, offset of the stack's gradient from the base (negative: not needed).
COLUMNS = 10


# The functions of a block read the table themselves, so that their alignment hints hold in one branch only.


@triton.jit
def _blend_block(row, alpha_ptr, base, offs, DTYPE: tl.constexpr, OUT: tl.constexpr, WHOLE: tl.constexpr):
    """Compute one block of one blend; WHOLE: the block is complete and aligned, so that accesses can be wide."""
    w_ptr = tl.load(row).to(tl.pointer_type(DTYPE))
    size, stride = tl.load(row + 1), tl.load(row + 2)
    y_ptr = tl.cast(base, tl.int64).to(tl.pointer_type(OUT)) + tl.load(row + 8)
    if WHOLE:
        w_ptr = tl.multiple_of(w_ptr, 16)
        y_ptr = tl.multiple_of(y_ptr, 16)
        stride = tl.multiple_of(stride, 8)
    alpha_ptr += tl.load(row + 4)
    total = tl.zeros(offs.shape, tl.float32)
    for p in range(tl.load(row + 3).to(tl.int32)):
        alpha = tl.load(alpha_ptr + p)
        if WHOLE:
            total += tl.load(w_ptr + p * stride + offs).to(tl.float32) * alpha
        else:
            total += tl.load(w_ptr + p * stride + offs, mask=offs < size, other=0.0).to(tl.float32) * alpha
    if WHOLE:
        tl.store(y_ptr + offs, total.to(OUT))
    else:
        tl.store(y_ptr + offs, total.to(OUT), mask=offs < size)


@triton.jit
def _tunable_parameters_forward_kernel(
    table_ptr,
    blocks_ptr,  # a row per block: stack, block within it
    alpha_ptr,
    base,  # address that the table's offsets refer to
    DTYPE: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    row = table_ptr + tl.load(blocks_ptr + pid * 2) * 10
    block = tl.load(blocks_ptr + pid * 2 + 1)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    if block < tl.load(row + 5):
        _blend_block(row, alpha_ptr, base, offs, DTYPE, OUT, True)
    else:
        _blend_block(row, alpha_ptr, base, offs, DTYPE, OUT, False)


@triton.jit
def _contract_block(
    row,
    alpha_ptr,
    partial_ptr,
    bases,
    offs,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    NEED_ALPHA: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Compute the gradient of one block's part of the stack, and its products for grad_alpha."""
    g_base, grad_base = bases
    w_ptr = tl.load(row).to(tl.pointer_type(DTYPE))
    size, stride, place = tl.load(row + 1), tl.load(row + 2), tl.load(row + 9)
    need_stack = place >= 0
    g_ptr = tl.cast(g_base, tl.int64).to(tl.pointer_type(GRAD)) + tl.load(row + 8)
    grad_ptr = tl.cast(grad_base, tl.int64).to(tl.pointer_type(DTYPE)) + place
    if WHOLE:
        w_ptr = tl.multiple_of(w_ptr, 16)
        g_ptr = tl.multiple_of(g_ptr, 16)
        grad_ptr = tl.multiple_of(grad_ptr, 16)
        size, stride = tl.multiple_of(size, 8), tl.multiple_of(stride, 8)
        g = tl.load(g_ptr + offs).to(tl.float32)
    else:
        g = tl.load(g_ptr + offs, mask=offs < size, other=0.0).to(tl.float32)
    alpha_ptr += tl.load(row + 4)
    for p in range(tl.load(row + 3).to(tl.int32)):
        if NEED_ALPHA:
            if WHOLE:
                w = tl.load(w_ptr + p * stride + offs).to(tl.float32)
            else:
                w = tl.load(w_ptr + p * stride + offs, mask=offs < size, other=0.0).to(tl.float32)
            tl.store(partial_ptr + p, tl.sum(w * g))
        if need_stack:
            value = (g * tl.load(alpha_ptr + p)).to(DTYPE)
            if WHOLE:
                tl.store(grad_ptr + p * size + offs, value)
            else:
                tl.store(grad_ptr + p * size + offs, value, mask=offs < size)


@triton.jit
def _tunable_parameters_backward_kernel(
    table_ptr,
    blocks_ptr,
    alpha_ptr,
    partial_ptr,  # [blocks, width]
    bases,  # of the gradients of the blends, of those of the stacks
    width,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    NEED_ALPHA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    row = table_ptr + tl.load(blocks_ptr + pid * 2) * 10
    block = tl.load(blocks_ptr + pid * 2 + 1)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    partial_ptr += pid.to(tl.int64) * width
    if block < tl.load(row + 5):
        _contract_block(row, alpha_ptr, partial_ptr, bases, offs, DTYPE, GRAD, NEED_ALPHA, True)
    else:
        _contract_block(row, alpha_ptr, partial_ptr, bases, offs, DTYPE, GRAD, NEED_ALPHA, False)


@triton.jit
def _tunable_parameters_sum_kernel(
    table_ptr,
    partial_ptr,  # [blocks, width]
    shares_ptr,  # [stacks, width]
    width,
    BLOCK: tl.constexpr,
):
    stack, p = tl.program_id(0), tl.program_id(1)
    row = table_ptr + stack * 10
    if p < tl.load(row + 3):
        first, count = tl.load(row + 6), tl.load(row + 7).to(tl.int32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, count, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            total += tl.load(partial_ptr + (first + offs) * width + p, mask=offs < count, other=0.0)
        tl.store(shares_ptr + stack * width + p, tl.sum(total))


class Tables(NamedTuple):
    """Input of the launches: the table [stacks, COLUMNS], the blocks [blocks, 2], and the largest P."""

    table: Tensor
    blocks: Tensor
    width: int


def make_tables(
    stacks: Sequence[Tensor], starts: Sequence[int], places: Sequence[int], grad_places: Sequence[int] | None = None
) -> Tables:
    """Build the tables for stacks [P, N] (rows without gaps) on the stacks' device.

    Args:
        stacks: [P_i, N_i].
        starts: Index of each stack's first value in alpha.
        places: Offset of each blend (or its gradient) from the base, in elements.
        grad_places: Offset of each stack's gradient from the base; negative or None: not needed.
    """
    rows, counts, first = [], [], 0
    for i, (stack, start, place) in enumerate(zip(stacks, starts, places, strict=True)):
        kernels, size = stack.shape
        stride, blocks = stack.stride(0) if kernels > 1 else size, cdiv(size, BLOCK)
        grad = -ALIGNMENT if grad_places is None else grad_places[i]
        # The gradients of two kernels are `size` apart.
        steps = (stride, place, *(() if grad < 0 else (grad, size)))
        aligned = stack.data_ptr() % 16 == 0 and all(step % ALIGNMENT == 0 for step in steps)
        rows.append(
            (
                stack.data_ptr(),
                size,
                stride,
                kernels,
                start,
                size // BLOCK if aligned else 0,
                first,
                blocks,
                place,
                grad,
            )
        )
        counts.append(blocks)
        first += blocks
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    within = torch.arange(first) - torch.tensor([row[6] for row in rows])[index]
    device = stacks[0].device
    blocks_table = torch.stack([index, within], 1).to(torch.int32)
    width = max(stack.shape[0] for stack in stacks)
    return Tables(torch.tensor(rows).to(device), blocks_table.to(device), width)


def plan_tunable_parameters_forward(
    tables: Tables, alpha: Tensor, base: int, dtype: torch.dtype, out_dtype: torch.dtype
) -> Launch:
    """Return the launch that blends all stacks of a table.

    Args:
        tables: Tables of stacks of `dtype`.
        alpha: [A], fp32.
        base: Address that the blends' offsets refer to.
        dtype: Dtype of the stacks.
        out_dtype: Dtype of the blends.
    """
    constants = {"DTYPE": _element(dtype), "OUT": _element(out_dtype), "BLOCK": BLOCK}
    arguments = (tables.table, tables.blocks, alpha, base)
    return Launch(_tunable_parameters_forward_kernel, (tables.blocks.shape[0],), arguments, constants, 4, 1)


def plan_tunable_parameters_backward(
    tables: Tables,
    alpha: Tensor,
    partial: Tensor | None,
    bases: tuple[int, int],
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
) -> Launch:
    """Return the launch for the gradients of all blends: grad_stack[p] = alpha[p] G, and parts of <G, stack[p]>.

    Args:
        tables: Tables of stacks of `dtype`.
        alpha: [A], fp32.
        partial: Output [blocks, width], fp32, or None.
        bases: Addresses that the offsets of the blends' gradients and of the stacks' gradients refer to.
        dtype: Dtype of the stacks and their gradients.
        grad_dtype: Dtype of the blends' gradients.
    """
    constants = {
        "DTYPE": _element(dtype),
        "GRAD": _element(grad_dtype),
        "NEED_ALPHA": partial is not None,
        "BLOCK": BLOCK,
    }
    arguments = (tables.table, tables.blocks, alpha, alpha if partial is None else partial, bases, tables.width)
    return Launch(_tunable_parameters_backward_kernel, (tables.blocks.shape[0],), arguments, constants, 4, 1)


def plan_tunable_parameters_sum(tables: Tables, partial: Tensor, shares: Tensor) -> Launch:
    """Return the launch that adds up the parts [blocks, width] of every stack to shares [stacks, width]."""
    grid = (tables.table.shape[0], tables.width)
    arguments = (tables.table, partial, shares, tables.width)
    return Launch(_tunable_parameters_sum_kernel, grid, arguments, {"BLOCK": SUM_BLOCK}, 4, 1)


def _element(dtype: torch.dtype) -> tl.dtype:
    return getattr(tl, POINTERS[dtype][1])
