"""The work of every kernel, counted from its problem and tile sizes: what `roofline.seconds` turns into time.

The counts are those of the launches that `plan_problem` and the backends make. Nothing that chooses is imported here,
so that `choose_algorithm` can ask for predictions.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from tunable_ops.triton_kernels.contraction import ALPHA_BLOCK, ROWS, SUM_BLOCK, Tiles
from tunable_ops.triton_kernels.launch import Config, cdiv
from tunable_ops.triton_kernels.phases import lines
from tunable_ops.triton_kernels.roofline import MEMORY_TRIPS, Work

# Registers of a multiprocessor in warps of 128 registers a thread: what limits the number of its blocks.
WARPS = 16
SHARED_MEMORY = 227 << 10


Self = TypeVar("Self")


class Sizes(Protocol):
    """What is read of a `choose_algorithm.Problem`, which says what each of them is."""

    @property
    def direction(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def alpha(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def kernels(self) -> int: ...  # noqa: D102
    @property
    def inputs(self) -> int: ...  # noqa: D102
    @property
    def outputs(self) -> int: ...  # noqa: D102
    @property
    def groups(self) -> int: ...  # noqa: D102
    @property
    def taps(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def stride(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102
    def _replace(self: Self, **changes: Any) -> Self: ...


def item_size(dtype: str) -> int:
    """Return the bytes of an element."""
    return 4 if dtype in ("float32", "tf32") else 2


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
    axes = zip(sizes.size, sizes.taps, sizes.stride, strict=True)
    rows, columns = ([*lines(n, k, s, k // 2, 1)] for n, k, s in axes)
    return [
        _convolution(
            sizes, config, tuple(_length(line.taps, k) for line, k in zip(phase, sizes.taps, strict=True)), grid
        )
        for phase in ((row, column) for row in rows for column in columns)
        for grid in [tuple(_length(line.pixels, n) for line, n in zip(phase, sizes.size, strict=True))]
    ]


def _length(part: slice, size: int) -> int:
    return len(range(size)[part])


def _convolution(sizes: Sizes, config: Config, taps: tuple[int, ...], grid: tuple[int, ...]) -> Work:
    if sizes.kind == "depthwise":
        return depthwise_work(sizes, config, taps, grid)
    if sizes.kind == "pointwise":
        return product_work("_tunable_conv2d_pointwise_kernel", sizes, config, (1, 1), grid)
    over = sizes.alpha == "map" and sizes.direction == "input"
    name = "_tunable_conv2d_map_input_kernel" if over else "_tunable_conv2d_forward_kernel"
    return product_work(name, sizes, config, taps, grid)


def _pixels(sizes: Sizes, grid: tuple[int, ...]) -> tuple[int, int]:
    """Return the pixels that the kernel reads and those of its result, of the whole batch."""
    result = sizes.batch * grid[0] * grid[1]
    if sizes.direction == "input":  # the phases share grad_output
        full = sizes.size[0] * sizes.size[1]
        return sizes.batch * full // (sizes.stride[0] * sizes.stride[1]), result
    return result * sizes.stride[0] * sizes.stride[1], result


def _resident(config: Config, shared: int = 0) -> int:
    fits = SHARED_MEMORY // shared if shared else WARPS
    return max(1, min(WARPS // config.num_warps, fits))


def product_work(
    kernel: str,
    sizes: Sizes,
    config: Config,
    taps: tuple[int, ...],
    grid: tuple[int, ...],
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
    read, result = _pixels(sizes, grid)
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
        resident=_resident(config, config.num_stages * (tile_x + stacked * tile_w)),
    )


def depthwise_work(sizes: Sizes, config: Config, taps: tuple[int, ...], grid: tuple[int, ...]) -> Work:
    """Count the depthwise kernel: a block moves down `block_m` rows, and waits for each before it loads the next."""
    rows, width, lanes = config[:3]
    item, channels = item_size(sizes.dtype), sizes.groups * sizes.outputs
    over = sizes.alpha == "map"
    passes, stacked = (sizes.kernels if over else 1), (sizes.kernels if sizes.alpha in ("shared", "sample") else 1)
    read, result = _pixels(sizes, grid)
    tiles = cdiv(channels, lanes) * cdiv(grid[1], width) * cdiv(grid[0], rows)
    blocks, depth = tiles * sizes.batch, taps[0] * taps[1]
    rolling = not over and depth <= 12 and sizes.stride[0] == 1
    step_rows = rows + taps[0] - 1 if rolling else rows * taps[0] * passes
    reach = (width - 1) * sizes.stride[1] + taps[1]
    maps = 4 * result * sizes.kernels if over else 0
    y = result * channels * item
    weights = sizes.kernels * channels * depth * item
    loads = step_rows if rolling else rows * depth * passes
    return Work(
        "_tunable_conv2d_depthwise_kernel",
        blocks,
        memory=read * channels * item + weights + y + maps,
        l2=blocks * (step_rows * reach * lanes + stacked * depth * lanes) * item + y + maps,
        lanes=result * channels * depth * passes * 2,
        # alpha, then the taps, then the rows
        chain=MEMORY_TRIPS * (2 + loads),
        resident=_resident(config),
    )


def weight_work(sizes: Sizes, config: Config, splits: int) -> Work:
    """Count the weight gradient [outputs, pixels] x [pixels, taps times inputs] into fp32 partial sums."""
    block_m, block_n, block_k = config[:3]
    item, columns = item_size(sizes.dtype), sizes.inputs * sizes.taps[0] * sizes.taps[1]
    sums, pixels = _sums(sizes)
    tiles_m, tiles_n = cdiv(sizes.outputs, block_m), cdiv(columns, block_n)
    blocks = sizes.groups * tiles_m * tiles_n * splits * sums
    steps = cdiv(cdiv(pixels, splits), block_k)
    read, result = _pixels(sizes, sizes.size)
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
        resident=_resident(config, config.num_stages * (tile_a + tile_b)),
    )


def depthwise_weight_work(sizes: Sizes, config: Config, splits: int) -> Work:
    """Count the depthwise weight gradient: a block waits for every strip of `block_n` columns."""
    _, width, lanes = config[:3]
    item, channels, (kh, kw) = item_size(sizes.dtype), sizes.groups * sizes.outputs, sizes.taps
    sums, pixels = _sums(sizes)
    tap_rows = kh if kh * kw <= 9 else 1
    blocks = cdiv(channels, lanes) * cdiv(kh, tap_rows) * splits * sums
    strips = cdiv(pixels // sizes.size[1] * cdiv(sizes.size[1], width), splits)
    read, result = _pixels(sizes, sizes.size)
    partial = 4 * sums * splits * channels * kh * kw
    return Work(
        "_tunable_conv2d_depthwise_weight_kernel",
        blocks,
        memory=(read + result) * channels * item,
        l2=sums * pixels * channels * (cdiv(kh, tap_rows) + kh) * item + partial,
        lanes=sums * pixels * channels * kh * kw * 2,
        chain=MEMORY_TRIPS * strips,
        workspace=partial,
        resident=_resident(config),
    )


def _sums(sizes: Sizes) -> tuple[int, int]:
    """Return the number of weight gradients, and the pixels that each sums over."""
    sums = {"shared": 1, "map": sizes.kernels}.get(sizes.alpha, sizes.batch)
    return sums, sizes.size[0] * sizes.size[1] * (sizes.batch if sizes.alpha in ("shared", "map") else 1)


BLEND_BLOCK, NETWORK_BLOCK = 512, 1024


def blend_work(size: int, outputs: int, samples: int, kernels: int, dtype: str) -> Work:
    """Count the blend of a layer's kernels of `size` elements and biases for 1 or B rows of alpha."""
    item, elements = item_size(dtype), size + outputs
    return Work(
        "_tunable_parameter_forward_kernel",
        samples * (cdiv(size, BLEND_BLOCK) + cdiv(outputs, BLEND_BLOCK)),
        memory=kernels * elements * item,
        l2=samples * elements * (kernels + 1) * item,
        lanes=2 * samples * elements * kernels,
        chain=MEMORY_TRIPS + 1,
        workspace=samples * elements * item,
        resident=4,
    )


