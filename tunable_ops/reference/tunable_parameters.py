"""The blends of many tensors for one alpha."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunable_ops.reference.tunable_parameter import tunable_parameter


def tunable_parameters(
    parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Blend every stack with its own part of alpha: ``y[i] = sum_p alpha[starts[i] + p] * parameters[i][p]``.

    Args:
        parameters: [P_i, *shape_i] each.
        alpha: [A].
        starts: Index in alpha of each stack's first value.
        dtype: Dtype of the results; by default that of each stack.

    Returns:
        [*shape_i] each.
    """
    return [
        tunable_parameter(parameter, alpha[start : start + parameter.shape[0]], dtype)
        for parameter, start in zip(parameters, starts, strict=True)
    ]
