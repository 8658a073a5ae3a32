"""Which backend serves a call: the only module that knows of `_C` and triton, and only inside functions.

`torch` is the fastest algorithm made of PyTorch's own operators and runs wherever PyTorch does; `triton` serves CUDA
tensors where Triton is installed. A backend asked for by name is used or raises; only the default chooses.
"""

import importlib
import importlib.util
from typing import Any

import torch as pytorch  # `torch` is a backend here: importing that submodule binds the name
from torch import Tensor

NAMES = ("torch", "reference", "cpp", "triton", "cuda")
TRITON_OPS = frozenset({"tunable_conv1d", "tunable_conv2d", "tunable_parameter"})
_triton_kernels = importlib.import_module("tunable_ops.triton_kernels")
# Asked once: looking for a distribution takes time, and torch.compile cannot trace it.
_TRITON_MISSING: str | None = _triton_kernels.unavailable_reason()
_INTERPRETED: bool = _triton_kernels.INTERPRETED


def select(op: str, name: str | None, *tensors: Tensor | None) -> str:
    """Returns the name of the backend that serves `op`: the one asked for, or the fastest that can.

    Args:
        op: The operator.
        name: What the caller asked for.
        tensors: The operator's input first, where the choice depends on it.

    Raises:
        ValueError: An unknown name.
        RuntimeError: A backend that cannot run here, or cannot serve these tensors.
    """
    input = tensors[0] if tensors else None
    if name is None:
        on_cuda = input is not None and input.device.type == "cuda"
        return "triton" if on_cuda and unavailable_reason(op, "triton", input) is None else "torch"
    if name in ("torch", "reference"):
        return name
    if name not in NAMES:
        known = ", ".join(map(repr, NAMES))
        raise ValueError(f"{op}: backend must be None or one of {known}; got {name!r}")
    reason = unavailable_reason(op, name, input)
    if reason is None:
        return name
    raise RuntimeError(
        f"{op}: backend must be one that can run here; got {name!r}: {reason}. "
        "Use backend=None for the fastest that can"
    )


def unavailable_reason(op: str, name: str, input: Tensor | None = None) -> str | None:
    """Says why a backend cannot serve `op` here, and on `input` where it is given, or returns None if it can."""
    if name in ("torch", "reference"):
        return None
    if name == "triton":
        if _TRITON_MISSING is not None:
            return _TRITON_MISSING
        if op not in TRITON_OPS:
            return f"this version has no Triton kernel for {op}"
        return None if input is None else _triton_refuses(input)
    if importlib.util.find_spec("tunable_ops._C") is None:
        return "this build has no compiled operators"
    return f"this version has no {name} kernel for {op}"


def implementation(name: str, op: str) -> Any:
    """The module of a backend that has `forward` and `backward` of an operator."""
    return importlib.import_module(f"tunable_ops.backends.{name}.{op}")


def _triton_refuses(input: Tensor) -> str | None:
    if input.device.type != "cuda" and not (_INTERPRETED and input.device.type == "cpu"):
        return (
            f"it takes CUDA tensors (CPU ones only where TRITON_INTERPRET=1 was set before the import), "
            f"got one on {input.device}"
        )
    if input.dtype not in (pytorch.float32, pytorch.float16, pytorch.bfloat16):
        return f"it computes in float32, float16 and bfloat16, got {input.dtype}"
    if pytorch.version.hip is not None:
        return "its kernels are made for NVIDIA GPUs"
    # Not while tracing: the tensors may be fake, and Inductor needs a GPU that Triton supports anyway.
    if input.device.type == "cuda" and not pytorch.compiler.is_compiling() and pytorch.cuda.is_available():
        major, minor = pytorch.cuda.get_device_capability(input.device)
        if major < 8:
            return f"it needs compute capability 8.0 or more, got {major}.{minor}"
    return None
