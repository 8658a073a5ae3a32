"""The CUDA operators compile without a GPU: resources of every kernel, its instructions, and what the library needs."""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def _builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc" / "build_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_cuda = _builder()
needs_nvcc = pytest.mark.skipif(build_cuda.find_nvcc() is None, reason="needs nvcc")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'"
    r"(?:(?!Compiling entry)[\s\S])*?(?P<stack>\d+) bytes stack frame, (?P<spills>\d+) bytes spill stores"
    r"(?:(?!Compiling entry)[\s\S])*?Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?"
)


def _state(source: Path) -> str:
    """A name for what a kernel's object depends on."""
    files = sorted(f for f in source.parent.glob("*.*h") if "hopper" not in f.name)
    content = b"".join(f.read_bytes() for f in [source, *files]) + repr(build_cuda.FLAGS).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def compiled(arch: str) -> tuple[list[Path], list[dict[str, Any]]]:
    """The objects and a row per kernel; an object is kept for as long as its sources are the same."""
    folder = ROOT / "build" / f"kernels-{arch}"
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> tuple[Path, list[dict[str, Any]]]:
        state = _state(source)
        target, table = folder / f"{source.stem}-{state}.o", folder / f"{source.stem}-{state}.json"
        if not table.exists():
            for old in folder.glob(f"{source.stem}-????????????????.*"):
                old.unlink()
            said = build_cuda.compile_kernel(source, target, [arch], "-Xptxas", "-v")
            rows = [{"file": source.name, **m.groupdict()} for m in ENTRY.finditer(said)]
            names = subprocess.run(
                ["c++filt"], input="\n".join(r["name"] for r in rows), capture_output=True, text=True
            )
            for row, name in zip(rows, names.stdout.splitlines(), strict=True):
                row["name"] = re.sub(r"tunable_ops::cuda::|\(anonymous namespace\)::|^void |\(\w+\)$", "", name)
            table.write_text(json.dumps(rows, indent=1))
        return target, json.loads(table.read_text())

    sources = sorted(build_cuda.SOURCES.glob("*.cu"), key=lambda s: -s.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compile_one, sources))
    return [target for target, _ in results], [row for _, rows in results for row in rows]


def check_resources(rows: list[dict[str, Any]]) -> None:
    """No spills, no stack, and two blocks of every kernel fit a multiprocessor's registers but where one is meant."""
    lines = (f"{r['arch']:8} {r['registers']:>4} {r['shared'] or 0:>6} {r['spills']:>3} {r['name']}" for r in rows)
    print("\narch     registers, static shared memory, spills, kernel\n" + "\n".join(lines))
    assert len({r["name"] for r in rows}) == len(rows) > 60, len(rows)
    for row in rows:
        assert int(row["spills"]) == 0 and int(row["stack"]) == 0, row
        threads = 128 if row["name"].startswith(("conv", "weight_grad", "depthwise_kernel")) else 256
        assert int(row["registers"]) * threads * (1 if "16>" in row["name"] else 2) <= 65536, row


