"""tunable_conv2d with 1x1 kernels, stride 1 and no padding: a matrix product of pixels [M, K] with the blended kernel.

Pixels are evenly spaced rows: no taps, no border, no row or column index. If all samples share a kernel and have no
gaps between them, the batch is treated as one long sample.
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.device_functions import finish, load_alphas, load_kernel
from tunable_ops.triton_kernels.launch import INDEX_LIMIT, Config, Launch, cdiv, describe, input_precision


@triton.jit
def _tunable_conv2d_pointwise_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    alpha_ptr,
    y_ptr,
    pre_ptr,  # the value before the activation, laid out as y
    picture,  # pixels
    outputs,  # per group
    x_strides,  # sample, channel, pixel
    w_strides,  # sample, kernel, group, input, output
    y_strides,  # sample, channel, pixel
    bias_strides,  # sample, kernel
    alpha_strides,  # sample, kernel
    tiles,  # along M, along N, groups
    C: tl.constexpr,
    P: tl.constexpr,
    ALPHA: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = picture[0]
    x_sb, x_sc, x_sm = x_strides
    w_sb, w_sp, w_sg, w_sc, w_so = w_strides
    y_sb, y_sc, y_sm = y_strides
    bias_sb, bias_sp = bias_strides
    alpha_sb, alpha_sp = alpha_strides
    tiles_m, tiles_n, groups = tiles
    dtype = x_ptr.dtype.element_ty
    BLENDED: tl.constexpr = "none" if ALPHA == "map" else ALPHA

    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    tile_m = pid // tiles_n % tiles_m
    group = pid // (tiles_n * tiles_m) % groups
    b = (pid // (tiles_n * tiles_m * groups)).to(tl.int64)

    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m, mask_n = offs_m < pixels, offs_n < outputs
    # If the batch is read as one sample, the tile's first pixel may lie beyond 2^31 elements.
    x_ptr += b * x_sb + group * C * x_sc + (tile_m * BLOCK_M).to(tl.int64) * x_sm
    start_y = b * y_sb + group * outputs * y_sc + (tile_m * BLOCK_M).to(tl.int64) * y_sm
    rows = tl.arange(0, BLOCK_M)
    w_ptr += b * w_sb + group * w_sg
    bias_ptr += b * bias_sb + group * outputs
    alpha_ptr += b * alpha_sb
    alphas = ()
    if BLENDED != "none":
        alphas = load_alphas(alpha_ptr, alpha_sp, P)

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for p in range(P if ALPHA == "map" else 1):
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, C, BLOCK_K):
            k = start + offs_k
            mask_k = k < C
            x_ptrs = x_ptr + (rows * x_sm)[:, None] + (k * x_sc)[None, :]
            x = tl.load(x_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)
            w_ptrs = w_ptr + p * w_sp + (k * w_sc)[:, None] + (offs_n * w_so)[None, :]
            kernel = load_kernel(w_ptrs, w_sp, alphas, mask_k[:, None] & mask_n[None, :], P, BLENDED, dtype)
            acc = tl.dot(x, kernel, acc, input_precision=PRECISION)
        if HAS_BIAS:
            bias = load_kernel(bias_ptr + p * bias_sp + offs_n, bias_sp, alphas, mask_n, P, BLENDED, dtype)
            acc += bias.to(tl.float32)[None, :]
        if ALPHA == "map":
            weights = tl.load(alpha_ptr + p * alpha_sp + offs_m, mask=mask_m, other=0.0)
            total += acc * weights.to(tl.float32)[:, None]
        else:
            total = acc
    offs_y = (rows * y_sm)[:, None] + (offs_n * y_sc)[None, :]
    mask_y = mask_m[:, None] & mask_n[None, :]
    finish(y_ptr + start_y + offs_y, pre_ptr + start_y + offs_y, total, mask_y, ACTIVATION, SAVE)


def is_pointwise(*tensors: Tensor) -> bool:
    """Return True if the strides of [B, C, H, W] space the pixels of a sample evenly."""
    return all(t.shape[2] == 1 or t.stride(2) == t.shape[3] * t.stride(3) for t in tensors)


def plan_tunable_conv2d_pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    y: Tensor,
    groups: int,
    activation: str,
    config: Config,
    transposed: bool = False,
    pre: Tensor | None = None,
) -> Launch:
    """Return the launch for 1x1 kernels; arguments as for `plan_tunable_conv2d_forward`.

    `transposed` computes the input gradient: x is grad_output and y is grad_input.
    """
    batch, _, height, width = x.shape
    pixels = height * width
    stack = describe(weight, bias, alpha)
    w_sb, w_sp, w_so, w_sc, *_ = stack.strides
    _, rows, inputs, *_ = weight.shape
    w_sg = rows // groups * w_so
    outputs = rows // groups
    if transposed:
        inputs, outputs, w_so, w_sc = outputs, inputs, w_sc, w_so
    shared = stack.kind == "shared" or (stack.kind == "none" and w_sb == 0)
    gapless = all(t.stride(0) == pixels * t.stride(3) for t in (x, y))
    if shared and gapless and batch * pixels < INDEX_LIMIT:
        batch, pixels = 1, batch * pixels
    tiles = (cdiv(pixels, config.block_m), cdiv(outputs, config.block_n), groups)
    return Launch(
        _tunable_conv2d_pointwise_kernel,
        (tiles[0] * tiles[1] * groups * batch,),
        (
            x,
            weight,
            weight if bias is None else bias,
            weight if alpha is None else alpha,
            y,
            y if pre is None else pre,
            (pixels,),
            outputs,
            (x.stride(0), x.stride(1), x.stride(3)),
            (w_sb, w_sp, w_sg, w_sc, w_so),
            (y.stride(0), y.stride(1), y.stride(3)),
            stack.bias_strides,
            stack.alpha_strides,
            tiles,
        ),
        {
            "C": inputs,
            "P": stack.kernels,
            "ALPHA": stack.kind,
            "HAS_BIAS": bias is not None,
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
