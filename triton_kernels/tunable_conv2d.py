"""tunable_conv2d, dense: an implicit matrix product of pixels [M, K] with the blended kernel [K, N].

M counts the output pixels of one sample (of the whole batch if all samples share a kernel), K taps times input
channels of a group, N its output channels. The tiles of the P kernels are blended in fp32 on the way into the product,
and pass through shared memory as its second operand: the first operand would go to wgmma from registers, which Triton
3.6 and ptxas 12.9 compile incorrectly.

The same kernel computes the input gradient (taps flipped, kernel transposed, one launch per phase of a strided
convolution, see `phases`) and the gradient of a map, <grad_output, conv_p(x) + bias_p> over the outputs (CONTRACT).
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.device_functions import finish, load_alphas, load_kernel, within
from tunable_ops.triton_kernels.launch import (
    INDEX_LIMIT,
    Config,
    Geometry,
    Launch,
    cdiv,
    describe,
    input_precision,
)


@triton.jit
def _tunable_conv2d_forward_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    alpha_ptr,
    y_ptr,
    pre_ptr,  # the value before the activation, laid out as y
    picture,  # H, W of the input; OH, OW; pixels along M
    outputs,  # per group
    x_strides,  # sample, channel, row, column
    w_strides,  # sample, kernel, group, input, output, row, column
    y_strides,  # sample, channel, row, column
    bias_strides,  # sample, kernel
    alpha_strides,  # sample, kernel, part of the sum (CONTRACT)
    geometry,  # stride, padding, dilation; (rows, columns) each
    tiles,  # along M, along N, groups
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    P: tl.constexpr,
    ALPHA: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CONTRACT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    H, W, OH, OW, pixels = picture
    x_sb, x_sc, x_sh, x_sw = x_strides
    w_sb, w_sp, w_sg, w_sc, w_so, w_sh, w_sw = w_strides
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w = geometry
    tiles_m, tiles_n, groups = tiles
    dtype = x_ptr.dtype.element_ty

    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    tile_m = pid // tiles_n % tiles_m
    group = pid // (tiles_n * tiles_m) % groups
    b = (pid // (tiles_n * tiles_m * groups)).to(tl.int64)

    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < pixels
    pixel = offs_m
    sample = 0
    if WHOLE:  # the rows of a tile may belong to several samples
        sample = offs_m // (OH * OW)
        pixel = offs_m % (OH * OW)
        if WIDE:
            sample = sample.to(tl.int64)
    oh, ow = pixel // OW, pixel % OW
    # Rows past the end are moved far outside the image, so that the padding's mask covers them.
    h_0 = tl.where(mask_m, oh * stride_h - pad_h, -(1 << 30))
    w_0 = ow * stride_w - pad_w
    x_ptr += b * x_sb + group * C * x_sc
    # May overflow in masked rows only.
    x_rows = sample * x_sb + (oh * stride_h - pad_h) * x_sh + w_0 * x_sw

    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < outputs
    w_ptr += b * w_sb + group * w_sg
    w_columns = w_ptr + offs_n * w_so
    bias_sb, bias_sp = bias_strides
    bias_ptr += b * bias_sb + group * outputs
    alpha_sb, alpha_sp, alpha_part = alpha_strides
    alpha_ptr += b * alpha_sb
    y_sb, y_sc, y_sh, y_sw = y_strides
    y_ptr += b * y_sb + group * outputs * y_sc
    pre_ptr += b * y_sb + group * outputs * y_sc
    mask_y = mask_m[:, None] & mask_n[None, :]
    if CONTRACT:
        alpha_ptr += (group * tiles_n + tile_n).to(tl.int64) * alpha_part
        offs_y = (oh * y_sh + ow * y_sw)[:, None] + (offs_n * y_sc)[None, :]
        grad = tl.load(y_ptr + offs_y, mask=mask_y, other=0.0).to(tl.float32)
    if ALPHA == "shared" or ALPHA == "sample":
        alphas = load_alphas(alpha_ptr, alpha_sp, P)
    else:
        alphas = ()

    BLENDED: tl.constexpr = "none" if ALPHA == "map" else ALPHA
    # FLAT: a step may span several taps. Otherwise it stays within one, and the mask depends on the row alone.
    FLAT: tl.constexpr = C % BLOCK_K != 0
    K: tl.constexpr = KH * KW * C
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for p in range(P if ALPHA == "map" else 1):
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range((K + BLOCK_K - 1) // BLOCK_K):
            if FLAT:
                k = step * BLOCK_K + tl.arange(0, BLOCK_K)
                tap, c = k // C, k % C
                mask_k = k < K
            else:
                tap = step // (C // BLOCK_K)
                c = step % (C // BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
                mask_k = c < C
            r, s = tap // KW, tap % KW
            if FLAT:
                h = h_0[:, None] + (r * dil_h)[None, :]
                w = w_0[:, None] + (s * dil_w)[None, :]
            else:
                h = (h_0 + r * dil_h)[:, None]
                w = (w_0 + s * dil_w)[:, None]
            offs_x = x_rows[:, None] + (r * dil_h * x_sh + s * dil_w * x_sw + c * x_sc)[None, :]
            x = tl.load(x_ptr + offs_x, mask=within(h, H) & within(w, W) & mask_k[None, :], other=0.0)
            if FLIP:
                r, s = KH - 1 - r, KW - 1 - s
            offs_w = r * w_sh + s * w_sw + c * w_sc
            if ALPHA == "map":
                offs_w += p * w_sp
            mask_w = mask_k[:, None] & mask_n[None, :]
            w_ptrs = w_columns[None, :] + offs_w[:, None]
            kernel = load_kernel(w_ptrs, w_sp, alphas, mask_w, P, BLENDED, dtype)
            acc = tl.dot(x, kernel, acc, input_precision=PRECISION)
        if HAS_BIAS:
            bias = load_kernel(bias_ptr + p * bias_sp + offs_n, bias_sp, alphas, mask_n, P, BLENDED, dtype)
            acc += bias.to(tl.float32)[None, :]
        if CONTRACT:
            tl.store(alpha_ptr + p * alpha_sp + pixel, tl.sum(acc * grad, 1), mask=mask_m)
        elif ALPHA == "map":
            weights = tl.load(alpha_ptr + p * alpha_sp + pixel, mask=mask_m, other=0.0)
            total += acc * weights.to(tl.float32)[:, None]
        else:
            total = acc
    if not CONTRACT:
        offs_y = (sample * y_sb + oh * y_sh + ow * y_sw)[:, None] + (offs_n * y_sc)[None, :]
        finish(y_ptr + offs_y, pre_ptr + offs_y, total, mask_y, ACTIVATION, SAVE)


def plan_tunable_conv2d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    y: Tensor,
    geometry: Geometry,
    groups: int,
    activation: str,
    config: Config,
    pre: Tensor | None = None,
) -> Launch:
    """Return the launch that writes the convolution of `x` to `y`; both may have any strides.

    Args:
        x: [B, C, H, W].
        weight: [P, O, C/groups, kh, kw]; without alpha [1 or B, O, C/groups, kh, kw], already blended.
        bias: [P, O] or None; without alpha [1 or B, O].
        alpha: [P], [B, P], [B, P, OH, OW] (each [OH, OW] contiguous) or None.
        y: [B, O, OH, OW].
        geometry: Stride, padding, dilation.
        groups: Groups of the convolution.
        activation: "none", "relu", "gelu", "silu" or "leaky_relu".
        config: Tile sizes: M pixels, N outputs, K taps times inputs.
        pre: Output for the value before the activation, with the strides of `y`; or None.
    """
    return _plan(x, weight, bias, alpha, y, geometry, groups, config, activation, pre=pre)


def plan_tunable_conv2d_input(
    grad_output: Tensor,
    weight: Tensor,
    alpha: Tensor | None,
    grad_input: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config,
) -> Launch:
    """Return the launch that writes the input gradient of one phase, given its pixels, taps and geometry.

    Other arguments as in `plan_tunable_conv2d_forward`; alpha must not be a map.
    """
    return _plan(grad_output, weight, None, alpha, grad_input, geometry, groups, config, transposed=True)


def plan_tunable_conv2d_alpha(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor,
    partial: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config,
) -> Launch:
    """Return the launch that writes the gradient of a map, <grad_output, conv_p(x) + bias_p>, as partial sums.

    grad_output is [B, O, OH, OW], partial [`alpha_parts`, B, P, OH, OW] in fp32, contiguous; other arguments as in
    `plan_tunable_conv2d_forward`.
    """
    return _plan(x, weight, bias, partial[0], grad_output, geometry, groups, config, part=partial.stride(0))


def alpha_parts(outputs: int, groups: int, config: Config) -> int:
    """Return the number of partial sums of a map's gradient: one per tile of outputs."""
    return groups * cdiv(outputs // groups, config.block_n)


def _plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    y: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config,
    activation: str = "none",
    transposed: bool = False,
    pre: Tensor | None = None,
    part: int = 0,
) -> Launch:
    batch, _, height, width = x.shape
    out_height, out_width = y.shape[2:]
    stack = describe(weight, bias, alpha)
    _, rows, columns, kh, kw = weight.shape
    w_sb, w_sp, w_so, w_sc, w_sh, w_sw = stack.strides
    w_sg = rows // groups * w_so
    inputs, outputs = columns, rows // groups
    if transposed:
        inputs, outputs, w_so, w_sc = outputs, inputs, w_sc, w_so
    pixels = out_height * out_width
    shared = stack.kind == "shared" or (stack.kind == "none" and w_sb == 0)
    # Also where no tile would span two samples: that would be another compilation.
    whole = shared and batch > 1 and batch * pixels < INDEX_LIMIT
    if whole:
        pixels *= batch
    tiles = (cdiv(pixels, config.block_m), cdiv(outputs, config.block_n), groups)
    return Launch(
        _tunable_conv2d_forward_kernel,
        (tiles[0] * tiles[1] * groups * (1 if whole else batch),),
        (
            x,
            weight,
            weight if bias is None else bias,
            weight if alpha is None else alpha,
            y,
            y if pre is None else pre,
            (height, width, out_height, out_width, pixels),
            outputs,
            x.stride(),
            (w_sb, w_sp, w_sg, w_sc, w_so, w_sh, w_sw),
            y.stride(),
            stack.bias_strides,
            (*stack.alpha_strides, part),
            geometry.flat(),
            tiles,
        ),
        {
            "C": inputs,
            "KH": kh,
            "KW": kw,
            "P": stack.kernels,
            "ALPHA": stack.kind,
            "WHOLE": whole,
            "WIDE": whole and batch * max(x.stride(0), y.stride(0)) >= INDEX_LIMIT,
            "FLIP": geometry.flip,
            "HAS_BIAS": bias is not None,
            "CONTRACT": part > 0,
            "ACTIVATION": activation,
            "SAVE": pre is not None,
            "PRECISION": input_precision(x.dtype),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
        },
        config.num_warps,
        config.num_stages,
    )
