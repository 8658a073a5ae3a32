"""The model of launches: counts by hand, counts of the plans, and times that grow with what they are made of."""

import ast
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tunable_ops.triton_kernels import roofline, roofline_calls, roofline_wgmma, unavailable_reason
from tunable_ops.triton_kernels.choose_algorithm import Problem
from tunable_ops.triton_kernels.contraction import choose_tiles
from tunable_ops.triton_kernels.launch import Config
from tunable_ops.triton_kernels.roofline import FAST, SLOW, Work
from tunable_ops.triton_kernels.roofline_blends import blend_work, contract_sum_work, contract_work
from tunable_ops.triton_kernels.roofline_kernels import work_of
from tunable_ops.triton_kernels.roofline_wgmma import wgmma_work

ROOT = Path(__file__).parents[2]
# [32, 64, 56, 56], two kernels, bf16
LAYER = Problem("forward", "dense", "sample", "bfloat16", "nhwc", 32, 2, 64, 64, 1, (3, 3), (1, 1), (56, 56))
TILE = Config(128, 64, 64, 4, 3)
PIXELS = 32 * 56 * 56


def test_counts_of_a_dense_layer_by_hand() -> None:
    (work,) = work_of(LAYER, TILE)
    tiles, steps = 32 * 25, 9  # 3136 pixels are 24.5 tiles; nine taps of one chunk of channels
    assert (work.kernel, work.blocks) == ("_tunable_conv2d_forward_kernel", tiles)
    assert work.memory == 2 * PIXELS * 64 * 2 + 2 * 64 * 64 * 9 * 2
    assert work.products == tiles * steps * 128 * 64 * 64
    # Every pixel once per tap, two tiles of kernels per step, the output once.
    assert work.l2 == PIXELS * 64 * 9 * 2 + tiles * steps * 2 * 64 * 64 * 2 + PIXELS * 64 * 2
    # Pixels in and out; two kernels in and out; the blend in, and out for each of two warpgroup's rows.
    assert work.shared == tiles * steps * (2 * 128 * 64 + 2 * 2 * 64 * 64 + 3 * 64 * 64) * 2


def test_a_step_moves_32_kilobytes_in_256_clocks() -> None:
    full = work_of(LAYER._replace(size=(64, 64)), TILE)[0]
    steps = full.blocks * 9
    output = 32 * 64 * 64 * 64 * 2
    assert (full.l2 - output) / steps == 32 << 10
    assert full.products / steps / 2048 == 256


def test_counts_of_other_kernels_by_hand() -> None:
    (one,) = work_of(LAYER._replace(kind="pointwise", taps=(1, 1), alpha="shared"), TILE)
    assert one.blocks == 784 and one.products == 784 * 128 * 64 * 64  # the batch is one row of pixels
    assert one.memory == 2 * PIXELS * 64 * 2 + 2 * 64 * 64 * 2
    deep = LAYER._replace(kind="depthwise", inputs=1, outputs=1, groups=64)
    (work,) = work_of(deep, Config(16, 8, 64, 2, 1))
    assert work.kernel == "_tunable_conv2d_depthwise_rows_kernel"
    assert work.blocks == 32 * 4 * 7 and work.products == 0
    assert work.memory == 2 * PIXELS * 64 * 2 + 2 * 64 * 9 * 2
    assert work.l2 == work.blocks * (18 * 10 * 64 + 2 * 9 * 64) * 2 + PIXELS * 64 * 2
    assert work.lanes == work.blocks * 18 * 8 * 64 * 9 * 7 // 3 and work.chain == 2 * 19
    # At stride 2 every row of taps reads its row, and every tap waits.
    (work,) = work_of(deep._replace(stride=(2, 2)), Config(16, 8, 64, 2, 1))
    assert work.kernel == "_tunable_conv2d_depthwise_kernel" and work.chain == 2 * (2 + 16 * 9)
    assert work.l2 == work.blocks * (16 * 3 * 17 + 2 * 9) * 64 * 2 + PIXELS * 64 * 2
    (weight,) = work_of(LAYER._replace(direction="weight"), Config(64, 128, 64, 4, 3), splits=4)
    assert weight.blocks == 5 * 4 * 32
    assert weight.workspace == 4 * 4 * 32 * 64 * 64 * 9
    assert weight.products == weight.blocks * 13 * 64 * 128 * 64  # a quarter of 3136 pixels in steps of 64
    # Four strips of 16 rows in seven columns of tiles: 14 splits take two each.
    (work,) = work_of(deep._replace(direction="weight"), Config(16, 8, 64, 2, 1), splits=14)
    assert (work.kernel, work.blocks) == ("_tunable_conv2d_depthwise_weight_rows_kernel", 32 * 14)
    assert work.memory == 2 * PIXELS * 64 * 2 and work.workspace == 4 * 32 * 14 * 64 * 9
    assert work.l2 == (32 * 28 * 18 * 10 + PIXELS) * 64 * 2 + work.workspace
    assert work.chain == 2 * 2 * 19
    blend = blend_work(36864, 64, 32, 2, "bfloat16")
    # Blocks of 1024 elements and two samples; each reads two kernels.
    assert blend.blocks == 16 * 37 and blend.memory == 2 * (36864 + 64) * 2
    assert blend.l2 == (16 * 2 + 32) * (36864 + 64) * 2


