"""Read what a caller gives for lambda: numbers or a tensor, as a tensor on the network's device."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tunable_ops import checks

# What a caller may give: a tensor, numbers, names with numbers or tensors.
Lambda: TypeAlias = Tensor | float | Sequence[float] | Sequence[Sequence[float]] | Mapping[str, float | Tensor]
_FEW = 64  # values that are read one by one: a tenth of the time of the operators' launches


def read_lambda(op: str, lam: Any, num_params: int, like: Tensor | None = None) -> Tensor:
    """Read lambda from numbers or a tensor: [p], [B, p] or a map [B, p, *grid]; one number where p = 1.

    It goes to the device of `like`, a parameter of the network, and from fp64 to fp32 unless `like` is fp64 itself.

    Raises:
        TypeError: Neither numbers nor a floating-point tensor.
        ValueError: A wrong length, or a value that is not finite (where `read_values` can read them).
    """
    read = to_tensor(op, lam, num_params, like)
    values = read_values(read)
    if values is not None and not all(map(math.isfinite, values)):
        refuse_infinite(op, read)
    return to_device(read, like)


def to_tensor(op: str, lam: Any, num_params: int, like: Tensor | None = None) -> Tensor:
    """Return lambda as a tensor of a fitting shape, on the device where it is."""
    if not isinstance(lam, Tensor):
        double = like is not None and like.dtype == torch.float64
        lam = _from_numbers(op, lam, torch.float64 if double else torch.float32)
    elif not lam.is_floating_point():
        raise TypeError(f"{op}: lam must be floating point; got {lam.dtype}")
    dim = lam.dim()
    if dim == 0 and num_params == 1:
        return lam.reshape(1)
    length = lam.shape[0] if dim == 1 else lam.shape[1] if dim > 1 else 0
    if length != num_params:
        raise ValueError(
            f"{op}: lam must hold p = {num_params} values, [p], [B, p] or a map [B, p, H, W]; got shape "
            f"{list(lam.shape)}"
        )
    return lam


def _from_numbers(op: str, lam: Any, dtype: torch.dtype) -> Tensor:
    try:
        if torch.compiler.is_compiling():
            return _from_scalars(lam, dtype)
        if isinstance(lam, (list, tuple)) and any(isinstance(part, Tensor) for part in lam):
            return torch.stack([torch.as_tensor(part, dtype=dtype) for part in lam])  # keeps gradients
        return torch.as_tensor(lam, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{op}: lam must be numbers or a Tensor; got {lam!r}") from error


def _from_scalars(lam: Any, dtype: torch.dtype) -> Tensor:
    # torch.as_tensor of a list makes its numbers constants of a compiled graph; as scalars they are inputs.
    if isinstance(lam, (list, tuple)):
        return torch.stack([_from_scalars(part, dtype) for part in lam])
    if isinstance(lam, (int, float)):
        return torch.full((), lam, dtype=dtype)
    return torch.as_tensor(lam, dtype=dtype)  # an array of NumPy, or a tensor


def read_values(lam: Tensor) -> list[float] | None:
    """Return values that show whether all of lambda are finite and in range: those of every position, side by side.

    None where reading them is not free: on a GPU (it would stop the stream and break graph capture), while compiling
    or tracing, in transforms. Of more than 64 numbers the smallest and the largest of each parameter are read.
    """
    if not checks.can_read(lam):
        return None
    if lam.dim() == 1:
        return lam.tolist()
    if lam.numel() > _FEW:
        spread = lam.detach().movedim(1, -1).flatten(0, -2)
        lam = torch.stack(spread.aminmax(dim=0))
    return (lam if lam.dim() == 2 else lam.movedim(1, -1)).flatten().tolist()


def refuse_infinite(op: str, lam: Tensor) -> None:
    """Raise for a lambda with a value that is not finite."""
    got = lam.tolist() if lam.numel() <= _FEW else f"NaN or infinity among the values of shape {list(lam.shape)}"
    raise ValueError(f"{op}: lam must be finite; got {got}")


def to_device(lam: Tensor, like: Tensor | None) -> Tensor:
    """Bring lambda to the device of `like`, and from fp64 to fp32 unless `like` is fp64."""
    if like is None:
        return lam
    narrow = lam.dtype == torch.float64 and like.dtype != torch.float64
    if not narrow and lam.device == like.device:
        return lam
    return lam.to(like.device, torch.float32 if narrow else lam.dtype)
