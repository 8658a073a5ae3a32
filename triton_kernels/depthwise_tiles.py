"""How depthwise convolutions at stride 1 are dealt out to threads and blocks: columns, channels and rows."""

from tunable_ops.triton_kernels.launch import Config, cdiv

# Neighbouring columns that a thread computes where channels are contiguous: they share what they read.
COLUMNS = 4
# Channels of such a thread: 4 bytes in 16 bits, so that a warp reads 128 bytes at a time.
LANES = 2
# The most taps and sums that a thread holds.
HELD = 160
# Registers of a multiprocessor, and warps that it keeps at most.
REGISTERS, WARPS = 1 << 16, 64
# A block's start costs about as much as this many rows.
START = 6


def lanes(config: Config, columns: int) -> int:
    """Return the channels (or, in contiguous pictures, columns) of a thread that computes `columns` neighbours."""
    return max(1, cdiv(config.block_n, columns) * config.block_k // (32 * config.num_warps))


def fits_registers(taps: tuple[int, int], config: Config, columns: int) -> bool:
    """Return True if a thread can hold its taps and the sums of `columns` neighbours in kh rows."""
    kh, kw = taps
    return kh * kw <= 64 and lanes(config, columns) * kh * (kw + columns) <= HELD


def row_columns(layout: str, stride: tuple[int, int], taps: tuple[int, int], config: Config) -> int:
    """Return the neighbours that a thread of the row kernels computes at dilation 1; 0 if they do not serve a problem.

    Args:
        layout: "nhwc" or "nchw".
        stride: Of the convolution, 1 of a phase of the input gradient.
        taps: Rows and columns of the kernel.
        config: Tile sizes.
    """
    if stride[0] != 1:
        return 0
    columns = COLUMNS if layout == "nhwc" and stride[1] == 1 and config.block_n >= COLUMNS else 1
    return columns if fits_registers(taps, config, columns) else 0


def resident_blocks(taps: tuple[int, int], config: Config, columns: int) -> int:
    """Return the blocks that a multiprocessor holds; the registers of a thread are a fit to machine code for sm_90."""
    held = lanes(config, columns) * taps[0] * (taps[1] + columns)
    return max(1, min(WARPS // config.num_warps, REGISTERS // ((10 + 3 * held // 2) * 32 * config.num_warps)))


def choose_row_tiles(
    channels: int, size: tuple[int, int], batch: int, taps: tuple[int, int], vectors: bool, processors: int
) -> Config:
    """Choose tiles for a problem at stride 1, so that the blocks fill the GPU in few waves of long strips.

    Args:
        channels: Output channels.
        size: Rows and columns of the result.
        batch: Samples.
        taps: Rows and columns of the kernel.
        vectors: True if channels are contiguous, False if columns are.
        processors: Multiprocessors of the GPU.
    """
    height, width = size
    if vectors:
        block_k = power(channels, 8, 64)
        block_n = power(width, COLUMNS, LANES * 128 * COLUMNS // block_k)
        columns, warps = COLUMNS, max(1, block_n * block_k // (32 * COLUMNS * LANES))
    else:
        block_n = power(width, 16, 128)
        block_k, columns, warps = cdiv(128, block_n), 1, 2
    tiles = cdiv(channels, block_k) * cdiv(width, block_n) * batch

    def rows_in_turn(rows: int) -> int:
        config = Config(rows, block_n, block_k, warps, 1)
        waves = cdiv(tiles * cdiv(height, rows), processors * resident_blocks(taps, config, columns))
        return waves * (rows + taps[0] - 1 + START)

    rows = min((32, 16, 8, 4), key=rows_in_turn)
    return Config(min(rows, power(height, 4, 32)), block_n, block_k, warps, 1)


def power(value: int, low: int, high: int) -> int:
    """Return the smallest power of two not below `value`, clamped to [low, high]."""
    return max(low, min(high, 1 << max(0, value - 1).bit_length()))
