"""Choose algorithm and tile sizes for a call: from the GPU's measured table, else by a heuristic.

fused    one kernel blends and convolves
premix   one launch blends kernels and biases into a workspace; our convolution kernel follows, which adds the bias
library  one launch blends; PyTorch's convolution follows (shared alpha), or computes the gradient of the kernel
wgmma    one kernel in CUDA C++ for compute capability 9.0, which the caller launches: a block blends once

The heuristic is based on machine code and arithmetic, not on measurements. Blending inside the kernel saves a launch,
but every tile of pixels reads and blends P kernels again: `roofline_calls` predicts which is faster.
"""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tunable_ops.triton_kernels.depthwise_tiles import choose_row_tiles, power, row_columns
from tunable_ops.triton_kernels.launch import Config, cdiv
from tunable_ops.triton_kernels.roofline import FAST, SLOW, Work, seconds
from tunable_ops.triton_kernels.roofline_calls import blended_calls, convolution_calls, library_calls

ALGORITHMS = ("fused", "premix", "library", "wgmma")
# Bytes of shared memory per block: available from compute capability 8.0 on, and on larger GPUs little enough for two
# blocks per multiprocessor.
SHARED_MEMORY = 99 << 10
# Up to this many kernels are blended inside the convolution.
FUSED_KERNELS = 4
# Up to this many channels the wgmma kernel is predicted to be faster than the library's.
FUSED_CHANNELS = 128
# The most kernels, and taps per dimension, of the wgmma kernel.
WGMMA_KERNELS, WGMMA_TAPS = 16, 7


class Problem(NamedTuple):
    """What the choice depends on; the key of a table's entries."""

    direction: str  # forward, input, weight or, of a map, alpha
    kind: str  # dense, pointwise or depthwise
    alpha: str  # shared, sample, map or none (already blended)
    dtype: str  # float32, tf32, float16 or bfloat16
    layout: str  # nhwc or nchw
    batch: int
    kernels: int
    inputs: int  # per group, as the product sees them: the dimension summed over
    outputs: int  # per group
    groups: int
    taps: tuple[int, int]
    stride: tuple[int, int]
    size: tuple[int, int]  # of the result; for the gradients of kernels and alpha, of grad_output


class Choice(NamedTuple):
    """An algorithm and the tile sizes of its kernel."""

    algorithm: str
    config: Config


TABLES = Path(__file__).parent / "tables"
VERSION = 1
# An entry serves problems whose sizes differ from its own by a factor of 2**NEAR in total.
NEAR = 2.0


_revision = 0
# Called when the tables may have changed, for those who keep choices where they cannot look at the revision.
ON_FORGET: list[Callable[[], None]] = []


def revision() -> int:
    """Return a number that changes whenever the tables may have: what is chosen by an older one is outdated."""
    return _revision


def forget_tables() -> None:
    """Read the tables again at the next choice."""
    global _revision
    load_table.cache_clear()
    choose_algorithm.cache_clear()
    blends_first.cache_clear()
    choose_blended.cache_clear()
    _revision += 1  # last: what chooses meanwhile, by an old table perhaps, is of the old revision
    for function in ON_FORGET:
        function()


@lru_cache(maxsize=4096)
def choose_algorithm(problem: Problem, device: str = "", wgmma: bool = False) -> Choice:
    """Choose the algorithm and the configuration of its kernel for a problem on the GPU of that name.

    Args:
        problem: What to compute.
        device: Name of the GPU, for its table.
        wgmma: Whether "wgmma" can serve the problem here; `suits_wgmma` says what it must be like.
    """
    entries = load_table(TABLES / table_name(device)) if device else {}
    near = min(entries, key=lambda entry: distance(problem, entry), default=None)
    if near is not None and distance(problem, near) <= NEAR and (wgmma or entries[near].algorithm != "wgmma"):
        return entries[near]
    # Up to these channels the kernel is predicted to beat the library's, whatever the taps.
    if wgmma and max(problem.inputs, problem.outputs) <= FUSED_CHANNELS:
        return Choice("wgmma", default_config(problem))
    algorithm = default_algorithm(problem)
    return Choice(algorithm, premixed_config(problem) if algorithm == "premix" else default_config(problem))


