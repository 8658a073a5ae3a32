"""The short way to the C++ operators: what a layer of a millisecond calls in eager mode.

The registered operator passes lists and strings, and a Python function at the Autograd key: 20 us a call, twice that
when a convolution has just filled the caches. Here the options are one number (csrc/direct.cpp unpacks it), the
C++ operator checks the tensors, and what it does not serve comes back as None, to go the ordinary way. No transform,
compiler, tracer or dispatch mode ever sees these operators.
"""

from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends import cpp
from tunable_ops.ops import registration
from tunable_ops.reference.activation import SAVES_OUTPUT, apply_activation

_TYPES = (Tensor, torch.nn.Parameter)
_ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "silu")  # in the order of csrc/direct.cpp


def tunable_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
    backend: Any,
) -> Tensor | None:
    """The result where the C++ operator is the default's choice or named and takes the call as it is, else None."""
    if not (backend is None or backend == "cpp") or not _are_fit(input, weight, bias, alpha):
        return None
    if backend is None and not input.is_contiguous(memory_format=torch.channels_last):
        return None
    options = _pack(stride, padding, dilation, groups, activation)
    if options is None:
        return None
    if _want_gradients(input, weight, bias, alpha):
        return _Direct.apply(input, weight, bias, alpha, options)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return _forward_op(input, weight, bias, alpha, options)


def tunable_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
) -> Tensor | None:
    """As above, where no gradient is wanted; an alpha for the batch or per sample, channels_last."""
    if not _are_fit(input, weight, bias, alpha) or not input.is_contiguous(memory_format=torch.channels_last):
        return None
    options = _pack(stride, padding, dilation, groups, activation)
    more = _pack(1, output_padding, 1, 1, None)
    if options is None or more is None or _want_gradients(input, weight, bias, alpha):
        return None
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return _transposed_op(input, weight, bias, alpha, options, more >> 16 & 0xFFFF)


def blend(parameter: Tensor, alpha: Tensor) -> Tensor | None:
    """One kernel [*shape] from a stack [P, *shape] and an alpha [P], where no gradient is wanted."""
    if not cpp.is_loaded() or _is_watched() or type(parameter) not in _TYPES or type(alpha) not in _TYPES:
        return None
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return _blend_op(parameter, alpha)


def _are_fit(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> bool:
    """Whether the C++ operators may see these tensors at all; that they fit each other is checked there."""
    if not cpp.is_loaded() or _is_watched():
        return False
    if type(input) not in _TYPES or type(weight) not in _TYPES or type(alpha) not in _TYPES:
        return False
    if bias is not None and type(bias) not in _TYPES:
        return False
    return input.dtype is torch.float32 and input.dim() == 4 and alpha.dim() <= 2


def _want_gradients(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    needed = input.requires_grad or weight.requires_grad or alpha.requires_grad
    return needed or (bias is not None and bias.requires_grad)


def _is_watched() -> bool:
    """True where operators are recorded, transformed or cast rather than just run."""
    return (
        torch.compiler.is_compiling()
        or registration.needs_composite()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
    )


def _is_plain(value: Any) -> bool:
    """An int or a pair of ints; True and 1.0 equal 1 and would find its entry."""
    if type(value) is int:
        return True
    return type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int


_PACKED: dict[tuple[Any, ...], int] = {}


def _pack(stride: Any, padding: Any, dilation: Any, groups: Any, activation: Any) -> int | None:
    """The number that stands for the options; None for options that are wrong or do not fit."""
    if not (_is_plain(stride) and _is_plain(padding) and _is_plain(dilation) and type(groups) is int):
        return None
    if activation is not None and type(activation) is not str:
        return None
    number = _PACKED.get((stride, padding, dilation, groups, activation))
    if number is not None:
        return number
    name = "none" if activation is None else activation
    if name not in _ACTIVATIONS or activation == "none":
        return None
    sizes = [n for value in (stride, padding, dilation) for n in ((value, value) if type(value) is int else value)]
    least = (1, 1, 0, 0, 1, 1)
    if any(not low <= size < 256 for size, low in zip(sizes, least, strict=True)) or not 0 < groups < 2048:
        return None
    number = _ACTIVATIONS.index(name) << 48 | groups << 52 | sum(size << 8 * i for i, size in enumerate(sizes))
    _PACKED[stride, padding, dilation, groups, activation] = number
    return number


def _not_served(*args: Any) -> None:
    """Where there is no C++ operator: another device."""


_TENSORS = "Tensor input, Tensor weight, Tensor? bias, Tensor alpha, int options"
_forward_op = registration.define("tunable_conv2d_direct", _TENSORS, "Tensor", _not_served, _not_served)
_backward_op = registration.define(
    "tunable_conv2d_direct_backward",
    f"Tensor grad_output, Tensor? saved, {_TENSORS}, int mask",
    "(Tensor, Tensor, Tensor, Tensor)",
    _not_served,
    _not_served,
)
_transposed_op = registration.define(
    "tunable_conv_transpose2d_direct", f"{_TENSORS}, int output_padding", "Tensor", _not_served, _not_served
)
_blend_op = registration.define(
    "tunable_parameter_direct", "Tensor parameter, Tensor alpha", "Tensor", _not_served, _not_served
)


class _Direct(torch.autograd.Function):
    """As the Function behind the registered operator, which also serves the second order."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, options: int
    ) -> Tensor | None:
        activation = _ACTIVATIONS[options >> 48 & 15]
        after = activation not in SAVES_OUTPUT and activation != "none"  # the value before it is what backward needs
        with torch._C._AutoDispatchBelowADInplaceOrView():
            saved = _forward_op(input, weight, bias, alpha, options & ~(15 << 48) if after else options)
        if saved is None:
            return None
        output = apply_activation(saved, activation) if after else saved
        ctx.save_for_backward(input, weight, bias, alpha, None if activation == "none" else saved)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        *tensors, saved = ctx.saved_tensors
        mask, options = ctx.needs_input_grad, ctx.options
        if torch.is_grad_enabled():  # create_graph
            return (*_recorded_backward(grad_output, saved, tensors, options, list(mask[:4])), None)
        bits = mask[0] | mask[1] << 1 | mask[2] << 2 | mask[3] << 3
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return (*_backward_op(grad_output, saved, *tensors, options, bits), None)


def _recorded_backward(
    grad_output: Tensor, saved: Tensor | None, tensors: list[Any], options: int, mask: list[bool]
) -> list[Tensor | None]:
    stride, padding, dilation = ((options >> shift & 255, options >> shift + 8 & 255) for shift in (0, 16, 32))
    activation = _ACTIVATIONS[options >> 48 & 15]
    input, weight, bias, alpha = tensors
    row = alpha[0] if alpha.dim() == 2 and alpha.shape[0] == 1 else alpha
    geometry = (stride, padding, dilation, options >> 52, activation, "cpp")
    op = torch.ops.tunable_ops.tunable_conv2d_backward.default
    *grads, grad_alpha = op(grad_output, saved, input, weight, bias, row, *geometry, mask)
    grads.append(grad_alpha.reshape(alpha.shape) if mask[3] else grad_alpha)
    return [g if m else None for g, m in zip(grads, mask, strict=True)]
