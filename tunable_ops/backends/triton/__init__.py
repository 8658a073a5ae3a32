"""The Triton kernels: where they run, and the calls that they can serve. The modules of this package launch them."""

import importlib

import torch
from torch import Tensor

OPS = frozenset({"tunable_conv1d", "tunable_conv2d", "tunable_parameter", "tunable_parameters"})
_kernels = importlib.import_module("tunable_ops.triton_kernels")
# Determined once: looking up a distribution takes time, and torch.compile cannot trace it.
_missing: str | None = _kernels.unavailable_reason()
_interpreted: bool = _kernels.INTERPRETED


def unavailable_reason(op: str) -> str | None:
    """Return why `op` has no Triton kernel here, or None if it has one."""
    reason = _lacks(op)
    if reason is None and not _interpreted and not torch.cuda.is_available():
        return "no CUDA device is there (the interpreter takes CPU tensors, with TRITON_INTERPRET=1 before the import)"
    return reason


def _lacks(op: str) -> str | None:
    """Return the same without querying devices: tensors that are traced may be fake."""
    return _missing if _missing or op in OPS else f"this version has no triton kernel for {op}"


def unfit(op: str, input: Tensor, *others: Tensor | None) -> str | None:
    """Return why the kernels cannot serve these tensors, which have passed the operator's checks; None if they can."""
    if input.device.type != "cuda" and not (_interpreted and input.device.type == "cpu"):
        return (
            f"it takes CUDA tensors (CPU ones only where TRITON_INTERPRET=1 was set before the import), "
            f"got one on {input.device}"
        )
    if input.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32, float16 and bfloat16, got {input.dtype}"
    if torch.version.hip is not None:
        return "its kernels are made for NVIDIA GPUs"
    # Not while tracing: tensors may be fake, and Inductor needs a GPU that Triton supports anyway.
    if input.device.type == "cuda" and not torch.compiler.is_compiling() and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(input.device)
        if major < 8:
            return f"it needs compute capability 8.0 or more, got {major}.{minor}"
    return None


def is_fastest(op: str, input: Tensor, *others: Tensor | None) -> bool:
    """Return True if the default takes the Triton kernels: on every GPU that can run them."""
    return input.device.type == "cuda" and _lacks(op) is None and unfit(op, input) is None
