"""Named validators of the operators' arguments; they run before any work is done.

Every message has the form ``<op>: <argument> must <rule>; got <value>``. TypeError for type and dtype, ValueError for
shape and value. The checks read metadata only: no device is synchronised, and torch.compile traces through them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops.reference.activation import ACTIVATIONS

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LAYOUT = {1: "[B, C, L] or [C, L]", 2: "[B, C, H, W] or [C, H, W]", 3: "[B, C, D, H, W] or [C, D, H, W]"}


def shape_of(tensor: Tensor) -> list[int]:
    """The shape as a list, for messages."""
    return list(tensor.shape)


def to_ints(op: str, name: str, value: Any, count: int, minimum: int) -> tuple[int, ...]:
    """Reads an int or a sequence of `count` ints, each at least `minimum`."""
    if type(value) is int and value >= minimum:  # almost every call, and it has to be quick
        return (value,) * count
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


def check_activation(op: str, activation: str | None) -> str:
    """Returns the activation's name as the operators' schemas have it ("none" for None)."""
    if activation is None:
        return "none"
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{op}: activation must be None or one of {known}; got {activation!r}")
    return activation


def autocast_is_on(device_type: str) -> bool:
    """True under torch.autocast; never for the meta device, of which torch refuses to tell."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def check_tensors(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> None:
    """Types, dtypes and devices: one device; input, weight and bias of one dtype (not under autocast)."""
    if _all_alike(input, weight, bias, alpha):
        return
    named = {"input": input, "weight": weight, "alpha": alpha}
    if bias is not None:
        named["bias"] = bias
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor; got {type(tensor).__name__}")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64; got {tensor.dtype}")
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
    """True for tensors of one allowed dtype on one device: almost every call, told in little time."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and isinstance(alpha, Tensor)):
        return False
    dtype, device = input.dtype, input.device
    if weight.dtype is not dtype or alpha.dtype is not dtype or dtype not in FLOATS:
        return False
    if bias is not None and not (isinstance(bias, Tensor) and bias.dtype is dtype and bias.device == device):
        return False
    return bool(weight.device == device and alpha.device == device)


def check_kernels(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, ndim: int, transposed: bool = False
) -> None:
    """Ranks, P and channels of a convolution's input [B, C, *], weight [P, O, C/groups, *k] and bias [P, O]."""
    if input.dim() not in (ndim + 1, ndim + 2):
        raise ValueError(f"{op}: input must be {_LAYOUT[ndim]}; got shape {shape_of(input)}")
    layout = "[P, C, O/groups, *k]" if transposed else "[P, O, C/groups, *k]"
    if weight.dim() != ndim + 3:
        raise ValueError(f"{op}: weight must be {layout} with {ndim} tap sizes; got shape {shape_of(weight)}")
    if type(groups) is not int or groups < 1:
        raise ValueError(f"{op}: groups must be a positive int; got {groups!r}")
    channels = input.shape[-ndim - 1]
    if channels % groups:
        raise ValueError(f"{op}: input must have channels divisible by groups={groups}; got {channels}")
    if transposed:
        outputs = weight.shape[2] * groups
        if weight.shape[1] != channels:
            raise ValueError(f"{op}: weight must be {layout} with C = {channels}; got shape {shape_of(weight)}")
    else:
        outputs = weight.shape[1]
        if weight.shape[2] * groups != channels:
            raise ValueError(
                f"{op}: weight must be {layout} with C/groups = {channels // groups}; got shape {shape_of(weight)}"
            )
        if outputs % groups:
            raise ValueError(f"{op}: weight must have output channels divisible by groups={groups}; got {outputs}")
    if any(size < 1 for size in weight.shape):
        raise ValueError(f"{op}: weight must have no dimension of size 0; got shape {shape_of(weight)}")
    check_bias(op, weight, bias, outputs)


def check_bias(op: str, weight: Tensor, bias: Tensor | None, outputs: int) -> None:
    """The bias is [P, O]."""
    if bias is not None and tuple(bias.shape) != (weight.shape[0], outputs):
        raise ValueError(
            f"{op}: bias must be [P, O] = [{weight.shape[0]}, {outputs}], as the weight has it; got shape "
            f"{shape_of(bias)}"
        )


def check_alpha(op: str, alpha: Tensor, num_kernels: int, batch: int | None, output_size: Sequence[int] = ()) -> None:
    """Alpha is [P], [B, P] or, where `output_size` is given, a map [B, P, *output_size].

    `batch` is None for an unbatched input, which takes a shared alpha only.
    """
    rank = alpha.dim()
    if rank not in (1, 2) and not (output_size and rank == 2 + len(output_size)):
        raise ValueError(f"{op}: alpha must be {_alpha_layout(output_size)}; got shape {shape_of(alpha)}")
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
            f"{op}: alpha must be {_alpha_layout(output_size)} with B = {batch}, as the input has it; got shape "
            f"{shape_of(alpha)}"
        )
    if rank > 2 and tuple(alpha.shape[2:]) != tuple(output_size):
        raise ValueError(
            f"{op}: alpha must have the output's size {list(output_size)} where it is a map; got shape "
            f"{shape_of(alpha)}"
        )


def _alpha_layout(output_size: Sequence[int]) -> str:
    if not output_size:
        return "[P] or [B, P]"
    return f"[P], [B, P] or a map [B, P, {', '.join(map(str, output_size))}]"


def conv_output_size(
    op: str,
    size: Sequence[int],
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Spatial size of a convolution's output: floor((n + 2 pad - dil (k - 1) - 1) / stride) + 1."""
    output = []
    for n, k, s, p, d in zip(size, taps, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        if n + 2 * p < span:
            raise ValueError(
                f"{op}: input must be at least as large as the dilated kernel after padding, {span}; got {n} + 2*{p}"
            )
        output.append((n + 2 * p - span) // s + 1)
    return tuple(output)


def transposed_output_size(
    op: str,
    size: Sequence[int],
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Spatial size of a transposed convolution's output: (n - 1) stride - 2 pad + dil (k - 1) + output_pad + 1."""
    output = []
    for n, k, s, p, e, d in zip(size, taps, stride, padding, output_padding, dilation, strict=True):
        if e >= max(s, d):
            raise ValueError(f"{op}: output_padding must be smaller than stride or dilation; got {e}")
        length = (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        if length < 1:
            raise ValueError(f"{op}: input must give an output of at least one pixel; got size {n} with padding {p}")
        output.append(length)
    return tuple(output)


def resolve_padding(
    op: str, padding: Any, taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Reads padding as torch.nn.functional.conv2d does.

    Returns:
        The symmetric padding, and what is missing at the end of each dimension ("same" with an even total span).
    """
    if not isinstance(padding, str):
        return to_ints(op, "padding", padding, len(taps), 0), (0,) * len(taps)
    if padding == "valid":
        return (0,) * len(taps), (0,) * len(taps)
    if padding != "same":
        raise ValueError(f"{op}: padding must be ints, 'same' or 'valid'; got {padding!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"{op}: padding must not be 'same' with a stride; got stride {tuple(stride)}")
    total = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
    return tuple(t // 2 for t in total), tuple(t % 2 for t in total)


def is_plain_eager() -> bool:
    """True outside torch.compile, torch.func transforms and forward-mode AD."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
