"""Algorithms that convolve every sample with its own kernel, forward and backward, by PyTorch's convolution.

grouped  one convolution with B*groups groups; the batch is viewed as channels (free only for contiguous tensors)
loop     one convolution per sample
bmm      one batched matrix product, for 1x1 kernels
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameter as blend
from tunable_ops.convolution import convolve, convolve_backward

# Size of the per-sample weight gradients in fp32 that are kept at a time; larger batches are contracted in chunks.
CHUNK_BYTES = 64 << 20
Geometry = tuple[Any, Any, Any]  # (stride, padding, dilation), each a pair
Pieces = Iterator[tuple[Tensor, Tensor | None, Tensor | None]]


def _blended(weight: Tensor, bias: Tensor | None, alpha: Tensor) -> tuple[Tensor, Tensor | None]:
    return blend.forward(weight, alpha), None if bias is None else blend.forward(bias, alpha)


def _grouped(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, geometry: Geometry, groups: int
) -> Tensor:
    batch = input.shape[0]
    kernel, shift = _blended(weight, bias, alpha)
    output = convolve(
        input.reshape(1, -1, *input.shape[2:]),
        kernel.reshape(-1, *kernel.shape[2:]),
        None if shift is None else shift.reshape(-1),
        *geometry,
        groups=batch * groups,
    )
    return output.reshape(batch, -1, *output.shape[2:])


def _loop(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, geometry: Geometry, groups: int) -> Tensor:
    kernel, shift = _blended(weight, bias, alpha)
    samples = [
        convolve(input[b : b + 1], kernel[b], None if shift is None else shift[b], *geometry, groups=groups)
        for b in range(input.shape[0])
    ]
    return torch.cat(samples)


def _bmm(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, geometry: Geometry, groups: int) -> Tensor:
    kernel, shift = _blended(weight, bias, alpha)
    batch, _, height, width = input.shape
    matrix = kernel.reshape(batch, *weight.shape[1:3])  # [B, O, C]
    if input.is_contiguous():
        pixels = input.reshape(batch, -1, height * width)  # [B, C, HW]
        product = torch.bmm(matrix, pixels) if shift is None else torch.baddbmm(shift[:, :, None], matrix, pixels)
        return product.reshape(batch, -1, height, width)
    pixels = input.permute(0, 2, 3, 1).reshape(batch, height * width, -1)  # [B, HW, C]
    product = torch.bmm(pixels, matrix.mT) if shift is None else torch.baddbmm(shift[:, None], pixels, matrix.mT)
    return product.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


FORWARD: dict[str, Callable[..., Tensor]] = {"grouped": _grouped, "loop": _loop, "bmm": _bmm}


def chunks(weight: Tensor, batch: int, item: int = 4) -> Iterator[slice]:
    """Split the batch into runs of samples whose kernels, of `item` bytes an element, take at most `CHUNK_BYTES`."""
    size = max(1, CHUNK_BYTES // (item * max(1, weight[0].numel())))
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


def _grouped_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    wanted: list[bool],
    grad_input: Tensor | None,
) -> Pieces:
    for rows in chunks(weight, input.shape[0]):
        part, grad, x = alpha[rows], grad_output[rows], input[rows]
        kernel = blend.forward(weight, part)
        count = part.shape[0]
        grad_x, gradient, grad_sum = convolve_backward(
            grad.reshape(1, -1, *grad.shape[2:]),
            x.reshape(1, -1, *x.shape[2:]),
            kernel.reshape(-1, *kernel.shape[2:]),
            geometry,
            count * groups,
            wanted,
        )
        if grad_input is not None and grad_x is not None:
            grad_input[rows] = grad_x.view_as(x.contiguous())
        yield (
            part,
            None if gradient is None else gradient.reshape(count, *weight.shape[1:]),
            None if grad_sum is None else grad_sum.reshape(count, -1),
        )


def _loop_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    wanted: list[bool],
    grad_input: Tensor | None,
) -> Pieces:
    for rows in chunks(weight, input.shape[0]):
        kernel = blend.forward(weight, alpha[rows])
        gradients, sums = [], []
        for n, b in enumerate(range(rows.start, rows.stop)):
            grad_x, gradient, grad_sum = convolve_backward(
                grad_output[b : b + 1], input[b : b + 1], kernel[n], geometry, groups, wanted
            )
            if grad_input is not None and grad_x is not None:
                grad_input[b] = grad_x[0]
            gradients.append(gradient)
            sums.append(grad_sum)
        yield (
            alpha[rows],
            torch.stack(gradients) if wanted[1] else None,  # type: ignore[arg-type]
            torch.stack(sums) if wanted[2] else None,  # type: ignore[arg-type]
        )


def _bmm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    wanted: list[bool],
    grad_input: Tensor | None,
) -> Pieces:
    for rows in chunks(weight, input.shape[0]):
        part, grad, x = alpha[rows], grad_output[rows].flatten(2), input[rows].flatten(2)  # [n, O, HW], [n, C, HW]
        if grad_input is not None:
            matrix = blend.forward(weight, part).reshape(part.shape[0], *weight.shape[1:3])
            grad_input[rows] = torch.bmm(matrix.mT, grad).view(input[rows].shape)
        gradient = torch.bmm(grad, x.mT).view(part.shape[0], *weight.shape[1:]) if wanted[1] else None
        yield part, gradient, grad.sum(-1) if wanted[2] else None


BACKWARD: dict[str, Callable[..., Pieces]] = {
    "grouped": _grouped_backward,
    "loop": _loop_backward,
    "bmm": _bmm_backward,
}
