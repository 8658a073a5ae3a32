"""The work of the depthwise kernels, as `roofline_kernels` counts that of the others."""

from tunable_ops.triton_kernels.depthwise_tiles import resident_blocks, row_columns
from tunable_ops.triton_kernels.launch import Config, cdiv
from tunable_ops.triton_kernels.roofline import MEMORY_TRIPS, Work
from tunable_ops.triton_kernels.roofline_sizes import Sizes, item_size, moved_pixels, resident_tiles, summed_pixels

# Instructions of the row kernel per multiply-add: 167 for 72 in machine code for sm_90.
PER_PRODUCT = (7, 3)


def depthwise_work(sizes: Sizes, config: Config, taps: tuple[int, int], grid: tuple[int, int]) -> Work:
    """Count a forward pass or a phase of the input gradient, by the kernel that the plan takes at dilation 1.

    Args:
        sizes: The problem.
        config: Tile sizes.
        taps: Taps of the launch: of a phase, some of the problem's.
        grid: Rows and columns of its result, likewise.
    """
    # Phases are at stride 1.
    strides = (1, 1) if sizes.direction == "input" else sizes.stride
    columns = row_columns(sizes.layout, strides, taps, config)
    if sizes.alpha != "map" and columns:
        return _rows_work(sizes, config, taps, grid, columns)
    return _general_work(sizes, config, taps, grid)


def _rows_work(sizes: Sizes, config: Config, taps: tuple[int, int], grid: tuple[int, int], columns: int) -> Work:
    """Count the row kernel: a block reads the next row while it computes with the one at hand."""
    rows, width, channels = config[:3]
    (kh, kw), item, every = taps, item_size(sizes.dtype), sizes.groups * sizes.outputs
    stacked = sizes.kernels if sizes.alpha in ("shared", "sample") else 1
    read, result = moved_pixels(sizes, grid)
    blocks = cdiv(every, channels) * cdiv(grid[1], width) * cdiv(grid[0], rows) * sizes.batch
    steps = min(rows, grid[0]) + kh - 1
    # Threads that share columns in other registers or warps find them in L1.
    reach, y = width + kw - 1, result * every * item
    return Work(
        "_tunable_conv2d_depthwise_rows_kernel",
        blocks,
        memory=read * every * item + sizes.kernels * every * kh * kw * item + y,
        l2=blocks * (steps * reach + stacked * kh * kw) * channels * item + y,
        lanes=blocks * steps * width * channels * kh * kw * PER_PRODUCT[0] // PER_PRODUCT[1],
        # alpha, taps and the first row arrive together
        chain=MEMORY_TRIPS * (1 + steps),
        resident=resident_blocks(taps, config, columns),
    )


def _general_work(sizes: Sizes, config: Config, taps: tuple[int, int], grid: tuple[int, int]) -> Work:
    """Count the other kernel: a block reads the input once per tap and kernel of a map, and waits each time."""
    rows, width, channels = config[:3]
    item, every, depth = item_size(sizes.dtype), sizes.groups * sizes.outputs, taps[0] * taps[1]
    over, blended = sizes.alpha == "map", sizes.alpha in ("shared", "sample")
    passes, stacked = (sizes.kernels if over else 1), (sizes.kernels if blended else 1)
    read, result = moved_pixels(sizes, grid)
    blocks = cdiv(every, channels) * cdiv(grid[1], width) * cdiv(grid[0], rows) * sizes.batch
    reach = (width - 1) * sizes.stride[1] + taps[1]
    maps, y = (4 * result * sizes.kernels if over else 0), result * every * item
    return Work(
        "_tunable_conv2d_depthwise_kernel",
        blocks,
        memory=read * every * item + sizes.kernels * every * depth * item + y + maps,
        l2=blocks * (rows * taps[0] * passes * reach + stacked * depth) * channels * item + y + maps,
        lanes=result * every * depth * passes * 2,
        # alpha, then the taps, then the rows
        chain=MEMORY_TRIPS * (2 + rows * depth * passes),
        resident=resident_tiles(config),
    )


def depthwise_weight_work(sizes: Sizes, config: Config, splits: int) -> Work:
    """Count the depthwise weight gradient, by the kernel that the plan takes at dilation 1."""
    columns = row_columns(sizes.layout, sizes.stride, sizes.taps, config)
    if sizes.alpha != "map" and columns:
        return _weight_rows_work(sizes, config, splits, columns)
    return _general_weight_work(sizes, config, splits)


def _weight_rows_work(sizes: Sizes, config: Config, splits: int, columns: int) -> Work:
    """Count the row kernel: a block reads the next rows while it computes with those at hand."""
    (rows, width, lanes), (kh, kw) = config[:3], sizes.taps
    item, channels = item_size(sizes.dtype), sizes.groups * sizes.outputs
    sums, pixels = summed_pixels(sizes)
    samples = sizes.batch // sums
    strips = samples * cdiv(sizes.size[1], width) * cdiv(sizes.size[0], rows)
    blocks = cdiv(channels, lanes) * splits * sums
    steps = min(rows, sizes.size[0]) + kh - 1
    read, result = moved_pixels(sizes, sizes.size)
    partial = 4 * sums * splits * channels * kh * kw
    every = sums * strips * steps * channels
    return Work(
        "_tunable_conv2d_depthwise_weight_rows_kernel",
        blocks,
        memory=(read + result) * channels * item,
        l2=(every * (width + kw - 1) + sums * pixels * channels) * item + partial,
        lanes=every * width * kh * kw * PER_PRODUCT[0] // PER_PRODUCT[1],
        chain=MEMORY_TRIPS * cdiv(strips, splits) * (1 + steps),
        workspace=partial,
        resident=resident_blocks(sizes.taps, config, columns),
    )


def _general_weight_work(sizes: Sizes, config: Config, splits: int) -> Work:
    """Count the other kernel: a block waits for every strip of one row and `block_n` columns."""
    _, width, lanes = config[:3]
    item, channels, (kh, kw) = item_size(sizes.dtype), sizes.groups * sizes.outputs, sizes.taps
    sums, pixels = summed_pixels(sizes)
    tap_rows = kh if kh * kw <= 9 else 1
    blocks = cdiv(channels, lanes) * cdiv(kh, tap_rows) * splits * sums
    strips = cdiv(pixels // sizes.size[1] * cdiv(sizes.size[1], width), splits)
    read, result = moved_pixels(sizes, sizes.size)
    partial = 4 * sums * splits * channels * kh * kw
    return Work(
        "_tunable_conv2d_depthwise_weight_kernel",
        blocks,
        memory=(read + result) * channels * item,
        l2=sums * pixels * channels * (cdiv(kh, tap_rows) + kh) * item + partial,
        lanes=sums * pixels * channels * kh * kw * 2,
        chain=MEMORY_TRIPS * strips,
        workspace=partial,
        resident=resident_tiles(config),
    )
