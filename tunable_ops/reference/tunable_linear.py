"""tunable_linear: the blend of P matrices."""

import torch.nn.functional as F
from torch import Tensor

from tunable_ops.reference.tunable_conv2d import blend_and_convolve


def tunable_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, activation: str | None = None
) -> Tensor:
    """Compute ``y[b] = act(x[b] @ (sum_p alpha[b,p] weight[p]).T + sum_p alpha[b,p] bias[p])``.

    Input [B, *, C] (any leading dimensions with a shared alpha), weight [P, O, C], bias [P, O], alpha [P] or [B, P].
    """
    return blend_and_convolve(F.linear, input, weight, bias, alpha, activation)
