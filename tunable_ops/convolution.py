"""PyTorch's convolutions, called so that no known fault of the libraries below is met (docs/known_faults.md).

- The strides of dimensions of size 1 mean nothing, but the libraries choose their algorithm by them, and some of those
  choices give wrong values or errors. Inputs and kernels therefore get the strides that a new tensor has.
- oneDNN's backward of a 1x1 convolution with a stride writes outside its memory. Such a convolution takes the pixels
  that it needs first and convolves without a stride.
- oneDNN's convolution in bfloat16 with AMX gives wrong values where the output is one pixel wide and there is a stride
  along the width. Such a stride moves nothing: the convolution goes without it.
- oneDNN reads address 0 where a dimension of one tap has a dilation, and its outputs lie beside the picture. Of one tap
  the dilation means nothing: the convolution goes without it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

_PLAIN: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


def convolve(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return torch's convolution of the kernel's rank.

    Args:
        input: [B, C, *size] or [C, *size].
        kernel: [O, C/groups, *taps].
        bias: [O] or None.
        stride: As torch.nn.functional.conv2d.
        padding: As torch.nn.functional.conv2d.
        dilation: As torch.nn.functional.conv2d.
        groups: As torch.nn.functional.conv2d.

    Returns:
        [B, O, *grid] or [O, *grid].
    """
    shape = kernel.shape
    ndim = len(shape) - 2
    if input.dim() == ndim + 1:  # torch would add the dimension with the stride of C values
        return convolve(input[None], kernel, bias, stride, padding, dilation, groups)[0]
    # The last size alone tells most kernels: this is on the way of every layer.
    if shape[-1] == 1 and stride != (1,) * ndim and padding != "same" and _strides_pointwise(shape, stride):
        input = pick(input, _each(stride, ndim), _each(0 if isinstance(padding, str) else padding, ndim))
        stride, padding, dilation = 1, 0, 1
    if 1 in shape:
        kernel, dilation = with_new_strides(kernel), _dilation_of_taps(shape, dilation)
    if input.dtype is torch.bfloat16 and _is_one_wide(input, shape, stride, padding, dilation):
        return convolve(input, kernel, bias, (*_each(stride, ndim)[:-1], 1), padding, dilation, groups)[..., :1]
    return _PLAIN[ndim](with_new_strides(input), kernel, bias, stride, padding, dilation, groups)


