"""What the operators share that blend first and leave the rest to the library's convolution."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameter as torch_parameter
from tunable_ops.backends.torch.layout import output_format
from tunable_ops.ops import direct, registration
from tunable_ops.ops.tunable_parameter import tunable_parameter
from tunable_ops.reference import tunable_parameter as reference_parameter
from tunable_ops.reference.tunable_conv2d import blend_and_convolve


def _blend(parameter: Tensor, alpha: Tensor) -> Tensor:
    """The operator; on a CPU without gradients a kernel at once: two calls of the operator take a third of a ms."""
    wanted = torch.is_grad_enabled() and (parameter.requires_grad or alpha.requires_grad)
    if wanted or parameter.device.type != "cpu" or torch.compiler.is_compiling() or registration.needs_composite():
        return tunable_parameter(parameter, alpha)
    blended = direct.blend(parameter, alpha)
    return torch_parameter.forward(parameter, alpha) if blended is None else blended


def premix(
    conv: Callable[[Any, Any, Any], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    activation: str,
    backend: str,
) -> Tensor:
    """Blends with the operator `tunable_parameter` ("reference": with its definition), then calls `conv` and autograd.

    One convolution for a shared alpha, one per sample for [B, P], one per kernel for a map.
    """
    blend = reference_parameter if backend == "reference" else _blend

    def run(x: Tensor, w: Tensor, b: Tensor | None, a: Tensor) -> Tensor:
        return blend_and_convolve(conv, x, w, b, a, activation, blend)

    output = registration.run_composite(run, (input, weight, bias, alpha), 3)
    # A matrix product has no memory format, and vmap cannot tell one.
    if weight.dim() < 5 or registration.needs_composite():
        return output
    return output.contiguous(memory_format=output_format(input, weight))
