"""The epilogue activations: one table for the reference and every backend."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,  # the erf form
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,  # slope 0.01
}
LEAKY_SLOPE = 0.01
# The output tells the derivative of these two; the others need the value before the activation.
SAVES_OUTPUT = frozenset({"relu", "leaky_relu"})


def apply_activation(value: Tensor, activation: str | None) -> Tensor:
    """Applies the named activation; None and "none" return the value itself."""
    return value if activation in (None, "none") else ACTIVATIONS[activation](value)


def activation_backward(grad_output: Tensor, saved: Tensor, activation: str) -> Tensor:
    """Gradient before the activation, from the output (relu, leaky_relu) or the input (gelu, silu) that was saved."""
    aten = torch.ops.aten
    if activation == "relu":
        return aten.threshold_backward(grad_output, saved, 0)
    if activation == "leaky_relu":
        return aten.leaky_relu_backward(grad_output, saved, LEAKY_SLOPE, True)
    if activation == "gelu":
        return aten.gelu_backward(grad_output, saved)
    if activation == "silu":
        return aten.silu_backward(grad_output, saved)
    return grad_output
