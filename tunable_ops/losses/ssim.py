"""Structural similarity as a loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.losses.reduction import check_pair, mean_per_sample

WINDOW = 11  # pixels; this and the other constants are those of Wang et al., 2004
SIGMA = 1.5  # pixels
K1 = 0.01
K2 = 0.03

_gaussian = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
_TAPS = tuple(tap / sum(_gaussian) for tap in _gaussian)


def ssim(output: Tensor, target: Tensor, data_range: float = 1.0, inside: bool = False) -> Tensor:
    """Compute one minus the structural similarity of each sample (Wang et al., "Image Quality Assessment", 2004).

    ``1 - mean((2 m_x m_y + c1) (2 s_xy + c2) / ((m_x**2 + m_y**2 + c1) (s_xx + s_yy + c2)))`` where ``m`` and ``s``
    are means and (co)variances under an 11x11 Gaussian window of sigma 1.5, ``c1 = (0.01 data_range)**2`` and
    ``c2 = (0.03 data_range)**2``. The mean is over channels and all pixels with a reflected border, as in torchmetrics'
    ``structural_similarity_index_measure``; with ``inside`` it is over the windows inside the picture, as in the
    authors' code and in the tables of papers.

    Variances are differences of squares: far outside ``data_range`` their rounding errors exceed ``c2``.

    Args:
        output: [B, C, H, W] with H, W >= 11, floating point; half types are computed in float32, under autocast too.
        target: Same shape and device.
        data_range: Largest minus smallest possible value of a picture: 1 for [0, 1].
        inside: Leave out pixels closer than 5 to the border.

    Returns:
        [B], float32 (float64 if either input is), from 0 (up to rounding) for equal pictures to 2; [0] for an empty
        batch. Derivatives of any order.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, the dimensions are not four, a picture is smaller than the window, or
            data_range is not positive.

    Example:
        >>> picture = torch.rand(2, 3, 16, 16)
        >>> ssim(picture, picture).shape
        torch.Size([2])
    """
    if not 0 < data_range < math.inf:
        raise ValueError(f"ssim: data_range must be finite and above 0; got {data_range}")
    output, target = check_pair("ssim", output, target)
    if output.ndim != 4:
        raise ValueError(f"ssim: output must be [B, C, H, W]; got {list(output.shape)}")
    if min(output.shape[2:]) < WINDOW:
        raise ValueError(
            f"ssim: output must be at least {WINDOW}x{WINDOW} pixels, the size of the window; got {list(output.shape)}"
        )
    if output.shape[0] == 0:  # torch cannot pad an empty batch by reflection
        return mean_per_sample(output - target)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    maps = torch.cat((output, target, output * output, target * target, output * target))  # [5 B, C, H, W]
    mean_x, mean_y, xx, yy, xy = _blur(maps if inside else _reflected(maps)).chunk(5)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    similarity = (2 * product + c1) * (2 * (xy - product) + c2) / ((squares + c1) * (xx + yy - squares + c2))
    return 1 - mean_per_sample(similarity)


def _reflected(maps: Tensor) -> Tensor:
    return F.pad(maps, (WINDOW // 2,) * 4, mode="reflect")


def _blur(maps: Tensor) -> Tensor:
    """Return the Gaussian mean under every window inside the maps."""
    return _GaussianPass.apply(_GaussianPass.apply(maps, 2), 3)


class _GaussianPass(torch.autograd.Function):
    """Gaussian mean along one dimension, without padding: y[i] = sum_k taps[k] x[i + k].

    It adds shifted copies, because a convolution would obey TF32 and autocast: variances are differences of nearly
    equal numbers and need more than 10 bits.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, dim: int) -> Tensor:
        size = values.shape[dim] - WINDOW + 1
        out = values.narrow(dim, 0, size) * _TAPS[0]
        for k in range(1, WINDOW):
            # not in place: torch.compile of torch 2.11 would lose the gradient
            out = torch.add(out, values.narrow(dim, k, size), alpha=_TAPS[k])
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx, grad_out: Tensor):  # type: ignore[no-untyped-def, override]
        border = (WINDOW - 1, WINDOW - 1)
        padded = F.pad(grad_out, border if ctx.dim == 3 else (0, 0, *border))
        return _GaussianPass.apply(padded, ctx.dim), None  # the taps are symmetric: the adjoint is the same pass
