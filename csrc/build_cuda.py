"""Build the CUDA operators by calling nvcc: torch's own CUDAExtension refuses a torch that has no CUDA.

The sources use Torch's stable ABI alone and link no CUDA library (the runtime is static), so a library built with a
CPU wheel of torch also serves a CUDA wheel.

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

NAME = "tunable_ops._ops_cuda"
SOURCES = Path(__file__).parent / "cuda"
ARCHITECTURES = ("80", "90a", "100")
FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden"]


def find_nvcc() -> str | None:
    """Return the nvcc that CUDA_HOME or PATH names, or the one in CUDA's usual place."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def left_out(torch_cuda: str | None) -> str | None:
    """Return why the operators are not built, or None if they are.

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
        return f"nvcc does not run ({str(error).splitlines()[0]})"
    return None


def architectures(nvcc: str) -> list[str]:
    """Return the architectures that were asked for and that nvcc knows."""
    asked = [a for a in re.split(r"[;, ]+", os.environ.get("TUNABLE_OPS_CUDA_ARCHS", "")) if a] or ARCHITECTURES
    known = _output(nvcc, "--list-gpu-code").split()  # without the variants for one chip, such as 90a
    return [a for a in asked if f"sm_{a.rstrip('af')}" in known]


def gencode(archs: list[str]) -> list[str]:
    """Return nvcc's flags: machine code for each architecture, and PTX of the newest portable one for later GPUs."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    portable = [a for a in archs if a.isdigit()]
    if portable:
        newest = max(portable, key=int)
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags


def architectures_of(source: Path, archs: list[str]) -> list[str]:
    """Return the architectures to compile a file for: the kernels of hopper_*.cu exist on sm_90a only."""
    return ["90a"] if source.name.startswith("hopper") and "90a" in archs else archs


def compile_kernel(source: Path, target: Path, archs: list[str], *extra: str) -> str:
    """Compile a .cu file to an object; return what nvcc printed."""
    nvcc = find_nvcc()
    assert nvcc is not None, "left_out comes first"
    flags = [*FLAGS, *gencode(architectures_of(source, archs)), "-t", "0", *extra]
    return _output(nvcc, *flags, "-c", str(source), "-o", str(target))


def compile_host(source: Path, target: Path, torch_folder: Path, stable_abi: str) -> None:
    """Compile a .cpp file to an object."""
    flags = host_flags(torch_folder, stable_abi)
    _output(os.environ.get("CXX", "g++"), *flags, "-c", str(source), "-o", str(target))


def host_flags(torch_folder: Path, stable_abi: str) -> list[str]:
    """Return the C++ compiler's flags for the sources that use Torch."""
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
    """Build the library at `output`, a file per core at a time."""
    nvcc = find_nvcc()
    assert nvcc is not None, "left_out comes first"
    archs = architectures(nvcc)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        jobs = [pool.submit(compile_kernel, s, folder / f"{s.stem}.o", archs) for s in sorted(SOURCES.glob("*.cu"))]
        for source in sorted(SOURCES.glob("*.cpp")):
            target = folder / f"{source.stem}_host.o"
            jobs.append(pool.submit(compile_host, source, target, torch_folder, stable_abi))
        try:
            for job in jobs:
                job.result()
        except Exception:
            pool.shutdown(cancel_futures=True)  # one error is enough: the other files take minutes
            raise
        link([str(o) for o in sorted(folder.glob("*.o"))], output, torch_folder)


def link(objects: list[str], output: Path, torch_folder: Path) -> None:
    """Link the objects into the library at `output`."""
    nvcc = find_nvcc()
    assert nvcc is not None, "left_out comes first"
    # libtorch brings in libtorch_cuda where there is one; its symbols are resolved when the library is loaded.
    torch = ["-Xlinker", "--no-as-needed", f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu"]
    _output(nvcc, "-shared", "-cudart", "static", *torch, *objects, "-o", str(output))


def _release(nvcc: str) -> str:
    match = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if match is None:
        raise ValueError("it does not tell its version")
    return match[1]


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        text = (result.stderr or result.stdout).strip()
        lines = text.splitlines()
        errors = [line for line in lines if "error" in line] or lines[-1:] or ["no message"]
        raise RuntimeError("\n".join([f"{Path(command[0]).name} failed: {errors[0]}", *lines[:200]]))
    return result.stdout + result.stderr
