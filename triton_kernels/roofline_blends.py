"""The work of the kernels that blend parameters, and of those that contract gradients of blends."""

from collections.abc import Sequence

from tunable_ops.triton_kernels.blend_tiles import choose_blend_tiles
from tunable_ops.triton_kernels.contraction import ALPHA_BLOCK, ROWS, SUM_BLOCK, Tiles
from tunable_ops.triton_kernels.launch import cdiv
from tunable_ops.triton_kernels.roofline import FAST, MEMORY_TRIPS, Work
from tunable_ops.triton_kernels.roofline_sizes import item_size

NETWORK_BLOCK = 1024


def blend_work(size: int, outputs: int, samples: int, kernels: int, dtype: str) -> Work:
    """Count the blend of a layer's kernels of `size` elements and biases for 1 or B rows of alpha."""
    item, elements = item_size(dtype), size + outputs
    block, rows = choose_blend_tiles(size, samples, kernels, item, FAST.multiprocessors)
    runs = cdiv(samples, rows)
    return Work(
        "_tunable_parameter_forward_kernel",
        runs * (cdiv(size, block) + cdiv(outputs, block)),
        memory=kernels * elements * item,
        l2=elements * (runs * kernels + samples) * item,
        lanes=2 * samples * elements * kernels,
        # kernels and alpha arrive together, the stores do not wait
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
    read = 4 * rows * (size + outputs)
    blocks = (tiles.blocks(size) + tiles.blocks(outputs)) * tiles.slots
    steps = cdiv(min(rows, tiles.slot_rows), tiles.rows)
    stacks = kernels * (size + outputs) * item_size(dtype)
    item = item_size(dtype) if tiles.slots == 1 else 4
    grads = tiles.slots * kernels * (size + outputs) * item * (1 + again)
    shares = 4 * kernels * rows * (tiles.blocks(size) + tiles.blocks(outputs))
    return Work(
        "_tunable_parameter_backward_kernel",
        blocks,
        memory=stacks + (grads if tiles.slots == 1 else 0),
        l2=read + stacks * tiles.slots * steps + grads + shares,
        lanes=2 * kernels * rows * (size + outputs),
        # G, alpha and kernels of a step arrive together; its two reductions per kernel cost about a trip
        chain=MEMORY_TRIPS * (1 + again) + steps * (1 + kernels),
        resident=4,
    )


def contract_sum_work(
    size: int, outputs: int, samples: int, splits: int, kernels: int, dtype: str, tiles: Tiles, summed: bool
) -> Work:
    """Count the sums of the parts that `contract_work` leaves; those of the stacks only if they are `summed`."""
    shares = (tiles.blocks(size) + tiles.blocks(outputs)) * splits
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
