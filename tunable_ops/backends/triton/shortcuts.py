"""Shortcuts: a call like one of before goes from the public function to its plan, without checks and choices.

Everything that these depend on is the shortcut's key: shapes, strides, dtypes, devices and alignment of the tensors,
the options as they were given, the tables of measurements, the precision of fp32 and whether cuDNN is in use. A call
that something watches or transforms (a graph that is traced, autocast, a mode, a subclass of Tensor) has no key.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops.triton_kernels import choose_algorithm
from tunable_ops.triton_kernels.launch import input_precision

Key = tuple[Any, ...]
_TYPES = (Tensor, torch.nn.Parameter)
_HASHED = (int, tuple, str, type(None))
_KNOWN: dict[Key, Any] = {}
_MAX = 4096
# Where calls have shortcuts: elsewhere not even the key is made.
DEVICES = frozenset({"cuda"})


def key_of(op: str, tensors: Sequence[Tensor | None], options: Key) -> Key | None:
    """Return the key of a call in plain eager mode; None for any other.

    Args:
        op: The public function.
        tensors: Its tensors, not checked yet.
        options: Its other arguments.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return None
    described: list[Any] = [op, options, choose_algorithm.revision(), torch._C._get_cudnn_enabled()]
    for option in options:
        kind = type(option)
        if kind not in _HASHED:
            return None
        described.append(tuple(map(type, option)) if kind is tuple else kind)  # True equals 1, but is no size
    for t in tensors:
        if t is None:
            described.append(None)
        elif type(t) not in _TYPES or t.is_neg() or torch._C._functorch.is_legacy_batchedtensor(t):
            return None
        else:
            described += (t.shape, t.stride(), t.dtype, t.device, t.data_ptr() & 15)
            if t.dtype is torch.float32:
                described.append(input_precision(t.dtype))
    return tuple(described)


def serves(input: Any) -> bool:
    """Return True if calls on the device of `input`, which is not checked yet, may have a shortcut."""
    return type(input) in _TYPES and input.device.type in DEVICES


def find(key: Key) -> Any:
    """Return what was remembered for a key, or None."""
    return _KNOWN.get(key)


def remember(key: Key, value: Any) -> None:
    """Remember how the call with this key is served."""
    while len(_KNOWN) >= _MAX:
        _KNOWN.pop(next(iter(_KNOWN)), None)
    _KNOWN[key] = value


def forget() -> None:
    """Forget all shortcuts."""
    _KNOWN.clear()
