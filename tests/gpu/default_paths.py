"""The paths that calls take by default on a GPU, listed from the dispatch, and cases that reach them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from tunable_ops.triton_kernels.choose_algorithm import Problem, choose_algorithm, suits_wgmma
from tunable_ops.triton_kernels.launch import Geometry

from tests.ops.conv2d_cases import Case
from tunable_ops.backends import wgmma
from tunable_ops.backends.triton import problem as dispatch


class Path(NamedTuple):
    """A pass of one kind of layer, and the algorithm that the rule gives it without a table.

    `hopper` is True on a GPU of compute capability 9.0, where the wgmma kernel is one of them.
    """

    hopper: bool
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
            for hopper in (True, False):
                choice = choose_algorithm(problem, wgmma=hopper and suits_wgmma(problem))
                found.add(Path(hopper, direction, kind, alpha, dtype, layout, choice.algorithm))
    return found


@contextmanager
def pretended(hopper: bool) -> Iterator[None]:
    """The dispatch as on a GPU of compute capability 9.0, or on another one, for tensors anywhere."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(wgmma, "_missing", None))
        stack.enter_context(patch.object(wgmma, "_is_hopper", lambda device: hopper))
        stack.enter_context(patch.object(wgmma, "is_ready", lambda *_: True))
        yield


def taken(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool) -> set[Path]:
    """Return the paths that forward and backward of a case take, on both kinds of GPU."""
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
        for hopper in (True, False):
            found.add(_path(hopper, direction, kind, source, weight, a, geometry, groups, result))
    return found


def _path(hopper: bool, direction: str, kind: str, source: Tensor, weight: Tensor, alpha: Tensor, *rest: Any) -> Path:
    problem = dispatch.make_problem(direction, kind, source, weight, alpha, *rest)
    with pretended(hopper):
        algorithm = dispatch.choose(direction, kind, source, weight, alpha, *rest).algorithm
    return Path(hopper, direction, kind, problem.alpha, problem.dtype, problem.layout, algorithm)


_SIZES = (19, 21)
SHAPES = (
    Case(channels=16, outputs=24, size=_SIZES, kernels=2),
    Case(channels=144, outputs=136, size=(9, 11), kernels=2),
    Case(channels=16, outputs=24, size=_SIZES, kernels=8),
    Case(channels=144, outputs=136, size=(9, 11), kernels=8),
    Case(channels=16, outputs=32, size=_SIZES, kernels=2, stride=(2, 2)),
    Case(channels=16, outputs=24, size=_SIZES, kernels=2, groups=2),
    Case(channels=16, outputs=24, size=_SIZES, kernels=2, taps=(1, 1), padding=(0, 0)),
    Case(channels=144, outputs=136, size=(9, 11), kernels=2, taps=(1, 1), padding=(0, 0)),
    Case(channels=16, outputs=24, size=_SIZES, kernels=8, taps=(1, 1), padding=(0, 0)),
    Case(channels=144, outputs=136, size=(9, 11), kernels=8, taps=(1, 1), padding=(0, 0)),
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
