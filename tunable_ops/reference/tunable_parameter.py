"""The blend itself: sum_p alpha[p] * parameter[p]."""

import torch
from torch import Tensor


def tunable_parameter(parameter: Tensor, alpha: Tensor) -> Tensor:
    """Blends P copies of a tensor: ``sum_p alpha[..., p] * parameter[p]``.

    Accumulates in fp32 (fp64 for fp64) and rounds once to the dtype of `parameter`.

    Args:
        parameter: [P, *shape].
        alpha: [P] or [B, P].

    Returns:
        [*shape] or [B, *shape].
    """
    accumulate = torch.promote_types(parameter.dtype, torch.float32)
    return torch.tensordot(alpha.to(accumulate), parameter.to(accumulate), dims=1).to(parameter.dtype)
