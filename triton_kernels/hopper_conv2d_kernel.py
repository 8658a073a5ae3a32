"""The Hopper form of the tunable convolution's forward pass, in Gluon. Importing it needs triton.

One block computes tiles of TH output rows of 64 pixels, for BLOCK_O output channels, of NHWC pictures:

- The sample's P kernels are blended once, in fp32, rounded once, and written to shared memory as a panel
  [taps * chunks, BLOCK_O, BLOCK_C] that stays there for all of the block's tiles of that sample.
- Pixels alone are streamed. A *step* is one column shift of one chunk of BLOCK_C channels: TH + KS - 1 rows of 64
  pixels, one TMA copy each, into one of SLOTS slots of shared memory. Every row then serves KS kernel rows: a tile of 4
  rows of a 3x3 kernel takes 18 row copies instead of 36. TMA fills with zero what lies outside of the picture, so
  padding costs nothing.
- One wgmma chain per output row, both operands from shared memory. A slot is refilled as soon as the step after it
  has been issued and its own products are done.

A block's tiles are consecutive, so that it stays with one sample as long as it can.
"""

# ruff: noqa: E741, RUF005 (O is the output channels everywhere here; kernels cannot unpack a tuple)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

TILE_W = gl.constexpr(64)  # M of one wgmma chain: a row of pixels


@gluon.jit
def _locate(tile, tiles_h, tiles_w, TH: gl.constexpr):
    """(sample, first row, first column) of a tile; columns run fastest."""
    row = tile // tiles_w
    return row // tiles_h, (row % tiles_h) * TH, (tile % tiles_w) * TILE_W


