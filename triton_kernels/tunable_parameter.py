"""The blend of a layer as a separate launch (premix), and the gradients of the blend.

Stacks are matrices [P, N] whose rows are kernels in memory order; the blend keeps that order. Sums are accumulated in
fp32 in a fixed order and rounded once.

The gradients take two launches. In the first, a block contracts a run of rows of G (samples and partial sums) with a
block of the stack's elements, and writes its part of the gradients of stack and alpha; the second adds up the parts.
Kernels and biases of a layer share both.
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.blend_tiles import choose_blend_tiles
from tunable_ops.triton_kernels.contraction import ALPHA_BLOCK, ROWS, SUM_BLOCK, Tiles
from tunable_ops.triton_kernels.launch import Launch, cdiv, multiprocessors


@triton.jit
def _tunable_parameter_forward_kernel(
    w_ptr,
    y_ptr,
    bias_ptr,
    shift_ptr,
    alpha_ptr,
    sizes,  # elements of a kernel, of a bias
    tiles,  # blocks per kernel, per kernel and bias; samples
    strides,  # from kernel to kernel, from bias to bias
    alpha_strides,  # sample, kernel
    P: tl.constexpr,
    SAMPLES: tl.constexpr,  # that a block blends
    BLOCK: tl.constexpr,
):
    w_size, bias_size = sizes
    w_blocks, blocks, samples = tiles
    w_sp, bias_sp = strides
    alpha_sb, alpha_sp = alpha_strides
    pid = tl.program_id(0)
    block = pid % blocks
    first = (pid // blocks).to(tl.int64) * SAMPLES
    size = w_size
    stride = w_sp
    if block >= w_blocks:  # the last blocks blend the bias
        block -= w_blocks
        size = bias_size
        stride = bias_sp
        w_ptr = bias_ptr
        y_ptr = shift_ptr
    offs = block * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    kernels = ()
    for p in tl.static_range(P):
        kernels = kernels + (tl.load(w_ptr + p * stride + offs, mask=mask, other=0.0),)
    for i in tl.static_range(SAMPLES):
        b = first + i
        there = b < samples
        total = tl.zeros([BLOCK], tl.float32)
        for p in tl.static_range(P):
            alpha = tl.load(alpha_ptr + b * alpha_sb + p * alpha_sp, mask=there, other=0.0).to(tl.float32)
            total += kernels[p].to(tl.float32) * alpha
        tl.store(y_ptr + b * size + offs, total.to(y_ptr.dtype.element_ty), mask=mask & there)


@triton.jit
def _contract_rows(
    g_ptr,
    w_ptr,
    alpha_ptr,
    grad_ptr,
    shares_ptr,
    block,
    size,
    first,
    last,
    splits,
    strides,  # kernel of the stack, kernel of its gradient; sample and kernel of alpha; value of alpha in the shares
    P: tl.constexpr,
    NEED_STACK: tl.constexpr,
    NEED_ALPHA: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Contract rows [first, last) of G, of which every sample has `splits`, with a block of a stack's elements."""
    w_sp, grad_sp, alpha_sb, alpha_sp, shares_sp = strides
    offs = block * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    grads = ()
    if NEED_STACK:
        for p in tl.static_range(P):
            if ACCUMULATE:
                grad = tl.load(grad_ptr + p * grad_sp + offs, mask=mask, other=0.0).to(tl.float32)
            else:
                grad = tl.zeros([BLOCK], tl.float32)
            grads = grads + (grad,)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        mask_row = row < last
        sample = row // splits
        g_ptrs = g_ptr + row.to(tl.int64)[:, None] * size + offs[None, :]
        g = tl.load(g_ptrs, mask=mask_row[:, None] & mask[None, :], other=0.0).to(tl.float32)
        added = ()
        for p in tl.static_range(P):
            if NEED_STACK:
                alpha = tl.load(alpha_ptr + sample * alpha_sb + p * alpha_sp, mask=mask_row, other=0.0)
                added = added + (grads[p] + tl.sum(g * alpha.to(tl.float32)[:, None], 0),)
            if NEED_ALPHA:
                w = tl.load(w_ptr + p * w_sp + offs, mask=mask, other=0.0).to(tl.float32)
                place = (sample * P + p) * shares_sp + block * splits + row % splits
                tl.store(shares_ptr + place, tl.sum(g * w[None, :], 1), mask=mask_row)
        if NEED_STACK:
            grads = added
    if NEED_STACK:
        for p in tl.static_range(P):
            tl.store(grad_ptr + p * grad_sp + offs, grads[p].to(grad_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _tunable_parameter_backward_kernel(
    g_ptr,
    w_ptr,
    grad_w_ptr,
    shift_ptr,  # G of the biases
    bias_ptr,
    grad_bias_ptr,
    alpha_ptr,
    shares_ptr,
    sizes,  # elements of a kernel, of a bias
    rows,  # rows of G, partial sums per sample, rows per slot
    tiles,  # along the elements of a kernel, of a bias
    w_strides,  # kernel of the stack; slot and kernel of its gradient
    bias_strides,  # the same of the biases
    alpha_strides,  # sample, kernel; value of alpha in the shares
    P: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_STACK: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    NEED_ALPHA: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size, bias_size = sizes
    all_rows, splits, slot_rows = rows
    w_blocks, bias_blocks = tiles
    w_sp, grad_ss, grad_sp = w_strides
    bias_sp, grad_bias_ss, grad_bias_sp = bias_strides
    alpha_sb, alpha_sp, shares_sp = alpha_strides
    pid = tl.program_id(0)
    block = pid % (w_blocks + bias_blocks)
    slot = pid // (w_blocks + bias_blocks)
    first = slot * slot_rows
    last = tl.minimum(first + slot_rows, all_rows)
    if block < w_blocks:
        strides = (w_sp, grad_sp, alpha_sb, alpha_sp, shares_sp)
        operands = (g_ptr, w_ptr, alpha_ptr, grad_w_ptr + slot * grad_ss, shares_ptr)
        _contract_rows(
            *operands, block, size, first, last, splits, strides, P, NEED_STACK, NEED_ALPHA, ACCUMULATE, ROWS, BLOCK
        )
    elif HAS_BIAS:  # the last blocks contract the biases
        steps = (bias_sp, grad_bias_sp, alpha_sb, alpha_sp, shares_sp)
        bias_operands = (
            shift_ptr,
            bias_ptr,
            alpha_ptr,
            grad_bias_ptr + slot * grad_bias_ss,
            shares_ptr + w_blocks * splits,
        )
        _contract_rows(
            *bias_operands,
            block - w_blocks,
            bias_size,
            first,
            last,
            splits,
            steps,
            P,
            NEED_BIAS,
            NEED_ALPHA,
            ACCUMULATE,
            ROWS,
            BLOCK,
        )


@triton.jit
def _sum_slots(part_ptr, grad_ptr, index, blocks, size, slots, strides, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Add up part [slots, P, size] over the slots to a block of grad [P, size]."""
    part_ss, part_sp = strides
    p = (index // blocks).to(tl.int64)
    offs = index % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, slots, ROWS):
        slot = start + tl.arange(0, ROWS)
        part_ptrs = part_ptr + (slot.to(tl.int64) * part_ss + p * part_sp)[:, None] + offs[None, :]
        total += tl.sum(tl.load(part_ptrs, mask=(slot < slots)[:, None] & mask[None, :], other=0.0), 0)
    tl.store(grad_ptr + p * size + offs, total.to(grad_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _tunable_parameter_sum_kernel(
    part_ptr,
    grad_w_ptr,
    part_bias_ptr,
    grad_bias_ptr,
    shares_ptr,
    grad_alpha_ptr,
    sizes,  # elements of a kernel, of a bias
    rows,  # slots, shares of a value of alpha
    tiles,  # along the elements of a kernel, of a bias; 0 for sums that are not needed
    part_strides,  # slot, kernel
    bias_strides,  # slot, kernel
    P: tl.constexpr,
    NEED_STACK: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    NEED_ALPHA: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ALPHA_BLOCK: tl.constexpr,
):
    size, bias_size = sizes
    slots, shares = rows
    w_blocks, bias_blocks = tiles
    index = tl.program_id(0)
    if index < w_blocks * P:
        if NEED_STACK:
            _sum_slots(part_ptr, grad_w_ptr, index, w_blocks, size, slots, part_strides, ROWS, BLOCK)
    elif index < (w_blocks + bias_blocks) * P:
        if NEED_BIAS:
            index -= w_blocks * P
            operands = (part_bias_ptr, grad_bias_ptr, index, bias_blocks, bias_size, slots, bias_strides)
            _sum_slots(*operands, ROWS, BLOCK)
    elif NEED_ALPHA:
        index -= (w_blocks + bias_blocks) * P
        total = tl.zeros([ALPHA_BLOCK], tl.float32)
        for start in range(0, shares, ALPHA_BLOCK):
            offs = start + tl.arange(0, ALPHA_BLOCK)
            total += tl.load(shares_ptr + index.to(tl.int64) * shares + offs, mask=offs < shares, other=0.0)
        tl.store(grad_alpha_ptr + index, tl.sum(total).to(grad_alpha_ptr.dtype.element_ty))


def plan_tunable_parameter_forward(
    weight: Tensor, bias: Tensor | None, alpha: Tensor, kernel: Tensor, shift: Tensor | None
) -> Launch:
    """Return the launch that blends weight [P, N] and bias [P, M] to kernel [1 or B, N] and shift [1 or B, M].

    Args:
        weight: [P, N], rows contiguous.
        bias: [P, M], rows contiguous, or None.
        alpha: [1 or B, P].
        kernel: Output, contiguous.
        shift: Output, contiguous, or None.
    """
    samples, kernels = alpha.shape
    item = weight.element_size()
    processors = multiprocessors(weight)
    block, rows = choose_blend_tiles(weight.shape[1], samples, kernels, item, processors)
    w_blocks = cdiv(weight.shape[1], block)
    blocks = w_blocks + (0 if bias is None else cdiv(bias.shape[1], block))
    return Launch(
        _tunable_parameter_forward_kernel,
        (blocks * cdiv(samples, rows),),
        (
            weight,
            kernel,
            weight if bias is None else bias,
            kernel if shift is None else shift,
            alpha,
            (weight.shape[1], 0 if bias is None else bias.shape[1]),
            (w_blocks, blocks, samples),
            (weight.stride(0), 0 if bias is None else bias.stride(0)),
            alpha.stride(),
        ),
        {"P": kernels, "SAMPLES": rows, "BLOCK": block},
        4,
        1,
    )


def plan_tunable_parameter_backward(
    gradient: Tensor,
    weight: Tensor,
    grad_weight: Tensor | None,
    shift: Tensor | None,
    bias: Tensor | None,
    grad_bias: Tensor | None,
    alpha: Tensor,
    shares: Tensor | None,
    tiles: Tiles,
    accumulate: bool = False,
) -> Launch:
    """Return the launch for grad_weight[p] = sum_b alpha[b,p] G[b] and <G[b], weight[p]>, both in parts.

    Args:
        gradient: [n * splits, N], contiguous; G[b] is the sum over the splits of sample b.
        weight: [P, N], rows contiguous.
        grad_weight: Output [slots, P, N], contiguous, or None; for one slot in any dtype, else fp32.
        shift: [n * splits, M], contiguous: the same of the biases; or None.
        bias: [P, M], rows contiguous, or None.
        grad_bias: Output [slots, P, M], contiguous, or None; likewise.
        alpha: [n, P].
        shares: Output [n, P, `shares_of`] fp32, contiguous, or None.
        tiles: Tile sizes.
        accumulate: Add to grad_weight and grad_bias.
    """
    rows, size = gradient.shape
    samples, kernels = alpha.shape
    splits = rows // samples
    blocks = tiles.blocks(size), 0 if bias is None else tiles.blocks(bias.shape[1])

    def strides(stack: Tensor | None, grad: Tensor | None) -> tuple[int, ...]:
        return 0 if stack is None else stack.stride(0), *((0, 0) if grad is None else grad.stride()[:2])

    return Launch(
        _tunable_parameter_backward_kernel,
        (sum(blocks) * tiles.slots,),
        (
            gradient,
            weight,
            gradient if grad_weight is None else grad_weight,
            gradient if shift is None else shift,
            weight if bias is None else bias,
            gradient if grad_bias is None else grad_bias,
            alpha,
            gradient if shares is None else shares,
            (size, 0 if bias is None else bias.shape[1]),
            (rows, splits, tiles.slot_rows),
            blocks,
            strides(weight, grad_weight),
            strides(bias, grad_bias),
            (*alpha.stride(), 0 if shares is None else shares.stride(1)),
        ),
        {
            "P": kernels,
            "HAS_BIAS": bias is not None,
            "NEED_STACK": grad_weight is not None,
            "NEED_BIAS": grad_bias is not None,
            "NEED_ALPHA": shares is not None,
            "ACCUMULATE": accumulate,
            "ROWS": tiles.rows,
            "BLOCK": tiles.block,
        },
        8 if kernels > 8 and tiles.rows == 8 else 4,  # with 4, ptxas spills a few registers on sm_90 and sm_100
        1,
    )


def shares_of(size: int, bias_size: int, splits: int, tiles: Tiles) -> int:
    """Return the number of parts of a value of grad_alpha: of kernels of `size` elements, and of biases."""
    return (tiles.blocks(size) + tiles.blocks(bias_size)) * splits


def plan_tunable_parameter_sum(
    parts: Tensor | None,
    grad_weight: Tensor | None,
    bias_parts: Tensor | None,
    grad_bias: Tensor | None,
    shares: Tensor | None,
    grad_alpha: Tensor | None,
) -> Launch:
    """Return the launch that adds up the parts of `plan_tunable_parameter_backward`, in their order.

    Args:
        parts: [slots, P, N] fp32, rows contiguous, or None.
        grad_weight: Output [P, N], contiguous, or None.
        bias_parts: [slots, P, M] fp32, rows contiguous, or None.
        grad_bias: Output [P, M], contiguous, or None.
        shares: [n, P, `shares_of`] fp32, contiguous, or None.
        grad_alpha: Output [n, P], contiguous, or None. At least one of the three is needed.
    """
    given = next(t for t in (parts, bias_parts, shares) if t is not None)
    kernels = given.shape[1]
    sizes = [0 if part is None else part.shape[2] for part in (parts, bias_parts)]
    slots = next((t.shape[0] for t in (parts, bias_parts) if t is not None), 0)
    blocks = tuple(cdiv(size, SUM_BLOCK) for size in sizes)
    tensors = (parts, grad_weight, bias_parts, grad_bias, shares, grad_alpha)
    return Launch(
        _tunable_parameter_sum_kernel,
        (sum(blocks) * kernels + (0 if grad_alpha is None else grad_alpha.numel()),),
        (
            *(given if tensor is None else tensor for tensor in tensors),
            tuple(sizes),
            (slots, 0 if shares is None else shares.shape[2]),
            blocks,
            *((0, 0) if part is None else part.stride()[:2] for part in (parts, bias_parts)),
        ),
        {
            "P": kernels,
            "NEED_STACK": parts is not None,
            "NEED_BIAS": bias_parts is not None,
            "NEED_ALPHA": shares is not None,
            "ROWS": ROWS,
            "BLOCK": SUM_BLOCK,
            "ALPHA_BLOCK": ALPHA_BLOCK,
        },
        4,
        1,
    )
