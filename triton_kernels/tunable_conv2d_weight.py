"""The weight gradient of one sample (or of the whole batch), in fp32: G = sum over pixels of grad_output times input.

A matrix product [outputs, pixels] x [pixels, taps times inputs]. The pixels are split over blocks that write partial
sums to a workspace; the contraction adds these up in a fixed order, so the result does not depend on which block ran
first. For a map there is one gradient per kernel for the whole batch, with grad_output times alpha[:, p].

The gradient of the bias, the sum of grad_output over the same pixels, is made in the same launch by blocks of its own.
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.launch import INDEX_LIMIT, Config, Geometry, Launch, cdiv, input_precision


@triton.jit
def _locate(k, OH, OW, WHOLE: tl.constexpr, WIDE: tl.constexpr):
    """Return sample, pixel in it, row and column of the k-th pixel of a sum."""
    sample = 0
    pixel = k
    if WHOLE:
        sample = k // (OH * OW)
        pixel = k % (OH * OW)
        if WIDE:
            sample = sample.to(tl.int64)
    return sample, pixel, pixel // OW, pixel % OW


@triton.jit
def _sum_pixels(
    dy_ptr,
    alpha_ptr,
    alpha_sb,
    dy_strides,
    channels,
    mask_m,
    first,
    last,
    size,
    MAP: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add up pixels [first, last) of grad_output, of a map times alpha: [BLOCK_M]."""
    dy_sb, dy_sc, dy_sh, dy_sw = dy_strides
    OH, OW = size
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        mask_k = k < last
        sample, pixel, oh, ow = _locate(k, OH, OW, WHOLE, WIDE)
        dy_ptrs = dy_ptr + (sample * dy_sb + oh * dy_sh + ow * dy_sw)[None, :] + (channels * dy_sc)[:, None]
        dy = tl.load(dy_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0).to(tl.float32)
        if MAP:
            dy *= tl.load(alpha_ptr + sample * alpha_sb + pixel, mask=mask_k, other=0.0).to(tl.float32)[None, :]
        total += dy
    return tl.sum(total, 1)


