"""FLOP formulas for torch.utils.flop_counter.FlopCounterMode: convolution plus blend, 2 per multiply-add.

Operators that blend first and then call PyTorch's (see premix.py) need no formula of their own: the counter sees both
steps. Importing torch.utils.flop_counter is cheap and needs no device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from tunable_ops.ops import tunable_conv2d, tunable_parameter, tunable_parameters  # noqa: F401  (importing them defines the operators)

_OPS = torch.ops.tunable_ops
Shape = Sequence[int]


def _register(name: str) -> Callable[..., Any]:
    """Register a formula for all backends; "{}" in `name` stands for the backend."""
    ops = [getattr(_OPS, name.format(backend), None) for backend in ("torch", "cpp", "triton", "cuda")]
    return register_flop_formula([op for op in ops if op is not None])


def _blend(weight: Shape, bias: Shape | None, alpha: Shape) -> int:
    """Count a blend: P multiply-adds per element, once or per sample."""
    elements = math.prod(weight) + (math.prod(bias) if bias is not None else 0)
    return 2 * elements * (alpha[0] if len(alpha) == 2 else 1)


def _convolution(weight: Shape, output: Shape) -> int:
    """Count a convolution: C/groups * kh * kw multiply-adds per output value."""
    return 2 * math.prod(output) * math.prod(weight[2:])


@_register("tunable_parameter_{}")
def _parameter_flops(parameter: Shape, alpha: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _blend(parameter, None, alpha)


@_register("tunable_parameter_{}_backward")
def _parameter_backward_flops(
    grad_output: Shape, parameter: Shape, alpha: Shape, mask: Sequence[bool], **kwargs: Any
) -> int:
    return sum(mask) * _blend(parameter, None, alpha)


@_register("tunable_parameters_{}")
def _parameters_flops(parameters: Sequence[Shape], alpha: Shape, *args: Any, **kwargs: Any) -> int:
    return sum(_blend(parameter, None, ()) for parameter in parameters)


@_register("tunable_parameters_{}_backward")
def _parameters_backward_flops(
    grad_outputs: Sequence[Shape],
    parameters: Sequence[Shape],
    alpha: Shape,
    starts: Sequence[int],
    mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    return sum((m + mask[-1]) * _blend(p, None, ()) for p, m in zip(parameters, mask[:-1], strict=True))


@_register("tunable_conv2d_{}")
def _conv2d_flops(
    input: Shape, weight: Shape, bias: Shape | None, alpha: Shape, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    if len(alpha) == 4:  # P convolutions and their weighted sum
        return weight[0] * (_convolution(weight, out_shape) + 2 * math.prod(out_shape))
    return _convolution(weight, out_shape) + _blend(weight, bias, alpha)


@_register("tunable_conv2d_{}_saving")
def _conv2d_saving_flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(_conv2d_flops(*args, out_shape=out_shape[0], **kwargs))


@_register("tunable_conv2d_{}_backward")
def _conv2d_backward_flops(
    grad_output: Shape,
    saved: Shape | None,
    input: Shape,
    weight: Shape,
    bias: Shape | None,
    alpha: Shape,
    *options: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    mask = options[-1]
    convolution = _convolution(weight, grad_output)
    if len(alpha) == 4:
        passes = mask[0] + mask[1] + mask[3]
        return weight[0] * (passes * convolution + 2 * math.prod(grad_output))
    blend = _blend(weight, bias, alpha)
    passes = mask[0] + (mask[1] or mask[3])
    return passes * convolution + (mask[0] + mask[1] + mask[3]) * blend