def contract_work(
    size: int, outputs: int, samples: int, splits: int, kernels: int, dtype: str, tiles: Tiles, again: bool = False
) -> Work:
    """Count the contraction of G into parts of the gradients of a layer's kernels, biases and alpha.

    Args:
        size: Elements of a kernel.
        outputs: Elements of a bias.
        samples: Samples of this launch.
        splits: Partial sums that make up a sample's G.
        kernels: P.
        dtype: Dtype of kernels and biases.
        tiles: Tile sizes.
        again: True if it adds to the parts of a launch before.
    """
    rows = samples * splits
    read = 4 * (rows * size + samples * outputs)
    blocks = (tiles.blocks(size) + tiles.blocks(outputs)) * tiles.slots
    steps = cdiv(min(rows, tiles.slot_rows), tiles.rows)
    stacks = kernels * (size + outputs) * item_size(dtype)
    item = item_size(dtype) if tiles.slots == 1 else 4
    grads = tiles.slots * kernels * (size + outputs) * item * (1 + again)
    shares = 4 * kernels * samples * (tiles.blocks(size) * splits + tiles.blocks(outputs))
    return Work(
        "_tunable_parameter_backward_kernel",
        blocks,
        memory=stacks + (grads if tiles.slots == 1 else 0),
        l2=read + stacks * tiles.slots * steps + grads + shares,
        lanes=2 * kernels * (rows * size + samples * outputs),
        # G, alpha and kernels of a step arrive together; its two reductions per kernel cost about a trip
        chain=MEMORY_TRIPS * (1 + again) + steps * (1 + kernels),
        resident=4,
    )


