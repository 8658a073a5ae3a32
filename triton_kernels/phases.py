"""Split the input gradient of a strided convolution into stride-1 convolutions, so that no zeros are multiplied.

Input row h receives row o of grad_output through tap r where o * stride - padding + r * dilation = h. The rows
h = i (mod stride) form a phase: only every (stride / gcd(stride, dilation))-th tap reaches them, and these taps read
grad_output at stride 1, dilation / gcd rows apart. The same holds for columns, so the gradient consists of
stride_h * stride_w small convolutions, each for every stride-th pixel and with some of the taps. At stride 1 there is
one.
"""

from collections.abc import Iterator
from itertools import product
from math import gcd
from typing import NamedTuple

from torch import Tensor
from tunable_ops.triton_kernels.launch import Geometry


class Line(NamedTuple):
    """One phase along one axis: its pixels, its taps, and how the reversed taps read grad_output."""

    pixels: slice
    taps: slice
    padding: int
    dilation: int


def lines(size: int, taps: int, stride: int, padding: int, dilation: int) -> list[Line]:
    """List the phases along an axis of `size` input pixels, without those that no tap reaches."""
    step = stride // gcd(stride, dilation)
    found = []
    for first in range(min(stride, size)):
        met = (r for r in range(min(step, taps)) if (first + padding - r * dilation) % stride == 0)
        first_tap = next(met, None)
        if first_tap is None:
            continue
        count = len(range(first_tap, taps, step))
        apart = step * dilation // stride
        # Row q of the phase reads row q + offset - t * apart of grad_output with the t-th of its taps.
        offset = (first + padding - first_tap * dilation) // stride
        found.append(
            Line(slice(first, None, stride), slice(first_tap, None, step), (count - 1) * apart - offset, apart)
        )
    return found


class Phase(NamedTuple):
    """Views of the input gradient and the kernels: `pixels` is the convolution of grad_output with `weight`."""

    pixels: Tensor
    weight: Tensor
    geometry: Geometry


def phases(grad_input: Tensor, weight: Tensor, geometry: Geometry) -> Iterator[Phase]:
    """List the phases of a convolution; pixels in none of them have a gradient of 0.

    Args:
        grad_input: [B, C, H, W].
        weight: [P or B, O, C/groups, kh, kw].
        geometry: The convolution's own.
    """
    if geometry.stride == (1, 1):  # all pixels, all taps
        padding = tuple(
            d * (k - 1) - p for p, d, k in zip(geometry.padding, geometry.dilation, weight.shape[3:], strict=True)
        )
        yield Phase(grad_input, weight, Geometry((1, 1), padding, geometry.dilation, flip=True))  # type: ignore[arg-type]
        return
    axes = zip(grad_input.shape[2:], weight.shape[3:], *geometry[:3], strict=True)
    for row, column in product(*(lines(*numbers) for numbers in axes)):
        backwards = Geometry((1, 1), (row.padding, column.padding), (row.dilation, column.dilation), flip=True)
        yield Phase(grad_input[:, :, row.pixels, column.pixels], weight[..., row.taps, column.taps], backwards)
