"""Validation of operator arguments, once per call and before any work.

Messages have the form ``<op>: <argument> must <rule>; got <value>``: a TypeError for type and dtype, a ValueError for
shape and value. Checks only read metadata, so they never synchronise a device, and torch.compile traces through them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunable_ops.geometry import output_size, same_padding, transposed_output_size
from tunable_ops.reference.activation import CODES

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LAYOUT = {1: "[B, C, L] or [C, L]", 2: "[B, C, H, W] or [C, H, W]", 3: "[B, C, D, H, W] or [C, D, H, W]"}
Ints = tuple[int, ...]


class Convolution(NamedTuple):
    """Options of a valid call, one value per spatial dimension.

    Attributes:
        stride: Pixels.
        padding: Pixels on both sides.
        end_padding: Extra zeros at the end of each dimension (padding="same" with an even kernel), or ().
        dilation: Pixels.
        activation: Code of the activation (`reference.activation`).
        batched: False if the input has no batch dimension.
    """

    stride: Ints
    padding: Ints
    end_padding: Ints
    dilation: Ints
    activation: int
    batched: bool


def check_convolution(
    op: str,
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
) -> Convolution:
    """Check a call of a tunable convolution of `ndim` spatial dimensions, whose arguments these are.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not fit.
        ValueError: Shapes, devices or options do not fit.
    """
    s = (stride,) * ndim if type(stride) is int else stride
    p = (padding,) * ndim if type(padding) is int else padding
    d = (dilation,) * ndim if type(dilation) is int else dilation
    if _is_plain(ndim, input, weight, bias, alpha, s, p, d, groups):
        return Convolution(s, p, (), d, check_activation(op, activation), True)
    check_tensors(op, input, weight, bias, alpha)
    shape, taps = input.shape, check_kernels(op, input, weight, bias, groups, ndim)
    strides, dilations = to_ints(op, "stride", stride, ndim, 1), to_ints(op, "dilation", dilation, ndim, 1)
    pads, ends = resolve_padding(op, padding, taps, strides, dilations)
    size = [n + e for n, e in zip(shape[-ndim:], ends, strict=True)]
    grid = output_size(size, taps, strides, pads, dilations)
    if any(n < 1 for n in grid):  # not min(): graphs hold whichever side is longer
        n, k, p, d = next(each for *each, m in zip(size, taps, pads, dilations, grid, strict=True) if m < 1)
        raise ValueError(
            f"{op}: input must be at least as large as the dilated kernel after padding, {d * (k - 1) + 1}; "
            f"got {n} + 2*{p}"
        )
    batched = len(shape) == ndim + 2
    check_alpha(op, alpha, weight.shape[0], shape[0] if batched else None, grid)
    code = check_activation(op, activation)
    return Convolution(strides, pads, ends if any(ends) else (), dilations, code, batched)


def _is_plain(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> bool:
    """Return True for the usual call of a layer, found valid in a third of the time that all checks take.

    That is a batched input, tensors of one dtype (but alpha of float32), no map, and options given as tuples.
    """
    if not _all_alike(input, weight, bias, alpha):
        return False
    shape, kernels, rows = input.shape, weight.shape, alpha.shape
    if len(shape) != ndim + 2 or len(kernels) != ndim + 3 or type(groups) is not int or groups < 1:
        return False
    batch, channels, *size = shape
    copies, outputs, inputs, *taps = kernels
    if inputs * groups != channels or outputs % groups or 0 in kernels:
        return False
    if bias is not None and bias.shape != (copies, outputs):
        return False
    if not 1 <= len(rows) <= 2 or rows[-1] != copies or (len(rows) == 2 and rows[0] != batch):
        return False
    if not (type(stride) is type(padding) is type(dilation) is tuple):
        return False
    if not (len(stride) == len(padding) == len(dilation) == ndim):
        return False
    for n, k, s, p, d in zip(size, taps, stride, padding, dilation):  # noqa: B905 (of one length)
        if not (type(s) is type(p) is type(d) is int) or s < 1 or p < 0 or d < 1 or n + 2 * p <= d * (k - 1):
            return False
    return True


class TransposedConvolution(NamedTuple):
    """Options of a valid call of the transposed convolution; see `Convolution`."""

    stride: Ints
    padding: Ints
    output_padding: Ints
    dilation: Ints
    activation: int
    batched: bool


def check_transposed(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    activation: str | None,
) -> TransposedConvolution:
    """Check a call of the transposed convolution as `check_convolution` does."""
    check_tensors(op, input, weight, bias, alpha)
    check_kernels(op, input, weight, bias, groups, 2, transposed=True)
    strides, pads = to_ints(op, "stride", stride, 2, 1), to_ints(op, "padding", padding, 2, 0)
    more, dilations = to_ints(op, "output_padding", output_padding, 2, 0), to_ints(op, "dilation", dilation, 2, 1)
    for s, e, d in zip(strides, more, dilations, strict=True):
        if e >= max(s, d):
            raise ValueError(f"{op}: output_padding must be smaller than stride or dilation; got {e}")
    size = input.shape[-2:]
    grid = transposed_output_size(size, weight.shape[3:], strides, pads, more, dilations)
    for n, p, length in zip(size, pads, grid, strict=True):
        if length < 1:
            raise ValueError(f"{op}: input must give an output of at least one pixel; got size {n} with padding {p}")
    batched = input.dim() == 4
    check_alpha(op, alpha, weight.shape[0], input.shape[0] if batched else None, grid)
    return TransposedConvolution(strides, pads, more, dilations, check_activation(op, activation), batched)


def shape_of(tensor: Tensor) -> list[int]:
    """Return the shape as a list, for error messages."""
    return list(tensor.shape)


def to_ints(op: str, name: str, value: Any, count: int, minimum: int) -> tuple[int, ...]:
    """Return an int, or a sequence of `count` ints, as a tuple; each must be at least `minimum`."""
    if type(value) is int and value >= minimum:  # the common case first: this runs in every call
        return (value,) * count
    if type(value) is tuple and len(value) == count:
        for v in value:
            if type(v) is not int or v < minimum:
                break
        else:
            return value
    if type(value) is int or isinstance(value, torch.SymInt):
        values: tuple[Any, ...] = (value,) * count
    elif isinstance(value, Sequence) and not isinstance(value, str):
        values = tuple(value) * count if len(value) == 1 else tuple(value)
    else:
        raise TypeError(f"{op}: {name} must be an int or {count} ints; got {value!r}")
    if not all(type(v) is int or isinstance(v, torch.SymInt) for v in values):
        raise TypeError(f"{op}: {name} must be an int or {count} ints; got {value!r}")
    if len(values) != count:
        raise ValueError(f"{op}: {name} must be an int or {count} ints; got {value!r}")
    if any(v < minimum for v in values):
        raise ValueError(f"{op}: {name} must be at least {minimum}; got {value!r}")
    return values


def check_activation(op: str, activation: str | None) -> int:
    """Return the activation's code."""
    code = CODES.get(activation) if activation is None or isinstance(activation, str) else None
    if code is None:
        known = ", ".join(repr(name) for name in CODES if name is not None)
        raise ValueError(f"{op}: activation must be None or one of {known}; got {activation!r}")
    return code


