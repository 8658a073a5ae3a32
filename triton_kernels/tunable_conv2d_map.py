"""The input gradient if alpha is a map: sum_p of the transposed convolution of alpha[b,p] * grad_output with kernel p.

Kernels cannot be blended beforehand, but no intermediate result has to be stored: as in the forward pass it is an
implicit product of pixels [M, K] with kernels [K, N], where each step belongs to one tap and one kernel, so alpha is a
factor of its rows. It scales the step's product in fp32; if it scaled grad_output, the product's first operand would
come from registers (see `tunable_conv2d`). The other gradients are in `plan_tunable_conv2d_alpha` and
`plan_tunable_conv2d_weight`; the depthwise one is `plan_tunable_conv2d_depthwise` with `spread`.
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.device_functions import within
from tunable_ops.triton_kernels.launch import Config, Geometry, Launch, cdiv, describe, input_precision


@triton.jit
def _tunable_conv2d_map_input_kernel(
    dy_ptr,
    w_ptr,
    alpha_ptr,
    dx_ptr,
    picture,  # H, W of grad_output; OH, OW of the phase
    inputs,  # per group
    dy_strides,  # sample, channel, row, column
    w_strides,  # kernel, group, input, output, row, column
    dx_strides,  # sample, channel, row, column
    alpha_strides,  # sample, kernel
    geometry,  # stride (1), padding, dilation; (rows, columns) each
    tiles,  # along M, along N, groups
    OUTPUTS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    H, W, OH, OW = picture
    dy_sb, dy_so, dy_sh, dy_sw = dy_strides
    w_sp, w_sg, w_sc, w_so, w_sh, w_sw = w_strides
    dx_sb, dx_sc, dx_sh, dx_sw = dx_strides
    alpha_sb, alpha_sp = alpha_strides
    _, _, pad_h, pad_w, dil_h, dil_w = geometry
    tiles_m, tiles_n, groups = tiles

    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    tile_m = pid // tiles_n % tiles_m
    group = pid // (tiles_n * tiles_m) % groups
    b = (pid // (tiles_n * tiles_m * groups)).to(tl.int64)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m, mask_n = offs_m < OH * OW, offs_n < inputs
    oh, ow = offs_m // OW, offs_m % OW
    # Rows past the end are moved far outside the image, so that the padding's mask covers them.
    h_0 = tl.where(mask_m, oh - pad_h, -(1 << 30))
    w_0 = ow - pad_w
    dy_ptr += b * dy_sb + group * OUTPUTS * dy_so
    w_columns = w_ptr + group * w_sg + offs_n * w_sc
    alpha_ptr += b * alpha_sb

    CHUNKS: tl.constexpr = (OUTPUTS + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(KH * KW * P * CHUNKS):
        tap, p = step // (P * CHUNKS), step // CHUNKS % P
        k = step % CHUNKS * BLOCK_K + offs_k
        mask_k = k < OUTPUTS
        r, s = tap // KW, tap % KW
        h, w = h_0 + r * dil_h, w_0 + s * dil_w
        there = within(h, H) & within(w, W)
        offs_dy = (h * dy_sh + w * dy_sw)[:, None] + (k * dy_so)[None, :]
        dy = tl.load(dy_ptr + offs_dy, mask=there[:, None] & mask_k[None, :], other=0.0)
        offs_w = p * w_sp + (KH - 1 - r) * w_sh + (KW - 1 - s) * w_sw + k * w_so
        kernel = tl.load(w_columns[None, :] + offs_w[:, None], mask=mask_k[:, None] & mask_n[None, :], other=0.0)
        weights = tl.load(alpha_ptr + p * alpha_sp + h * W + w, mask=there, other=0.0).to(tl.float32)
        total += weights[:, None] * tl.dot(dy, kernel, input_precision=PRECISION)
    offs_dx = (oh * dx_sh + ow * dx_sw)[:, None] + ((group * inputs + offs_n) * dx_sc)[None, :]
    tl.store(dx_ptr + b * dx_sb + offs_dx, total.to(dx_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


def plan_tunable_conv2d_map_input(
    grad_output: Tensor,
    weight: Tensor,
    alpha: Tensor,
    grad_input: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config,
) -> Launch:
    """Return the launch that writes the input gradient of one phase.

    Args:
        grad_output: [B, O, OH, OW].
        weight: [P, O, C/groups, kh, kw], the taps of the phase.
        alpha: [B, P, OH, OW], each [OH, OW] contiguous.
        grad_input: [B, C, H, W], the pixels of the phase.
        geometry: Geometry of the phase.
        groups: Groups of the convolution.
        config: Tile sizes: M pixels, N inputs, K outputs.
    """
    batch, _, height, width = grad_output.shape
    out_height, out_width = grad_input.shape[2:]
    stack = describe(weight, None, alpha)
    kernels, rows, inputs, kh, kw = weight.shape
    _, w_sp, w_so, w_sc, w_sh, w_sw = stack.strides
    outputs = rows // groups
    tiles = (cdiv(out_height * out_width, config.block_m), cdiv(inputs, config.block_n), groups)
    return Launch(
        _tunable_conv2d_map_input_kernel,
        (tiles[0] * tiles[1] * groups * batch,),
        (
            grad_output,
            weight,
            alpha,
            grad_input,
            (height, width, out_height, out_width),
            inputs,
            grad_output.stride(),
            (w_sp, outputs * w_so, w_sc, w_so, w_sh, w_sw),
            grad_input.stride(),
            stack.alpha_strides,
            geometry.flat(),
            tiles,
        ),
        {
            "OUTPUTS": outputs,
            "KH": kh,
            "KW": kw,
            "P": kernels,
            "PRECISION": input_precision(grad_output.dtype),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
        },
        config.num_warps,
        config.num_stages,
    )
