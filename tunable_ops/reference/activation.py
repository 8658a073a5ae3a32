"""Activations that follow a blend: one table for the reference, the operators' schemas and the Python backends.

csrc/activation.h has the same codes; a test compares the two.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.01
_aten = torch.ops.aten


class Activation(NamedTuple):
    """An activation and its derivative.

    Attributes:
        name: Name that callers pass; their None is "none" here.
        forward: The function.
        backward: Gradient of its input, from the gradient of its output and the saved value.
        saves_output: True if the saved value is the output, False if it is the input.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    saves_output: bool


# The index of a row is the activation's code in the operators' schemas.
TABLE = (
    Activation("none", lambda x: x, lambda grad, saved: grad, True),
    Activation("relu", F.relu, lambda grad, saved: _aten.threshold_backward(grad, saved, 0), True),
    Activation("gelu", F.gelu, lambda grad, saved: _aten.gelu_backward(grad, saved), False),  # the erf form
    Activation("silu", F.silu, lambda grad, saved: _aten.silu_backward(grad, saved), False),
    Activation(
        "leaky_relu",
        F.leaky_relu,  # its default slope is LEAKY_SLOPE
        lambda grad, saved: _aten.leaky_relu_backward(grad, saved, LEAKY_SLOPE, True),
        True,
    ),
)
CODES: dict[str | None, int] = {None: 0} | {row.name: code for code, row in enumerate(TABLE) if code}
_BY_NAME = {row.name: row for row in TABLE}


def apply_activation(value: Tensor, activation: str | None) -> Tensor:
    """Apply the activation of that name; None and "none" return `value` itself."""
    return _BY_NAME["none" if activation is None else activation].forward(value)


def activation_backward(grad_output: Tensor, saved: Tensor, activation: str) -> Tensor:
    """Return the gradient of the activation's input, from its saved output or input."""
    return _BY_NAME[activation].backward(grad_output, saved)
