"""The work of the wgmma kernel of CUDA C++ (csrc/cuda/hopper_conv.cuh), from the tile that it takes for a layer."""

from typing import NamedTuple

from tunable_ops.triton_kernels.launch import cdiv
from tunable_ops.triton_kernels.roofline import MEMORY_TRIPS, Work
from tunable_ops.triton_kernels.roofline_sizes import SHARED_MEMORY, Sizes


class WgmmaShape(NamedTuple):
    """A tile of the wgmma kernel: channels per step, outputs per block, rows of 64 pixels of two warpgroups."""

    channels: int
    outputs: int
    rows: int


# csrc/cuda/hopper.h
WGMMA_SHAPES = tuple(
    WgmmaShape(channels, outputs, 2 * rows)
    for channels, outputs, rows in ((16, 32, 4), (32, 32, 4), (32, 64, 3), (64, 64, 3), (64, 128, 1), (64, 128, 2))
)
_WGMMA_SLOTS, _WGMMA_CHANNELS = 4, 1024


def wgmma_shape(inputs: int, outputs: int, taps: tuple[int, int]) -> tuple[WgmmaShape, int] | None:
    """Return the tile that the wgmma kernel takes for a layer, and its slots for boxes; None where none fits.

    It is `hopper_plan` of csrc/cuda/hopper.h, with boxes that have a halo.
    """
    found = [(shape, slots) for shape in WGMMA_SHAPES if (slots := _wgmma_slots(shape, inputs, taps)) >= 2]
    if not found or inputs > _WGMMA_CHANNELS:
        return None

    def cost(shape: WgmmaShape) -> tuple[int, int]:
        padded = cdiv(inputs, shape.channels) * shape.channels * cdiv(outputs, shape.outputs)
        slow = (64 + shape.outputs) // 2 if shape.outputs < 64 else shape.outputs
        products = padded * slow * taps[0] * taps[1] * shape.rows * 64 * 24
        traffic = padded * 2 * _wgmma_box(shape, taps) // (2 * shape.channels) * 2048
        return max(products, traffic) * (24 // shape.rows), products * (24 // shape.rows)

    # of equals the last
    return min(reversed(found), key=lambda one: cost(one[0]))


def _wgmma_box(shape: WgmmaShape, taps: tuple[int, int]) -> int:
    """Return the bytes of a box: the tile's pixels and a halo."""
    return (shape.rows + taps[0] - 1) * (64 + taps[1] - 1) * shape.channels * 2


def _wgmma_panel(shape: WgmmaShape, inputs: int, taps: tuple[int, int]) -> int:
    """Return the bytes of the blended kernels of a block."""
    return taps[0] * taps[1] * cdiv(inputs, shape.channels) * shape.outputs * shape.channels * 2


def _wgmma_slots(shape: WgmmaShape, inputs: int, taps: tuple[int, int]) -> int:
    slot = cdiv(_wgmma_box(shape, taps), 1024) * 1024 + 16
    others = _wgmma_panel(shape, inputs, taps) + 8 * 2 * 1024 + 4 * (shape.outputs + 16)
    return min(_WGMMA_SLOTS, (SHARED_MEMORY - others) // slot)


def wgmma_work(sizes: Sizes, multiprocessors: int) -> Work | None:
    """Count the wgmma kernel, CUDA's for compute capability 9.0; None where no tile fits.

    Args:
        sizes: A dense or pointwise problem at stride 1, forward or input.
        multiprocessors: Of the device: the grid is persistent.
    """
    found = wgmma_shape(sizes.inputs, sizes.outputs, sizes.taps)
    if found is None:
        return None
    shape, item = found[0], 2
    (height, width), chunks = sizes.size, cdiv(sizes.inputs, shape.channels)
    if sizes.taps == (1, 1) and height * width % 64 == 0:
        height, width = height * width // 64, 64
    panel = _wgmma_panel(shape, sizes.inputs, sizes.taps)
    tiles = sizes.batch * cdiv(height, shape.rows) * cdiv(width, 64)
    tiles_n = cdiv(sizes.outputs, shape.outputs)
    workers = min(tiles, max(1, multiprocessors // tiles_n))
    products = tiles * tiles_n * shape.rows * 64 * panel // item
    # A block blends once per sample that it meets.
    blends = tiles_n * (workers + (sizes.batch if sizes.alpha == "sample" else 0))
    boxes = tiles * tiles_n * chunks * _wgmma_box(shape, sizes.taps)
    x, y = (sizes.batch * sizes.size[0] * sizes.size[1] * n * item for n in (sizes.inputs, sizes.outputs))
    weights = sizes.kernels * sizes.outputs * sizes.taps[0] * sizes.taps[1] * sizes.inputs * item
    # Per 64 pixels and 16 channels a product reads both operands.
    operands = products // (64 * shape.outputs * 16) * (64 + shape.outputs) * 16 * item
    return Work(
        "hopper_conv_kernel",
        workers * tiles_n,
        memory=x + y + weights,
        l2=boxes + blends * sizes.kernels * panel + y,
        # The results pass through shared memory too, on their way to the copy engine.
        shared=boxes + operands + blends * panel + 2 * y,
        products=products,
        lanes=2 * blends * sizes.kernels * panel // item + 2 * y // item,
        chain=MEMORY_TRIPS * 3,
        dtype=sizes.dtype,
        resident=1,
    )
