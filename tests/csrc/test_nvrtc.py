"""The wgmma kernel, compiled by NVRTC as at its first use: its machine code, and the cache on disk. Needs no GPU."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.csrc.test_cuda_build import ROOT, build_cuda, find_cuobjdump

# channels per step, outputs, rows of pixels per warpgroup: kHopperShapes of csrc/cuda/hopper.h
SHAPES = [(16, 32, 4), (32, 32, 4), (32, 64, 3), (64, 64, 3), (64, 128, 1), (64, 128, 2)]
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Werror"]


def toolkits() -> list[Path]:
    """Return the folders in which CUDA may be installed."""
    nvcc = build_cuda.find_nvcc()
    return [Path("/usr/local/cuda"), *([] if nvcc is None else [Path(nvcc).resolve().parents[1]])]


def find_nvrtc() -> Path | None:
    """Return NVRTC of NVIDIA's own packages, of the CUDA toolkit, or of torch, which loads where there is a driver."""
    own = Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [f for p in packages for f in sorted(p.glob("*/lib/libnvrtc.so.*"))]
    found += [f for toolkit in toolkits() for f in sorted(toolkit.glob("lib64/libnvrtc.so.*"))]
    return next((f for f in [*found, own] if f.exists()), None)


NVRTC = find_nvrtc()
pytestmark = pytest.mark.skipif(NVRTC is None or shutil.which("g++") is None, reason="needs NVRTC and g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that compiles the kernel with the operators' own code."""
    folder = tmp_path_factory.mktemp("nvrtc")
    build_cuda.write_wgmma_source(folder / "hopper_source.cpp")
    sources = [ROOT / "csrc" / "tests" / "test_nvrtc.cpp", ROOT / "csrc" / "cuda" / "nvrtc.cpp"]
    target = folder / "test_nvrtc"
    command = ["g++", *FLAGS, *sources, folder / "hopper_source.cpp", "-ldl", "-o", target]
    subprocess.run(command, check=True)
    return target


def compile_kernel(program: Path, cache: Path, cubin: Path, **macros: object) -> subprocess.CompletedProcess[str]:
    values = {"MATH": "HopperHalf", "SHAPE": 0, "ACTIVATION": 0} | macros
    options = [f"-DTO_HOPPER_{name}={value}" for name, value in values.items()]
    return subprocess.run([program, NVRTC, cache, cubin, *options], capture_output=True, text=True)


@pytest.mark.parametrize("math", ["HopperHalf", "HopperBFloat16"])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_machine_code(program: Path, tmp_path: Path, shape: int, math: str) -> None:
    """No spills, whole warpgroups fit the registers, products in one piece, TMA in both directions, no max for relu."""
    channels, outputs, rows = SHAPES[shape]
    cubin = tmp_path / "kernel.cubin"
    # The longest of the activations with half, the one that must not become a maximum with bfloat16.
    activation = 2 if math == "HopperHalf" else 1
    result = compile_kernel(program, tmp_path / "cache", cubin, MATH=math, SHAPE=shape, ACTIVATION=activation)
    assert result.returncode == 0, result.stdout
    dump = find_cuobjdump()
    if dump is None:
        pytest.skip("compiled; needs cuobjdump to look into it")
    usage = subprocess.run([dump, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    assert stack == 0
    assert registers * 384 <= 65536  # 288 threads, in whole warpgroups
    text = subprocess.run([dump, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"\b(STL|LDL)\b", text), "it spills"
    product = rf"HGMMA\.64x{outputs}x16\.F32" + (r"\.BF16 " if math == "HopperBFloat16" else " ")
    assert len(re.findall(product, text)) == rows * channels // 16
    assert len(re.findall(r"\bUTMALDG\.4D\b", text)) == 1
    assert len(re.findall(r"\bUTMASTG\.4D\b", text)) == rows * outputs // 32
    # A maximum would turn NaN into zero.
    assert not re.search(r"\bFMNMX\b", text)


def test_the_cache(program: Path, tmp_path: Path) -> None:
    cache, cubin = tmp_path / "a" / "cache", tmp_path / "kernel.cubin"
    assert compile_kernel(program, cache, cubin).returncode == 0
    (file,) = cache.iterdir()
    content, code = file.read_bytes(), cubin.read_bytes()
    assert re.fullmatch(r"wgmma-[0-9a-f]{32}\.cubin", file.name)
    assert content[32:] == code

    # What is read from it is what was written: a file with other code and its hash is taken as it is.
    other = compile_kernel(program, cache, cubin, ACTIVATION=1)
    assert other.returncode == 0 and len(list(cache.iterdir())) == 2
    (second,) = set(cache.iterdir()) - {file}
    file.write_bytes(second.read_bytes())
    assert compile_kernel(program, cache, cubin).returncode == 0
    assert cubin.read_bytes() == second.read_bytes()[32:] != code

    # A damaged file is replaced.
    file.write_bytes(content[:-7] + b"damaged")
    assert compile_kernel(program, cache, cubin).returncode == 0
    assert file.read_bytes() == content and cubin.read_bytes() == code
    assert len(list(cache.iterdir())) == 2

    # A folder that cannot be written costs the compilation, no more.
    (tmp_path / "file").touch()
    assert compile_kernel(program, tmp_path / "file", cubin).returncode == 0
    assert cubin.read_bytes() == code


def test_what_the_compiler_says_is_passed_on(program: Path, tmp_path: Path) -> None:
    result = compile_kernel(program, tmp_path, tmp_path / "kernel.cubin", MATH="Unknown")
    assert result.returncode == 1
    assert result.stdout.startswith("NVRTC failed: NVRTC_ERROR_COMPILATION\n")
    assert 'identifier "Unknown" is undefined' in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_driver_declarations() -> None:
    """The driver's functions and numbers that the launcher declares for itself are those of cuda.h."""
    headers = next((t / "include" for t in toolkits() if (t / "include" / "cuda.h").exists()), None)
    if headers is None:
        pytest.skip("needs cuda.h")
    source = ROOT / "csrc" / "tests" / "test_cuda_driver.cpp"
    subprocess.run(["g++", *FLAGS, "-fsyntax-only", f"-I{headers}", source], check=True)
