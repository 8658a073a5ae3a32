"""tunable_conv2d, depthwise (one input channel per group): no tensor cores, the blended taps stay in registers.

At stride 1 `tunable_conv2d_depthwise_rows` has the kernel. Here is the one for every other geometry, for maps, and for
kernels with more taps than registers hold: a block computes a strip of output rows, and reads the input once per tap.
The tile's shape decides whether vectors run along the channels (NHWC) or the columns (NCHW).
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.depthwise_tiles import COLUMNS, fits_registers
from tunable_ops.triton_kernels.device_functions import columns_of, finish, load_alphas, load_kernel, within
from tunable_ops.triton_kernels.launch import Config, Geometry, Launch, cdiv, describe
from tunable_ops.triton_kernels.tunable_conv2d_depthwise_rows import _tunable_conv2d_depthwise_rows_kernel


@triton.jit
def _load_row(ptrs, h, H, w, W, mask_c, x_sh, x_sw):
    """Load input row h at the columns w in fp32: [BLOCK_W, BLOCK_C]."""
    mask = (within(w, W) & within(h, H))[:, None] & mask_c[None, :]
    return tl.load(ptrs + h * x_sh + (w * x_sw)[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _tunable_conv2d_depthwise_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    alpha_ptr,
    y_ptr,
    pre_ptr,  # the value before the activation, laid out as y
    picture,  # H, W of the input; OH, OW; rows of a strip
    channels,  # of the output
    x_strides,  # sample, channel, row, column
    w_strides,  # sample, kernel, output, row, column
    y_strides,  # sample, channel, row, column
    bias_strides,  # sample, kernel
    alpha_strides,  # sample, kernel, part of the sum (CONTRACT)
    geometry,  # stride, padding, dilation; (rows, columns) each
    tiles,  # along channels, columns, rows
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,  # the power of two from KH * KW on
    P: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    ALPHA: tl.constexpr,
    FLIP: tl.constexpr,
    RESIDENT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CONTRACT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    H, W, OH, OW, rows = picture
    x_sb, x_sc, x_sh, x_sw = x_strides
    w_sb, w_sp, w_so, w_sh, w_sw = w_strides
    y_sb, y_sc, y_sh, y_sw = y_strides
    bias_sb, bias_sp = bias_strides
    alpha_sb, alpha_sp, alpha_part = alpha_strides
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w = geometry
    tiles_c, tiles_w, tiles_h = tiles
    dtype = x_ptr.dtype.element_ty
    MAP: tl.constexpr = ALPHA == "map" or ALPHA == "spread"
    BLENDED: tl.constexpr = "none" if MAP else ALPHA

    pid = tl.program_id(0)
    tile_c = pid % tiles_c
    tile_w = pid // tiles_c % tiles_w
    tile_h = pid // (tiles_c * tiles_w) % tiles_h
    b = (pid // (tiles_c * tiles_w * tiles_h)).to(tl.int64)
    offs_c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < channels
    ow = tile_w * BLOCK_W + tl.arange(0, BLOCK_W)
    w_0 = ow * stride_w - pad_w
    x_ptrs = x_ptr + b * x_sb + (offs_c // MULTIPLIER * x_sc)[None, :]
    mask_y = (ow < OW)[:, None] & mask_c[None, :]
    offs_y = b * y_sb + (offs_c * y_sc)[None, :] + (ow * y_sw)[:, None]
    y_ptrs, pre_ptrs = y_ptr + offs_y, pre_ptr + offs_y
    w_ptr += b * w_sb
    alpha_ptr += b * alpha_sb
    alphas = ()
    if BLENDED != "none":
        alphas = load_alphas(alpha_ptr, alpha_sp, P)
    # Each thread loads the values of its own channels: no exchange.
    offs_full = tl.broadcast_to(offs_c[None, :], [BLOCK_W, BLOCK_C])
    w_ptrs = w_ptr + offs_full * w_so
    bias_ptrs = bias_ptr + b * bias_sb + offs_full
    taps = ()
    if RESIDENT:
        every = tl.arange(0, TAPS)
        places = KH * KW - 1 - every if FLIP else every
        ptrs = w_ptr + (offs_c * w_so)[:, None] + (places // KW * w_sh + places % KW * w_sw)[None, :]
        mask_w = mask_c[:, None] & (every < KH * KW)[None, :]
        taps = columns_of(load_kernel(ptrs, w_sp, alphas, mask_w, P, BLENDED, dtype).to(tl.float32), BLOCK_C, TAPS)

    oh_0 = tile_h * rows
    for oh in range(oh_0, tl.minimum(oh_0 + rows, OH)):
        h_0 = oh * stride_h - pad_h
        total = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        if CONTRACT:
            grad = tl.load(y_ptrs + oh * y_sh, mask=mask_y, other=0.0).to(tl.float32)
        for p in range(P if MAP else 1):
            acc = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
            if RESIDENT:
                for tap in tl.static_range(KH * KW):
                    h, w = h_0 + tap // KW * dil_h, w_0 + tap % KW * dil_w
                    acc += _load_row(x_ptrs, h, H, w, W, mask_c, x_sh, x_sw) * taps[tap][None, :]
            else:
                for tap in range(KH * KW):
                    h, w = h_0 + tap // KW * dil_h, w_0 + tap % KW * dil_w
                    x = _load_row(x_ptrs, h, H, w, W, mask_c, x_sh, x_sw)
                    if ALPHA == "spread":  # the map weighs x, not y
                        there = within(w, W) & within(h, H)
                        weights = tl.load(alpha_ptr + p * alpha_sp + h * W + w, mask=there, other=0.0)
                        x *= weights.to(tl.float32)[:, None]
                    place = KH * KW - 1 - tap if FLIP else tap
                    ptrs = w_ptrs + p * w_sp + place // KW * w_sh + place % KW * w_sw
                    acc += x * load_kernel(ptrs, w_sp, alphas, mask_c[None, :], P, BLENDED, dtype).to(tl.float32)
            if HAS_BIAS:
                bias = load_kernel(bias_ptrs + p * bias_sp, bias_sp, alphas, mask_c[None, :], P, BLENDED, dtype)
                acc += bias.to(tl.float32)
            weight_ptrs = alpha_ptr + p * alpha_sp + oh * OW + ow
            if CONTRACT:
                tl.store(weight_ptrs + tile_c.to(tl.int64) * alpha_part, tl.sum(acc * grad, 1), mask=ow < OW)
            elif ALPHA == "map":
                total += acc * tl.load(weight_ptrs, mask=ow < OW, other=0.0).to(tl.float32)[:, None]
            else:
                total += acc
        if not CONTRACT:
            finish(y_ptrs + oh * y_sh, pre_ptrs + oh * y_sh, total, mask_y, ACTIVATION, SAVE)


# A thread of the general kernel holds this many taps of a vector of channels.
RESIDENT_TAPS = 12


def columns_of_thread(x: Tensor, taps: tuple[int, int], geometry: Geometry, config: Config) -> int:
    """Return the neighbours that a thread of the row kernel computes; 0 if that kernel does not serve the call."""
    if geometry.stride[0] != 1 or geometry.dilation[0] != 1:
        return 0
    vectors = x.stride(1) == 1 and geometry.stride[1] == geometry.dilation[1] == 1 and config.block_n >= COLUMNS
    columns = COLUMNS if vectors else 1
    return columns if fits_registers(taps, config, columns) else 0


def plan_tunable_conv2d_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    y: Tensor,
    geometry: Geometry,
    activation: str,
    config: Config,
    spread: bool = False,
    pre: Tensor | None = None,
    part: int = 0,
) -> Launch:
    """Return the launch for one input channel per group.

    Args:
        x: [B, C, H, W].
        weight: [P, O, 1, kh, kw]; without alpha [1 or B, O, 1, kh, kw].
        bias: [P, O] or None.
        alpha: [P], [B, P], [B, P, OH, OW] or None.
        y: [B, O, OH, OW].
        geometry: The convolution's, or that of a phase of the input gradient (where O = C).
        activation: As in `plan_tunable_conv2d_forward`.
        config: Tile sizes: block_m output rows, block_n columns, block_k channels.
        spread: The map weighs `x` instead of `y`: the input gradient, with grad_output as `x`.
        pre: Output for the value before the activation, with the strides of `y`; or None.
        part: Not 0: write the gradient of a map to alpha [parts, B, P, OH, OW], whose parts are this many elements
            apart; `y` is grad_output (see `plan_tunable_conv2d_alpha`).
    """
    batch, inputs, height, width = x.shape
    _, outputs, out_height, out_width = y.shape
    kh, kw = weight.shape[3:]
    stack = describe(weight, bias, alpha)
    w_sb, w_sp, w_so, _, w_sh, w_sw = stack.strides
    columns = 0 if stack.kind == "map" else columns_of_thread(x, (kh, kw), geometry, config)
    constants = {
        "KH": kh,
        "KW": kw,
        "TAPS": 1 << (kh * kw - 1).bit_length(),
        "P": stack.kernels,
        "MULTIPLIER": outputs // inputs,
        "ALPHA": "spread" if spread else stack.kind,
        "FLIP": geometry.flip,
        "HAS_BIAS": bias is not None,
        "ACTIVATION": activation,
        "SAVE": pre is not None,
        "BLOCK_W": config.block_n // max(1, columns),
        "BLOCK_C": config.block_k,
    }
    if columns:
        steps = (x.stride(3), y.stride(3)) if columns > 1 else (0, 0)
        constants |= {"COLUMNS": columns, "X_STEP": steps[0], "Y_STEP": steps[1]}
    else:
        constants |= {"RESIDENT": stack.kind != "map" and kh * kw <= RESIDENT_TAPS, "CONTRACT": part > 0}
    tiles = (cdiv(outputs, config.block_k), cdiv(out_width, config.block_n), cdiv(out_height, config.block_m))
    return Launch(
        _tunable_conv2d_depthwise_rows_kernel if columns else _tunable_conv2d_depthwise_kernel,
        (tiles[0] * tiles[1] * tiles[2] * batch,),
        (
            x,
            weight,
            weight if bias is None else bias,
            weight if alpha is None else alpha,
            y,
            y if pre is None else pre,
            (height, width, out_height, out_width, config.block_m),
            outputs,
            x.stride(),
            (w_sb, w_sp, w_so, w_sh, w_sw),
            y.stride(),
            stack.bias_strides,
            (*stack.alpha_strides, part),
            geometry.flat(),
            tiles,
        ),
        constants,
        config.num_warps,
        config.num_stages,
    )
