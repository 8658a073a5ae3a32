"""Premix: blend the kernels first, then call PyTorch's own operator, where this project has no fused kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tunable_ops import checks
from tunable_ops.backends.torch.layout import output_format
from tunable_ops.ops import graph_form, registration
from tunable_ops.ops.tunable_parameter import run_checked
from tunable_ops.reference import tunable_parameter as reference_parameter
from tunable_ops.reference.activation import CODES
from tunable_ops.reference.tunable_conv2d import blend_and_convolve


def premix(
    conv: Callable[[Any, Any, Any], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    activation: str | None,
    backend: str | None,
) -> Tensor:
    """Blend, then call `conv(input, weight, bias)`: once for alpha [P], per sample for [B, P], per kernel for a map.

    `backend` is what the caller named: None, "torch" or "reference" (which blends by the definition).
    """

    def blend(parameter: Tensor, weights: Tensor) -> Tensor:
        if weights.dtype != parameter.dtype:  # a 16-bit alpha beside tensors that autocast has cast
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        if backend == "reference":
            return reference_parameter(parameter, weights)
        return run_checked(parameter, weights, backend, inference=True)

    def run(x: Tensor, w: Tensor, b: Tensor | None, a: Tensor) -> Tensor:
        if a.dim() == 2 and torch.compiler.is_exporting():  # a loop would fix the batch
            return graph_form.blend_and_convolve(conv, x, w, b, a, None, CODES[activation])
        return blend_and_convolve(conv, x, w, b, a, activation, blend)

    output = registration.run_composite(run, (input, weight, bias, alpha), 3)
    # A matrix product has no memory format, and vmap does not support asking for one.
    if weight.dim() < 5 or checks.is_transformed():
        return output
    return output.contiguous(memory_format=output_format(input, weight))
