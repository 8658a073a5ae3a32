"""conv2d with one kernel: torch's, or an operator of ours that is faster: Winograd's filtering, a bias on the way."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops import backends, checks
from tunable_ops.convolution import convolve
from tunable_ops.ops import registration
from tunable_ops.ops.algorithm import current_algorithm
from tunable_ops.ops.kept_kernel import KeptKernel, remembers_transforms
from tunable_ops.ops.tunable_conv2d import NAME, run_checked
from tunable_ops.reference.activation import CODES

# Multiply-adds from which on a call is worth more than its 20 us in Python, and channels that fill a vector.
LEAST_MACS = 1 << 22
LEAST_CHANNELS = 16
# Pixels of the batch from which on the filtering saves more than transforming the kernel takes, or as many as a group
# has channels, if these are more. 64 to 512 channels, one thread: with fewer a call takes up to 1.9 times oneDNN's time
# (Zen 3; 2.7 on Ice Lake), with more 0.5 to 1.0. Where the kernel is kept it would pay from half of them on, but a
# result must not depend on whether a gradient is wanted: a loss of two feature maps has the sign of their difference as
# its gradient.
LEAST_PIXELS = 256
TAPS = (3, 5)  # of the square kernels that the filtering serves
_TYPES = (Tensor, torch.nn.Parameter)


def conv2d(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    kept: KeptKernel | None = None,
) -> Tensor:
    """Return torch.nn.functional.conv2d; 3x3 and 5x5 layers in channels_last take the C++ operator (`set_algorithm`).

    On a GPU, without gradients, by the Triton kernels where they are predicted or measured to be faster: PyTorch's
    convolution takes a pass over the output for the bias.

    Args:
        input: [B, C, H, W] or [C, H, W].
        kernel: [O, C/groups, kh, kw].
        bias: [O] or None.
        stride: As torch.nn.functional.conv2d.
        padding: As torch.nn.functional.conv2d.
        dilation: As torch.nn.functional.conv2d.
        groups: As torch.nn.functional.conv2d.
        kept: Where to keep the transformed kernel from call to call, of a kernel that seldom changes.

    Returns:
        [B, O, OH, OW] or [O, OH, OW]. Differentiable to any order in eager mode.
    """
    if backends.triton.is_fastest(NAME, input) and _may_be_fused(
        input, kernel, bias, groups, stride, padding, dilation
    ):
        options = (stride, padding, dilation, groups)
        fused: Tensor = backends.implementation("triton", "conv2d").forward(input, kernel, bias, *options)
        return fused
    keeps = kept is not None and _may_be_kept(input, kernel, bias)
    if kept is not None and not keeps:
        kept.release()  # what trains changes at every call
    if not _may_be_filtered(input, kernel, bias, stride, dilation, groups):
        return convolve(input, kernel, bias, stride, padding, dilation, groups)
    if isinstance(padding, str):
        padding = {"same": kernel.shape[2] // 2, "valid": 0}[padding]
    pads: Any = padding if isinstance(padding, (list, tuple)) else (padding, padding)
    stacked = None if bias is None else bias[None]
    if kept is not None and keeps:
        return kept.convolve(input, kernel[None], stacked, tuple(pads), groups)
    call = checks.Convolution((1, 1), tuple(pads), (), (1, 1), CODES[None], True)
    return run_checked(NAME, input, kernel[None], stacked, input.new_ones(1), call, groups, "cpp")


def leaves_to_torch(shape: Sequence[int]) -> bool:
    """Return True for kernels [O, C/groups, kh, kw] that `conv2d` leaves to PyTorch on a CPU where the stride is 1.

    These are kernels of one tap and of few channels, depthwise ones for instance.
    """
    return len(shape) != 4 or shape[2] == shape[3] == 1 or shape[1] < LEAST_CHANNELS


def _may_be_fused(input: Tensor, kernel: Tensor, bias: Tensor | None, groups: int, *options: Any) -> bool:
    """Return True for calls of a GPU without gradients that a kernel of ours may serve, bias included."""
    tensors = (input, kernel) if bias is None else (input, kernel, bias)
    if input.dim() != 4 or kernel.dim() != 4 or not checks.is_plain_eager():
        return False
    if any(type(option) is not tuple or len(option) != 2 for option in options):
        return False
    outputs, inputs = kernel.shape[:2]
    if (
        groups < 1
        or input.shape[1] != inputs * groups
        or outputs % groups
        or (bias is not None and bias.shape != (outputs,))
    ):
        return False  # for PyTorch's convolution to refuse
    if any(type(t) not in _TYPES or t.dtype is not input.dtype or t.device != input.device for t in tensors):
        return False
    if checks.autocast_is_on(input.device.type) and torch.get_autocast_dtype(input.device.type) != input.dtype:
        return False
    traced = torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0
    return not traced and not registration.wants_gradient(tensors)


def _may_be_kept(input: Tensor, kernel: Tensor, bias: Tensor | None) -> bool:
    """Return True for filtered calls in inference, past which no mode looks."""
    if not remembers_transforms() or torch._C._len_torch_dispatch_stack():
        return False
    return not registration.wants_gradient((input, kernel, bias))


def _may_be_filtered(
    input: Tensor, kernel: Tensor, bias: Tensor | None, stride: Any, dilation: Any, groups: int
) -> bool:
    """Return True for calls of a kind for which the C++ operator may take Winograd's filtering."""
    shape = kernel.shape  # first, since it alone refuses most calls
    taps = shape[-1]
    if len(shape) != 4 or taps not in TAPS or shape[2] != taps or shape[1] < LEAST_CHANNELS or input.dim() != 4:
        return False
    if not checks.is_plain_eager() or torch._C._get_tracing_state() is not None or current_algorithm() == "direct":
        return False
    if any(v != 1 and tuple(v) != (1, 1) for v in (stride, dilation)) or input.shape[1] != shape[1] * groups:
        return False
    pixels = input.shape[0] * input.shape[2] * input.shape[3]
    if kernel.numel() * pixels < LEAST_MACS or pixels < max(LEAST_PIXELS, shape[1]):
        return False
    tensors = (input, kernel) if bias is None else (input, kernel, bias)
    if any(t.dtype is not torch.float32 or t.device.type != "cpu" or type(t) not in _TYPES for t in tensors):
        return False
    if (
        current_algorithm() == "direct"
        or input.shape[2] < taps
        or input.shape[3] < taps
        or backends.unavailable_reason(NAME, "cpp") is not None
    ):
        return False
    return input.is_contiguous(memory_format=torch.channels_last) and not torch.is_autocast_enabled("cpu")
