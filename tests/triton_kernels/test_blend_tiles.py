"""Tiles of a layer's blend: blocks fill the GPU, threads read 16 bytes, registers hold the kernels."""

import pytest
from tunable_ops.triton_kernels.blend_tiles import BYTES, HELD, SAMPLES, THREADS, choose_blend_tiles


def test_tiles_by_hand() -> None:
    assert choose_blend_tiles(589824, 32, 2, 2, 132) == (1024, 8)  # 256 channels, 3x3
    assert choose_blend_tiles(36864, 32, 2, 2, 132) == (1024, 2)
    assert choose_blend_tiles(36864, 1, 2, 2, 132) == (256, 1)  # blocks come before vectors
    assert choose_blend_tiles(589824, 32, 16, 4, 132) == (512, 8)


@pytest.mark.parametrize("size", [1, 576, 36864, 2359296])
@pytest.mark.parametrize("samples", [1, 3, 32, 256])
@pytest.mark.parametrize("kernels", [1, 2, 16])
@pytest.mark.parametrize("item", [2, 4])
def test_every_blend_has_tiles_that_fit(size: int, samples: int, kernels: int, item: int) -> None:
    block, rows = choose_blend_tiles(size, samples, kernels, item, 132)
    assert 128 <= block <= THREADS * BYTES // item and 1 <= rows <= SAMPLES
    assert kernels * block * item <= THREADS * HELD
    assert rows == 1 or -(-size // block) * -(-samples // rows) >= 4 * 132
