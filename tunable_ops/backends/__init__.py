"""Which backend serves a call: the only package that knows of `_C` and triton, and only inside functions.

`torch` is the fastest algorithm made of PyTorch's own operators; it runs wherever PyTorch does and is what the
default takes where no kernel of the project's own beats it. A backend asked for by name is used or raises; only the
default chooses.
"""

import importlib
from typing import Any

from torch import Tensor

from tunable_ops.backends import cpp, cuda, triton

NAMES = ("torch", "reference", "cpp", "triton", "cuda")
_KERNELS: dict[str, Any] = {"cpp": cpp, "triton": triton, "cuda": cuda}


def select(op: str, name: str | None, *tensors: Tensor | None) -> str:
    """Returns the name of the backend that serves `op`: the one asked for, or the fastest that can.

    Args:
        op: The operator.
        name: What the caller asked for.
        tensors: The operator's tensors (its input first), where the choice depends on them.

    Raises:
        ValueError: An unknown name.
        RuntimeError: A backend that cannot run here, or cannot serve these tensors.
    """
    if name is None:
        return next((n for n, kernels in _KERNELS.items() if tensors and kernels.is_fastest(op, *tensors)), "torch")
    if name in ("torch", "reference"):
        return name
    if name not in NAMES:
        known = ", ".join(map(repr, NAMES))
        raise ValueError(f"{op}: backend must be None or one of {known}; got {name!r}")
    reason = unavailable_reason(op, name)
    if reason is None and tensors:
        reason = _KERNELS[name].unfit(op, *tensors)
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
    if name in _KERNELS:
        reason: str | None = _KERNELS[name].unavailable_reason(op)
        return reason
    return f"this version has no {name} kernel for {op}"


def implementation(name: str, op: str) -> Any:
    """The module of a backend that has `forward` and `backward` of an operator."""
    return importlib.import_module(f"tunable_ops.backends.{name}.{op}")
