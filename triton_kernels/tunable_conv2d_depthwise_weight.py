"""The depthwise weight gradient, in fp32: partial sums as those of `tunable_conv2d_weight`, biases made on the way.

At stride 1 a block moves down the input and reads every row once: a thread holds the last KH rows of grad_output and
the sums of all taps in registers, and loads the next row of both before it uses those at hand. At the end one exchange
adds up the columns of all taps. The other kernel serves every other geometry, maps, and more taps than registers hold.
"""

import triton
import triton.language as tl
from torch import Tensor
from tunable_ops.triton_kernels.launch import Config, Geometry, Launch, cdiv
from tunable_ops.triton_kernels.tunable_conv2d_depthwise import columns_of_thread
from tunable_ops.triton_kernels.tunable_conv2d_depthwise_rows import load_row


@triton.jit
def _stacked(parts, COUNT: tl.constexpr):
    """Return COUNT tiles [W, C], COUNT a power of two up to 64, as one [W, C, COUNT]; no thread exchanges anything."""
    SIZE_W: tl.constexpr = parts[0].shape[0]
    SIZE_C: tl.constexpr = parts[0].shape[1]
    for level in tl.static_range(6):
        if COUNT >> level > 1:
            joined = ()
            for i in tl.static_range(COUNT >> (level + 1)):
                joined = joined + (tl.join(parts[i], parts[i + (COUNT >> (level + 1))]),)
            parts = joined
    return tl.reshape(parts[0], [SIZE_W, SIZE_C, COUNT])


