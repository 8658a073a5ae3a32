"""Layouts that leave a tensor's values alone: those whose dimensions of size 1 have strides that mean nothing."""

from collections.abc import Callable

import torch
from torch import Tensor


def _channels_last(tensor: Tensor) -> Tensor:
    order = (0, *range(2, tensor.dim()), 1)
    dense = tensor.permute(order).contiguous()
    return dense.permute([order.index(d) for d in range(tensor.dim())])


def _with_odd_strides(tensor: Tensor, stride: int = 7) -> Tensor:
    """Give dimensions of size 1 a stride that no new tensor has."""
    strides = [stride if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


def _odd_channels_last(tensor: Tensor) -> Tensor:
    return _with_odd_strides(_channels_last(tensor))


def _batch_stride_of_channels(tensor: Tensor) -> Tensor:
    """What ``x[None]`` gives for an unbatched channels-last tensor."""
    dense = _channels_last(tensor)
    return dense[0][None] if tensor.shape[0] == 1 else dense


def _sliced(tensor: Tensor) -> Tensor:
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"), dtype=tensor.dtype)
    wide[..., 1::2] = tensor
    return wide[..., 1::2]


def _every_other_sample(tensor: Tensor) -> Tensor:
    wide = torch.full((2 * tensor.shape[0], *tensor.shape[1:]), float("nan"), dtype=tensor.dtype)
    wide[::2] = tensor
    return _channels_last(wide)[::2]


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _expanded(tensor: Tensor) -> Tensor:
    """Stride 0 in dimensions of size 1."""
    return _with_odd_strides(tensor.contiguous(), 0)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": _channels_last,
    "odd": lambda t: _with_odd_strides(t.contiguous()),
    "odd_channels_last": _odd_channels_last,
    "batch_stride_of_channels": _batch_stride_of_channels,
    "sliced": _sliced,
    "every_other_sample": _every_other_sample,
    "transposed": _transposed,
    "expanded": _expanded,
}


def stack_layout(name: str, weight: Tensor) -> Tensor:
    """Lay out each kernel of a stack [P, *kernel] as `name` says; "transposed" and "sliced" act on the whole stack."""
    if name in ("sliced", "transposed", "every_other_sample", "expanded"):
        return LAYOUTS[name](weight)
    if name == "odd":
        return _with_odd_strides(weight.contiguous())
    if name == "contiguous" or weight.dim() < 4:
        return weight.contiguous()
    dense = _channels_last(weight.flatten(0, 1)).unflatten(0, weight.shape[:2])
    return _with_odd_strides(dense) if name == "odd_channels_last" else dense