@triton.jit
def _sum_products(
    dy_ptr,
    x_ptr,
    alpha_ptr,
    alpha_sb,
    dy_strides,
    x_strides,
    geometry,
    channels,
    mask_m,
    columns,
    first,
    last,
    size,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MAP: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add up grad_output times input over the pixels [first, last): [BLOCK_M, BLOCK_N]."""
    dy_sb, dy_sc, dy_sh, dy_sw = dy_strides
    x_sb, x_sc, x_sh, x_sw = x_strides
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w = geometry
    H, W, OH, OW = size
    mask_n = columns < KH * KW * C
    tap, c = columns // C, columns % C
    r, s = tap // KW, tap % KW
    offs_x = r * dil_h * x_sh + s * dil_w * x_sw + c * x_sc
    # For a map the transpose: grad_output times alpha comes from registers and must be the second operand.
    acc = tl.zeros([BLOCK_N, BLOCK_M] if MAP else [BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        mask_k = k < last
        sample, pixel, oh, ow = _locate(k, OH, OW, WHOLE, WIDE)
        dy_ptrs = dy_ptr + (sample * dy_sb + oh * dy_sh + ow * dy_sw)[None, :] + (channels * dy_sc)[:, None]
        dy = tl.load(dy_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)
        h_0, w_0 = oh * stride_h - pad_h, ow * stride_w - pad_w
        h = h_0[:, None] + (r * dil_h)[None, :]
        w = w_0[:, None] + (s * dil_w)[None, :]
        mask_x = (h >= 0) & (h < H) & (w >= 0) & (w < W) & mask_k[:, None] & mask_n[None, :]
        x_ptrs = x_ptr + (sample * x_sb + h_0 * x_sh + w_0 * x_sw)[:, None] + offs_x[None, :]
        x = tl.load(x_ptrs, mask=mask_x, other=0.0)
        if MAP:
            weights = tl.load(alpha_ptr + sample * alpha_sb + pixel, mask=mask_k, other=0.0).to(tl.float32)
            dy = (dy.to(tl.float32) * weights[None, :]).to(x_ptr.dtype.element_ty)
            acc = tl.dot(tl.trans(x), tl.trans(dy), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(dy, x, acc, input_precision=PRECISION)
    if MAP:
        acc = tl.trans(acc)
    return acc


@triton.jit
def _tunable_conv2d_weight_kernel(
    dy_ptr,
    x_ptr,
    g_ptr,
    shift_ptr,  # the sums of grad_output, [sums * splits, outputs of all groups]
    alpha_ptr,
    picture,  # H, W of the input; OH, OW; pixels along K; pixels per split
    outputs,  # per group
    dy_strides,  # sample, channel, row, column
    x_strides,  # sample, channel, row, column
    g_strides,  # partial sum, group, output, input, row, column
    alpha_strides,  # of a map: sample, kernel
    geometry,  # stride, padding, dilation; (rows, columns) each
    tiles,  # along M, along N and one for the bias, groups, splits
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    H, W, OH, OW, pixels, split_pixels = picture
    g_sb, g_sg, g_so, g_sc, g_sh, g_sw = g_strides
    alpha_sb, alpha_sp = alpha_strides
    tiles_m, tiles_n, groups, splits = tiles

    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    tile_m = pid // tiles_n % tiles_m
    group = pid // (tiles_n * tiles_m) % groups
    split = pid // (tiles_n * tiles_m * groups) % splits
    b = (pid // (tiles_n * tiles_m * groups * splits)).to(tl.int64)

    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < outputs
    dy_ptr += group * outputs * dy_strides[1]
    x_ptr += group * C * x_strides[1]
    if MAP:  # b is a kernel
        alpha_ptr += b * alpha_sp
    else:
        dy_ptr += b * dy_strides[0]
        x_ptr += b * x_strides[0]
    first = split * split_pixels
    last = tl.minimum(first + split_pixels, pixels)
    if HAS_BIAS and tile_n == tiles_n - 1:  # this block adds up grad_output
        operands = (dy_ptr, alpha_ptr, alpha_sb, dy_strides, offs_m, mask_m, first, last, (OH, OW))
        total = _sum_pixels(*operands, MAP, WHOLE, WIDE, BLOCK_M, BLOCK_K)
        place = ((b * splits + split) * groups + group) * outputs
        tl.store(shift_ptr + place + offs_m, total, mask=mask_m)
    else:
        offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        pointers = (dy_ptr, x_ptr, alpha_ptr, alpha_sb, dy_strides, x_strides, geometry)
        ends = (offs_m, mask_m, offs_n, first, last, (H, W, OH, OW))
        acc = _sum_products(*pointers, *ends, C, KH, KW, MAP, WHOLE, WIDE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        tap, c = offs_n // C, offs_n % C
        offs_g = (offs_m * g_so)[:, None] + (tap // KW * g_sh + tap % KW * g_sw + c * g_sc)[None, :]
        start = (b * splits + split) * g_sb + group * g_sg
        tl.store(g_ptr + start + offs_g, acc, mask=mask_m[:, None] & (offs_n < KH * KW * C)[None, :])


def plan_tunable_conv2d_weight(
    grad_output: Tensor,
    input: Tensor,
    partial: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config,
    alpha: Tensor | None = None,
    shift: Tensor | None = None,
) -> Launch:
    """Return the launch that writes partial sums of the weight gradients.

    Args:
        grad_output: [B, O, OH, OW].
        input: [B, C, H, W].
        partial: Output [1 or B, splits, O, C/groups, kh, kw] in fp32, for one gradient of the batch or one per sample;
            for a map [P, splits, ...]. Any strides from the third dimension on.
        geometry: Geometry of the convolution.
        groups: Groups of the convolution.
        config: Tile sizes: M outputs, N taps times inputs, K pixels.
        alpha: A map [B, P, OH, OW] (each [OH, OW] contiguous), or None for the gradients of blended kernels.
        shift: Output [1 or B or P, splits, O] in fp32, contiguous, for partial sums of grad_output (of a map times
            alpha), the gradients of blended biases; or None.
    """
    batch, _, height, width = input.shape
    out_height, out_width = grad_output.shape[2:]
    sums, splits, rows, inputs, kh, kw = partial.shape
    whole = alpha is not None or (sums == 1 and batch > 1)
    reach = max(t.stride(0) for t in (input, grad_output, alpha) if t is not None)
    pixels = out_height * out_width * (batch if whole else 1)
    split_pixels = cdiv(cdiv(pixels, splits), config.block_k) * config.block_k
    _, g_sb, g_so, g_sc, g_sh, g_sw = partial.stride()
    outputs = rows // groups
    tiles_n = cdiv(inputs * kh * kw, config.block_n) + (shift is not None)
    tiles = (cdiv(outputs, config.block_m), tiles_n, groups, splits)
    return Launch(
        _tunable_conv2d_weight_kernel,
        (tiles[0] * tiles[1] * groups * splits * sums,),
        (
            grad_output,
            input,
            partial,
            partial if shift is None else shift,
            partial if alpha is None else alpha,
            (height, width, out_height, out_width, pixels, split_pixels),
            outputs,
            grad_output.stride(),
            input.stride(),
            (g_sb, outputs * g_so, g_so, g_sc, g_sh, g_sw),
            (0, 0) if alpha is None else alpha.stride()[:2],
            geometry.flat(),
            tiles,
        ),
        {
            "C": inputs,
            "KH": kh,
            "KW": kw,
            "MAP": alpha is not None,
            "HAS_BIAS": shift is not None,
            "WHOLE": whole,
            "WIDE": whole and batch * reach >= INDEX_LIMIT,
            "PRECISION": input_precision(input.dtype),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
        },
        config.num_warps,
        config.num_stages,
    )