@needs_nvcc
def test_resources_and_instructions_on_hopper() -> None:
    objects, rows = compiled("90a")
    check_resources(rows)
    dump = find_cuobjdump()
    if dump is None:
        return
    for name, wanted in (
        ("conv_half", ("HMMA.16816.F32", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4")),
        ("conv_bfloat16", ("HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128")),
        ("conv_float", ("HMMA.1688.F32.TF32", "FFMA")),
        ("weight_grad", ("HMMA.16816.F32", "HMMA.1688.F32.TF32", "LDSM.16.MT88.4", "FFMA")),
    ):
        file = next(o for o in objects if o.name.startswith(f"{name}-"))
        text = subprocess.run([dump, "-sass", file], capture_output=True, text=True, check=True).stdout
        for instruction in wanted:
            assert instruction in text, f"{name} has no {instruction}"
        assert not re.search(r"\b(STL|LDL)\b", text), f"{name} spills"


@needs_nvcc
@pytest.mark.slow
def test_resources_on_every_architecture() -> None:
    for arch in build_cuda.architectures(build_cuda.find_nvcc()):
        check_resources(compiled(arch)[1])


def find_cuobjdump() -> str | None:
    """Return the path of cuobjdump, of the CUDA toolkit or of Triton."""
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    paths = (spec.submodule_search_locations or []) if spec else []
    tools = [Path(p) / "backends" / "nvidia" / "bin" / "cuobjdump" for p in paths]
    return next((str(p) for p in tools if p.exists()), None)


@needs_nvcc
def test_the_library_needs_torch_alone(tmp_path: Path) -> None:
    """No CUDA library and no C++ of Torch's: the stable ABI, from any wheel."""
    objects = [str(o) for o in compiled("90a")[0]]
    torch_folder = Path(torch.__file__).parent
    build_cuda.write_wgmma_source(tmp_path / "hopper_source.cpp")
    for source in [*build_cuda.host_sources(), tmp_path / "hopper_source.cpp"]:
        target = tmp_path / f"{source.stem}_host.o"
        command = [
            "g++",
            "-Wall",
            "-Werror",
            *build_cuda.host_flags(torch_folder, build_cuda.STABLE_ABI),
            "-c",
            str(source),
        ]
        subprocess.run([*command, "-o", str(target)], check=True)
        objects.append(str(target))
    library = tmp_path / "_ops_cuda.so"
    build_cuda.link(objects, library, torch_folder)
    check_library(library)
    check_registration(library, tmp_path, "cuda", "cuda_backward")


def test_the_library_of_the_wgmma_kernel_needs_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.setattr(build_cuda, "find_nvcc", lambda: None)
    monkeypatch.setattr(build_cuda, "build_launcher", lambda *arguments: None)  # tests of it build it themselves
    for name in ("wgmma", "launcher"):
        (tmp_path / f"_{name}_left_out.txt").write_text("for a reason")
    build_cuda.main(tmp_path)
    (library,) = tmp_path.iterdir()  # and no note any more
    assert library.name.startswith("_ops_wgmma.") and library.suffix == ".so"
    check_library(library)
    names = ("wgmma", "wgmma_input", "wgmma_prepare")
    check_registration(library, tmp_path, *names)


def test_a_launcher_that_does_not_compile_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_cuda, "build_wgmma", lambda *arguments: None)
    monkeypatch.setattr(build_cuda, "launcher_sources", lambda: [tmp_path / "missing.cpp"])
    (tmp_path / "_launcher_left_out.txt").write_text("for a reason")
    build_cuda.main(tmp_path)
    assert capsys.readouterr().out.startswith("build_cuda: the launcher is left out: g++ failed: ")
    assert [file.name for file in tmp_path.iterdir()] == ["_launcher_left_out.txt"]


def check_library(library: Path) -> None:
    """It needs Torch's library and no CUDA one: the driver and NVRTC are looked up when they are needed."""
    symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    names = [line.split()[-1].split("@")[0] for line in symbols.stdout.splitlines()]
    foreign = [n for n in names if re.search(r"tunable_ops|c10|at::|_ZN2at|^cu[A-Z]|cuda", n)]
    assert sorted(foreign) == ["aoti_torch_device_type_cuda", "aoti_torch_get_current_cuda_stream"]
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"Shared library: \[(.*?)\]", needed)
    assert "libtorch.so" in libraries
    assert not [name for name in libraries if "cuda" in name or "cudart" in name]


def check_registration(library: Path, folder: Path, *operators: str) -> None:
    """The library loads and stands at the CUDA key; the one symbol that a CPU wheel lacks comes from a stub."""
    stub = folder / "stub.so"
    source = folder / "stub.c"
    source.write_text("int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", stub], check=True)
    code = f"""
import ctypes, torch
if torch.version.cuda is None:
    ctypes.CDLL({str(stub)!r}, ctypes.RTLD_GLOBAL)
torch.version.cuda = None  # the package must not load a library of its own
import tunable_ops
torch.ops.load_library({str(library)!r})
for name in {operators!r}:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tunable_ops::tunable_conv2d_{{name}}", "CUDA"), name
print(tunable_ops.tunable_conv2d(torch.ones(1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1), None, torch.ones(2)).item())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "2.0"


def test_when_it_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TUNABLE_OPS_CUDA", "TUNABLE_OPS_CUDA_ARCHS", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n[ $1 = --version ] && echo release 12.9, V12.9.1 || echo sm_80 sm_90\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build_cuda.left_out("12.9") is None
    assert build_cuda.architectures(str(nvcc)) == ["80", "90a"]
    assert build_cuda.left_out("13.0") == "nvcc 12.9 does not fit torch's CUDA 13.0"
    assert "this torch has no CUDA" in build_cuda.left_out(None)
    monkeypatch.setenv("TUNABLE_OPS_CUDA", "1")
    assert build_cuda.left_out(None) is None
    monkeypatch.setenv("TUNABLE_OPS_CUDA_ARCHS", "100")
    assert build_cuda.left_out(None) == "nvcc 12.9 knows none of the architectures asked for"
    nvcc.write_text("#!/bin/sh\nexit 3\n")
    assert "nvcc does not run" in build_cuda.left_out(None)
    monkeypatch.setattr(build_cuda, "find_nvcc", lambda: None)
    assert build_cuda.left_out(None) == "nvcc was not found (PATH or CUDA_HOME)"
    monkeypatch.setenv("TUNABLE_OPS_CUDA", "0")
    assert build_cuda.left_out("13.0") == "TUNABLE_OPS_CUDA=0"


def test_flags_of_architectures() -> None:
    assert build_cuda.gencode(["80", "90a", "100"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]
    assert build_cuda.gencode(["90a"]) == ["-gencode=arch=compute_90a,code=sm_90a"]
