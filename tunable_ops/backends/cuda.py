"""The CUDA operators: how they are loaded, and the calls that they can serve or serve fastest."""

from pathlib import Path

import torch
from torch import Tensor

from tunable_ops.backends.torch.layout import is_channels_last

# Operators that the compiled library implements, or that map onto one of those.
OPS = frozenset({"tunable_conv1d", "tunable_conv2d"})
MAX_KERNELS = 16
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PACKAGE = Path(__file__).parents[1]


def _left_out(reason: str) -> str:
    """Return the message that setup.py also writes."""
    return f"the CUDA operators are left out: {reason}. To get them: docs/start/install.md, 'Compiled operators'"


_missing: str | None = _left_out("this build has none")


def libraries() -> list[Path]:
    """Return the file of the compiled library in a list, which is empty if this build has none."""
    return sorted(_PACKAGE.glob("_ops_cuda.*"))


def load() -> None:
    """Load the compiled library if this build has it and torch has CUDA. The schemas must be defined first."""
    global _missing
    if torch.version.cuda is None:
        _missing = "this torch has no CUDA"
        return
    found = libraries()
    if not found:
        note = _PACKAGE / "_cuda_left_out.txt"  # written by setup.py
        _missing = note.read_text().strip() if note.exists() else _left_out("this build has none")
        return
    try:
        torch.ops.load_library(found[0])
        _missing = None
    except (OSError, RuntimeError) as error:  # built for another torch, or damaged
        cause = error.__cause__ or error  # torch's own message only names the file
        _missing = _left_out(f"they do not load here ({type(cause).__name__}: {' '.join(str(cause).split())})")


def unavailable_reason(op: str) -> str | None:
    """Return why `op` has no CUDA operator here, or None if it has one."""
    if op not in OPS:
        return f"this version has no cuda kernel for {op}"
    return _missing or (None if torch.cuda.is_available() else "no CUDA device is there")


def unfit(op: str, input: Tensor, *others: Tensor) -> str | None:
    """Return why the operators cannot serve these tensors (input, weight, alpha), which have passed the checks."""
    if input.device.type != "cuda":
        return f"it serves tensors on CUDA devices, and these are on {input.device}"
    # Not while tracing, when tensors may be fake.
    if not torch.compiler.is_compiling() and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(input.device)
        if major < 8:
            return f"it needs a GPU of compute capability 8.0 or more, and this one has {major}.{minor}"
    if any(t.dtype not in _DTYPES for t in (input, *others)):
        return "it serves float32, float16 and bfloat16"
    weight, alpha = others
    if alpha.dim() > 2:
        return "it serves no alpha that is a map"
    if weight.shape[0] > MAX_KERNELS:
        return f"it serves at most {MAX_KERNELS} kernels, and these are {weight.shape[0]}"
    return None


def is_fastest(op: str, input: Tensor, *others: Tensor) -> bool:
    """Return True if the default takes the CUDA operators: 16-bit tensors in channels_last.

    Then no layout has to change and the tensor cores apply. Derived from arithmetic, not from measurements.
    """
    return (
        _missing is None
        and op == "tunable_conv2d"
        and input.dtype in (torch.float16, torch.bfloat16)
        and unfit(op, input, *others) is None
        and is_channels_last(input)
    )
