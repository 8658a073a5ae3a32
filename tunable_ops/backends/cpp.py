"""The C++ operators: how they are loaded, and the calls that they can serve or serve fastest."""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from tunable_ops import checks
from tunable_ops.backends.torch.layout import is_channels_last

# Operators that the compiled library implements, or that map onto one of those.
OPS = frozenset({"tunable_conv1d", "tunable_conv2d", "tunable_parameter", "tunable_parameters"})
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PACKAGE = Path(__file__).parents[1]


def _left_out(reason: str) -> str:
    """Return the message that setup.py also writes."""
    return f"the C++ operators are left out: {reason}. To get them: docs/start/install.md, 'Compiled operators'"


_missing: str | None = _left_out("this build has none")
_build: dict[str, str] | None = None
_emulates_half = False
_multiplies_bfloat16 = False


def load() -> None:
    """Load the compiled library if this build has it. The schemas must be defined first."""
    global _missing, _build, _emulates_half, _multiplies_bfloat16
    note = _PACKAGE / "_left_out.txt"  # written by setup.py
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
        version = int(facts["stable_abi"], 16) >> 48  # one byte each for major and minor
        facts["stable_abi"] = f"torch {version >> 8}.{version & 255} and later"
        libraries = sorted(_PACKAGE.glob(f"{facts['library']}.*"))
        if not libraries:
            raise FileNotFoundError(f"no {facts['library']} in {_PACKAGE}")
        torch.ops.load_library(libraries[0])
    except (AttributeError, ImportError, OSError, RuntimeError, ValueError) as error:  # damaged or foreign files
        cause = error.__cause__ or error  # torch's own message only names the file
        _missing = _left_out(f"they do not load here ({type(cause).__name__}: {' '.join(str(cause).split())})")
        return
    # Every x86 processor with float16 arithmetic has bfloat16 arithmetic too.
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    _multiplies_bfloat16 = is_x86 and torch.cpu._is_avx512_bf16_supported()
    _emulates_half = is_x86 and not _multiplies_bfloat16
    _missing, _build = None, facts | {"library": str(libraries[0])}


def build_information() -> dict[str, str] | None:
    """Return compiler, flags, torch, stable ABI and file of the compiled library; None if it is not loaded."""
    return _build


def unavailable_reason(op: str) -> str | None:
    """Return why `op` has no C++ operator here, or None if it has one."""
    return _missing if _missing or op in OPS else f"this version has no cpp kernel for {op}"


def unfit(op: str, input: Tensor, *others: Tensor) -> str | None:
    """Return why the operator cannot serve these tensors (alpha last), which have passed its checks; None if it can."""
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
    """Return True if the default takes the C++ operators: for many blends, and for convolutions in channels_last.

    A map needs 16 outputs to fill a vector. bfloat16 and float16 are served where PyTorch emulates them, float16 in any
    layout because its emulation is so slow. Where the processor multiplies bfloat16, PyTorch's convolution is called
    from C++ in eager inference of kernels larger than 1x1: the calls in Python take 0.1 of a layer's time.
    """
    if _missing is not None:
        return False
    if op == "tunable_conv2d":
        weight, alpha = others
        dtype = input.dtype
        if dtype is not torch.float32 and not (_emulates_half and dtype in _DTYPES):
            if not (dtype is torch.bfloat16 and _multiplies_bfloat16 and _is_inference(input, *others)):
                return False
            if weight.shape[-1] * weight.shape[-2] == 1:
                return False
        if dtype is not torch.float16 and not input.is_contiguous(memory_format=torch.channels_last):
            return False
        if alpha.dim() > 2 and (dtype is not torch.float32 or weight.shape[1] < 16):
            return False
        return not torch.is_autocast_enabled("cpu")
    return op == "tunable_parameters"


def _is_inference(*tensors: Tensor) -> bool:
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return checks.is_plain_eager() and not needs_gradient


def is_fastest_contiguous(input: Tensor, weight: Tensor, alpha: Tensor, call: checks.Convolution) -> bool:
    """Return True if the C++ operators are the fastest for contiguous pictures in float32, converted both ways.

    That is so for 3x3 and 5x5 kernels that Winograd's filtering serves, with 16 or more channels and outputs.

    Args:
        input: [B, C, H, W].
        weight: [P, O, C/groups, kh, kw].
        alpha: [P], [B, P] or a map.
        call: Options of the call.
    """
    if _missing is not None or input.device.type != "cpu" or alpha.dim() > 2 or torch.is_autocast_enabled("cpu"):
        return False
    if input.dtype is not torch.float32 or not input.is_contiguous():
        return False
    outputs, channels, *taps = weight.shape[1:]
    return min(outputs, channels) >= 16 and taps in ([3, 3], [5, 5]) and call.stride == call.dilation == (1, 1)


def serves_blend(parameter: Tensor, alpha: Tensor) -> bool:
    """Return True if the C++ blend serves a call: inference with alpha [P]."""
    if _missing is not None or torch.compiler.is_compiling() or parameter.dim() < 2:
        return False
    if torch.is_grad_enabled() and (parameter.requires_grad or alpha.requires_grad):
        return False
    return unfit("tunable_parameter", parameter, alpha) is None


def serves_transposed(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, call: checks.TransposedConvolution
) -> bool:
    """Return True if the C++ transposed convolution serves a call: inference, every output pixel reached by a tap.

    Args:
        input: [B, C, H, W].
        weight: [P, C, O/groups, kh, kw].
        bias: [P, O] or None.
        alpha: [P], [B, P] or a map.
        call: Options of the call.
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