@triton.jit
def _tunable_conv2d_depthwise_weight_rows_kernel(
    dy_ptr,
    x_ptr,
    g_ptr,
    shift_ptr,  # the sums of grad_output, [sums * splits, output channels]
    picture,  # H, W of the input; OH, OW; rows of a strip
    channels,  # outputs
    dy_strides,  # sample, channel, row, column
    x_strides,  # sample, channel, row, column
    g_strides,  # partial sum, output, row, column
    geometry,  # stride, padding, dilation; (rows, columns) each
    tiles,  # along channels, columns, rows; splits of the strips; samples per sum
    KH: tl.constexpr,
    KW: tl.constexpr,
    SLOTS: tl.constexpr,  # the power of two from KH * KW + 1 on, for the taps and the sum of grad_output
    HAS_BIAS: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    COLUMNS: tl.constexpr,
    X_STEP: tl.constexpr,  # from column to column, where COLUMNS > 1
    DY_STEP: tl.constexpr,
    BLOCK_W: tl.constexpr,  # threads' groups of columns
    BLOCK_C: tl.constexpr,
):
    H, W, OH, OW, rows = picture
    dy_sb, dy_sc, dy_sh, dy_sw = dy_strides
    x_sb, x_sc, x_sh, x_sw = x_strides
    g_sb, g_so, g_sh, g_sw = g_strides
    _, stride_w, pad_h, pad_w, _, dil_w = geometry
    tiles_c, tiles_w, tiles_h, splits, samples = tiles
    COUNT: tl.constexpr = COLUMNS + KW - 1
    x_step = X_STEP if COLUMNS > 1 else dil_w * x_sw

    pid = tl.program_id(0)
    offs_c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < channels
    split = pid // tiles_c % splits
    part = (pid // (tiles_c * splits)).to(tl.int64)
    dy_c = dy_ptr + part * samples * dy_sb + (offs_c * dy_sc)[None, :]
    x_c = x_ptr + part * samples * x_sb + (offs_c // MULTIPLIER * x_sc)[None, :]

    zero = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    sums = ()
    for _ in tl.static_range(KH * KW):
        sums = sums + (zero,)
    shift = zero
    # Strips of `rows` rows of grad_output, of all samples of the sum, are dealt out to the splits in turn.
    for strip in range(split, samples * tiles_w * tiles_h, splits):
        ow = (strip % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)) * COLUMNS
        oh_0 = strip // tiles_w % tiles_h * rows
        sample = (strip // (tiles_w * tiles_h)).to(tl.int64)
        w_0, h_0 = ow * stride_w - pad_w, oh_0 - pad_h
        dy_ptrs = dy_c + sample * dy_sb + (ow * dy_sw)[:, None]
        x_ptrs = x_c + sample * x_sb + (w_0 * x_sw)[:, None]
        last = tl.minimum(oh_0 + rows, OH)
        width = tl.where((h_0 >= 0) & (h_0 < H), W, 0).to(tl.uint32)
        dy_ahead = load_row(dy_ptrs + oh_0 * dy_sh, DY_STEP, ow, 1, tl.cast(OW, tl.uint32), mask_c, COLUMNS)
        x_ahead = load_row(x_ptrs + h_0 * x_sh, x_step, w_0, dil_w, width, mask_c, COUNT)
        # held[r * COLUMNS + q]: column q of the row of grad_output that reads the row at hand with kernel row r.
        held = ()
        for _ in tl.static_range(KH * COLUMNS):
            held = held + (zero,)
        for step in range(last - oh_0 + KH - 1):
            moved = ()
            for q in tl.static_range(COLUMNS):
                moved = moved + (dy_ahead[q].to(tl.float32),)
            for i in tl.static_range((KH - 1) * COLUMNS):
                moved = moved + (held[i],)
            held = moved
            row = x_ahead
            oh, h = oh_0 + step + 1, h_0 + step + 1
            dy_width = tl.where(oh < last, OW, 0).to(tl.uint32)
            dy_ahead = load_row(dy_ptrs + oh * dy_sh, DY_STEP, ow, 1, dy_width, mask_c, COLUMNS)
            width = tl.where((h >= 0) & (h < H) & (oh < last + KH - 1), W, 0).to(tl.uint32)
            x_ahead = load_row(x_ptrs + h * x_sh, x_step, w_0, dil_w, width, mask_c, COUNT)
            if HAS_BIAS:
                for q in tl.static_range(COLUMNS):
                    shift += held[q]
            for s in tl.static_range(COUNT):
                x = row[s].to(tl.float32)
                added = ()
                for tap in tl.static_range(KH * KW):
                    if s - tap % KW >= 0 and s - tap % KW < COLUMNS:
                        added = added + (sums[tap] + x * held[tap // KW * COLUMNS + s - tap % KW],)
                    else:
                        added = added + (sums[tap],)
                sums = added
    sums = sums + (shift,)
    for _ in tl.static_range(SLOTS - KH * KW - 1):
        sums = sums + (zero,)
    total = tl.sum(_stacked(sums, SLOTS), 0)  # [BLOCK_C, SLOTS]
    tap = tl.arange(0, SLOTS)
    row = part * splits + split
    g_ptrs = g_ptr + row * g_sb + (offs_c * g_so)[:, None] + (tap // KW * g_sh + tap % KW * g_sw)[None, :]
    tl.store(g_ptrs, total, mask=mask_c[:, None] & (tap < KH * KW)[None, :])
    if HAS_BIAS:
        shift_ptrs = shift_ptr + row * channels + tl.broadcast_to(offs_c[:, None], [BLOCK_C, SLOTS])
        tl.store(shift_ptrs, total, mask=mask_c[:, None] & (tap == KH * KW)[None, :])


@triton.jit
def _tunable_conv2d_depthwise_weight_kernel(
    dy_ptr,
    x_ptr,
    g_ptr,
    shift_ptr,  # the sums of grad_output, [sums * splits, output channels]
    alpha_ptr,
    picture,  # H, W of the input; OH, OW; samples per sum
    channels,  # outputs
    dy_strides,  # sample, channel, row, column
    x_strides,  # sample, channel, row, column
    g_strides,  # partial sum, output, row, column
    alpha_strides,  # of a map: sample, kernel
    geometry,  # stride, padding, dilation; (rows, columns) each
    tiles,  # along channels, kernel rows, splits of the output rows
    KH: tl.constexpr,
    KW: tl.constexpr,
    MAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,  # the power of two from TAP_ROWS * KW + 1 on
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    H, W, OH, OW, samples = picture
    dy_sb, dy_sc, dy_sh, dy_sw = dy_strides
    x_sb, x_sc, x_sh, x_sw = x_strides
    g_sb, g_so, g_sh, g_sw = g_strides
    alpha_sb, alpha_sp = alpha_strides
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w = geometry
    tiles_c, tiles_r, splits = tiles

    pid = tl.program_id(0)
    tile_c = pid % tiles_c
    row_0 = pid // tiles_c % tiles_r * TAP_ROWS
    split = pid // (tiles_c * tiles_r) % splits
    part = (pid // (tiles_c * tiles_r * splits)).to(tl.int64)
    offs_c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < channels
    dy_ptrs = dy_ptr + (offs_c * dy_sc)[None, :]
    x_ptrs = x_ptr + (offs_c // MULTIPLIER * x_sc)[None, :]
    if MAP:  # part is a kernel
        alpha_ptr += part * alpha_sp
    else:
        dy_ptrs += part * samples * dy_sb
        x_ptrs += part * samples * x_sb
    sums = ()
    for _ in tl.static_range(TAP_ROWS * KW):
        sums = sums + (tl.zeros([BLOCK_W, BLOCK_C], tl.float32),)
    shift = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    tiles_w = (OW + BLOCK_W - 1) // BLOCK_W
    # One loop over the strips of all rows of all samples of the sum, dealt out to the splits in turn.
    for strip in range(split, samples * OH * tiles_w, splits):
        ow = strip % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
        oh = strip // tiles_w % OH
        sample = (strip // (tiles_w * OH)).to(tl.int64)
        mask = (ow < OW)[:, None] & mask_c[None, :]
        dy = tl.load(dy_ptrs + sample * dy_sb + oh * dy_sh + (ow * dy_sw)[:, None], mask=mask, other=0.0)
        dy = dy.to(tl.float32)
        if MAP:
            weights = tl.load(alpha_ptr + sample * alpha_sb + oh * OW + ow, mask=ow < OW, other=0.0)
            dy *= weights.to(tl.float32)[:, None]
        if HAS_BIAS:
            shift += dy
        added = ()
        for tap in tl.static_range(TAP_ROWS * KW):
            h = oh * stride_h - pad_h + (row_0 + tap // KW) * dil_h
            w = ow * stride_w - pad_w + tap % KW * dil_w
            inside = ((w >= 0) & (w < W) & (h >= 0) & (h < H) & (row_0 + tap // KW < KH))[:, None] & mask_c[None, :]
            x = tl.load(x_ptrs + sample * x_sb + h * x_sh + (w * x_sw)[:, None], mask=inside, other=0.0)
            added = added + (sums[tap] + dy * x.to(tl.float32),)
        sums = added
    sums = sums + (shift,)
    for _ in tl.static_range(SLOTS - TAP_ROWS * KW - 1):
        sums = sums + (tl.zeros([BLOCK_W, BLOCK_C], tl.float32),)
    total = tl.sum(_stacked(sums, SLOTS), 0)  # [BLOCK_C, SLOTS]
    tap = tl.arange(0, SLOTS)
    r = row_0 + tap // KW
    row = part * splits + split
    g_ptrs = g_ptr + row * g_sb + (offs_c * g_so)[:, None] + (r * g_sh + tap % KW * g_sw)[None, :]
    tl.store(g_ptrs, total, mask=mask_c[:, None] & ((tap < TAP_ROWS * KW) & (r < KH))[None, :])
    if HAS_BIAS:
        shift_ptrs = shift_ptr + row * channels + tl.broadcast_to(offs_c[:, None], [BLOCK_C, SLOTS])
        tl.store(shift_ptrs, total, mask=mask_c[:, None] & ((tap == TAP_ROWS * KW) & (row_0 == 0))[None, :])


def plan_tunable_conv2d_depthwise_weight(
    grad_output: Tensor,
    input: Tensor,
    partial: Tensor,
    geometry: Geometry,
    config: Config,
    alpha: Tensor | None = None,
    shift: Tensor | None = None,
) -> Launch:
    """Return the same launch for depthwise convolutions; arguments as for `plan_tunable_conv2d_weight`.

    config: block_m rows and block_n columns of a strip, block_k channels; the general kernel's strips have one row.
    """
    batch, inputs, height, width = input.shape
    out_height, out_width = grad_output.shape[2:]
    sums, splits, outputs, _, kh, kw = partial.shape
    _, g_sb, g_so, _, g_sh, g_sw = partial.stride()
    columns = 0 if alpha is not None else columns_of_thread(input, (kh, kw), geometry, config)
    tiles_c, samples = cdiv(outputs, config.block_k), batch if alpha is not None else batch // sums
    picture, strides = (height, width, out_height, out_width), (g_sb, g_so, g_sh, g_sw)
    tensors = (grad_output, input, partial, partial if shift is None else shift)
    pixels = (grad_output.stride(), input.stride())
    constants = {"KH": kh, "KW": kw, "HAS_BIAS": shift is not None, "MULTIPLIER": outputs // inputs}
    constants["BLOCK_C"] = config.block_k
    if columns:
        steps = (input.stride(3), grad_output.stride(3)) if columns > 1 else (0, 0)
        strips = cdiv(out_width, config.block_n), cdiv(out_height, config.block_m)
        tiles: tuple[int, ...] = (tiles_c, *strips, splits, samples)
        return Launch(
            _tunable_conv2d_depthwise_weight_rows_kernel,
            (tiles_c * splits * sums,),
            (*tensors, (*picture, config.block_m), outputs, *pixels, strides, geometry.flat(), tiles),
            constants
            | {"SLOTS": 1 << (kh * kw).bit_length(), "COLUMNS": columns, "X_STEP": steps[0], "DY_STEP": steps[1]}
            | {"BLOCK_W": config.block_n // columns},
            config.num_warps,
            config.num_stages,
        )
    # Registers hold the sums of up to 9 taps.
    tap_rows = kh if kh * kw <= 9 else 1
    tiles = (tiles_c, cdiv(kh, tap_rows), splits)
    maps = (alpha, alpha.stride()[:2]) if alpha is not None else (partial, (0, 0))
    return Launch(
        _tunable_conv2d_depthwise_weight_kernel,
        (tiles_c * tiles[1] * splits * sums,),
        (*tensors, maps[0], (*picture, samples), outputs, *pixels, strides, maps[1], geometry.flat(), tiles),
        constants
        | {"MAP": alpha is not None, "TAP_ROWS": tap_rows, "SLOTS": 1 << (tap_rows * kw).bit_length()}
        | {"BLOCK_W": config.block_n},
        config.num_warps,
        config.num_stages,
    )
