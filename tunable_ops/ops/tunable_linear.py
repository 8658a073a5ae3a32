"""tunable_linear: blend first, then one matrix product (a batched one for a per-sample alpha)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import backends, checks
from tunable_ops.ops import registration
from tunable_ops.ops.premix import premix
from tunable_ops.ops.tunable_parameter import tunable_parameter
from tunable_ops.reference.activation import TABLE

NAME = "tunable_linear"


def tunable_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blend P matrices and apply the result.

    Formula: ``y[b] = act(x[b] @ (sum_p alpha[b,p] weight[p]).T + sum_p alpha[b,p] bias[p])``.

    Args:
        input: [*, C] with a shared alpha; [B, *, C] with one per sample.
        weight: [P, O, C].
        bias: [P, O] or None.
        alpha: [P] or [B, P]; not a map, which would need a spatial grid.
        activation: As in `tunable_conv2d`.
        backend: None, "torch" or "reference".

    Returns:
        [*, O] or [B, *, O].

    Dtypes, autocast, gradients and errors are those of `tunable_conv2d`.
    """
    chosen = backends.select(NAME, backend)
    checks.check_tensors(NAME, input, weight, bias, alpha)
    if weight.dim() != 3 or 0 in weight.shape:
        raise ValueError(f"{NAME}: weight must be [P, O, C], none of them 0; got shape {checks.shape_of(weight)}")
    if input.dim() < 1 or input.shape[-1] != weight.shape[2]:
        raise ValueError(
            f"{NAME}: input must be [*, C] with C = {weight.shape[2]}, as the weight has it; got shape "
            f"{checks.shape_of(input)}"
        )
    checks.check_bias(NAME, bias, weight.shape[0], weight.shape[1])
    checks.check_alpha(NAME, alpha, weight.shape[0], input.shape[0] if input.dim() > 1 else None)
    code = checks.check_activation(NAME, activation)
    if alpha.dim() == 2 and checks.is_one(alpha.shape[0]):
        alpha = alpha[0]
    if alpha.dim() == 1 or chosen == "reference":
        return premix(F.linear, input, weight, bias, alpha, activation, backend)

    def run(*tensors: Any) -> Tensor:
        return TABLE[code].forward(_per_sample(*tensors))

    return registration.run_composite(run, (input, weight, bias, alpha), 3)


def _per_sample(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> Tensor:
    matrix = tunable_parameter(weight, alpha).mT  # [B, C, O]
    batch, *rest, channels = input.shape
    rows = input.reshape(batch, -1, channels) if batch else input.reshape(0, 1, channels)
    if bias is None:
        product = torch.bmm(rows, matrix)
    else:
        product = torch.baddbmm(tunable_parameter(bias, alpha)[:, None], rows, matrix)
    return product.reshape(batch, *rest, matrix.shape[2])
