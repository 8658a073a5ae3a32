"""Tiles of the depthwise row kernel: calls that it serves, registers that suffice, blocks that fill the GPU."""

import pytest
import torch
from tunable_ops.triton_kernels import unavailable_reason
from tunable_ops.triton_kernels.depthwise_tiles import (
    COLUMNS,
    HELD,
    LANES,
    choose_row_tiles,
    fits_registers,
    lanes,
    resident_blocks,
)
from tunable_ops.triton_kernels.launch import Config, Geometry

TILE = Config(32, 16, 64, 4, 1)


def test_what_a_thread_holds() -> None:
    """Two channels of four columns: 9 taps and 12 sums each; 49 and 28 are the most that fit."""
    assert lanes(TILE, COLUMNS) == LANES == 2
    assert fits_registers((7, 7), TILE, COLUMNS) and HELD >= 2 * 7 * 11
    assert not fits_registers((9, 9), TILE, COLUMNS)
    assert not fits_registers((5, 5), TILE._replace(num_warps=2), COLUMNS)
    assert not fits_registers((3, 3), TILE._replace(num_warps=1), COLUMNS)


def test_blocks_of_a_multiprocessor() -> None:
    assert [resident_blocks((k, k), TILE, COLUMNS) for k in (3, 5, 7)] == [7, 3, 2]


@pytest.mark.parametrize(
    "channels, size, batch, taps, wanted",
    [
        (64, (128, 128), 16, (3, 3), (32, 16, 64, 4, 1)),  # 512 blocks, all at once
        (64, (256, 256), 1, (3, 3), (8, 16, 64, 4, 1)),  # short strips, or there would be too few
        (32, (128, 128), 16, (3, 3), (16, 32, 32, 4, 1)),  # a warp has two groups of columns
        (256, (7, 7), 16, (3, 3), (4, 8, 64, 2, 1)),
    ],
)
def test_tiles_fill_the_gpu(
    channels: int, size: tuple[int, int], batch: int, taps: tuple[int, int], wanted: tuple[int, ...]
) -> None:
    assert tuple(choose_row_tiles(channels, size, batch, taps, True, 132)) == wanted


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("channels", [1, 8, 24, 64, 960])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (1080, 1920)])
def test_every_size_has_tiles_that_fit(vectors: bool, channels: int, size: tuple[int, int]) -> None:
    for taps in ((1, 1), (3, 3), (7, 7)):
        config = choose_row_tiles(channels, size, 2, taps, vectors, 132)
        assert fits_registers(taps, config, COLUMNS if vectors else 1)
        assert all(n & (n - 1) == 0 and n > 0 for n in config[:4])


@pytest.mark.skipif(unavailable_reason() is not None, reason="the plans need triton")
def test_calls_that_the_row_kernel_serves() -> None:
    from tunable_ops.triton_kernels.tunable_conv2d_depthwise import columns_of_thread

    x = torch.empty(2, 64, 9, 9, device="meta")
    vectors = x.to(memory_format=torch.channels_last)
    plain = Geometry((1, 1), (1, 1), (1, 1))
    assert columns_of_thread(vectors, (3, 3), plain, TILE) == 4
    assert columns_of_thread(x, (3, 3), plain, TILE) == 1
    assert columns_of_thread(vectors, (3, 3), plain._replace(stride=(1, 2)), TILE._replace(block_n=4)) == 1
    assert columns_of_thread(vectors, (3, 3), plain._replace(stride=(2, 1)), TILE) == 0
    assert columns_of_thread(vectors, (3, 3), plain._replace(dilation=(2, 1)), TILE) == 0
    assert columns_of_thread(vectors, (9, 9), plain, TILE) == 0


@pytest.mark.skipif(unavailable_reason() is not None, reason="compiles")
@pytest.mark.parametrize("taps", [3, 7])
def test_the_machine_code_exchanges_taps_once(taps: int) -> None:
    """All exchanges are before the loop, one in Triton 3.7; in the loop few more instructions than multiply-adds."""
    import triton
    from tunable_ops.triton_kernels import audit
    from tunable_ops.triton_kernels.audit_cases import launches_of
    from tunable_ops.triton_kernels.choose_algorithm import Problem

    sizes = (16, 2, 1, 1, 64, (taps, taps), (1, 1), (128, 128))
    (case,) = launches_of(Problem("forward", "depthwise", "sample", "bfloat16", "nhwc", *sizes), ("forward",))
    finding = audit.audit(case, 90)
    exchanges = taps * taps + 4 if triton.__version__.startswith("3.6.") else 1
    assert finding.faults == () and finding.count("BAR") <= exchanges
    assert finding.loop is not None and finding.loop.barriers == 0
    # Two channels of four columns: eight results a step.
    assert finding.loop.instructions <= 2.4 * 8 * taps * taps


@pytest.mark.skipif(unavailable_reason() is not None, reason="compiles")
def test_the_machine_code_of_the_weight_gradient_exchanges_sums_once() -> None:
    """No barrier in the loop, and at the end one sum of all taps and the bias instead of ten."""
    from tunable_ops.triton_kernels import audit
    from tunable_ops.triton_kernels.audit_cases import launches_of
    from tunable_ops.triton_kernels.choose_algorithm import Problem

    sizes = (16, 2, 1, 1, 64, (3, 3), (1, 1), (128, 128))
    (case,) = launches_of(Problem("forward", "depthwise", "sample", "bfloat16", "nhwc", *sizes), ("weight",))
    assert case.launch.kernel.__name__ == "_tunable_conv2d_depthwise_weight_rows_kernel"
    finding = audit.audit(case, 90)
    assert finding.faults == () and finding.count("BAR") <= 8
    assert finding.loop is not None and finding.loop.barriers == 0
    assert finding.loop.instructions <= 2.6 * 8 * 9
