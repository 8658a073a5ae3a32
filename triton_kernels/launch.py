"""What the launchers share: tile sizes, geometry, strides, precision and the device guard."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
            self.kernel[self.grid](
                *self.arguments, **self.constants, num_warps=self.num_warps, num_stages=self.num_stages
            )

    def source(self) -> Any:
        """Return the argument of `triton.compile`, specialised as this launch would be (pointers 16-byte aligned)."""
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        signature: dict[str, Any] = {}
        constants = {(names.index(name),): value for name, value in self.constants.items()}
        attributes: dict[tuple[int, ...], Any] = {}
        for i, (name, value) in enumerate(zip(names, self.arguments, strict=False)):
            signature[name] = _signature(value, (i,), constants, attributes)
        signature |= dict.fromkeys(self.constants, "constexpr")
        return ASTSource(self.kernel, signature, constants, attributes)


# The pointer's type in a signature, and the element's type in triton.language.
POINTERS = {
    torch.float32: ("*fp32", "float32"),
    torch.float16: ("*fp16", "float16"),
    torch.bfloat16: ("*bf16", "bfloat16"),
    torch.int32: ("*i32", "int32"),
    torch.int64: ("*i64", "int64"),
}


def _signature(value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    """Return the type of an argument; like a launch, turn ones into constants and mark multiples of 16."""
    if isinstance(value, tuple):
        return tuple(_signature(v, (*path, i), constants, attributes) for i, v in enumerate(value))
    if isinstance(value, Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype][0]
    if value == 1:
        constants[path] = 1
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


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
