"""What the launchers share: launches, tile sizes, geometry, strides, precision and the device guard."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from tunable_ops.triton_kernels import INTERPRETED
from tunable_ops.triton_kernels.specialise import specialise

# Offsets within a sample, and the rows of a whole batch, are 32-bit.
INDEX_LIMIT = (1 << 31) - (1 << 12)
Strides = tuple[int, ...]


class Config(NamedTuple):
    """Tile sizes, warps and pipeline stages; each kernel defines what M, N and K are."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3


class Launch(NamedTuple):
    """A launch with all its arguments: `run` starts it, the audit compiles it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]  # tensors, ints and tuples of ints
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        """Launch on the current stream of the first tensor's device."""
        with on_device(self.arguments[0]):
            if WATCHING.recorder is not None:
                WATCHING.recorder.launched(self)
            if INTERPRETED:
                options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
                with _disable_current_modes():  # it calls PyTorch's operators
                    self.kernel[self.grid](*self.arguments, **self.constants, **options)
            else:
                start(self.compiled(), self.grid, self.values())

    def values(self) -> tuple[Any, ...]:
        """Return the values of all parameters of the kernel, in order."""
        names = self.kernel.arg_names[len(self.arguments) :]
        return (*self.arguments, *(self.constants[name] for name in names))

    def compiled(self) -> Any:
        """Return Triton's compiled kernel for the current device, which `start` takes; each is compiled once."""
        device = _triton().driver.active.get_current_device()
        made = specialise(self.kernel.arg_names, self.arguments, self.constants)
        key = (self.kernel, device, self.num_warps, self.num_stages, *made.key())
        found = _COMPILED.get(key)
        if found is None:
            import triton

            options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
            found = _COMPILED[key] = triton.compile(self.source(), options=options)
        return found

    def source(self) -> Any:
        """Return the argument of `triton.compile`; pointers without memory count as aligned to 16 bytes."""
        from triton.compiler import ASTSource

        made = specialise(self.kernel.arg_names, self.arguments, self.constants)
        return ASTSource(self.kernel, made.signature, made.constants, made.attributes())


class _Watching(threading.local):
    recorder: Any = None  # its `launched` is called with every launch of this thread, on its device


WATCHING = _Watching()
# Compiled kernels by kernel, device, options and specialisation.
_COMPILED: dict[tuple[Any, ...], Any] = {}


def start(compiled: Any, grid: tuple[int, ...], values: Sequence[Any]) -> None:
    """Start a compiled kernel on the current device and stream: what Triton does after it has found the kernel.

    Args:
        compiled: From `Launch.compiled`, for the current device.
        grid: One to three numbers of blocks.
        values: Of all parameters; pointers are tensors or addresses.
    """
    runtime, hooks = _triton().driver.active, _triton().hooks
    stream = runtime.get_current_stream(runtime.get_current_device())
    first, second, third = (*grid, 1, 1)[:3]
    enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook  # those of profilers
    metadata = None
    if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        metadata = compiled.launch_metadata(grid, stream, *values)
    else:
        enter = leave = None
    run = compiled.run  # first, because it loads the kernel, which sets `function`
    run(first, second, third, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *values)


class _Triton(NamedTuple):
    driver: Any
    hooks: Any


@lru_cache
def _triton() -> _Triton:
    from triton import knobs
    from triton.runtime import driver

    return _Triton(driver, knobs.runtime)


class Geometry(NamedTuple):
    """Which input row a tap reads: for output row oh and tap r, row oh * stride - padding + r * dilation.

    `flip` reverses the order of the taps, for the input gradient (see `phases`).
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    flip: bool = False

    def flat(self) -> Strides:
        """Return the six integers in the order of the kernels' arguments."""
        return (*self.stride, *self.padding, *self.dilation)


class Stack(NamedTuple):
    """How a launch reads kernels: how they are blended, and their strides.

    kind: "none" (already blended), "shared", "sample" or "map".
    """

    kind: str
    kernels: int
    strides: Strides  # sample, kernel, then the remaining dimensions
    bias_strides: Strides  # sample, kernel
    alpha_strides: Strides  # sample, kernel


def describe(weight: Tensor, bias: Tensor | None, alpha: Tensor | None) -> Stack:
    """Describe the P kernels of `weight`, or without alpha its 1 or B blended kernels."""
    first, *inner = weight.stride()
    bias_first = 0 if bias is None else bias.stride(0)
    if alpha is None:
        per_sample = weight.shape[0] > 1
        return Stack("none", 1, (first if per_sample else 0, 0, *inner), (bias_first if per_sample else 0, 0), (0, 0))
    kinds = {1: "shared", 2: "sample", 4: "map"}
    strides = alpha.stride() if alpha.dim() > 1 else (0, alpha.stride(0))
    return Stack(kinds[alpha.dim()], weight.shape[0], (0, first, *inner), (0, bias_first), tuple(strides[:2]))


def input_precision(dtype: torch.dtype) -> str:
    """Return the precision of `tl.dot`: for fp32 that of torch's convolutions on CUDA, else "ieee"."""
    if dtype != torch.float32:
        return "ieee"
    read = torch._C._get_fp32_precision_getter  # what the slower torch.backends.cudnn.conv calls
    precision = read("cuda", "conv")
    if precision == "none":
        precision = read("generic", "all")
    return "tf32" if precision == "tf32" else "ieee"


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context that makes the tensor's device current: Triton launches on the current device and stream."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def extent(tensor: Tensor) -> int:
    """Return the span of one sample [C, H, W] in memory, in elements from the first to the last, inclusive."""
    (_, channels, height, width), (_, x_sc, x_sh, x_sw) = tensor.shape, tensor.stride()
    return (channels - 1) * x_sc + (height - 1) * x_sh + (width - 1) * x_sw + 1


def multiprocessors(tensor: Tensor) -> int:
    """Return the number of multiprocessors of the tensor's GPU, 1 in the interpreter."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def device_name(tensor: Tensor) -> str:
    """Return the name of the tensor's GPU, which identifies its table; empty for other devices."""
    return _device_name(tensor.get_device()) if tensor.is_cuda else ""


@lru_cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)
