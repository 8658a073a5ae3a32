"""What `autotune` measures beside the Triton kernels."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from tunable_ops.backends import wgmma
from tunable_ops.triton_kernels.choose_algorithm import Choice, Problem, default_config
from tunable_ops.triton_kernels.plan_problem import Operands


def other_candidates(
    problem: Problem, operands: Operands
) -> Iterator[tuple[Choice, Callable[[], Any], Callable[[], Tensor]]]:
    """Yield a choice, a function that runs it and one that returns its result: the wgmma kernel where it can run."""
    x, weight, bias, alpha, y, geometry = operands
    gradient = problem.direction == "input"
    if alpha is None or not wgmma.fits(problem, y if gradient else x, weight, geometry):
        return
    if not wgmma.is_ready(x, weight, alpha, geometry, "none", gradient):
        return
    out: list[Tensor] = []

    def run() -> None:
        if gradient:
            out[:] = [wgmma.input_gradient(y, x, weight, alpha, geometry)]
        else:
            out[:] = [wgmma.forward(x, weight, bias, alpha, geometry, "none")]

    yield Choice("wgmma", default_config(problem)), run, lambda: out[0]
