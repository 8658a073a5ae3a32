"""The blends of many tensors for one alpha."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunable_ops.reference.tunable_parameter import tunable_parameter


def tunable_parameters(
    parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Blends every stack with its own part of alpha: ``y[i] = sum_p alpha[starts[i] + p] * parameters[i][p]``.

    Args:
        parameters: [P_i, *shape_i] each.
        alpha: [A].
        starts: Where each stack's P_i values begin in alpha.
        dtype: Of the results; default each stack's own. Rounded once.

    Returns:
        [*shape_i] each.
    """
    return [
        tunable_parameter(parameter, alpha[start : start + parameter.shape[0]], dtype)
        for parameter, start in zip(parameters, starts, strict=True)
    ]
