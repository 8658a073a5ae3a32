"""The blend of a layer as a separate launch (premix), and the gradients of the blend.

Stacks are matrices [P, N] whose rows are kernels in memory order; the blend keeps that order. Sums are accumulated in
fp32 in a fixed order and rounded once.
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.launch import Launch, cdiv

BLOCK = 512


@triton.jit
def _tunable_parameter_forward_kernel(
    w_ptr,
    y_ptr,
    bias_ptr,
    shift_ptr,
    alpha_ptr,
    sizes,  # elements of a kernel, of a bias; blocks per kernel, per kernel and bias
    strides,  # from kernel to kernel, from bias to bias
    alpha_strides,  # sample, kernel
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    w_size, bias_size, w_blocks, blocks = sizes
    w_sp, bias_sp = strides
    alpha_sb, alpha_sp = alpha_strides
    pid = tl.program_id(0)
    block = pid % blocks
    b = (pid // blocks).to(tl.int64)
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
    total = tl.zeros([BLOCK], tl.float32)
    for p in tl.static_range(P):
        alpha = tl.load(alpha_ptr + b * alpha_sb + p * alpha_sp).to(tl.float32)
        total += tl.load(w_ptr + p * stride + offs, mask=mask, other=0.0).to(tl.float32) * alpha
    tl.store(y_ptr + b * size + offs, total.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _tunable_parameter_backward_kernel(
    g_ptr,
    w_ptr,
    alpha_ptr,
    grad_w_ptr,
    rows_ptr,
    sizes,  # elements of a kernel; samples; partial sums per sample
    g_strides,  # sample, partial sum
    w_strides,  # kernel of the stack, kernel of its gradient
    alpha_strides,  # sample, kernel
    P: tl.constexpr,
    P_PADDED: tl.constexpr,
    NEED_STACK: tl.constexpr,
    NEED_ALPHA: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size, samples, splits = sizes
    g_sb, g_ss = g_strides
    w_sp, grad_sp = w_strides
    alpha_sb, alpha_sp = alpha_strides
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    offs_p = tl.arange(0, P_PADDED)
    mask, mask_p = offs < size, offs_p < P
    mask_w = mask_p[:, None] & mask[None, :]
    stack = tl.zeros([P_PADDED, BLOCK], tl.float32)
    grad = tl.zeros([P_PADDED, BLOCK], tl.float32)
    grad_ptrs = grad_w_ptr + offs_p[:, None] * grad_sp + offs[None, :]
    if NEED_ALPHA:
        stack = tl.load(w_ptr + offs_p[:, None] * w_sp + offs[None, :], mask=mask_w, other=0.0).to(tl.float32)
    if ACCUMULATE:
        grad = tl.load(grad_ptrs, mask=mask_w, other=0.0).to(tl.float32)
    for b in range(samples):
        g_ptrs = g_ptr + tl.cast(b, tl.int64) * g_sb + offs
        g = tl.load(g_ptrs, mask=mask, other=0.0).to(tl.float32)
        for split in range(1, splits):
            g += tl.load(g_ptrs + split * g_ss, mask=mask, other=0.0).to(tl.float32)
        if NEED_STACK:
            alpha = tl.load(alpha_ptr + b * alpha_sb + offs_p * alpha_sp, mask=mask_p, other=0.0).to(tl.float32)
            grad += alpha[:, None] * g[None, :]
        if NEED_ALPHA:
            # One partial sum per block, sample and kernel; the caller adds up the blocks.
            tl.store(rows_ptr + (pid * samples + b) * P + offs_p, tl.sum(stack * g[None, :], 1), mask=mask_p)
    if NEED_STACK:
        tl.store(grad_ptrs, grad.to(grad_w_ptr.dtype.element_ty), mask=mask_w)


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
    w_blocks = cdiv(weight.shape[1], BLOCK)
    blocks = w_blocks + (0 if bias is None else cdiv(bias.shape[1], BLOCK))
    return Launch(
        _tunable_parameter_forward_kernel,
        (blocks * samples,),
        (
            weight,
            kernel,
            weight if bias is None else bias,
            kernel if shift is None else shift,
            alpha,
            (weight.shape[1], 0 if bias is None else bias.shape[1], w_blocks, blocks),
            (weight.stride(0), 0 if bias is None else bias.stride(0)),
            alpha.stride(),
        ),
        {"P": kernels, "BLOCK": BLOCK},
        4,
        1,
    )


def plan_tunable_parameter_backward(
    gradient: Tensor,
    weight: Tensor,
    alpha: Tensor,
    grad_weight: Tensor | None,
    rows: Tensor | None,
    accumulate: bool = False,
) -> Launch:
    """Return the launch for grad_weight[p] = sum_b alpha[b,p] G[b] and rows[i,b,p], part i of <G[b], weight[p]>.

    Args:
        gradient: [n, splits, N]; G[b] is the sum over the splits.
        weight: [P, N], rows contiguous.
        alpha: [n, P].
        grad_weight: Output [P, N], rows contiguous, or None.
        rows: Output [ceil(N / BLOCK), n, P] fp32, contiguous, or None.
        accumulate: Add to grad_weight.
    """
    samples, splits, size = gradient.shape
    kernels = weight.shape[0]
    grad = gradient if grad_weight is None else grad_weight
    return Launch(
        _tunable_parameter_backward_kernel,
        (cdiv(size, BLOCK),),
        (
            gradient,
            weight,
            alpha,
            grad,
            gradient if rows is None else rows,
            (size, samples, splits),
            gradient.stride()[:2],
            (weight.stride(0), grad.stride(0)),
            alpha.stride(),
        ),
        {
            "P": kernels,
            "P_PADDED": 1 << (kernels - 1).bit_length(),
            "NEED_STACK": grad_weight is not None,
            "NEED_ALPHA": rows is not None,
            "ACCUMULATE": accumulate,
            "BLOCK": BLOCK,
        },
        8,  # with 4, ptxas spills two registers on sm_80
        1,
    )
