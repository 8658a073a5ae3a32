"""How the blend of a layer's kernels is dealt out to blocks: elements, and samples that share what is read."""

from typing import NamedTuple

from tunable_ops.triton_kernels.launch import cdiv

# The threads of a block, and the bytes that each reads of a kernel at a time.
THREADS, BYTES = 128, 16
# Samples of a block at most; more would not save much.
SAMPLES = 8
# Bytes of registers that the kernels of a thread take at most.
HELD = 256


class BlendTiles(NamedTuple):
    """Elements and samples of a block."""

    block: int
    samples: int


def choose_blend_tiles(size: int, samples: int, kernels: int, item: int, processors: int) -> BlendTiles:
    """Choose tiles: 16 bytes for a thread and many samples for a block, as long as the blocks fill the GPU.

    Args:
        size: Elements of a kernel.
        samples: Rows of alpha.
        kernels: P.
        item: Bytes of an element.
        processors: Multiprocessors of the GPU.
    """
    block = THREADS * BYTES // item
    while kernels * block * item > THREADS * HELD or (block > 256 and cdiv(size, block) * samples < 2 * processors):
        block //= 2
    rows = min(SAMPLES, 1 << (samples - 1).bit_length())
    while rows > 1 and cdiv(size, block) * cdiv(samples, rows) < 4 * processors:
        rows //= 2
    return BlendTiles(block, rows)