def suits_wgmma(problem: Problem) -> bool:
    """Return True if the wgmma kernel computes such problems, at dilation 1 and if its blended kernels fit a block."""
    return (
        problem.direction in ("forward", "input")
        and problem.alpha in ("shared", "sample")
        and problem.dtype in ("float16", "bfloat16")
        and problem.layout == "nhwc"
        and problem.kernels <= WGMMA_KERNELS
        and problem.inputs % 8 == problem.outputs % 8 == 0
        and problem.groups == 1
        and max(problem.taps) <= WGMMA_TAPS
        and problem.stride == (1, 1)
    )


@lru_cache(maxsize=4096)
def blends_first(problem: Problem, device: str = "") -> bool:
    """Return True if a layer should take its kernel from the launch that blends all layers of a network at once.

    Called before there is an input, so the batch and image sizes of `problem` are ignored. A table's entry decides as
    for a call. Without one, 1x1 kernels are blended first too: the fused kernel would save a launch, but here all
    layers share one. Small dense 3x3 kernels and depthwise ones stay fused.
    """
    entries = load_table(TABLES / table_name(device)) if device else {}

    def far(entry: Problem) -> float:
        return distance(problem._replace(batch=entry.batch, size=entry.size), entry)

    near = min(entries, key=far, default=None)
    if near is not None and far(near) <= NEAR:
        return entries[near].algorithm in ("premix", "library")
    if problem.kind != "dense":
        return problem.kind == "pointwise"
    return problem.kernels > FUSED_KERNELS or _suits_library(problem) or _channels(problem) > FUSED_CHANNELS


@lru_cache(maxsize=4096)
def choose_blended(problem: Problem, device: str = "") -> Config | None:
    """Return the tiles of our kernel for a layer whose kernel is blended already; None where the library is faster.

    Ours adds the bias on the way, for which the library takes a pass over the output.

    Args:
        problem: A forward problem with a shared alpha and one kernel.
        device: Name of the GPU, for its table.
    """
    entries = load_table(TABLES / table_name(device)) if device else {}
    near = min(entries, key=lambda entry: distance(problem, entry), default=None)
    if near is not None and distance(problem, near) <= NEAR and entries[near].algorithm != "wgmma":
        return None if entries[near].algorithm == "library" else entries[near].config
    if problem.kind == "depthwise":
        config = default_config(problem._replace(alpha="none"))
    elif _suits_library(problem):
        return None
    else:
        config = premixed_config(problem)
    ours, library = blended_calls(problem, config), library_calls(problem, bias=True)
    return config if _seconds(ours) <= _seconds(library) else None


def distance(problem: Problem, entry: Problem) -> float:
    """Return the sum of |log2| of the ratios of sizes, infinite for problems of different kinds."""
    same = ("direction", "kind", "alpha", "dtype", "layout", "taps", "stride")
    if any(getattr(problem, name) != getattr(entry, name) for name in same):
        return math.inf
    return sum(abs(math.log2(a / b)) for a, b in zip(_sizes(problem), _sizes(entry), strict=True))


def _sizes(problem: Problem) -> tuple[int, ...]:
    pixels = problem.size[0] * problem.size[1]
    return problem.batch, problem.kernels, problem.inputs, problem.outputs, problem.groups, pixels


def table_name(device: str) -> str:
    """Return the file name of a GPU's table, from the name that the driver reports."""
    return "".join(c if c.isalnum() else "_" for c in device.lower()) + ".json"


