"""The blend itself: sum_p alpha[p] * parameter[p]."""

import torch
from torch import Tensor


def tunable_parameter(parameter: Tensor, alpha: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Blend P copies of a tensor: ``sum_p alpha[..., p] * parameter[p]``.

    Accumulates in fp32 (fp64 for fp64) and rounds once.

    Args:
        parameter: [P, *shape].
        alpha: [P] or [B, P].
        dtype: Dtype of the result; by default that of `parameter`.

    Returns:
        [*shape] or [B, *shape].
    """
    accumulate = torch.promote_types(parameter.dtype, torch.float32)
    alpha, copies = alpha.to(accumulate), parameter.to(accumulate)
    ones = (1,) * (parameter.dim() - 1)
    # Not a matrix product, which would follow the process's TF32 and bf16 settings.
    terms = [alpha[..., p].reshape((*alpha.shape[:-1], *ones)) * copies[p] for p in range(parameter.shape[0])]
    return sum(terms[1:], terms[0]).to(dtype or parameter.dtype)
