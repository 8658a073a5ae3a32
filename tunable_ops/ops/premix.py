"""Premix: blend the kernels first, then call PyTorch's own operator, where this project has no fused kernel."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tunable_ops import checks
from tunable_ops.backends import cpp
from tunable_ops.backends.torch.layout import output_format
from tunable_ops.ops import registration
from tunable_ops.ops.tunable_parameter import tunable_parameter
from tunable_ops.reference import tunable_parameter as reference_parameter
from tunable_ops.reference.tunable_conv2d import blend_and_convolve


def _blend(parameter: Tensor, alpha: Tensor) -> Tensor:
    return tunable_parameter(parameter, alpha, backend="cpp" if cpp.serves_blend(parameter, alpha) else None)


def premix(
    conv: Callable[[Any, Any, Any], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    activation: str | None,
    backend: str,
) -> Tensor:
    """Blend, then call `conv(input, weight, bias)`: once for alpha [P], per sample for [B, P], per kernel for a map.

    Backend "reference" blends with the definition of `tunable_parameter`, every other one with the operator.
    """
    blend = reference_parameter if backend == "reference" else _blend

    def run(x: Tensor, w: Tensor, b: Tensor | None, a: Tensor) -> Tensor:
        return blend_and_convolve(conv, x, w, b, a, activation, blend)

    output = registration.run_composite(run, (input, weight, bias, alpha), 3)
    # A matrix product has no memory format, and vmap does not support asking for one.
    if weight.dim() < 5 or checks.is_transformed():
        return output
    return output.contiguous(memory_format=output_format(input, weight))
