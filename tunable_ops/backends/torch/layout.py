"""Memory formats: that of an output, and views of kernels as rows of a matrix."""

import math

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(input: Tensor) -> bool:
    """Return True if [B, C, H, W] is dense in channels_last."""
    return input.is_contiguous(memory_format=torch.channels_last)


def kernels_are_channels_last(stack: Tensor) -> bool:
    """Return True if each kernel of [P, O, C, *k] is stored as [O, *k, C]."""
    if stack.dim() not in (5, 6) or stack.is_contiguous():
        return False
    return _channels_to_end(stack).is_contiguous()


def output_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the memory format of a convolution's output: that of the input.

    If the input's strides fit both formats (one channel, for example), the kernels' format decides.
    """
    channels_last = _CHANNELS_LAST.get(input.dim())
    if channels_last is None:
        return torch.contiguous_format
    fits_last = input.is_contiguous(memory_format=channels_last)
    if input.is_contiguous() and not fits_last:  # the common cases first: reading strides in Python is slow
        return torch.contiguous_format
    if fits_last and (not input.is_contiguous() or kernels_are_channels_last(weight)):
        return channels_last
    return suggest_memory_format(input)


def as_matrix(stack: Tensor, like: Tensor | None = None) -> Tensor:
    """Return [P, *shape] as [P, N], with rows in the memory order of the kernels of `like` (by default `stack`)."""
    if kernels_are_channels_last(stack if like is None else like):
        stack = _channels_to_end(stack)
    return stack.reshape(stack.shape[0], math.prod(stack.shape[1:]))


def from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """Return a view of [*rows, N] as [*rows, *shape] with the kernel layout of `like` [P, *shape]."""
    shape = like.shape[1:]
    rows = matrix.shape[:-1]
    if not kernels_are_channels_last(like):
        return matrix.view((*rows, *shape))
    outputs, channels, *taps = shape
    ndim = len(taps)
    laid = matrix.view(*rows, outputs, *taps, channels)
    start = len(rows) + 1
    return laid.permute(*range(start), start + ndim, *range(start, start + ndim))


def empty_stack_like(stack: Tensor) -> Tensor:
    """Return an uninitialised tensor with the shape and kernel layout of `stack`, as all its gradients have."""
    return from_matrix(stack.new_empty(stack.shape[0], math.prod(stack.shape[1:])), stack)


def lie_alike(stack: Tensor, kernel: Tensor) -> bool:
    """Return True if `kernel` has the dtype, shape and dense layout of the kernels in `stack`."""
    if stack.dtype != kernel.dtype or stack.shape[1:] != kernel.shape:
        return False
    if stack.is_contiguous():
        return kernel.is_contiguous()
    return kernels_are_channels_last(stack) and kernel.is_contiguous(memory_format=_CHANNELS_LAST[kernel.dim()])


def _channels_to_end(stack: Tensor) -> Tensor:
    return stack.permute(0, 1, *range(3, stack.dim()), 2)
