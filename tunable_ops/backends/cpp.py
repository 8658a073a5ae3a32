"""The C++ operators: loading them, and which calls they serve and win."""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

# The operators that the library implements, or that map onto one of those.
OPS = frozenset({"tunable_conv1d", "tunable_conv2d"})
# From so many multiply-adds on (of a stride-1 layer) the library's convolution makes up for its cost per call where
# one alpha is shared: 3x3 with 6e8, one core, 1.07 to 1.09 of a plain convolution against 1.16 to 1.19 (docs/cpp.md).
LIBRARY_MACS = 4e8
_HOW = "README.md, 'Compiled operators', says how to build them"
_missing: str | None = f"this build has no compiled operators; {_HOW}"


def load() -> None:
    """Loads the library if this build has it; the schemas must be defined by then."""
    global _missing
    if importlib.util.find_spec("tunable_ops._C") is None:
        return
    try:
        build = importlib.import_module("tunable_ops._C")
        library = next(Path(build.__file__ or "").parent.glob(f"{build.library}.*"))
        torch.ops.load_library(library)
        _missing = None
    except (AttributeError, ImportError, OSError, RuntimeError, StopIteration) as error:
        # Built for another Python or torch, or damaged.
        _missing = f"the compiled operators of this build do not load here ({error!r}); {_HOW}"


def unavailable_reason(op: str) -> str | None:
    """Says why `op` has no C++ operator here, or returns None if it has."""
    return _missing if _missing or op in OPS else f"this version has no cpp kernel for {op}"


def unfit(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> str | None:
    """Says why the operators cannot serve these tensors, which have passed the operator's checks."""
    if input.device.type != "cpu":
        return f"it serves tensors on the CPU, and these are on {input.device}"
    if torch.is_autocast_enabled("cpu") or input.dtype is not torch.float32:
        return "it serves float32 without autocast"
    if alpha.dim() > 2:
        return "it serves no alpha that is a map"
    return None


def is_fastest(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> bool:
    """True where the default takes the C++ operators: channels_last, and not one large dense convolution."""
    if _missing is not None or op not in OPS or input.dim() != 4 or unfit(input, weight, bias, alpha) is not None:
        return False
    if not input.is_contiguous(memory_format=torch.channels_last):
        return False
    batch, channels, height, width = input.shape
    outputs, taps = weight.shape[1], weight.shape[3] * weight.shape[4]
    if alpha.dim() == 2 or taps == 1 or weight.shape[2] != channels:
        return True
    return bool(batch * height * width * outputs * channels * taps < LIBRARY_MACS)
