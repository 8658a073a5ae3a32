"""The C++ operators: loading them, and which calls they serve and win."""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

# The operators that the library implements, or that map onto one of those.
OPS = frozenset({"tunable_conv1d", "tunable_conv2d", "tunable_parameters"})
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PACKAGE = Path(__file__).parents[1]


def _left_out(reason: str) -> str:
    """As setup.py says it."""
    return f"the C++ operators are left out: {reason}. To get them: README.md, 'Compiled operators'"


_missing: str | None = _left_out("this build has none")
_build: dict[str, str] | None = None
_emulates_half = False


def load() -> None:
    """Loads the library if this build has it; the schemas must be defined by then."""
    global _missing, _build, _emulates_half
    note = _PACKAGE / "_left_out.txt"  # of setup.py
    if importlib.util.find_spec("tunable_ops._C") is None:
        if note.exists():
            _missing = note.read_text().strip()
        elif foreign := sorted(file.name for file in _PACKAGE.glob("_C.*")):
            _missing = _left_out(f"they were built for another Python ({', '.join(foreign)})")
        return
    try:
        build = importlib.import_module("tunable_ops._C")
        names = ("compiler", "flags", "torch", "stable_abi", "library")
        facts = {name: str(getattr(build, name)) for name in names}
        version = int(facts["stable_abi"], 16) >> 48  # a byte each: major, minor
        facts["stable_abi"] = f"torch {version >> 8}.{version & 255} and later"
        libraries = sorted(_PACKAGE.glob(f"{facts['library']}.*"))
        if not libraries:
            raise FileNotFoundError(f"no {facts['library']} in {_PACKAGE}")
        torch.ops.load_library(libraries[0])
    except (AttributeError, ImportError, OSError, RuntimeError, ValueError) as error:  # damaged, or another's
        cause = error.__cause__ or error  # torch names the file alone
        _missing = _left_out(f"they do not load here ({type(cause).__name__}: {' '.join(str(cause).split())})")
        return
    # Each x86 that multiplies float16 multiplies bfloat16 too.
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    _emulates_half = is_x86 and not torch.cpu._is_avx512_bf16_supported()
    _missing, _build = None, facts | {"library": str(libraries[0])}


def build_information() -> dict[str, str] | None:
    """Compiler, flags, torch and stable ABI that the operators were built with, and their file; None without them."""
    return _build


def is_loaded() -> bool:
    """True where the operators are there."""
    return _missing is None


def unavailable_reason(op: str) -> str | None:
    """Says why `op` has no C++ operator here, or returns None if it has."""
    return _missing if _missing or op in OPS else f"this version has no cpp kernel for {op}"


def unfit(op: str, input: Tensor, *others: Tensor | None) -> str | None:
    """Says why the operators cannot serve these tensors (alpha the last), which have passed the operator's checks."""
    if input.device.type != "cpu":
        return f"it serves tensors on the CPU, and these are on {input.device}"
    if op == "tunable_parameters":
        return None
    alpha = others[-1] if others else None
    if torch.is_autocast_enabled("cpu") or input.dtype not in _DTYPES:
        return "it serves float32, bfloat16 and float16 without autocast"
    if alpha is not None and alpha.dim() > 2 and input.dtype is not torch.float32:
        return "it serves an alpha that is a map in float32 alone"
    return None


def is_fastest(op: str, input: Tensor, *others: Tensor | None) -> bool:
    """True where the default takes the C++ operators: many blends; convolutions in channels_last.

    A map only where 16 outputs fill a vector; bfloat16 and float16 only where torch would emulate them, which it does
    so slowly for float16 that any layout will do.
    """
    if _missing is not None or op not in OPS:
        return False
    if op == "tunable_parameters":
        return input.device.type == "cpu"
    if input.dim() != 4 or unfit(op, input, *others) is not None:
        return False
    if input.dtype is not torch.float32 and not _emulates_half:
        return False
    weight, alpha = (others[0], others[-1]) if others else (None, None)
    if weight is not None and alpha is not None and alpha.dim() > 2 and weight.shape[1] < 16:
        return False
    return input.dtype is torch.float16 or input.is_contiguous(memory_format=torch.channels_last)