def contract_sum_work(
    size: int, outputs: int, samples: int, splits: int, kernels: int, dtype: str, tiles: Tiles, summed: bool
) -> Work:
    """Count the sums of the parts that `contract_work` leaves; those of the stacks only if they are `summed`."""
    shares = tiles.blocks(size) * splits + tiles.blocks(outputs)
    stacks = kernels * (size + outputs) * summed
    blocks = cdiv(size, SUM_BLOCK) + cdiv(outputs, SUM_BLOCK)
    written = stacks * item_size(dtype)
    return Work(
        "_tunable_parameter_sum_kernel",
        kernels * (blocks * summed + samples),
        memory=written,
        l2=4 * stacks * tiles.slots + written + 4 * kernels * samples * shares,
        lanes=stacks * tiles.slots + kernels * samples * shares,
        # a step loads a tile and reduces it over rows
        chain=max(2 * cdiv(tiles.slots, ROWS) * summed, 1 + cdiv(shares, ALPHA_BLOCK)),
        resident=4,
    )


def network_blend_work(layers: Sequence[int], kernels: int, dtype: str) -> Work:
    """Count the blend of all layers of a network, given the elements of one kernel of each."""
    item, size = item_size(dtype), sum(layers)
    return Work(
        "_tunable_parameters_forward_kernel",
        sum(cdiv(n, NETWORK_BLOCK) for n in layers),
        memory=(kernels + 1) * size * item,
        l2=(kernels + 1) * size * item,
        lanes=2 * kernels * size,
        # the block's entry, the layer's row, alpha, the kernels in turn
        chain=MEMORY_TRIPS * (3 + kernels),
        resident=4,
    )


def network_contract_work(layers: Sequence[int], kernels: int, dtype: str) -> Work:
    """Count the gradients of all blends of a network."""
    item, size = item_size(dtype), sum(layers)
    return Work(
        "_tunable_parameters_backward_kernel",
        sum(cdiv(n, NETWORK_BLOCK) for n in layers),
        memory=(2 * kernels + 1) * size * item,
        l2=(2 * kernels + 1) * size * item,
        lanes=3 * kernels * size,
        chain=MEMORY_TRIPS * 3 + kernels * (MEMORY_TRIPS + 1),
        resident=4,
    )


def network_sum_work(layers: Sequence[int], kernels: int) -> Work:
    """Count the sums of the parts of grad_alpha of all layers of a network."""
    blocks = [cdiv(n, NETWORK_BLOCK) for n in layers]
    return Work(
        "_tunable_parameters_sum_kernel",
        len(layers) * kernels,
        l2=4 * kernels * sum(blocks),
        chain=2 + cdiv(max(blocks), 128),
        resident=4,
    )