def convolve_transposed(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Return torch.nn.functional.conv_transpose2d, with its arguments."""
    if input.dim() == 3:
        return convolve_transposed(input[None], kernel, bias, stride, padding, output_padding, groups, dilation)[0]
    strides, more = _each(stride, 2), _each(output_padding, 2)
    if not is_strided_pointwise(kernel.shape[2:], strides):
        options = (stride, padding, output_padding, groups, _dilation_of_taps(kernel.shape, dilation))
        return F.conv_transpose2d(with_new_strides(input), with_new_strides(kernel), bias, *options)
    products = F.conv_transpose2d(with_new_strides(input), with_new_strides(kernel), None, groups=groups)
    # Each pixel becomes the first of a block of stride x stride; what is around the pixels is cut off or added.
    batch, outputs, height, width = products.shape
    blocks = F.pad(products[:, :, :, None, :, None], (0, strides[1] - 1, 0, 0, 0, strides[0] - 1))
    spread = blocks.reshape(batch, outputs, height * strides[0], width * strides[1])
    edges = [(-p, e - p - s + 1) for p, e, s in zip(_each(padding, 2), more, strides, strict=True)]
    output = F.pad(spread, (*edges[1], *edges[0]))
    return output if bias is None else output + bias[:, None, None]


def convolve_backward(
    grad_output: Tensor, input: Tensor, kernel: Tensor, geometry: Any, groups: int, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, kernel and bias of `convolve`, None for those not `wanted`.

    Args:
        grad_output: [B, O, *grid].
        input: [B, C, *size].
        kernel: [O, C/groups, *taps].
        geometry: (stride, padding, dilation), each with a value per dimension.
        groups: As in `convolve`.
        wanted: Of input, kernel and bias.
    """
    stride, padding, dilation = geometry
    ones = [1] * len(stride)
    if is_strided_pointwise(kernel.shape[2:], stride):
        plain = (ones, [0] * len(stride), ones)
        picked = pick(input, stride, padding)
        grad, *others = convolve_backward(grad_output, picked, kernel, plain, groups, wanted)
        return (None if grad is None else put_back(grad, input, stride, padding), others[0], others[1])
    gradients = torch.ops.aten.convolution_backward(
        grad_output,
        with_new_strides(input),
        with_new_strides(kernel),
        [kernel.shape[0]],
        stride,
        padding,
        _dilation_of_taps(kernel.shape, dilation),
        False,
        [0] * len(stride),
        groups,
        wanted,
    )
    return tuple(g if w else None for g, w in zip(gradients, wanted, strict=True))  # type: ignore[return-value]


def _is_one_wide(input: Tensor, shape: Sequence[int], stride: Any, padding: Any, dilation: Any) -> bool:
    """Return True on a CPU for an output of one pixel along the last dimension, and a stride there; False in graphs."""
    ndim = len(shape) - 2
    if input.device.type != "cpu" or isinstance(padding, str) or torch.compiler.is_compiling():
        return False
    step, edge, spread = (_each(value, ndim)[-1] for value in (stride, padding, dilation))
    reach = input.shape[-1] + 2 * edge - spread * (shape[-1] - 1) - 1
    return step > 1 and 0 <= reach < step


def _dilation_of_taps(shape: Sequence[int], dilation: Any) -> Any:
    """Return the dilation of a kernel [O, C/groups, *taps], with 1 where there is one tap."""
    ndim = len(shape) - 2
    if dilation == 1 or max(each := _each(dilation, ndim)) == 1:
        return dilation
    return tuple(1 if taps == 1 else d for taps, d in zip(shape[2:], each, strict=True))


def is_strided_pointwise(taps: Sequence[int], stride: Sequence[int]) -> bool:
    """Return True for a kernel of one tap with a stride."""
    return max(stride) > 1 and max(taps) == 1


def _strides_pointwise(shape: Sequence[int], stride: int | Sequence[int]) -> bool:
    return is_strided_pointwise(shape[2:], _each(stride, len(shape) - 2))


def pick(input: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Return the pixels [B, C, *grid] that a kernel of one tap meets: a view, or a copy if there is padding."""
    if any(padding):
        input = F.pad(input, [n for p in reversed(padding) for n in (p, p)])
    transformed = torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None
    if torch.compiler.is_compiling() or transformed:
        return input[_every(stride)]
    # The same in one step, whose gradient keeps the memory format; that of slices is contiguous, and takes 2 to 4 times
    # as long in channels_last.
    steps = [1, 1, *stride]
    sizes = [(n + s - 1) // s for n, s in zip(input.shape, steps, strict=True)]
    return input.as_strided(sizes, [n * s for n, s in zip(input.stride(), steps, strict=True)])


def put_back(grad: Tensor, input: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Return the gradient of the input of `pick`, given that of its result."""
    whole = torch.zeros_like(input)
    if any(padding):
        whole = F.pad(whole, [n for p in reversed(padding) for n in (p, p)])
    whole[_every(stride)] = grad
    inner: tuple[Any, ...] = (..., *(slice(p, p + n) for p, n in zip(padding, input.shape[2:], strict=True)))
    return whole[inner]


def with_new_strides(tensor: Tensor) -> Tensor:
    """Return a view in which each dimension of size 1 has the stride that a new tensor of this layout has.

    A trace of torch.jit and an export get the tensor as it is: they could only record what is right for their example.
    """
    shape = tensor.shape
    recorded = torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
    if recorded or 1 not in shape or len(shape) < 3:
        return tensor
    stride = tensor.stride()
    if shape[0] == 1 and shape.count(1) == 1 and stride[0] == max(shape[1] * stride[1], shape[2] * stride[2]):
        return tensor  # the usual picture by itself, in a fifth of the calls
    first = tuple(range(len(shape)))
    last = (0, *first[2:], 1)
    spatial = [d for d in first[2:] if shape[d] > 1]
    if shape[1] > 1 and spatial:
        order = last if all(stride[1] < stride[d] for d in spatial) else first
        if _are_new(shape, stride, order):
            return tensor
    else:  # both formats
        if _are_new(shape, stride, last) or _are_new(shape, stride, first):
            return tensor
        order = last if suggest_memory_format(tensor) in _CHANNELS_LAST else first
    view = tensor.permute(order)
    for d in reversed(first):
        if view.shape[d] == 1:
            view = view.squeeze(d).unsqueeze(d)  # takes the stride of the next dimension times its size
    return view.permute([order.index(d) for d in first])


def _are_new(shape: Sequence[int], stride: Sequence[int], order: Sequence[int]) -> bool:
    """Return True if dimensions of size 1 have the strides of a new tensor, whatever the others have."""
    step = 1
    for d in reversed(order):
        if shape[d] == 1 and stride[d] != step:
            return False
        step = shape[d] * stride[d]
    return True


def _every(stride: Sequence[int]) -> tuple[Any, ...]:
    """Return the index of every `stride`-th pixel."""
    return (..., *(slice(None, None, s) for s in stride))


def _each(value: int | Sequence[int], ndim: int) -> Sequence[int]:
    if isinstance(value, (list, tuple)):
        return value if len(value) == ndim else tuple(value) * ndim
    return (value,) * ndim  # type: ignore[return-value]
