"""tunable_conv2d, depthwise at stride 1: a block moves down the input and reads every row once.

A thread holds the taps of its channels and the sums of KH output rows in registers, and loads the next row of the input
before it uses the one at hand. With contiguous channels it computes COLUMNS neighbours, which share COLUMNS + KW - 1
columns of a row; otherwise vectors run along the columns, and a row is read once per column of taps.
"""

import triton
import triton.language as tl
from tunable_ops.triton_kernels.device_functions import columns_of, finish, load_alphas, load_kernel


@triton.jit
def load_row(ptrs, step, w_0, dil_w, width, mask_c, COUNT: tl.constexpr):
    """Load COUNT columns of a row as they are in memory, `step` elements apart: a tuple of [BLOCK_W, BLOCK_C].

    `width` is that of the input, or 0 for a row outside of it.
    """
    row = ()
    for s in tl.static_range(COUNT):
        # One comparison for both ends: -1 is a large unsigned number.
        inside = (w_0 + s * dil_w).to(tl.uint32, bitcast=True) < width
        row = row + (tl.load(ptrs + s * step, mask=inside[:, None] & mask_c[None, :], other=0.0),)
    return row


@triton.jit
def _tunable_conv2d_depthwise_rows_kernel(
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
    alpha_strides,  # sample, kernel, unused
    geometry,  # stride, padding, dilation; (rows, columns) each
    tiles,  # along channels, columns, rows
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,  # the power of two from KH * KW on
    P: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    ALPHA: tl.constexpr,
    FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    COLUMNS: tl.constexpr,
    X_STEP: tl.constexpr,  # from column to column, where COLUMNS > 1
    Y_STEP: tl.constexpr,
    BLOCK_W: tl.constexpr,  # threads' groups of columns
    BLOCK_C: tl.constexpr,
):
    H, W, OH, OW, rows = picture
    x_sb, x_sc, x_sh, x_sw = x_strides
    w_sb, w_sp, w_so, w_sh, w_sw = w_strides
    y_sb, y_sc, y_sh, y_sw = y_strides
    bias_sb, bias_sp = bias_strides
    alpha_sb, alpha_sp, _ = alpha_strides
    _, stride_w, pad_h, pad_w, _, dil_w = geometry
    tiles_c, tiles_w, tiles_h = tiles
    dtype = x_ptr.dtype.element_ty
    COUNT: tl.constexpr = COLUMNS + KW - 1
    x_step = X_STEP if COLUMNS > 1 else dil_w * x_sw

    pid = tl.program_id(0)
    tile_c = pid % tiles_c
    tile_w = pid // tiles_c % tiles_w
    oh_0 = pid // (tiles_c * tiles_w) % tiles_h * rows
    b = (pid // (tiles_c * tiles_w * tiles_h)).to(tl.int64)
    offs_c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < channels
    ow = (tile_w * BLOCK_W + tl.arange(0, BLOCK_W)) * COLUMNS
    w_0 = ow * stride_w - pad_w
    h_0 = oh_0 - pad_h
    x_ptrs = x_ptr + b * x_sb + (offs_c // MULTIPLIER * x_sc)[None, :] + (w_0 * x_sw)[:, None]
    offs_y = b * y_sb + (offs_c * y_sc)[None, :] + (ow * y_sw)[:, None]
    y_ptrs, pre_ptrs = y_ptr + offs_y, pre_ptr + offs_y
    steps = tl.minimum(OH - oh_0, rows) + KH - 1

    width = tl.where((h_0 >= 0) & (h_0 < H), W, 0).to(tl.uint32)
    ahead = load_row(x_ptrs + h_0 * x_sh, x_step, w_0, dil_w, width, mask_c, COUNT)
    alphas = ()
    if ALPHA != "none":
        alphas = load_alphas(alpha_ptr + b * alpha_sb, alpha_sp, P)
    tap = tl.arange(0, TAPS)
    place = KH * KW - 1 - tap if FLIP else tap
    w_ptrs = w_ptr + b * w_sb + (offs_c * w_so)[:, None] + (place // KW * w_sh + place % KW * w_sw)[None, :]
    mask_w = mask_c[:, None] & (tap < KH * KW)[None, :]
    if P * TAPS <= 256:
        kernel = load_kernel(w_ptrs, w_sp, alphas, mask_w, P, ALPHA, dtype)
    else:  # the loads of all kernels at once would need more registers than there are
        kernel = tl.zeros([BLOCK_C, TAPS], tl.float32)
        for p in range(P):
            weight = tl.load(w_ptrs + p * w_sp, mask=mask_w, other=0.0).to(tl.float32)
            kernel += weight * tl.load(alpha_ptr + b * alpha_sb + p * alpha_sp).to(tl.float32)
        kernel = kernel.to(dtype)
    taps = columns_of(kernel.to(tl.float32), BLOCK_C, TAPS)
    bias = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    if HAS_BIAS:  # each thread loads what it needs: no exchange
        bias_ptrs = bias_ptr + b * bias_sb + tl.broadcast_to(offs_c[None, :], [BLOCK_W, BLOCK_C])
        bias += load_kernel(bias_ptrs, bias_sp, alphas, mask_c[None, :], P, ALPHA, dtype).to(tl.float32)

    # sums[r * COLUMNS + q]: column q of the output row that reads the row at hand with kernel row r.
    sums = ()
    for _ in tl.static_range(KH * COLUMNS):
        sums = sums + (bias,)
    for step in range(steps):
        row = ahead
        h = h_0 + step + 1
        width = tl.where((h >= 0) & (h < H) & (step + 1 < steps), W, 0).to(tl.uint32)
        ahead = load_row(x_ptrs + h * x_sh, x_step, w_0, dil_w, width, mask_c, COUNT)
        for s in tl.static_range(COUNT):
            x = row[s].to(tl.float32)
            added = ()
            for i in tl.static_range(KH * COLUMNS):
                if s - i % COLUMNS >= 0 and s - i % COLUMNS < KW:
                    added = added + (sums[i] + x * taps[i // COLUMNS * KW + s - i % COLUMNS][None, :],)
                else:
                    added = added + (sums[i],)
            sums = added
        if step >= KH - 1:
            offset = (oh_0 + step - (KH - 1)) * y_sh
            for q in tl.static_range(COLUMNS):
                mask = (ow + q < OW)[:, None] & mask_c[None, :]
                at = offset + q * Y_STEP
                finish(y_ptrs + at, pre_ptrs + at, sums[(KH - 1) * COLUMNS + q], mask, ACTIVATION, SAVE)
        moved = ()
        for _ in tl.static_range(COLUMNS):
            moved = moved + (bias,)
        for i in tl.static_range((KH - 1) * COLUMNS):
            moved = moved + (sums[i],)
        sums = moved
