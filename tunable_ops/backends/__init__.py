"""Which backend serves a call: the only module that knows of `_C` and triton, and only inside functions.

`torch` is the fastest algorithm made of PyTorch's own operators; it runs wherever PyTorch does and is what the
default takes until a kernel of the project's own beats it. A backend asked for by name is used or raises; only the
default chooses.
"""

import importlib
import importlib.util

NAMES = ("torch", "reference", "cpp", "triton", "cuda")


def select(op: str, name: str | None) -> str:
    """Returns the name of the backend that serves `op`: the one asked for, or the fastest that can.

    Raises:
        ValueError: An unknown name.
        RuntimeError: A backend that cannot run here.
    """
    if name is None or name == "torch":
        return "torch"
    if name == "reference":
        return name
    if name not in NAMES:
        known = ", ".join(map(repr, NAMES))
        raise ValueError(f"{op}: backend must be None or one of {known}; got {name!r}")
    raise RuntimeError(
        f"{op}: backend must be one that can run here; got {name!r}: {unavailable_reason(op, name)}. "
        "Use backend=None for the fastest that can"
    )


def unavailable_reason(op: str, name: str) -> str | None:
    """Says why a backend cannot serve `op` here, or returns None if it can."""
    if name in ("torch", "reference"):
        return None
    if name == "triton":
        triton_kernels = importlib.import_module("tunable_ops.triton_kernels")
        return triton_kernels.unavailable_reason() or f"this version has no Triton kernel for {op}"
    if importlib.util.find_spec("tunable_ops._C") is None:
        return "this build has no compiled operators"
    return f"this version has no {name} kernel for {op}"
