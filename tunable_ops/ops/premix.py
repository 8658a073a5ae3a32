"""What the operators share that blend first and leave the rest to the library's convolution."""

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
    """Blend with the operator `tunable_parameter` ("reference": its definition), then call `conv`.

    One convolution for a shared alpha, one per sample for [B, P], one per kernel for a map.
    """
    blend = reference_parameter if backend == "reference" else _blend

    def run(x: Tensor, w: Tensor, b: Tensor | None, a: Tensor) -> Tensor:
        return blend_and_convolve(conv, x, w, b, a, activation, blend)

    output = registration.run_composite(run, (input, weight, bias, alpha), 3)
    # A matrix product has no memory format, and vmap cannot tell one.
    if weight.dim() < 5 or checks.is_transformed():
        return output
    return output.contiguous(memory_format=output_format(input, weight))
