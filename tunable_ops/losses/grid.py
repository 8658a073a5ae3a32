"""A loss against patterns that repeat with the strides of a network: checkerboards."""

import torch.nn.functional as F
from torch import Tensor

from tunable_ops.losses.reduction import check_pair, mean_per_sample


def grid(output: Tensor, target: Tensor, period: int = 4, window: int = 8) -> Tensor:
    """Compute the mean square of what repeats every few pixels in the error of each sample.

    A network that enlarges by `period` makes the period x period pixels of an input pixel with kernels of their own.
    Where it invents texture without looking at anything that varies, each kernel adds the same everywhere, and the
    picture gets a grid (Odena et al., "Deconvolution and checkerboard artifacts", Distill 2016); losses on features
    and discriminators with strides of their own hardly see it. Here the error ``e = output - target`` is averaged over
    windows, separately for each of the ``period**2`` places within a period; in an error without a grid all places have
    nearly the same average::

        m[place, w] = mean over the window w of e at that place
        loss = mean over w and places of (m[place, w] - mean over places of m[., w])**2

    The root of the loss is the amplitude of the grid, in units of the pictures. An error without one, of standard
    deviation s and independent pixels, has the loss ``s**2 / window**2``.

    Args:
        output: [B, C, H, W], floating point; half types are computed in float32.
        target: Same shape and device.
        period: Of the pattern in pixels, at least 2: the factor of the enlargement, or the stride.
        window: Side of a window in periods, at least 1; windows overlap by half. Smaller pictures are one window.

    Returns:
        [B], float32 (float64 if either input is). [0] for an empty batch. Pixels beyond the last whole period do not
        count. Derivatives of any order.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, the pictures are smaller than a period, or a number is too small.

    Example:
        >>> stripes = torch.tensor([0.0, 1.0]).repeat(4, 2)  # [4, 4]
        >>> grid(stripes[None, None], torch.zeros(1, 1, 4, 4), period=2)
        tensor([0.2500])
    """
    for name, value, least in (("period", period, 2), ("window", window, 1)):
        if value < least:
            raise ValueError(f"grid: {name} must be at least {least}; got {value}")
    output, target = check_pair("grid", output, target)
    if output.ndim != 4 or min(output.shape[2:]) < period:
        raise ValueError(
            f"grid: output must be [B, C, H, W] with H and W of at least period = {period}; got {list(output.shape)}"
        )
    rows, columns = (side // period for side in output.shape[2:])
    error = (output - target)[..., : rows * period, : columns * period]
    cells = error.unflatten(3, (columns, period)).unflatten(2, (rows, period))  # [B, C, rows, period, columns, period]
    places = cells.permute(0, 1, 3, 5, 2, 4).flatten(0, 3).unsqueeze(1)
    size = (min(window, rows), min(window, columns))
    stride = (max(size[0] // 2, 1), max(size[1] // 2, 1))
    means = F.avg_pool2d(places, size, stride).flatten(1).unflatten(0, (*error.shape[:2], period * period))
    deviation = means - means.mean(2, keepdim=True)
    return mean_per_sample(deviation * deviation)
