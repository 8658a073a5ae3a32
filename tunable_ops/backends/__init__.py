"""Which backend serves a call: with triton_kernels, the only package that knows of compiled code and of triton.

`torch` is the fastest algorithm made of PyTorch's own operators; it runs wherever PyTorch does, and the default takes
it where no kernel of the project beats it. A backend asked for by name is used or raises; only the default chooses.
"""

import importlib
from typing import Any

from torch import Tensor

from tunable_ops.backends import cpp, cuda, triton

NAMES = ("torch", "reference", "cpp", "triton", "cuda")
# Those whose kernels are Python functions; the others' are in compiled libraries.
IN_PYTHON = ("torch", "triton")
_KERNELS: dict[str, Any] = {"cpp": cpp, "triton": triton, "cuda": cuda}
# What the default tries, in this order, by the type of the device.
_CANDIDATES: dict[str, tuple[str, ...]] = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}


def select(op: str, name: str | None, input: Tensor | None = None, *others: Tensor) -> str:
    """Return the name of the backend that serves `op`: the one asked for, or the fastest that can.

    Args:
        op: The operator.
        name: What the caller asked for.
        input: The operator's first tensor; None where the choice does not depend on tensors.
        others: Its other tensors that the choice depends on: weight and alpha.

    Raises:
        ValueError: An unknown name.
        RuntimeError: A backend that cannot run here, or cannot serve these tensors.
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
    """Say why a backend cannot serve `op` here, or return None if it can."""
    if name in ("torch", "reference"):
        return None
    if name in _KERNELS:
        reason: str | None = _KERNELS[name].unavailable_reason(op)
        return reason
    return f"this version has no {name} kernel for {op}"


def implementation(name: str, op: str) -> Any:
    """Return the module of a backend in Python that has `forward` and `backward` of an operator."""
    return importlib.import_module(f"tunable_ops.backends.{name}.{op}")
