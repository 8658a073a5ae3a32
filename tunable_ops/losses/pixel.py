"""Losses that compare pixel by pixel, and total variation."""

import math

import torch
from torch import Tensor

from tunable_ops.losses.reduction import at_least_float32, check_image, check_pair, mean_per_sample


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of each sample: ``mean((output - target)**2)``.

    Args:
        output: [B, ...], floating point; half types are computed in float32.
        target: Same shape and device.

    Returns:
        [B], float32 (float64 if either input is). [0] for an empty batch. Derivatives of any order.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, or a sample has no elements.

    Example:
        >>> mse(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.zeros(2, 2))
        tensor([2., 1.])
    """
    output, target = check_pair("mse", output, target)
    difference = output - target
    return mean_per_sample(difference * difference)


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute error of each sample: ``mean(|output - target|)``.

    Args:
        output: [B, ...], floating point; half types are computed in float32.
        target: Same shape and device.

    Returns:
        [B], float32 (float64 if either input is). [0] for an empty batch. The derivative at 0 is 0.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, or a sample has no elements.

    Example:
        >>> l1(torch.tensor([[0.0, -2.0], [1.0, 1.0]]), torch.zeros(2, 2))
        tensor([1., 1.])
    """
    output, target = check_pair("l1", output, target)
    return mean_per_sample((output - target).abs())


def charbonnier(output: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Compute a smooth form of `l1`: ``mean(sqrt((output - target)**2 + eps**2))``.

    This is the form used for restoration (Lai et al., LapSRN, CVPR 2017); equal pictures give ``eps``, not 0.

    Args:
        output: [B, ...], floating point; half types are computed in float32.
        target: Same shape and device.
        eps: Difference at which the square turns into the absolute value; at least 1e-9, to keep the derivatives within
            the range of float32.

    Returns:
        [B], float32 (float64 if either input is). [0] for an empty batch. Derivatives of any order.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, a sample has no elements, or eps is out of range.

    Example:
        >>> charbonnier(torch.tensor([[3.0, -3.0]]), torch.zeros(1, 2), eps=4.0)
        tensor([5.])
    """
    if not 1e-9 <= eps < math.inf:
        raise ValueError(f"charbonnier: eps must be finite and at least 1e-9; got {eps}; use l1 for eps = 0")
    output, target = check_pair("charbonnier", output, target)
    difference = output - target
    return mean_per_sample(torch.sqrt(difference * difference + eps * eps))


def log_mse(output: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """Compute the mean squared error of each sample in decibels: ``10 * log10(mse + eps)``.

    For values in [0, 1] this is minus the PSNR (the "PSNR loss" of HINet, Chen et al., CVPRW 2021, and NAFNet, Chen et
    al., ECCV 2022). Its gradient is that of `mse` divided by the sample's own error: samples that are nearly right
    count as much as those that are far off, whatever the noise level.

    A trap: several objectives of this kind towards different targets make lambda a switch, as with `l1`, and more so;
    use `mse` there (see `MultiLoss`).

    Args:
        output: [B, ...], floating point; half types are computed in float32.
        target: Same shape and device.
        eps: Mean squared error below which a sample's gradient fades, a positive number; 1e-8 is 80 dB. At least 1e-30,
            to stay within the range of float32.

    Returns:
        [B], float32 (float64 if either input is), in dB; negative for errors below 1. [0] for an empty batch.
        Derivatives of any order.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, a sample has no elements, or eps is out of range.

    Example:
        >>> log_mse(torch.tensor([[0.1, -0.1], [10.0, 10.0]]), torch.zeros(2, 2))
        tensor([-20.0000,  20.0000])
    """
    if not 1e-30 <= eps < math.inf:
        raise ValueError(f"log_mse: eps must be finite and at least 1e-30; got {eps}")
    output, target = check_pair("log_mse", output, target)
    difference = output - target
    return 10 / math.log(10) * torch.log(mean_per_sample(difference * difference) + eps)


def tv(output: Tensor, target: Tensor | None = None) -> Tensor:
    """Compute the anisotropic total variation of each sample, as a mean per direction.

    ``mean(|x[..., 1:, :] - x[..., :-1, :]|) + mean(|x[..., :, 1:] - x[..., :, :-1]|)``, each mean over all neighbouring
    pairs in that direction, so the value does not depend on the size or the number of channels of a picture. A
    direction of size 1 has no pairs and adds 0.

    Args:
        output: [B, ..., H, W], floating point; half types are computed in float32.
        target: Ignored; it lets tv be an objective of `MultiLoss`.

    Returns:
        [B], float32 (float64 for float64). [0] for an empty batch. The derivative between equal neighbours is
        0.

    Raises:
        TypeError: `output` is not a floating point Tensor.
        ValueError: `output` has fewer than three dimensions, or a sample has no elements.

    Example:
        >>> tv(torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]))  # down: mean(0, 2); across: mean(1, 3)
        tensor([3.])
    """
    check_image("tv", "output", output)
    if output.ndim < 3:
        raise ValueError(f"tv: output must be [B, ..., H, W]; got {list(output.shape)}")
    output = output.to(at_least_float32(output))
    total = output.new_zeros(output.shape[0])
    for dim in (-2, -1):
        if output.shape[dim] > 1:
            total = total + mean_per_sample(output.diff(dim=dim).abs())
    return total
