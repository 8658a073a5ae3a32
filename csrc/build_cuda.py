"""Builds the CUDA operators by calling nvcc: torch's own CUDAExtension refuses a torch that has no CUDA.

The sources see Torch's stable ABI alone and link no CUDA library (the runtime is static), so that a library built
beside a CPU wheel of torch is the one that serves a CUDA wheel.

TUNABLE_OPS_CUDA=1 builds them where the default would not, =0 never; TUNABLE_OPS_CUDA_ARCHS ("80;90a") restricts the
architectures.
"""

import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "tunable_ops._ops_cuda"
SOURCES = Path(__file__).parent / "cuda"
ARCHITECTURES = ("80", "90a", "100")
FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden"]


def find_nvcc() -> str | None:
    """The nvcc that CUDA_HOME or PATH names, or the one in CUDA's usual place."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def left_out(torch_cuda: str | None) -> str | None:
    """Says why the operators are not built, or returns None if they are.

    Args:
        torch_cuda: ``torch.version.cuda`` of the torch that the package is built beside.
    """
    wish = os.environ.get("TUNABLE_OPS_CUDA")
    if wish == "0":
        return "TUNABLE_OPS_CUDA=0"
    if torch_cuda is None and wish != "1":
        return "this torch has no CUDA (TUNABLE_OPS_CUDA=1 builds them all the same)"
    nvcc = find_nvcc()
    if nvcc is None:
        return "nvcc was not found (PATH or CUDA_HOME)"
    try:
        version = _release(nvcc)
        if torch_cuda is not None and version.split(".")[0] != torch_cuda.split(".")[0]:
            return f"nvcc {version} does not fit torch's CUDA {torch_cuda}"
        if not architectures(nvcc):
            return f"nvcc {version} knows none of the architectures asked for"
    except (OSError, RuntimeError, ValueError) as error:
        return f"nvcc does not run ({error})"
    return None


def architectures(nvcc: str) -> list[str]:
    """Those asked for that nvcc knows."""
    asked = [a for a in re.split(r"[;, ]+", os.environ.get("TUNABLE_OPS_CUDA_ARCHS", "")) if a] or ARCHITECTURES
    known = _output(nvcc, "--list-gpu-code").split()  # without the variants for one chip, such as 90a
    return [a for a in asked if f"sm_{a.rstrip('af')}" in known]


def gencode(archs: list[str]) -> list[str]:
    """The flags of nvcc: machine code for each, and PTX of the newest portable one for what comes after."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    portable = [a for a in archs if a.isdigit()]
    if portable:
        newest = max(portable, key=int)
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags


def architectures_of(source: Path, archs: list[str]) -> list[str]:
    """Those that have code for this file: the kernels of hopper_*.cu are for sm_90a, and empty without it."""
    return ["90a"] if source.name.startswith("hopper") and "90a" in archs else archs


def compile_kernel(source: Path, target: Path, archs: list[str], *extra: str) -> str:
    """Compiles a .cu file to an object; returns what nvcc said."""
    nvcc = find_nvcc()
    assert nvcc is not None, "left_out comes first"
    flags = [*FLAGS, *gencode(architectures_of(source, archs)), "-t", "0", *extra]
    return _output(nvcc, *flags, "-c", str(source), "-o", str(target))


def compile_kernels(folder: Path, archs: list[str]) -> None:
    """Compiles every .cu file to an object in `folder`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda s: compile_kernel(s, folder / f"{s.stem}.o", archs), sorted(SOURCES.glob("*.cu"))):
            pass


def host_flags(torch_folder: Path, stable_abi: str) -> list[str]:
    """The C++ compiler's flags for the sources that know Torch."""
    macros = [f"-DTORCH_TARGET_VERSION={stable_abi}", "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"]
    return [
        "-std=c++17",
        "-O2",
        "-g0",
        "-fPIC",
        "-fvisibility=hidden",
        *macros,
        "-isystem",
        str(torch_folder / "include"),
    ]


def build(output: Path, torch_folder: Path, stable_abi: str) -> None:
    """Builds the library at `output`."""
    nvcc = find_nvcc()
    assert nvcc is not None, "left_out comes first"
    compiler = os.environ.get("CXX", "g++")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_kernels(folder, architectures(nvcc))
        for source in sorted(SOURCES.glob("*.cpp")):
            target = folder / f"{source.stem}_host.o"
            _output(compiler, *host_flags(torch_folder, stable_abi), "-c", str(source), "-o", str(target))
        link([str(o) for o in sorted(folder.glob("*.o"))], output, torch_folder)


def link(objects: list[str], output: Path, torch_folder: Path) -> None:
    """Links the objects into the library at `output`."""
    nvcc = find_nvcc()
    assert nvcc is not None, "left_out comes first"
    # libtorch leads to libtorch_cuda where there is one; nothing in it is named before the library is loaded.
    torch = ["-Xlinker", "--no-as-needed", f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu"]
    _output(nvcc, "-shared", "-cudart", "static", *torch, *objects, "-o", str(output))


def _release(nvcc: str) -> str:
    match = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if match is None:
        raise ValueError("it does not tell its version")
    return match[1]


def _output(*command: str) -> str:
    result: Any = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line] or lines[-1:] or ["no message"]
        raise RuntimeError(f"{Path(command[0]).name} failed: {errors[0]}")
    return str(result.stdout) + str(result.stderr)
