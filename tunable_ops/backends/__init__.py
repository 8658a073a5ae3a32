"""Choice of the backend for a call. Only this package and triton_kernels know about compiled code and Triton.

The backend "torch" is made of PyTorch's own operators. It runs wherever PyTorch does and is the default where no kernel
of this project is faster. A backend requested by name is used or raises; only the default (None) chooses.
"""

import importlib
from functools import cache
from typing import Any

from torch import Tensor

from tunable_ops.backends import cpp, cuda, triton

NAMES = ("torch", "reference", "cpp", "triton", "cuda")
# Backends whose kernels are Python functions; the kernels of the others are in compiled libraries.
IN_PYTHON = ("torch", "triton")
_KERNELS: dict[str, Any] = {"cpp": cpp, "triton": triton, "cuda": cuda}
# Backends that the default tries, in this order, by device type.
_CANDIDATES: dict[str, tuple[str, ...]] = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}


def select(op: str, name: str | None, input: Tensor | None = None, *others: Tensor) -> str:
    """Return the name of the backend that serves `op`: the requested one, or the fastest that can.

    Args:
        op: Name of the operator.
        name: Requested backend, or None for the default.
        input: First tensor of the call; None if the choice does not depend on tensors.
        others: Other tensors that the choice depends on: weight and alpha.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The backend cannot run here, or cannot serve these tensors.
    """
    if name is None:
        for candidate in _CANDIDATES.get(input.device.type, ()) if input is not None else ():
            if _KERNELS[candidate].is_fastest(op, input, *others):
                return candidate
        return "torch"
    if name in ("torch", "reference"):
        return name
    if name not in NAMES:
        known = ", ".join(map(repr, NAMES))
        raise ValueError(f"{op}: backend must be None or one of {known}; got {name!r}")
    reason = unavailable_reason(op, name)
    if reason is None and input is not None:
        reason = _KERNELS[name].unfit(op, input, *others)
    if reason is None:
        return name
    raise RuntimeError(
        f"{op}: backend must be one that can run here; got {name!r}: {reason}. "
        "Use backend=None for the fastest that can"
    )


def unavailable_reason(op: str, name: str) -> str | None:
    """Return why a backend cannot serve `op` here, or None if it can."""
    if name in ("torch", "reference"):
        return None
    if name in _KERNELS:
        reason: str | None = _KERNELS[name].unavailable_reason(op)
        return reason
    return f"this version has no {name} kernel for {op}"


@cache
def implementation(name: str, op: str) -> Any:
    """Return the module with `forward` and `backward` of an operator, for a backend in `IN_PYTHON`."""
    return importlib.import_module(f"tunable_ops.backends.{name}.{op}")
