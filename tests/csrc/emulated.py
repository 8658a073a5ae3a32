"""The CUDA operators on CPU tensors: unchanged host code, and kernels run by the emulator in csrc/tests/.

There is no GPU and nothing is timed; the emulator checks that indices, masks and barriers are right.
"""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
# Importing the package defines the operator that tells the fp32 kernels whether to use TF32.
from tunable_ops.reference.activation import CODES, TABLE  # noqa: E402

_STABLE_ABI = "0x020b000000000000"
_FLAGS = ["-std=c++17", "-O1", "-fPIC", "-U_FORTIFY_SOURCE", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]


def sources() -> list[Path]:
    """Return the sources of the emulated operators."""
    cuda = ROOT / "csrc" / "cuda"
    kernels = [s for s in sorted(cuda.glob("*.cu")) if s.name != "device.cu"]
    of_device = ("registration.cpp", "hopper_registration.cpp", "hopper_launch.cpp", "on_device.cpp")
    host = [s for s in sorted(cuda.glob("*.cpp")) if s.name not in (*of_device, "cuda_driver.cpp", "nvrtc.cpp")]
    return [*kernels, *host, *sorted((ROOT / "csrc" / "tests").glob("emulated*.cpp"))]


def build() -> Path:
    """Build the emulated library, once per state of its sources."""
    headers = [
        file
        for pattern in ("*.h", "cuda/*.h", "cuda/*.cuh", "tests/*.h")
        for file in sorted((ROOT / "csrc").glob(pattern))
    ]
    files = [*sources(), *headers]
    content = b"".join(f.read_bytes() for f in files) + torch.__version__.encode() + " ".join(_FLAGS).encode()
    folder = ROOT / "build" / f"emulated-{hashlib.sha256(content).hexdigest()[:16]}"
    library = folder / "emulated.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    torch_folder = Path(torch.__file__).parent
    macros = [f"-DTORCH_TARGET_VERSION={_STABLE_ABI}", "-DTORCH_STABLE_ONLY", "-isystem", str(torch_folder / "include")]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.name}.o"
        subprocess.run(["g++", *_FLAGS, *macros, "-x", "c++", "-c", source, "-o", target], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources()))
    partial = folder / "partial.so"
    link = ["-shared", f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *objects, *link, "-o", partial], check=True)
    partial.rename(library)
    return library


class _Emulated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: int
    ) -> Tensor:
        op = getattr(torch.ops.tunable_ops_emulated, name)
        *geometry, activation = options
        output = saved = op(input, weight, bias, alpha, *options)
        if not TABLE[activation].saves_output:
            saved = op(input, weight, bias, alpha, *geometry, 0)
        ctx.save_for_backward(input, weight, bias, alpha, saved if activation else None)
        ctx.name, ctx.options = name, options
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        *tensors, saved = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[1:5])
        op = getattr(torch.ops.tunable_ops_emulated, f"{ctx.name}_backward")
        grads = op(grad_output, saved, *tensors, *ctx.options, mask)
        return (None, *(g if m else None for g, m in zip(grads, mask, strict=True)), *(None for _ in ctx.options))


def tunable_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str | None = None,
) -> Tensor:
    """Call the CUDA operator with the emulated kernels."""
    tensors = (input, weight, bias, alpha)
    options = (*stride, *padding, *dilation, groups, CODES[activation])
    return _Emulated.apply("tunable_conv2d_cuda", *tensors, *options)


if __name__ == "__main__":
    sys.exit(print(build()))
