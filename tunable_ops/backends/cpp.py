"""The C++ operators: loading them, and which calls they can serve and are fastest at."""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from tunable_ops import checks
from tunable_ops.backends.torch.layout import is_channels_last

# The operators that the library implements, or that map onto one of those.
OPS = frozenset({"tunable_conv1d", "tunable_conv2d", "tunable_parameter", "tunable_parameters"})
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
    """Return compiler, flags, torch and stable ABI of the build, and the library's file; None without the operators."""
    return _build


def unavailable_reason(op: str) -> str | None:
    """Say why `op` has no C++ operator here, or return None if it has."""
    return _missing if _missing or op in OPS else f"this version has no cpp kernel for {op}"


def unfit(op: str, input: Tensor, *others: Tensor) -> str | None:
    """Say why the operators cannot serve these tensors (alpha the last), which have passed the operator's checks."""
    if input.device.type != "cpu":
        return f"it serves tensors on the CPU, and these are on {input.device}"
    if op == "tunable_parameters":
        return None
    if torch.is_autocast_enabled("cpu") or input.dtype not in _DTYPES:
        return "it serves float32, bfloat16 and float16 without autocast"
    if op == "tunable_parameter":
        return None if others[0].dim() == 1 else "it serves an alpha [P], one blend"
    if others[-1].dim() > 2 and input.dtype is not torch.float32:
        return "it serves an alpha that is a map in float32 alone"
    return None


def is_fastest(op: str, input: Tensor, *others: Tensor) -> bool:
    """Return True where the default takes the C++ operators: many blends; convolutions in channels_last.

    A map only where 16 outputs fill a vector; bfloat16 and float16 only where torch would emulate them, which it does
    so slowly for float16 that any layout will do.
    """
    if _missing is not None:
        return False
    if op == "tunable_conv2d":
        weight, alpha = others
        dtype = input.dtype
        if dtype is not torch.float32 and not (_emulates_half and dtype in _DTYPES):
            return False
        if dtype is not torch.float16 and not input.is_contiguous(memory_format=torch.channels_last):
            return False
        if alpha.dim() > 2 and (dtype is not torch.float32 or weight.shape[1] < 16):
            return False
        return not torch.is_autocast_enabled("cpu")
    return op == "tunable_parameters"


def serves_blend(parameter: Tensor, alpha: Tensor) -> bool:
    """Return True where the operator for one blend serves a call: in inference, alpha [P]."""
    if _missing is not None or torch.compiler.is_compiling() or parameter.dim() < 2:
        return False
    if torch.is_grad_enabled() and (parameter.requires_grad or alpha.requires_grad):
        return False
    return unfit("tunable_parameter", parameter, alpha) is None


def serves_transposed(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, call: checks.TransposedConvolution
) -> bool:
    """Return True where the operator for transposed convolutions serves a call: in inference, every pixel with a tap.

    Args:
        input: [B, C, H, W].
        weight: [P, C, O/groups, kh, kw].
        bias: [P, O] or None.
        alpha: [P], [B, P] or a map.
        call: Its options.
    """
    if _missing is not None or input.device.type != "cpu" or not checks.is_plain_eager() or alpha.dim() > 2:
        return False
    tensors = (input, weight, alpha) if bias is None else (input, weight, bias, alpha)
    if any(t.dtype is not torch.float32 for t in tensors) or torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    if input.numel() == 0 or not is_channels_last(input) or call.dilation != (1, 1):
        return False
    taps = weight.shape[3:]
    return all(s <= k and e < s for s, k, e in zip(call.stride, taps, call.output_padding, strict=True))
