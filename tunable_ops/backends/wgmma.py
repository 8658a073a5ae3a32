"""The wgmma kernel of CUDA C++, on GPUs of compute capability 9.0: how it is loaded, and the calls that it serves.

It is one of the algorithms of the Triton backend, for the forward pass and the gradient of the input. NVRTC compiles it
at the first call of its kind; before it is used, its results on small integers are compared with a loop on the host.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends.torch.layout import is_channels_last
from tunable_ops.reference.activation import CODES
from tunable_ops.triton_kernels.choose_algorithm import WGMMA_TAPS, Problem, suits_wgmma
from tunable_ops.triton_kernels.launch import Geometry

# 32-bit offsets with room for padding.
_MAX_SIZE = 1 << 29
_PACKAGE = Path(__file__).parents[1]
_OPS: Any = torch.ops.tunable_ops
_missing: str | None = "this build has none"
# Whether the kernel is ready for a device, dtype, direction, shape of kernels and activation.
_READY: dict[tuple[Any, ...], bool] = {}


def load() -> None:
    """Load the compiled library if this build has it and torch has CUDA. The schemas must be defined first."""
    global _missing
    if torch.version.cuda is None:
        _missing = "this torch has no CUDA"
        return
    found = sorted(_PACKAGE.glob("_ops_wgmma.*"))
    if not found:
        note = _PACKAGE / "_wgmma_left_out.txt"  # written by setup.py
        _missing = note.read_text().strip() if note.exists() else "this build has none"
        return
    try:
        torch.ops.load_library(found[0])
        _missing = None
    except (OSError, RuntimeError) as error:  # built for another torch, or damaged
        cause = error.__cause__ or error  # torch's own message only names the file
        _missing = f"{found[0].name} does not load here ({type(cause).__name__}: {' '.join(str(cause).split())})"


def is_loaded() -> bool:
    """Return True if the library is there and loads, whatever the GPU."""
    return _missing is None


def unavailable_reason() -> str | None:
    """Return why the kernel cannot run here, or None if it can, as far as that is known before its first use."""
    if _missing is not None:
        return _missing
    if not torch.cuda.is_available():
        return "no CUDA device is there"
    return None if _is_hopper(torch.device("cuda", torch.cuda.current_device())) else "it needs compute capability 9.0"


@lru_cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def fits(problem: Problem, source: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Return True if the kernel may serve a call or the gradient of its input; `is_ready` says whether it does.

    Args:
        problem: That of the call.
        source: [B, C, H, W] or, for the gradient, [B, O, OH, OW]: what the kernel reads.
        weight: [P, O, C/groups, kh, kw].
        geometry: Stride, padding and dilation.
    """
    if _missing is not None or not _is_hopper(source.device):
        return False
    if not suits_wgmma(problem) or geometry.dilation != (1, 1):
        return False
    height, width = source.shape[2:]
    padding = max(geometry.padding) + WGMMA_TAPS
    most = max(problem.batch, problem.inputs, problem.outputs)
    if most * (height + 2 * padding) * (width + 2 * padding) >= _MAX_SIZE:
        return False
    if not (weight[0].permute(0, 2, 3, 1).is_contiguous() and weight.stride(0) % 8 == 0 and is_channels_last(source)):
        return False
    return source.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0


def is_ready(input: Tensor, weight: Tensor, alpha: Tensor, geometry: Geometry, activation: str, gradient: bool) -> bool:
    """Return True if the kernel runs such a call, or the gradient of its input; compile and check it at the first.

    A kernel that cannot be compiled, or computes something wrong, gives a warning.
    """
    key = (input.device, input.dtype, gradient, weight.shape[1:], activation)
    ready = _READY.get(key)
    if ready is None:
        options = (*_sizes(geometry), _code(activation), gradient)
        try:
            ready = _OPS.tunable_conv2d_wgmma_prepare(input, weight, alpha, *options)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"tunable_conv2d: the wgmma kernel is left out, slower ones run: {reason}", stacklevel=2)
            ready = False
        _READY[key] = ready
    return ready


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, geometry: Geometry, activation: str
) -> Tensor:
    """Return act(conv2d(input, blended weight, blended bias)), in the memory format of the operator's output."""
    output: Tensor = _OPS.tunable_conv2d_wgmma(input, weight, bias, alpha, *_sizes(geometry), _code(activation))
    return output


def input_gradient(grad_output: Tensor, input: Tensor, weight: Tensor, alpha: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the input; of `input` only the size and the memory format matter."""
    gradient: Tensor = _OPS.tunable_conv2d_wgmma_input(grad_output, input, weight, alpha, *_sizes(geometry))
    return gradient


def _sizes(geometry: Geometry) -> Sequence[int]:
    return (*geometry.flat(), 1)


def _code(activation: str) -> int:
    return 0 if activation == "none" else CODES[activation]
