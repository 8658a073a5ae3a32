"""What all losses share: checks of inputs, the dtype of the arithmetic, the mean over a sample, the gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from tunable_ops.checks import can_read


def check_image(loss: str, name: str, value: Tensor) -> None:
    """Check that a value is a real floating point tensor [B, ...] with at least one element per sample.

    Args:
        loss: Name of the loss, for messages.
        name: Name of the argument, for messages.
        value: Value of the argument.

    Raises:
        TypeError: Not a Tensor, or not floating point.
        ValueError: No batch dimension, or no elements in a sample.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{loss}: {name} must be a Tensor; got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(
            f"{loss}: {name} must be floating point; got {value.dtype}; convert it, pictures in 0..255 with "
            f"{name}.float() / 255"
        )
    if value.ndim == 0:
        raise ValueError(f"{loss}: {name} must have a batch dimension, [B, ...]; got a scalar; use {name}.unsqueeze(0)")
    if 0 in value.shape[1:]:
        raise ValueError(
            f"{loss}: {name} must hold at least one element per sample; got {list(value.shape)}; "
            f"only the batch may be empty"
        )


def check_pair(loss: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Check an output and its target, and convert both to the dtype in which the loss is computed.

    This is the wider of the two dtypes, and at least float32: squares of fp16 overflow from 256 on.

    Args:
        loss: Name of the loss, for messages.
        output: [B, ...], floating point.
        target: Same shape and device, floating point.

    Returns:
        Output and target in float32 or float64.

    Raises:
        TypeError: Not a Tensor, or not floating point.
        ValueError: Shapes or devices differ, or samples are empty.
    """
    check_image(loss, "output", output)
    check_image(loss, "target", target)
    if target.shape != output.shape:
        raise ValueError(
            f"{loss}: target must have output's shape {list(output.shape)}; got {list(target.shape)}; "
            f"there is no broadcasting"
        )
    if target.device != output.device:
        raise ValueError(
            f"{loss}: target must be on output's device {output.device}; got {target.device}; move it with "
            f"target.to(output.device)"
        )
    dtype = torch.promote_types(at_least_float32(output), target.dtype)
    return output.to(dtype), target.to(dtype)


def check_pictures(loss: str, name: str, value: Tensor, min_size: int = 1, bounded: bool = True) -> None:
    """Check that a value is a batch of RGB pictures in [0, 1].

    The range is checked only where that is cheap: on the CPU, outside compilation and transforms. (On a GPU it would
    synchronise the stream and break graph capture.)

    Args:
        loss: Name of the loss, for messages.
        name: Name of the argument, for messages.
        value: Value of the argument.
        min_size: Smallest height and width.
        bounded: Check the range, with a tolerance of 1e-3.

    Raises:
        TypeError: Not a Tensor, or not floating point.
        ValueError: Not [B, 3, H, W], too small, or outside [0, 1].
    """
    check_image(loss, name, value)
    if value.ndim != 4 or value.shape[1] != 3:
        raise ValueError(f"{loss}: {name} must be RGB pictures, [B, 3, H, W]; got {list(value.shape)}")
    if min(value.shape[2:]) < min_size:
        raise ValueError(
            f"{loss}: {name} must be at least {min_size}x{min_size} pixels, so that the deepest layer has a value; "
            f"got {value.shape[2]}x{value.shape[3]}"
        )
    if not (bounded and value.numel() and can_read(value)):
        return
    low, high = torch.aminmax(value.detach())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
        raise ValueError(
            f"{loss}: {name} must lie in [0, 1]; got values from {low.item():.4g} to {high.item():.4g}; scale or clamp "
            f"it, or pass bounded=False for the raw output of a network in training"
        )


def check_picture_pair(
    loss: str, output: Tensor, target: Tensor, min_size: int = 1, bounded: bool = True
) -> tuple[Tensor, Tensor]:
    """Do the same as `check_pair` for RGB pictures: at least ``min_size``, target (and output if bounded) in [0, 1]."""
    output, target = check_pair(loss, output, target)
    check_pictures(loss, "output", output, min_size, bounded)
    check_pictures(loss, "target", target, min_size)
    return output, target


def at_least_float32(value: Tensor) -> torch.dtype:
    """Return float64 for a float64 tensor, else float32."""
    return torch.promote_types(value.dtype, torch.float32)


def mean_per_sample(value: Tensor) -> Tensor:
    """Return the mean over all dimensions but the batch, [B, ...] -> [B], also for an empty batch."""
    if value.ndim == 1:  # torch reads an empty list of dimensions as "all"
        return value
    return value.mean(dim=tuple(range(1, value.ndim)))


def value_and_gradient(
    loss: Callable[[Tensor, Tensor | None], Tensor], output: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the values of a loss, [B], and the gradient of their sum for the output, both without a graph."""
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        values = loss(leaf, target)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient
