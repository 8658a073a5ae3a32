"""The paths that calls take by default on a GPU, listed from the dispatch, and cases that reach them."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tunable_ops.triton_kernels.choose_algorithm import Problem, choose_algorithm
from tunable_ops.triton_kernels.launch import Geometry

from tests.ops.conv2d_cases import Case
from tunable_ops.backends.triton import problem as dispatch


class Path(NamedTuple):
    """A pass of one kind of layer, and the algorithm that the rule gives it without a table."""

    direction: str
    kind: str
    alpha: str
    dtype: str
    layout: str
    algorithm: str


DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
ALPHAS = ("shared", "sample", "map")


def reachable() -> set[Path]:
    """Ask the rule for every kind of problem, below and above each size that it looks at."""
    kinds = {"dense": (3, 3), "pointwise": (1, 1), "depthwise": (3, 3)}
    grid = product(("forward", "input", "weight"), kinds, ALPHAS, DTYPES.values(), ("nhwc", "nchw"))
    found = set()
    for direction, kind, alpha, dtype, layout in grid:
        if direction == "weight" and kind == "pointwise":
            continue  # served by the dense kernel
        for channels, kernels, groups, stride in product((16, 256), (2, 8), (1, 2), (1, 2)):
            sizes = (1, 1, channels) if kind == "depthwise" else (channels, channels, groups)
            if kind == "pointwise" and stride == 2:
                continue
            steps = (stride, stride)
            problem = Problem(direction, kind, alpha, dtype, layout, 4, kernels, *sizes, kinds[kind], steps, (20, 20))
            found.add(Path(direction, kind, alpha, dtype, layout, choose_algorithm(problem).algorithm))
    return found


def taken(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool) -> set[Path]:
    """Return the paths that forward and backward of a case take."""
    x, weight, _, a = case.tensors(alpha, dtype, channels_last)
    y = torch.empty(case.batch, case.outputs, *case.grid, dtype=dtype)
    if channels_last:
        y = y.to(memory_format=torch.channels_last)
    stride, padding, dilation, groups = case.geometry
    geometry = Geometry(stride, padding, dilation)
    found = set()
    for direction, kind, source, result in (
        ("forward", dispatch.forward_kind(weight, geometry, groups, x, y), x, y),
        ("input", dispatch.input_kind(weight, geometry, groups, x, y), y, x),
        ("weight", dispatch.weight_kind(weight, groups), x, y),
    ):
        found.add(_path(direction, kind, source, weight, a, geometry, groups, result))
    return found


def _path(direction: str, kind: str, source: Tensor, weight: Tensor, alpha: Tensor, *rest: Any) -> Path:
    problem = dispatch.make_problem(direction, kind, source, weight, alpha, *rest)
    algorithm = dispatch.choose(direction, kind, source, weight, alpha, *rest).algorithm
    return Path(direction, kind, problem.alpha, problem.dtype, problem.layout, algorithm)


_SIZES = (19, 21)
SHAPES = (
    Case(channels=16, outputs=24, size=_SIZES, kernels=2),
    Case(channels=144, outputs=136, size=(9, 11), kernels=2),
    Case(channels=16, outputs=24, size=_SIZES, kernels=8),
    Case(channels=16, outputs=32, size=_SIZES, kernels=2, stride=(2, 2)),
    Case(channels=16, outputs=24, size=_SIZES, kernels=2, groups=2),
    Case(channels=16, outputs=24, size=_SIZES, kernels=2, taps=(1, 1), padding=(0, 0)),
    Case(channels=144, outputs=136, size=(9, 11), kernels=2, taps=(1, 1), padding=(0, 0)),
    Case(channels=16, outputs=24, size=_SIZES, kernels=8, taps=(1, 1), padding=(0, 0)),
    Case(channels=16, outputs=24, size=_SIZES, kernels=2, taps=(1, 1), padding=(0, 0), groups=2),
    Case(channels=24, outputs=24, size=_SIZES, kernels=2, groups=24),
)


def cases() -> Iterator[tuple[Case, str, torch.dtype, bool]]:
    """List the fewest cases that take all paths, greedily in the order of the shapes."""
    left = reachable()
    for case, alpha, dtype, channels_last in product(SHAPES, ALPHAS, DTYPES, (True, False)):
        paths = taken(case, alpha, dtype, channels_last)
        if paths & left:
            left -= paths
            yield case, alpha, dtype, channels_last