@lru_cache(maxsize=8)
def load_table(path: Path) -> dict[Problem, Choice]:
    """Read a table that `autotune` wrote; empty if there is none or, with a warning, if it is damaged or outdated."""
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text())
        if table["version"] != VERSION:
            raise ValueError(f"version must be {VERSION}; got {table['version']!r}")
        return {_to_problem(e["problem"]): Choice(e["algorithm"], _to_config(e)) for e in table["entries"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"triton_kernels: {path} is ignored: {error!r}; `tunable-ops autotune` replaces it", stacklevel=2)
        return {}


def _to_problem(fields: dict[str, Any]) -> Problem:
    problem = Problem(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    sizes = (*_sizes(problem), *problem.taps, *problem.stride)
    if not all(type(n) is int and n > 0 for n in sizes):
        raise ValueError(f"sizes of a problem must be positive ints; got {problem}")
    return problem


def _to_config(entry: dict[str, Any]) -> Config:
    config = Config(*entry["config"])
    if entry["algorithm"] not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}; got {entry['algorithm']!r}")
    if not all(type(n) is int and n > 0 and n & (n - 1) == 0 for n in config[:4]) or type(config.num_stages) is not int:
        raise ValueError(f"config must be powers of two and stages; got {entry['config']!r}")
    return config


def default_algorithm(problem: Problem) -> str:
    """Choose the algorithm for a problem that was not measured."""
    if problem.kind == "depthwise" or problem.alpha in ("map", "none"):
        return "fused"
    if problem.direction == "weight":  # no blend: our kernel for a gradient per sample, else the library's
        return "fused" if problem.alpha == "sample" else "library"
    fits = problem.kernels <= FUSED_KERNELS
    if problem.alpha == "sample":
        return "fused" if fits and _predicted(problem, "fused") <= _predicted(problem, "premix") else "premix"
    # All samples share the kernel: once it is blended, the library can do the convolution.
    if _suits_library(problem):
        return "library"
    # Ours adds the bias on the way, and reads and writes the output once less. The input gradient has none.
    possible = [*(["fused"] if fits else []), *(["premix"] if problem.direction == "forward" else []), "library"]
    return min(possible, key=lambda algorithm: _predicted(problem, algorithm))


def _suits_library(problem: Problem) -> bool:
    """Return True for problems with a shared alpha that our kernels are slow at."""
    if problem.dtype == "float32" or (problem.layout == "nchw" and problem.kind == "dense") or problem.groups > 1:
        return True
    return problem.direction == "input" and problem.stride != (1, 1)  # ours takes a launch per phase, the library's one


def _channels(problem: Problem) -> int:
    return max(problem.inputs, problem.outputs)


def _predicted(problem: Problem, algorithm: str) -> float:
    """Return the predicted seconds of a problem on an H100, between the faster and the slower rates."""
    config = premixed_config(problem) if algorithm == "premix" else default_config(problem)
    return _seconds(convolution_calls(problem, algorithm, config, bias=problem.direction == "forward"))


def _seconds(launches: Sequence[Work]) -> float:
    return sum(seconds(work, device) for work in launches for device in (FAST, SLOW)) / 2


def premixed_config(problem: Problem) -> Config:
    """Choose the tile sizes of our kernel for a problem whose kernels are blended first."""
    alpha = "shared" if problem.alpha == "shared" else "none"
    config = default_config(problem._replace(alpha=alpha, kernels=1))
    wide = problem.kind == "dense" and problem.layout == "nhwc" and problem.dtype in ("float16", "bfloat16")
    tiles = problem.batch * cdiv(problem.size[0] * problem.size[1], 128) * problem.outputs // 128
    if wide and config.block_m == 128 and problem.outputs % 128 == 0 and tiles >= FAST.multiprocessors:
        block_k = 64 if problem.inputs % 64 == 0 else 32
        return fit_stages(Config(128, 128, block_k, 8, 3), 1, problem.dtype)
    # 128 x 64 with 4 warps: ptxas spills a register of some input gradients on sm_100.
    narrow = wide and problem.direction == "input" and config[:2] == (128, 64)
    return config._replace(num_warps=8) if narrow else config


def default_config(problem: Problem) -> Config:
    """Choose the tile sizes for a problem that was not measured."""
    if problem.kind == "depthwise":
        return _depthwise_config(problem)
    if problem.direction == "weight":
        return _weight_config(problem)
    kernels = 1 if problem.alpha in ("map", "none") else problem.kernels
    pixels = problem.size[0] * problem.size[1]
    if problem.alpha == "shared":
        pixels *= problem.batch
    # In the input gradient of a map a step stays within one tap and ends with a multiply-add per element of the tile.
    by_tap = problem.alpha == "map" and problem.direction == "input"
    depth = problem.inputs * (1 if by_tap else problem.taps[0] * problem.taps[1])
    # What is loaded one by one takes registers, and larger tiles would spill; the only step of a short sum does not.
    scalar = problem.inputs % 4 != 0 and depth > 32
    narrow = problem.dtype == "float32" or problem.layout == "nchw" or problem.alpha == "map" or scalar
    block_m = power(pixels, 16, 64 if narrow else 128)
    # In fp32 the two accumulators of a map would spill at 64, with tf32 on sm_80.
    wide = problem.alpha != "map" or problem.dtype not in ("float32", "tf32")
    block_n = power(problem.outputs, 16, 64 if wide else 32)
    block_k = next((k for k in (64, 32) if problem.inputs % k == 0), power(depth, 16, 64))
    if narrow:
        block_k = min(block_k, 16 if problem.dtype == "float32" else 64 if by_tap and problem.layout == "nhwc" else 32)
    elif problem.dtype == "tf32" or kernels > FUSED_KERNELS:
        block_k = min(block_k, 32)
    warps = 4
    if not narrow and block_m == 128 and problem.outputs % 128 == 0 and kernels <= 2 and pixels >= 1 << 15:
        block_n, block_k, warps = 128, 32, 8
    return fit_stages(Config(block_m, block_n, block_k, warps, 3), kernels, problem.dtype)


def _weight_config(problem: Problem) -> Config:
    columns = problem.inputs * problem.taps[0] * problem.taps[1]
    scalar = (problem.inputs % 4 != 0 and problem.inputs > 4) or problem.outputs % 4 != 0
    narrow = problem.dtype in ("float32", "tf32") or problem.layout == "nchw" or scalar
    block_m = power(problem.outputs, 16, 64)
    block_n = power(columns, 16, 64 if narrow or problem.alpha == "map" else 128)
    block_k = power(problem.size[0] * problem.size[1], 16, 64)
    if narrow:
        block_k = min(block_k, 16 if problem.dtype == "float32" else 32)
    # 64 x 64 with 4 warps: ptxas spills a few registers on sm_80.
    warps = 8 if not narrow and block_m == block_n == 64 else 4
    return fit_stages(Config(block_m, block_n, block_k, warps, 3), 1, problem.dtype)


def choose_splits(problem: Problem, config: Config, processors: int, limit: int) -> int:
    """Choose the number of partial sums per weight gradient: enough blocks for the GPU, enough pixels for each.

    Args:
        problem: Problem in the direction "weight".
        config: Tile sizes of its kernel.
        processors: Multiprocessors of the GPU.
        limit: Number of sums that the workspace can hold.
    """
    sums = {"shared": 1, "map": problem.kernels}.get(problem.alpha, problem.batch)
    pixels = problem.size[0] * problem.size[1] * (problem.batch if problem.alpha in ("shared", "map") else 1)
    columns = problem.inputs * problem.taps[0] * problem.taps[1]
    if problem.kind == "depthwise":
        blocks, steps = cdiv(problem.groups * problem.outputs, config.block_k), cdiv(pixels, config.block_n)
        if problem.alpha != "map" and row_columns(problem.layout, problem.stride, problem.taps, config):
            (height, width), samples = problem.size, problem.batch // sums
            strips = samples * cdiv(width, config.block_n) * cdiv(height, config.block_m)
            most = max(1, min(cdiv(4 * processors, blocks * sums), strips, limit))
            return cdiv(strips, cdiv(strips, most))  # as many strips for each, and none idle
    else:
        blocks = problem.groups * cdiv(problem.outputs, config.block_m) * cdiv(columns, config.block_n)
        steps = cdiv(pixels, config.block_k)
    return max(1, min(cdiv(4 * processors, blocks * sums), steps // 8, limit))


def fit_stages(config: Config, kernels: int, dtype: str) -> Config:
    """Reduce the stages to what fits in shared memory: each holds a tile of pixels and P tiles of kernels."""
    item = 4 if dtype in ("float32", "tf32") else 2
    operands = config.block_k * (config.block_m + config.block_n) * item
    stage = config.block_k * (config.block_m + kernels * config.block_n) * item
    stages = max(1, min(config.num_stages, 1 + (SHARED_MEMORY - operands) // stage))
    return config._replace(num_stages=stages)


def _depthwise_config(problem: Problem) -> Config:
    channels, (height, width), vectors = problem.outputs * problem.groups, problem.size, problem.layout == "nhwc"
    if problem.direction != "alpha" and problem.alpha != "map" and problem.stride == (1, 1):
        rows = choose_row_tiles(channels, problem.size, problem.batch, problem.taps, vectors, FAST.multiprocessors)
        # In contiguous pictures with 2 warps, ptxas spills two registers of the weight gradient on sm_100.
        return rows._replace(num_warps=4) if problem.direction == "weight" and not vectors else rows
    if vectors:
        # A thread of 2 warps would hold the sums of 8 elements, and be one of few.
        return Config(power(height, 4, 16), 8, power(channels, 8, 64), 4 if problem.direction == "weight" else 2, 1)
    return Config(power(height, 4, 16), power(width, 16, 128), cdiv(128, power(width, 16, 128)), 2, 1)


def dtype_name(dtype: torch.dtype, precision: str) -> str:
    """Return the dtype's name in a problem: fp32 that may be rounded to tf32 is "tf32"."""
    return precision if precision == "tf32" else str(dtype).removeprefix("torch.")
