"""Build the CUDA operators by calling nvcc: torch's own CUDAExtension does not work with CPU builds of torch.

    python csrc/build_cuda.py

builds the library of the wgmma kernel and the launcher into tunable_ops/ and leaves the others alone.

The sources use only Torch's stable ABI and link no CUDA library (the runtime is static), so a library built against a
CPU build of torch also works with a CUDA build.

The wgmma kernel has a library of its own, which a C++ compiler builds without nvcc: it holds the kernel's source, which
NVRTC compiles when it is first needed. The launcher, which repeats the plans of Triton's kernels, needs no nvcc either.

TUNABLE_OPS_CUDA=1 builds the operators even if torch has no CUDA, and =0 never builds them; TUNABLE_OPS_CUDA_ARCHS
("80;90a") restricts the architectures.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The oldest torch whose stable ABI the operators keep to: one binary serves it and every later version.
STABLE_ABI = "0x020b000000000000"  # 2.11
NAME = "tunable_ops._ops_cuda"
WGMMA_NAME = "tunable_ops._ops_wgmma"
# What the library of the wgmma kernel is made of, besides the kernel's source.
WGMMA_SOURCES = ("call", "cuda_driver", "hopper_check", "hopper_launch", "hopper_operator", "hopper_registration")
WGMMA_SOURCES += ("hopper_run", "nvrtc", "on_device")
LAUNCHER_NAME = "tunable_ops._launcher"
SOURCES = Path(__file__).parent / "cuda"
ARCHITECTURES = ("80", "90a", "100")
FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden"]


def wgmma_left_out(torch_cuda: str | None) -> str | None:
    """Return the reason why the library of the wgmma kernel is not built, or None if it is; it needs no nvcc."""
    wish = os.environ.get("TUNABLE_OPS_CUDA")
    if wish == "0":
        return "TUNABLE_OPS_CUDA=0"
    if sys.platform != "linux":
        return "it is for Linux"
    if torch_cuda is None and wish != "1":
        return "this torch has no CUDA (TUNABLE_OPS_CUDA=1 builds it all the same)"
    return None


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


def compile_kernel(source: Path, target: Path, archs: list[str], *extra: str) -> str:
    """Compile a .cu file to an object file; return the output of nvcc."""
    nvcc = find_nvcc()
    assert nvcc is not None, "call left_out first"
    flags = [*FLAGS, *gencode(archs), "-t", "0", *extra]
    return _output(nvcc, *flags, "-c", str(source), "-o", str(target))


# What NVRTC knows of <cstdint>; it has no headers of its own.
INTEGERS = """\
using int32_t = int;
using int64_t = long long;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long;
"""


def wgmma_source() -> str:
    """Return the source of the wgmma kernel in one piece, for NVRTC: without includes, and without the emulator."""
    seen: set[Path] = set()

    def lines_of(path: Path) -> list[str]:
        if path in seen or "tests" in path.parts:
            return []
        seen.add(path)
        lines = []
        for line in path.read_text().splitlines():
            included = re.match(r'#include "(.+)"', line)
            if included:
                lines += lines_of((path.parent / included[1]).resolve())
            elif not line.startswith(("#include", "#pragma once")):
                lines.append(line)
        return lines

    return INTEGERS + "\n".join(lines_of(SOURCES.resolve() / "hopper_kernel.cuh")) + "\n"


def write_wgmma_source(target: Path) -> None:
    """Write a C++ file that holds the wgmma kernel's source as a string."""
    source = wgmma_source()
    assert ')cuda"' not in source
    parts = [source[i : i + 8192] for i in range(0, len(source), 8192)]  # compilers limit one literal
    literals = "\n".join(f'R"cuda({part})cuda"' for part in parts)
    target.write_text(
        "namespace tunable_ops::cuda {\n"
        "extern const char* const kHopperSource;\n"
        f"const char* const kHopperSource = {literals};\n"
        "}  // namespace tunable_ops::cuda\n"
    )


def compile_host(source: Path, target: Path, torch_folder: Path, stable_abi: str, *extra: str) -> None:
    """Compile a .cpp file to an object file."""
    flags = [*host_flags(torch_folder, stable_abi), *extra]
    _output(*compiler(), *flags, "-c", str(source), "-o", str(target))


def compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    return shlex.split(os.environ.get("CXX", "g++"))


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
        write_wgmma_source(folder / "hopper_source.cpp")
        for source in [*host_sources(), folder / "hopper_source.cpp"]:
            target = folder / f"{source.stem}_host.o"
            jobs.append(pool.submit(compile_host, source, target, torch_folder, stable_abi))
        try:
            for job in jobs:
                job.result()
        except Exception:
            pool.shutdown(cancel_futures=True)  # report the first error now: the other files take minutes
            raise
        link([str(o) for o in sorted(folder.glob("*.o"))], output, torch_folder)


def host_sources() -> list[Path]:
    """Return the .cpp files of the library that nvcc builds."""
    return sorted(source for source in SOURCES.glob("*.cpp") if source.stem != "hopper_registration")


def build_wgmma(output: Path, torch_folder: Path, stable_abi: str) -> None:
    """Build the library of the wgmma kernel at `output`, without nvcc."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        write_wgmma_source(folder / "hopper_source.cpp")
        sources = [*(SOURCES / f"{stem}.cpp" for stem in WGMMA_SOURCES), folder / "hopper_source.cpp"]
        targets = [folder / f"{source.stem}.o" for source in sources]
        one = ["-DTO_WGMMA_ONLY"]
        list(
            pool.map(
                lambda pair: compile_host(*pair, torch_folder, stable_abi, *one), zip(sources, targets, strict=True)
            )
        )
        torch = ["-Wl,--no-as-needed", f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-ldl"]
        _output(*compiler(), "-shared", *map(str, targets), *torch, "-o", str(output))


def launcher_sources() -> list[Path]:
    """Return the sources of the launcher."""
    return [*sorted((SOURCES.parent / "launcher").glob("*.cpp")), SOURCES / "cuda_driver.cpp"]


def build_launcher(output: Path, torch_folder: Path, version: str, *more: str) -> None:
    """Build the launcher at `output` for the torch of that version alone: it uses more than the stable ABI.

    Args:
        output: The library's file.
        torch_folder: Of the installed torch.
        version: Of it.
        more: Further flags of the compiler.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    include = torch_folder / "include"
    folders = [include, include / "torch" / "csrc" / "api" / "include", Path(sysconfig.get_path("include"))]
    flags = [
        "-std=c++20",
        "-O2",
        "-g0",
        "-fPIC",
        "-fvisibility=hidden",
        f"-DTO_TORCH_VERSION={version.replace('+', '.')}",
        *more,
    ]
    flags += [part for folder in folders for part in ("-isystem", str(folder))]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = [(source, Path(name) / f"{source.stem}.o") for source in launcher_sources()]
        list(pool.map(lambda p: _output(*compiler(), *flags, "-c", str(p[0]), "-o", str(p[1])), pairs))
        libraries = ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10", "-ldl"]
        torch = ["-Wl,--no-as-needed", f"-L{torch_folder / 'lib'}", *libraries]
        _output(*compiler(), "-shared", *(str(target) for _, target in pairs), *torch, "-o", str(output))


def link(objects: list[str], output: Path, torch_folder: Path) -> None:
    """Link the object files into the library at `output`."""
    nvcc = find_nvcc()
    assert nvcc is not None, "call left_out first"
    # libtorch pulls in libtorch_cuda if it exists; its symbols are resolved when the library is loaded.
    torch = ["-Xlinker", "--no-as-needed", f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-ldl"]
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


def main(package: Path = SOURCES.parents[1] / "tunable_ops") -> None:
    """Build the library of the wgmma kernel and the launcher into the package, where it looks for them."""
    import torch

    wgmma, launcher = (
        package / f"{name.rpartition('.')[2]}{sysconfig.get_config_var('EXT_SUFFIX')}"
        for name in (WGMMA_NAME, LAUNCHER_NAME)
    )
    build_wgmma(wgmma, Path(torch.__file__).parent, STABLE_ABI)
    (package / "_wgmma_left_out.txt").unlink(missing_ok=True)
    try:
        build_launcher(launcher, Path(torch.__file__).parent, torch.__version__)
        (package / "_launcher_left_out.txt").unlink(missing_ok=True)
    except RuntimeError as error:  # of a torch with another interface: the plans are repeated in Python
        print(f"build_cuda: the launcher is left out: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
