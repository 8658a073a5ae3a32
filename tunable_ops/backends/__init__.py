"""Which backend serves a call: the only package that knows of `_C` and triton, and only inside functions.

`torch` is the fastest algorithm made of PyTorch's own operators; it runs wherever PyTorch does and is what the
default takes where no kernel of the project's own beats it. A backend asked for by name is used or raises; only the
default chooses.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tunable_ops.backends import cpp, cuda

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("torch", "reference", "cpp", "triton", "cuda")
_COMPILED: dict[str, Any] = {"cpp": cpp, "cuda": cuda}


def select(op: str, name: str | None, *tensors: "Tensor | None") -> str:
    """Returns the name of the backend that serves `op`: the one asked for, or the fastest that can.

    Args:
        op: The operator.
        name: What the caller asked for.
        tensors: Input, weight, bias and alpha, where the choice depends on them.

    Raises:
        ValueError: An unknown name.
        RuntimeError: A backend that cannot run here, or cannot serve these tensors.
    """
    if name is None:
        for candidate, backend in _COMPILED.items():
            if tensors and backend.is_fastest(op, *tensors):
                return candidate
        return "torch"
    if name in ("torch", "reference"):
        return name
    if name not in NAMES:
        known = ", ".join(map(repr, NAMES))
        raise ValueError(f"{op}: backend must be None or one of {known}; got {name!r}")
    reason = unavailable_reason(op, name)
    if reason is None and tensors and name in _COMPILED:
        reason = _COMPILED[name].unfit(*tensors)
    if reason is None:
        return name
    raise RuntimeError(
        f"{op}: backend must be one that can run here; got {name!r}: {reason}. "
        "Use backend=None for the fastest that can"
    )


def unavailable_reason(op: str, name: str) -> str | None:
    """Says why a backend cannot serve `op` here, or returns None if it can."""
    if name in ("torch", "reference"):
        return None
    if name in _COMPILED:
        reason: str | None = _COMPILED[name].unavailable_reason(op)
        return reason
    if name == "triton":
        triton_kernels = importlib.import_module("tunable_ops.triton_kernels")
        return triton_kernels.unavailable_reason() or f"this version has no Triton kernel for {op}"
    raise AssertionError(name)
