"""How the contraction of kernel gradients is dealt out to blocks: over samples and partial sums, and over elements."""

from typing import NamedTuple

from tunable_ops.triton_kernels.launch import cdiv

# Rows and columns of a tile of G hold this many elements, 32 for each thread.
TILE = 4096
ROWS = 16
# Elements that a block of the second launch adds up over ROWS slots at a time, and parts of a value of alpha.
SUM_BLOCK, ALPHA_BLOCK = 128, 512


class Tiles(NamedTuple):
    """Tile sizes of the contraction of G [rows, N].

    Attributes:
        rows: Rows of G that a block takes at a time.
        block: Elements of a kernel that it takes.
        slots: Runs of rows that different blocks take; each writes a partial sum, unless it is the only one.
        slot_rows: Rows of a run, a multiple of `rows`.
    """

    rows: int
    block: int
    slots: int
    slot_rows: int

    def blocks(self, size: int) -> int:
        """Return the number of blocks along the elements of a kernel."""
        return cdiv(size, self.block)


def choose_tiles(size: int, rows: int, kernels: int, processors: int) -> Tiles:
    """Choose tiles that fill the GPU: two waves of two blocks per multiprocessor, if there is that much to do.

    Args:
        size: Elements of a kernel.
        rows: Rows of G: samples times partial sums.
        kernels: P.
        processors: Multiprocessors of the GPU.
    """
    # With 16 kernels and 16 rows, ptxas spills a few registers on sm_80.
    tile_rows = min(ROWS if kernels <= 8 else 8, 1 << (rows - 1).bit_length())
    steps = cdiv(rows, tile_rows)
    # Every thread holds its elements of P sums; with 3 kernels and blocks of 256, ptxas spills a few on sm_90.
    block = min(TILE // tile_rows, 1024 if kernels <= 2 else 128)
    while block > 128 and cdiv(size, block) * steps < 2 * processors:
        block //= 2
    slots = max(1, min(steps, 4 * processors // cdiv(size, block)))
    slot_steps = cdiv(steps, slots)
    return Tiles(tile_rows, block, cdiv(steps, slot_steps), slot_steps * tile_rows)
