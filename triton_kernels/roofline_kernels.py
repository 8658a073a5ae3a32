"""The work of every convolution kernel, counted from problem and tile sizes: what `roofline.seconds` turns into time.

The counts are those of the launches that `plan_problem` and the backends make; `roofline_depthwise`, `roofline_blends`
and `roofline_wgmma` have the other kernels. Nothing that chooses is imported here, so that `choose_algorithm` can ask
for predictions.
"""

import itertools

from tunable_ops.triton_kernels.launch import Config, cdiv
from tunable_ops.triton_kernels.phases import lines
from tunable_ops.triton_kernels.roofline import MEMORY_TRIPS, Work
from tunable_ops.triton_kernels.roofline_depthwise import depthwise_weight_work, depthwise_work
from tunable_ops.triton_kernels.roofline_sizes import Sizes, item_size, moved_pixels, resident_tiles, summed_pixels


def work_of(sizes: Sizes, config: Config, splits: int = 1) -> list[Work]:
    """Count the launches that `plan_problem` makes for a problem, of which an input gradient has one per phase.

    Args:
        sizes: The problem; an input gradient has "same" padding.
        config: Tile sizes.
        splits: Partial sums per weight gradient.
    """
    if sizes.direction == "weight":
        count = depthwise_weight_work if sizes.kind == "depthwise" else weight_work
        return [count(sizes, config, splits)]
    if sizes.direction != "input" or sizes.stride == (1, 1) or sizes.kind == "pointwise":
        return [_convolution(sizes, config, sizes.taps, sizes.size)]
    (height, width), (kh, kw) = sizes.size, sizes.taps
    rows = [*lines(height, kh, sizes.stride[0], kh // 2, 1)]
    columns = [*lines(width, kw, sizes.stride[1], kw // 2, 1)]
    found = []
    for row, column in itertools.product(rows, columns):
        taps = (_length(row.taps, kh), _length(column.taps, kw))
        grid = (_length(row.pixels, height), _length(column.pixels, width))
        found.append(_convolution(sizes, config, taps, grid))
    return found


def _length(part: slice, size: int) -> int:
    return len(range(size)[part])


def _convolution(sizes: Sizes, config: Config, taps: tuple[int, int], grid: tuple[int, int]) -> Work:
    if sizes.kind == "depthwise":
        return depthwise_work(sizes, config, taps, grid)
    if sizes.kind == "pointwise":
        return product_work("_tunable_conv2d_pointwise_kernel", sizes, config, (1, 1), grid)
    over = sizes.alpha == "map" and sizes.direction == "input"
    name = "_tunable_conv2d_map_input_kernel" if over else "_tunable_conv2d_forward_kernel"
    return product_work(name, sizes, config, taps, grid)


def product_work(
    kernel: str,
    sizes: Sizes,
    config: Config,
    taps: tuple[int, int],
    grid: tuple[int, int],
    stack: int | None = None,
) -> Work:
    """Count a product of pixels [M, K] with kernels [K, N]: every step copies a tile of each to shared memory.

    Args:
        kernel: Its name.
        sizes: The problem.
        config: Tile sizes.
        taps: Taps of the product: of a phase, some of the problem's.
        grid: Pixels of its result, likewise.
        stack: Kernels in memory; default: the problem's, and one per sample where they are blended already.
    """
    block_m, block_n, block_k = config[:3]
    item, depth, inputs, outputs = item_size(sizes.dtype), taps[0] * taps[1], sizes.inputs, sizes.outputs
    over, blended = sizes.alpha == "map", sizes.alpha in ("shared", "sample")
    passes, stacked = (sizes.kernels if over else 1), (sizes.kernels if blended else 1)
    read, result = moved_pixels(sizes, grid)
    pixels = result // sizes.batch
    joined = sizes.alpha == "shared" and sizes.batch > 1 and (sizes.kind == "pointwise" or pixels % block_m != 0)
    tiles_m = cdiv(result, block_m) if joined else sizes.batch * cdiv(pixels, block_m)
    tiles_n = cdiv(outputs, block_n)
    blocks = tiles_m * tiles_n * sizes.groups
    by_tap = kernel == "_tunable_conv2d_map_input_kernel" or sizes.kind == "pointwise"
    steps = passes * (depth * cdiv(inputs, block_k) if by_tap else cdiv(depth * inputs, block_k))
    tile_x, tile_w = block_m * block_k * item, block_k * block_n * item
    # Both operands of the product come from shared memory, the second once per 64 rows; a blend reads and writes it.
    in_shared = 2 * tile_x + tile_w * (1 + cdiv(block_m, 64)) + (tile_w * 2 * stacked if blended else 0)
    stack = stack or (sizes.batch if sizes.alpha == "none" else sizes.kernels)
    weights = stack * outputs * depth * inputs * sizes.groups
    maps = 4 * result * sizes.kernels if over else 0
    y = result * outputs * sizes.groups * item
    x_again = result * tiles_n * depth * inputs * sizes.groups * passes * item
    w_again = tiles_m * outputs * depth * inputs * sizes.groups * passes * stacked * item
    return Work(
        kernel,
        blocks,
        memory=read * inputs * sizes.groups * item + weights * item + y + maps,
        l2=x_again + w_again + y + maps,
        shared=blocks * steps * in_shared,
        products=blocks * steps * block_m * block_n * block_k,
        lanes=blocks * (2 * stacked * steps * block_k * block_n * blended + passes * block_m * block_n),
        chain=MEMORY_TRIPS + 1,
        dtype=sizes.dtype,
        resident=resident_tiles(config, config.num_stages * (tile_x + stacked * tile_w)),
    )


def weight_work(sizes: Sizes, config: Config, splits: int) -> Work:
    """Count the weight gradient [outputs, pixels] x [pixels, taps times inputs] into fp32 partial sums."""
    block_m, block_n, block_k = config[:3]
    item, columns = item_size(sizes.dtype), sizes.inputs * sizes.taps[0] * sizes.taps[1]
    sums, pixels = summed_pixels(sizes)
    tiles_m, tiles_n = cdiv(sizes.outputs, block_m), cdiv(columns, block_n)
    blocks = sizes.groups * tiles_m * tiles_n * splits * sums
    steps = cdiv(cdiv(pixels, splits), block_k)
    read, result = moved_pixels(sizes, sizes.size)
    tile_a, tile_b = block_m * block_k * item, block_k * block_n * item
    partial = 4 * sums * splits * sizes.outputs * columns * sizes.groups
    return Work(
        "_tunable_conv2d_weight_kernel",
        blocks,
        memory=(read * sizes.inputs + result * sizes.outputs) * sizes.groups * item,
        l2=sums * pixels * (tiles_n * sizes.outputs + tiles_m * columns) * sizes.groups * item + partial,
        shared=blocks * steps * (2 * tile_a + tile_b * (1 + cdiv(block_m, 64))),
        products=blocks * steps * block_m * block_n * block_k,
        lanes=blocks * steps * block_k * block_m * (sizes.alpha == "map"),
        chain=MEMORY_TRIPS + 1,
        workspace=partial,
        dtype=sizes.dtype,
        resident=resident_tiles(config, config.num_stages * (tile_a + tile_b)),
    )
