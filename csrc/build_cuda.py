"""Build the CUDA operators by calling nvcc: torch's own CUDAExtension does not work with CPU builds of torch.

The sources use only Torch's stable ABI and link no CUDA library (the runtime is static), so a library built against a
CPU build of torch also works with a CUDA build.

TUNABLE_OPS_CUDA=1 builds the operators even if torch has no CUDA, and =0 never builds them; TUNABLE_OPS_CUDA_ARCHS
("80;90a") restricts the architectures.
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
    """Return the path of nvcc: from CUDA_HOME or CUDA_PATH, PATH, or the default location."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def left_out(torch_cuda: str | None) -> str | None:
    """Return the reason why the operators are not built, or None if they are.

    Args:
        torch_cuda: ``torch.version.cuda`` of the torch that the package is built for.
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
    """Return the requested architectures that nvcc supports."""
    asked = [a for a in re.split(r"[;, ]+", os.environ.get("TUNABLE_OPS_CUDA_ARCHS", "")) if a] or ARCHITECTURES
    known = _output(nvcc, "--list-gpu-code").split()  # does not list specific variants such as 90a
    return [a for a in asked if f"sm_{a.rstrip('af')}" in known]


def gencode(archs: list[str]) -> list[str]:
    """Return nvcc flags: machine code for each architecture, and PTX of the newest portable one for later GPUs."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    portable = [a for a in archs if a.isdigit()]
    if portable:
        newest = max(portable, key=int)
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags


def architectures_of(source: Path, archs: list[str]) -> list[str]:
    """Return the architectures to compile a file for: hopper_*.cu needs sm_90a."""
    return ["90a"] if source.name.startswith("hopper") and "90a" in archs else archs


def compile_kernel(source: Path, target: Path, archs: list[str], *extra: str) -> str:
    """Compile a .cu file to an object file; return the output of nvcc."""
    nvcc = find_nvcc()
    assert nvcc is not None, "call left_out first"
    flags = [*FLAGS, *gencode(architectures_of(source, archs)), "-t", "0", *extra]
    return _output(nvcc, *flags, "-c", str(source), "-o", str(target))


def compile_host(source: Path, target: Path, torch_folder: Path, stable_abi: str) -> None:
    """Compile a .cpp file to an object file."""
    flags = host_flags(torch_folder, stable_abi)
    _output(os.environ.get("CXX", "g++"), *flags, "-c", str(source), "-o", str(target))


def host_flags(torch_folder: Path, stable_abi: str) -> list[str]:
    """Return the C++ compiler flags for the sources that use Torch."""
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
    """Build the library at `output`, compiling one file per core in parallel."""
    nvcc = find_nvcc()
    assert nvcc is not None, "call left_out first"
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
            pool.shutdown(cancel_futures=True)  # report the first error now: the other files take minutes
            raise
        link([str(o) for o in sorted(folder.glob("*.o"))], output, torch_folder)


def link(objects: list[str], output: Path, torch_folder: Path) -> None:
    """Link the object files into the library at `output`."""
    nvcc = find_nvcc()
    assert nvcc is not None, "call left_out first"
    # libtorch pulls in libtorch_cuda if it exists; its symbols are resolved when the library is loaded.
    torch = ["-Xlinker", "--no-as-needed", f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu"]
    _output(nvcc, "-shared", "-cudart", "static", *torch, *objects, "-o", str(output))


def _release(nvcc: str) -> str:
    match = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if match is None:
        raise ValueError("it does not report its version")
    return match[1]


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        text = (result.stderr or result.stdout).strip()
        lines = text.splitlines()
        errors = [line for line in lines if "error" in line] or lines[-1:] or ["no message"]
        raise RuntimeError("\n".join([f"{Path(command[0]).name} failed: {errors[0]}", *lines[:200]]))
    return result.stdout + result.stderr