def test_counts_of_the_contraction_by_hand() -> None:
    """128 rows of 36864 elements: 144 blocks of 256, and one of the bias, times four runs of 32 rows in tiles of 16."""
    tiles = choose_tiles(36864, 32 * 4, 2, 132)
    assert tiles == (16, 256, 3, 48)
    sizes = (36864, 64, 32, 4, 2, "bfloat16", tiles)
    work = contract_work(*sizes)
    assert work.blocks == 3 * 145 and work.chain == 2 + 3 * 3
    G, stacks, parts = 4 * 32 * 4 * (36864 + 64), 2 * 36928 * 2, 3 * 2 * 36928 * 4
    shares = 32 * 2 * (144 + 1) * 4 * 4
    assert work.l2 == G + 3 * 3 * stacks + parts + shares
    again = contract_work(*sizes, again=True)
    assert again.l2 == work.l2 + parts and again.chain == work.chain + 2
    last = contract_sum_work(*sizes, summed=True)
    assert last.blocks == 2 * (288 + 1 + 32)
    assert last.l2 == parts + stacks + shares
    assert contract_sum_work(*sizes, summed=False).blocks == 64


def test_the_sums_of_a_bias_are_counted() -> None:
    """The contraction reads as many of them as of the kernels' gradients; depthwise blocks write them on the way."""
    deep = LAYER._replace(direction="weight", kind="depthwise", inputs=1, outputs=1, groups=64)
    config = Config(16, 8, 64, 2, 1)
    (gradient, contraction, _) = roofline_calls.kernel_gradient_calls(deep, "fused", config, lambda most: 14)
    (bare,) = work_of(deep, config, 14)
    written = 4 * 32 * 14 * 64
    assert gradient.l2 == bare.l2 + written and gradient.workspace == bare.workspace + written
    assert gradient.lanes == bare.lanes + PIXELS * 64 and gradient.blocks == bare.blocks
    tiles = choose_tiles(576, 32 * 14, 2, 132)
    assert contraction == contract_work(576, 64, 32, 14, 2, "bfloat16", tiles)