@gluon.jit
def _load_step(
    x_desc, pixels, bars, tile, end, ahead, slot, tiles_h, tiles_w, pad_h, pad_w,
    KS: gl.constexpr, TH: gl.constexpr, CHUNKS: gl.constexpr, BLOCK_C: gl.constexpr,
):  # fmt: skip
    """Starts the copies of the step that is `ahead` of the first of `tile` into `slot`; none from tile `end` on."""
    COPIES: gl.constexpr = (TH + KS - 1) // x_desc.block_type.shape[1]
    tile = tile + ahead // (KS * CHUNKS)
    step = ahead % (KS * CHUNKS)
    sample, h, w = _locate(tile, tiles_h, tiles_w, TH)
    wanted = tile < end
    bar = bars.index(slot)
    mbarrier.expect(bar, COPIES * x_desc.block_type.nbytes, pred=wanted)
    for i in gl.static_range(COPIES):
        tma.async_copy_global_to_shared(
            x_desc,
            [sample, h - pad_h + i * x_desc.block_type.shape[1], w - pad_w + step // CHUNKS, (step % CHUNKS) * BLOCK_C],
            bar,
            pixels.index(slot * COPIES + i),
            pred=wanted,
        )


@gluon.jit
def _multiply_step(
    pixels,
    panel,
    accs,
    step,
    slot,
    KS: gl.constexpr,
    TH: gl.constexpr,
    CHUNKS: gl.constexpr,
    BLOCK_C: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """Issues the products of one step: KS kernel rows for each of TH output rows."""
    ROWS: gl.constexpr = TH + KS - 1
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE_W, BLOCK_C], pixels.dtype)
    rows = pixels._reinterpret(pixels.dtype, [SLOTS * ROWS, TILE_W, BLOCK_C], layout)  # the same bytes, row by row
    for r in gl.static_range(KS):
        kernel = panel.index((r * KS + step // CHUNKS) * CHUNKS + step % CHUNKS).permute((1, 0))
        following = ()
        for t in gl.static_range(TH):
            row = rows.index(slot * ROWS + t + r)
            following = following + (warpgroup_mma(row, kernel, accs[t], is_async=True),)
        accs = following
    return accs


@gluon.jit
def _multiply_tile(
    x_desc, pixels, bars, panel, bias, tile, end, done, tiles_h, tiles_w, pad_h, pad_w,
    KS: gl.constexpr, TH: gl.constexpr, CHUNKS: gl.constexpr, BLOCK_C: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """The TH accumulators [TILE_W, BLOCK_O] of one tile, `done` steps after the block's first; they start as `bias`."""
    STEPS: gl.constexpr = KS * CHUNKS
    LAG: gl.constexpr = 1 if SLOTS > 1 else 0  # a step's products run while the next step's are issued
    accs = ()
    for _ in gl.static_range(TH):
        accs = accs + (bias,)
    # A loop, not an unrolled one: the addresses of all its operands would be hoisted, and their registers spill.
    for step in range(STEPS):
        slot = (done + step) % SLOTS
        mbarrier.wait(bars.index(slot), ((done + step) // SLOTS) & 1)
        accs = _multiply_step(pixels, panel, accs, step, slot, KS, TH, CHUNKS, BLOCK_C, SLOTS)
        accs = warpgroup_mma_wait(LAG * KS * TH, accs)
        if step >= LAG:  # the products of that step are done: its slot is free
            _load_step(
                x_desc, pixels, bars, tile, end, step - LAG + SLOTS, (done + step - LAG) % SLOTS,
                tiles_h, tiles_w, pad_h, pad_w, KS, TH, CHUNKS, BLOCK_C,
            )  # fmt: skip
    if LAG > 0:
        accs = warpgroup_mma_wait(0, accs)
        _load_step(
            x_desc, pixels, bars, tile, end, STEPS - LAG + SLOTS, (done + STEPS - LAG) % SLOTS,
            tiles_h, tiles_w, pad_h, pad_w, KS, TH, CHUNKS, BLOCK_C,
        )  # fmt: skip
    return accs


@gluon.constexpr_function
def _taps_in_flight(ks, elements):
    """How many taps to load before the first is blended: the loads' latency is the blend's cost."""
    return next(taps for taps in (9, 3, 1) if ks * ks % taps == 0 and (taps == 1 or taps * elements <= 192))


@gluon.jit
def _blend_panel(
    panel, w_ptr, alpha_ptr, first_o, C, O,
    stride_wp, stride_wo, stride_wc, stride_wh, stride_ww, stride_ap,
    P: gl.constexpr, KS: gl.constexpr, CHUNKS: gl.constexpr, BLOCK_C: gl.constexpr, BLOCK_O: gl.constexpr,
):  # fmt: skip
    """Writes sum_p alpha[p] * weight[p] to the panel, rounded once."""
    LANES_C: gl.constexpr = BLOCK_C // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES_C, LANES_C], [gl.num_warps(), 1], [1, 0])
    offs_o = first_o + gl.arange(0, BLOCK_O, gl.SliceLayout(1, layout))
    GROUP: gl.constexpr = _taps_in_flight(KS, P * BLOCK_O * BLOCK_C // (32 * gl.num_warps()))
    for group in range(KS * KS * CHUNKS // GROUP):
        chunk = group // (KS * KS // GROUP)
        offs_c = chunk * BLOCK_C + gl.arange(0, BLOCK_C, gl.SliceLayout(0, layout))
        offs = offs_o[:, None] * stride_wo + offs_c[None, :] * stride_wc  # [BLOCK_O, BLOCK_C]
        mask = (offs_o < O)[:, None] & (offs_c < C)[None, :]
        weights = ()
        for i in gl.static_range(GROUP):
            tap = (group % (KS * KS // GROUP)) * GROUP + i
            tap_ptr = w_ptr + (tap // KS) * stride_wh + (tap % KS) * stride_ww
            for p in gl.static_range(P):
                weights = weights + (gl.load(tap_ptr + p * stride_wp + offs, mask=mask, other=0.0),)
        for i in gl.static_range(GROUP):
            tap = (group % (KS * KS // GROUP)) * GROUP + i
            blend = gl.zeros((BLOCK_O, BLOCK_C), gl.float32, layout)
            for p in gl.static_range(P):
                blend += gl.load(alpha_ptr + p * stride_ap).to(gl.float32) * weights[i * P + p].to(gl.float32)
            panel.index(tap * CHUNKS + chunk).store(blend.to(panel.dtype))
    fence_async_shared()  # the tensor cores read shared memory through the asynchronous proxy


@gluon.jit
def _blend_bias(
    bias_ptr, alpha_ptr, first_o, O, stride_bp, stride_bo, stride_ap,
    P: gl.constexpr, BLOCK_O: gl.constexpr, HAS_BIAS: gl.constexpr, dtype: gl.constexpr,
):  # fmt: skip
    """sum_p alpha[p] * bias[p], rounded once as the kernels are, for every pixel of a row: [TILE_W, BLOCK_O]."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_O, 16])
    pixels = gl.zeros((TILE_W, BLOCK_O), gl.float32, layout)
    if HAS_BIAS:
        offs_o = first_o + gl.arange(0, BLOCK_O, gl.SliceLayout(0, layout))
        blend = gl.zeros((BLOCK_O,), gl.float32, gl.SliceLayout(0, layout))
        for p in gl.static_range(P):
            bias = gl.load(bias_ptr + p * stride_bp + offs_o * stride_bo, mask=offs_o < O, other=0.0)
            blend += gl.load(alpha_ptr + p * stride_ap).to(gl.float32) * bias.to(gl.float32)
        pixels = pixels + blend.to(dtype).to(gl.float32)[None, :]
    return pixels


@gluon.jit
def _activate(value, ACTIVATION: gl.constexpr):
    if ACTIVATION == "relu":
        value = gl.maximum(value, 0.0)
    elif ACTIVATION == "leaky_relu":
        value = gl.where(value > 0.0, value, 0.01 * value)
    elif ACTIVATION == "silu":
        value = value / (1.0 + gl.exp(-value))
    elif ACTIVATION == "gelu":
        value = 0.5 * value * (1.0 + gl.erf(value * 0.7071067811865476))
    return value


@gluon.jit
def _store_rows(
    accs, out_ptr, h, w, first_o, OH, OW, O, stride_oh, stride_ow,
    TH: gl.constexpr, BLOCK_O: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """Applies the activation and stores TH rows."""
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    LANES_O: gl.constexpr = BLOCK_O // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES_O, LANES_O], [gl.num_warps(), 1], [1, 0])
    offs_w = w + gl.arange(0, TILE_W, gl.SliceLayout(1, layout))
    offs_o = first_o + gl.arange(0, BLOCK_O, gl.SliceLayout(0, layout))
    offs = offs_w[:, None] * stride_ow + offs_o[None, :]  # [TILE_W, BLOCK_O]
    mask = (offs_w < OW)[:, None] & (offs_o < O)[None, :]
    for t in gl.static_range(TH):
        value = gl.convert_layout(_activate(accs[t], ACTIVATION).to(dtype), layout)
        gl.store(out_ptr + (h + t) * stride_oh + offs, value, mask=mask & (h + t < OH))


@gluon.jit(do_not_specialize=["OH", "OW", "tiles", "tiles_h", "tiles_w", "pad_h", "pad_w"])
def _tunable_conv2d_hopper_forward_kernel(
    x_desc, w_ptr, bias_ptr, alpha_ptr, out_ptr,
    C, O, OH, OW, tiles, tiles_h, tiles_w, pad_h, pad_w,
    stride_wp, stride_wo, stride_wc, stride_wh, stride_ww, stride_bp, stride_bo, stride_ab, stride_ap,
    stride_ob, stride_oh, stride_ow,
    P: gl.constexpr, KS: gl.constexpr, TH: gl.constexpr, CHUNKS: gl.constexpr, BLOCK_C: gl.constexpr,
    BLOCK_O: gl.constexpr, SLOTS: gl.constexpr,
    HAS_BIAS: gl.constexpr, PER_SAMPLE: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """out[b] = act(conv2d(x[b], sum_p alpha[b,p] weight[p]) + sum_p alpha[b,p] bias[p]), stride 1, NHWC.

    Grid: (blocks, cdiv(O, BLOCK_O)); block i takes tiles [i * tiles // blocks, (i + 1) * tiles // blocks).
    """
    STEPS: gl.constexpr = KS * CHUNKS
    COPIES: gl.constexpr = (TH + KS - 1) // x_desc.block_type.shape[1]
    dtype: gl.constexpr = x_desc.dtype
    pixels = gl.allocate_shared_memory(dtype, [SLOTS * COPIES] + x_desc.block_type.shape, x_desc.layout)
    panel_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_O, BLOCK_C], dtype)
    panel = gl.allocate_shared_memory(dtype, [KS * KS * CHUNKS, BLOCK_O, BLOCK_C], panel_layout)
    bars = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(bars.index(i), count=1)

    # 64 bits: tiles * blocks may pass 2^31
    start = (gl.program_id(0).to(gl.int64) * tiles // gl.num_programs(0)).to(gl.int32)
    end = ((gl.program_id(0) + 1).to(gl.int64) * tiles // gl.num_programs(0)).to(gl.int32)
    first_o = gl.program_id(1) * BLOCK_O
    for i in gl.static_range(SLOTS):  # before the blend, so that the pixels travel during it
        _load_step(
            x_desc, pixels, bars, start, end, i, i, tiles_h, tiles_w, pad_h, pad_w, KS, TH, CHUNKS, BLOCK_C
        )  # fmt: skip

    blended = -1  # the sample whose panel is in shared memory
    done = 0  # steps before this tile
    for tile in range(start, end):
        sample, h, w = _locate(tile, tiles_h, tiles_w, TH)
        if PER_SAMPLE:
            sample_alpha_ptr = alpha_ptr + sample * stride_ab
            wanted = sample
        else:
            sample_alpha_ptr = alpha_ptr
            wanted = 0
        if blended != wanted:
            _blend_panel(
                panel, w_ptr, sample_alpha_ptr, first_o, C, O,
                stride_wp, stride_wo, stride_wc, stride_wh, stride_ww, stride_ap,
                P, KS, CHUNKS, BLOCK_C, BLOCK_O,
            )  # fmt: skip
            blended = wanted
        bias = _blend_bias(
            bias_ptr, sample_alpha_ptr, first_o, O, stride_bp, stride_bo, stride_ap, P, BLOCK_O, HAS_BIAS, dtype
        )
        accs = _multiply_tile(
            x_desc, pixels, bars, panel, bias, tile, end, done, tiles_h, tiles_w, pad_h, pad_w,
            KS, TH, CHUNKS, BLOCK_C, SLOTS,
        )  # fmt: skip
        done += STEPS
        _store_rows(
            accs, out_ptr + sample.to(gl.int64) * stride_ob, h, w, first_o, OH, OW, O, stride_oh, stride_ow,
            TH, BLOCK_O, ACTIVATION,
        )  # fmt: skip
