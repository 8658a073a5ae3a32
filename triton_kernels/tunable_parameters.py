"""The blends of a whole network in one launch, and their gradients in two.

A table on the GPU tells where each stack lies and how many kernels it has; a second one which block of the launch
works on which part of which stack. Both depend on the stacks alone: blends and gradients lie in workspaces, whose
address is an argument. Sums are fp32 in a fixed order, rounded once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.launch import POINTERS, Launch, cdiv

BLOCK = 1024  # 8 elements a thread: accesses of 128 bits
SUM_BLOCK = 128
# Places that are multiples of this many elements are aligned for accesses of 16 bytes, whatever the dtype.
ALIGNMENT = 8
# Columns of the table: address of the stack, elements of a kernel, from kernel to kernel, kernels, first alpha,
# blocks that are whole and aligned, first block and number of blocks; elements from the base to the
# blend (or its gradient), and from the base to the stack's gradient (negative: not asked for).
COLUMNS = 10


# The functions of a block read the table by themselves: what they say of alignment then holds in one branch alone.


@triton.jit
def _blend_block(row, alpha_ptr, base, offs, DTYPE: tl.constexpr, OUT: tl.constexpr, WHOLE: tl.constexpr):
    """One block of one blend; WHOLE: all of it exists and is aligned, so that accesses are wide."""
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
    base,  # address that the table's places count from
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
    """The gradients of one block: of its part of the stack, and the products that grad_alpha is the sum of."""
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
    """What launches over some stacks read: the table [stacks, COLUMNS], the blocks [blocks, 2], and the largest P."""

    table: Tensor
    blocks: Tensor
    width: int


def make_tables(
    stacks: Sequence[Tensor], starts: Sequence[int], places: Sequence[int], grad_places: Sequence[int] | None = None
) -> Tables:
    """Makes the tables for stacks [P, N] (rows without gaps); copies them to the stacks' device.

    Args:
        stacks: [P_i, N_i].
        starts: Where each one's values begin in alpha.
        places: Elements from the base to each blend (or its gradient).
        grad_places: Elements from the base to each stack's gradient; negative or None: not asked for.
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
    """The launch that blends all stacks of a table.

    Args:
        tables: Of stacks of `dtype`.
        alpha: [A], fp32.
        base: Address that the blends' places count from.
        dtype: Of the stacks.
        out_dtype: Of the blends.
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
    """The launch that contracts the gradients of all blends: grad_stack[p] = alpha[p] G, and parts of <G, stack[p]>.

    Args:
        tables: Of stacks of `dtype`.
        alpha: [A], fp32.
        partial: Output [blocks, width], fp32, or None.
        bases: Addresses that the places of the blends' gradients and of the stacks' count from.
        dtype: Of the stacks and their gradients.
        grad_dtype: Of the blends' gradients.
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
    """The launch that adds up the parts [blocks, width] of every stack: shares [stacks, width]."""
    grid = (tables.table.shape[0], tables.width)
    arguments = (tables.table, partial, shares, tables.width)
    return Launch(_tunable_parameters_sum_kernel, grid, arguments, {"BLOCK": SUM_BLOCK}, 4, 1)


def _element(dtype: torch.dtype) -> tl.dtype:
    return getattr(tl, POINTERS[dtype][1])