@pytest.mark.parametrize("size", [1, 64, 576, 2304, 36864, 589824])
@pytest.mark.parametrize("rows", [1, 2, 16, 128, 1056])
@pytest.mark.parametrize("kernels", [1, 2, 16])
def test_the_contraction_fills_the_gpu(size: int, rows: int, kernels: int) -> None:
    tiles = choose_tiles(size, rows, kernels, 132)
    blocks = tiles.blocks(size) * tiles.slots
    assert (tiles.slots - 1) * tiles.slot_rows < rows <= tiles.slots * tiles.slot_rows
    # About two waves of two blocks, unless there is less to do than a tile of 8 rows and 128 elements for each.
    work = tiles.blocks(size) * -(-rows // tiles.rows)
    assert blocks >= min(work, 264)
    assert blocks <= 528 or tiles.slots == 1
    assert work >= 264 or (tiles.block == 128 and tiles.rows >= min(rows, 8))
    assert tiles.slots * kernels <= 2 * max(rows, kernels)  # parts take at most twice the memory of G


def test_counts_of_the_wgmma_kernel_by_hand() -> None:
    """Two warpgroups of three rows of 64 pixels, and all 64 outputs: one box of 8 rows and 66 columns per tile."""
    work = wgmma_work(LAYER, 132)
    assert work is not None and work.blocks == 132
    tiles = 32 * 10  # 56 rows are 9.3 tiles of six, 56 columns one of 64
    assert work.products == tiles * 6 * 64 * 64 * 64 * 9
    assert work.memory == 2 * PIXELS * 64 * 2 + 2 * 64 * 64 * 9 * 2
    panel, boxes, y = 9 * 64 * 64 * 2, tiles * 8 * 66 * 64 * 2, PIXELS * 64 * 2
    blends = 132 + 32
    assert work.l2 == boxes + blends * 2 * panel + y
    # Per 64 pixels and 16 channels 64 rows of each operand; the panel once; the results in and out.
    assert work.shared == boxes + tiles * 6 * 9 * 4 * 2 * 64 * 16 * 2 + blends * panel + 2 * y
    shared = wgmma_work(LAYER._replace(alpha="shared"), 132)
    assert shared is not None and shared.l2 == work.l2 - 32 * 2 * panel  # a block blends once
    assert wgmma_work(LAYER._replace(inputs=1024, outputs=1024), 132) is None


PLANS = """
#include <cstdio>
#include "hopper.h"
int main() {
  for (int c, o, h, w; std::scanf("%d %d %d %d", &c, &o, &h, &w) == 4;) {
    const auto plan = tunable_ops::cuda::hopper_plan(c, o, h, w);
    const auto shape = tunable_ops::cuda::hopper_shape(plan);
    const bool none = plan.slots == 0;
    std::printf("%d %d %d %d\\n", none ? 0 : shape.channels, none ? 0 : shape.outputs, none ? 0 : shape.tile_rows(),
                plan.slots);
  }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_tiles_of_the_wgmma_kernel_are_its_own(tmp_path: Path) -> None:
    """Those of hopper_plan in csrc/cuda/hopper.h, for layers of every size."""
    (tmp_path / "plans.cpp").write_text(PLANS)
    folder = ROOT / "csrc" / "cuda"
    subprocess.run(["g++", "-std=c++17", f"-I{folder}", tmp_path / "plans.cpp", "-o", tmp_path / "plans"], check=True)
    channels, taps = (8, 16, 24, 32, 48, 64, 96, 128, 136, 256, 512, 1024, 1032), (1, 2, 3, 5, 7)
    layers = list(itertools.product(channels, channels, taps, taps))
    said = subprocess.run(
        [tmp_path / "plans"],
        input="\n".join(" ".join(map(str, layer)) for layer in layers),
        capture_output=True,
        text=True,
        check=True,
    )
    plans = [tuple(map(int, line.split())) for line in said.stdout.splitlines()]
    found = [roofline_wgmma.wgmma_shape(c, o, (h, w)) for c, o, h, w in layers]
    assert [(0, 0, 0, 0) if one is None else (*one[0], one[1]) for one in found] == plans
    assert {plan[:3] for plan in plans} == {(0, 0, 0), *roofline_wgmma.WGMMA_SHAPES}


def test_a_strided_input_gradient_has_a_launch_per_phase() -> None:
    strided = LAYER._replace(direction="input", stride=(2, 2))
    works = work_of(strided, TILE)
    assert len(works) == 4
    taps = [work.products // (work.blocks * 128 * 64 * 64) for work in works]
    assert sorted(taps) == [1, 2, 2, 4]


def test_every_kernel_has_an_entry() -> None:
    kernels = set()
    for file in (ROOT / "triton_kernels").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and re.fullmatch(r"_\w+_kernel", node.name):
                assert any(ast.unparse(d).startswith("triton.jit") for d in node.decorator_list)
                kernels.add(node.name)
    for file in (ROOT / "csrc" / "cuda").glob("hopper*.cuh"):
        kernels |= set(re.findall(r"TO_KERNEL\([^)]*\)\s(\w+)\(", file.read_text()))
    assert len(kernels) > 10
    assert kernels == set(roofline_calls.FAMILIES)


@pytest.mark.parametrize("device", [FAST, SLOW], ids=["fast", "slow"])
def test_times_grow_with_sizes(device: roofline.Device) -> None:
    """By whole tiles: a partial one more may fill multiprocessors that stood idle."""
    for base in (LAYER, LAYER._replace(direction="weight"), LAYER._replace(direction="input", alpha="map")):
        for changes in (
            [{"batch": n} for n in (1, 2, 7, 8, 32, 33, 64)],
            [{"inputs": n} for n in (16, 64, 128, 256)],
            [{"outputs": n} for n in (1, 16, 64, 128, 256)],
            [{"size": (n, n)} for n in (1, 7, 32, 33, 56, 128)],
            [{"taps": (n, n)} for n in (1, 3, 5, 7)],
            [{"kernels": n} for n in (1, 2, 3, 16)],
        ):
            times = [roofline.seconds(work_of(base._replace(**change), TILE)[0], device) for change in changes]
            # the same time may differ in its last digits
            grows = all(b >= a * (1 - 1e-9) for a, b in itertools.pairwise(times))
            constant = base.direction == "weight" and "kernels" in changes[0]
            assert grows and (times[-1] > times[0]) != constant, (base.direction, changes, times)


def test_times_shrink_with_rates() -> None:
    (work,) = work_of(LAYER, TILE)
    assert roofline.seconds(work, SLOW) > roofline.seconds(work, FAST)
    slower = {"multiprocessors": 66, "clock": 1e9, "memory": 1e11, "tensor": 1e13, "lanes": 1e12, "l2": 4, "shared": 8}
    slower |= {"trip": 1 << 20, "launch": 1.0}
    for name, value in slower.items():
        assert roofline.seconds(work, FAST._replace(**{name: value})) > roofline.seconds(work, FAST), name
    spilled = work._replace(workspace=1 << 30)
    assert roofline.seconds(spilled, FAST) > roofline.seconds(work, FAST)
    assert roofline.seconds(spilled._replace(workspace=FAST.cache), FAST) == roofline.seconds(work, FAST)


def test_what_limits_a_launch() -> None:
    tiny = Work("one", 1, memory=1024)
    assert roofline.limit(tiny, FAST) == "launch"
    assert roofline.limit(tiny._replace(memory=1 << 30), FAST) == "memory"
    assert roofline.limit(tiny._replace(chain=100_000), FAST) == "latency"
    # One block has one multiprocessor, whatever the others do.
    one, all_of_them = (roofline.parts(Work("w", n, products=1 << 30), FAST)["product"] for n in (1, 132))
    assert one == pytest.approx(132 * all_of_them)


@pytest.mark.skipif(unavailable_reason() is not None, reason="the plans need triton")
def test_blocks_and_kernels_are_those_of_the_plans() -> None:
    from tunable_ops.triton_kernels.audit_cases import name_of, problems
    from tunable_ops.triton_kernels.choose_algorithm import default_config
    from tunable_ops.triton_kernels.plan_problem import make_operands, plan_problem

    seen = set()
    for problem in dict.fromkeys(problem for problem, _ in problems()):
        config = default_config(problem)
        launches, partial = plan_problem(problem, make_operands(problem, "meta"), config)
        splits = partial.shape[1] if problem.direction == "weight" else 1
        found = [(work.kernel, work.blocks) for work in work_of(problem, config, splits)]
        assert found == [(launch.kernel.__name__, launch.grid[0]) for launch in launches], name_of(problem)
        seen |= {name for name, _ in found}
    assert {name for name, count in roofline_calls.FAMILIES.items() if count is work_of} == seen
