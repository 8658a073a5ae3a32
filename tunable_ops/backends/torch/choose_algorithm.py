"""The rule that picks the algorithm for a per-sample alpha."""

from typing import Any

from torch import Tensor


def choose_algorithm(input: Tensor, weight: Tensor, geometry: Any, groups: int, backward: bool = False) -> str:
    """Names the fastest of the algorithms in `per_sample` for a call."""
    stride, padding, _ = geometry
    pointwise = tuple(weight.shape[3:]) == (1, 1) and groups == 1
    if pointwise and tuple(stride) == (1, 1) and tuple(padding) == (0, 0):
        return "bmm"
    return "loop"