def autocast_is_on(device_type: str) -> bool:
    """Return True under torch.autocast; False for the meta device, for which PyTorch raises an error."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def is_transformed() -> bool:
    """Return True inside torch.func transforms and forward-mode AD, which need PyTorch's own operators."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def is_plain_eager() -> bool:
    """Return True outside torch.compile, torch.func transforms and forward-mode AD."""
    return not (torch.compiler.is_compiling() or is_transformed())


def is_one(size: int) -> bool:
    """Return True for a size of 1. A symbolic size of an export is taken for any number, without a guard."""
    return not isinstance(size, torch.SymInt) and bool(size == 1)


def can_read(value: Tensor) -> bool:
    """Return True if reading values costs nothing: on the CPU, outside compilation, tracing and torch.func transforms.

    On a GPU it would stop the stream and break graph capture.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return False
    return type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu"


def check_float(op: str, name: str, tensor: Tensor) -> None:
    """Check that an argument is a tensor of one of the dtypes in `FLOATS`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor; got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64; got {tensor.dtype}")


def check_tensors(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> None:
    """Check types, devices and dtypes; under autocast input, weight and bias may differ in dtype."""
    if _all_alike(input, weight, bias, alpha):
        return
    named = {"input": input, "weight": weight, "alpha": alpha}
    if bias is not None:
        named["bias"] = bias
    for name, tensor in named.items():
        check_float(op, name, tensor)
        if tensor.device != input.device:
            raise ValueError(f"{op}: {name} must be on the input's device, {input.device}; got {tensor.device}")
    if autocast_is_on(input.device.type):
        return
    for name in ("weight", "bias"):
        if name in named and named[name].dtype != input.dtype:
            raise TypeError(f"{op}: {name} must have the input's dtype, {input.dtype}; got {named[name].dtype}")
    if alpha.dtype not in (input.dtype, torch.float32):
        raise TypeError(f"{op}: alpha must be float32 or have the input's dtype, {input.dtype}; got {alpha.dtype}")


def _all_alike(input: Any, weight: Any, bias: Any, alpha: Any) -> bool:
    """Return True for tensors of one allowed dtype on one device (alpha may be float32): most calls pass this."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and isinstance(alpha, Tensor)):
        return False
    dtype, device = input.dtype, input.device
    if weight.dtype is not dtype or dtype not in FLOATS:
        return False
    if alpha.dtype is not dtype and alpha.dtype is not torch.float32:
        return False
    if bias is not None and not (isinstance(bias, Tensor) and bias.dtype is dtype and bias.device == device):
        return False
    return bool(weight.device == device and alpha.device == device)


def check_kernels(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, ndim: int, transposed: bool = False
) -> list[int]:
    """Check ranks, P and channels of a convolution's input [B, C, *], weight [P, O, C/groups, *k] and bias [P, O].

    Returns:
        The tap sizes.
    """
    shape, kernels = input.shape, weight.shape
    if len(shape) != ndim + 2 and len(shape) != ndim + 1:
        raise ValueError(f"{op}: input must be {_LAYOUT[ndim]}; got shape {list(shape)}")
    layout = "[P, C, O/groups, *k]" if transposed else "[P, O, C/groups, *k]"
    if len(kernels) != ndim + 3:
        raise ValueError(f"{op}: weight must be {layout} with {ndim} tap sizes; got shape {list(kernels)}")
    if type(groups) is not int or groups < 1:
        raise ValueError(f"{op}: groups must be a positive int; got {groups!r}")
    copies, outputs, inputs, *taps = kernels
    channels = shape[-ndim - 1]
    if channels % groups:
        raise ValueError(f"{op}: input must have channels divisible by groups={groups}; got {channels}")
    if transposed:
        if outputs != channels:
            raise ValueError(f"{op}: weight must be {layout} with C = {channels}; got shape {list(kernels)}")
        outputs = inputs * groups
    elif inputs * groups != channels:
        raise ValueError(
            f"{op}: weight must be {layout} with C/groups = {channels // groups}; got shape {list(kernels)}"
        )
    elif outputs % groups:
        raise ValueError(f"{op}: weight must have output channels divisible by groups={groups}; got {outputs}")
    if 0 in kernels:
        raise ValueError(f"{op}: weight must have no dimension of size 0; got shape {list(kernels)}")
    check_bias(op, bias, copies, outputs)
    return taps


def check_bias(op: str, bias: Tensor | None, kernels: int, outputs: int) -> None:
    """Check that the bias is [P, O]."""
    if bias is not None and bias.shape != (kernels, outputs):
        raise ValueError(
            f"{op}: bias must be [P, O] = [{kernels}, {outputs}], as the weight has it; got shape {list(bias.shape)}"
        )


def check_alpha(op: str, alpha: Tensor, num_kernels: int, batch: int | None, grid: Sequence[int] = ()) -> None:
    """Check that alpha is [P], [B, P] or, if `grid` is given, a map [B, P, *grid].

    `batch` is None for an unbatched input, which needs alpha [P].
    """
    rank = alpha.dim()
    if rank not in (1, 2) and not (grid and rank == 2 + len(grid)):
        raise ValueError(f"{op}: alpha must be {_alpha_layout(grid)}; got shape {shape_of(alpha)}")
    kernels = alpha.shape[0] if rank == 1 else alpha.shape[1]
    if kernels != num_kernels:
        raise ValueError(
            f"{op}: alpha must hold one value per kernel, P = {num_kernels} as the weight has it; got P = {kernels} "
            f"(shape {shape_of(alpha)})"
        )
    if rank == 1:
        return
    if batch is None:
        raise ValueError(f"{op}: alpha must be [P] for an unbatched input; got shape {shape_of(alpha)}")
    if alpha.shape[0] != batch and not (rank == 2 and alpha.shape[0] == 1):
        raise ValueError(
            f"{op}: alpha must be {_alpha_layout(grid)} with B = {batch}, as the input has it; got shape "
            f"{shape_of(alpha)}"
        )
    if rank > 2 and tuple(alpha.shape[2:]) != tuple(grid):
        raise ValueError(
            f"{op}: alpha must have the output's size {list(grid)} where it is a map; got shape {shape_of(alpha)}"
        )


def _alpha_layout(grid: Sequence[int]) -> str:
    if not grid:
        return "[P] or [B, P]"
    return f"[P], [B, P] or a map [B, P, {', '.join(map(str, grid))}]"


def resolve_padding(
    op: str, padding: Any, taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Ints, Ints]:
    """Resolve padding as torch.nn.functional.conv2d does.

    Returns:
        The padding on both sides, and the extra zeros at the end of each dimension.
    """
    if not isinstance(padding, str):
        return to_ints(op, "padding", padding, len(taps), 0), (0,) * len(taps)
    if padding == "valid":
        return (0,) * len(taps), (0,) * len(taps)
    if padding != "same":
        raise ValueError(f"{op}: padding must be ints, 'same' or 'valid'; got {padding!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"{op}: padding must not be 'same' with a stride; got stride {tuple(stride)}")
    return same_padding(taps, dilation)
