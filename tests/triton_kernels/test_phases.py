"""The input gradient of a strided convolution as phases: small stride-1 convolutions without products with zeros."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tunable_ops.triton_kernels.launch import Geometry
from tunable_ops.triton_kernels.phases import lines, phases

AXES = list(itertools.product((1, 4, 7), (1, 2, 3, 5), (1, 2, 3, 4), (0, 1, 2), (1, 2, 3)))


def test_every_product_once_and_none_with_a_zero() -> None:
    """Along an axis, the phases have the same (pixel, tap, row of grad_output) as the convolution."""
    for size, taps, stride, padding, dilation in AXES:
        rows = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        wanted = {
            (o * stride - padding + r * dilation, r, o)
            for o in range(rows)
            for r in range(taps)
            if 0 <= o * stride - padding + r * dilation < size
        }
        found = []
        for line in lines(size, taps, stride, padding, dilation):
            pixels, met = range(size)[line.pixels], range(taps)[line.taps]
            for q, pixel in enumerate(pixels):
                for t, tap in enumerate(reversed(met)):
                    row = q - line.padding + t * line.dilation
                    if 0 <= row < rows:
                        found.append((pixel, tap, row))
        assert sorted(found) == sorted(wanted), (size, taps, stride, padding, dilation)


@pytest.mark.parametrize("stride, dilation, padding", [((1, 1), (2, 1), (0, 2)), ((2, 3), (1, 2), (1, 0))])
def test_the_gradient(stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 9, 11, dtype=torch.double, requires_grad=True)
    weight = torch.randn(5, 3, 3, 2, dtype=torch.double)
    output = F.conv2d(x, weight, None, stride, padding, dilation)
    grad_output = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, x, grad_output)
    found = torch.zeros_like(expected)
    for pixels, taps, (_, pads, dils, flip) in phases(found, weight[None], Geometry(stride, padding, dilation)):
        assert flip
        backwards = taps[0].flip(2, 3).transpose(0, 1)
        border = [p for n in (1, 0) for p in (pads[n], pixels.shape[2 + n])]
        result = F.conv2d(F.pad(grad_output, border), backwards, None, 1, 0, dils)
        pixels.copy_(result[:, :, : pixels.shape[2], : pixels.shape[3]])
    torch.testing.assert_close(found, expected)
