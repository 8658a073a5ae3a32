"""The wheel and the source distribution: built, installed into an empty environment, used."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import tunable_ops

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++")) is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources"),
]
SMOKE = """
import sys, torch
import tunable_ops
from tunable_ops import backends
from tunable_ops.backends import cpp
assert tunable_ops.__file__.startswith(sys.prefix), tunable_ops.__file__
x = torch.rand(2, 3, 9, 11).contiguous(memory_format=torch.channels_last)
weight, bias, alpha = torch.rand(2, 5, 3, 3, 3), torch.rand(2, 5), torch.rand(2, 2)
expected = tunable_ops.tunable_conv2d(x, weight, bias, alpha, padding=1, backend="reference")
for backend in ("cpp", None):
    torch.testing.assert_close(tunable_ops.tunable_conv2d(x, weight, bias, alpha, padding=1, backend=backend), expected)
assert backends.select("tunable_conv2d", None, x, weight, alpha) == "cpp"
facts = cpp.build_information()
import tunable_ops._C as module
assert facts["compiler"] == module.compiler and facts["library"].startswith(sys.prefix), facts
import tunable_ops.bench.cases, tunable_ops.triton_kernels
print("smoke passed")
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=1200, env=os.environ | environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_sdist(folder: Path) -> Path:
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


def build_wheel(source: Path, folder: Path, **environment: str) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps")
    run(*pip, "--wheel-dir", folder, source, cwd=folder, **environment)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


def test_the_source_distribution_has_what_the_repository_has(sdist: Path) -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs the repository")
    tracked = set(run("git", "ls-files", cwd=ROOT).split()) - {".gitignore"}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {file for file in tracked if (ROOT / file).exists()} - packed == set()
    assert [name for name in packed if name.endswith((".so", ".o", ".pyc", "_left_out.txt"))] == []


@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
def test_a_wheel_of_the_source_distribution_works_in_an_empty_environment(sdist: Path, tmp_path: Path) -> None:
    wheel = build_wheel(sdist, tmp_path)
    # `_C` is for one Python on one platform; the operators beside it keep to the stable ABI.
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"tunable_ops-{tunable_ops.__version__}-{python}-{python}-{platform}.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {"tunable_ops/_ops_cpu.abi3.so", "tunable_ops/lib/schema.abi3.so"} <= set(names)
    assert [name for name in names if name.startswith(("csrc", "tests", "bench"))] == []
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python_there = tmp_path / "venv/bin/python"
    install = (sys.executable, "-m", "pip", "--python", python_there, "install", "--no-index", "--no-deps")
    run(*install, wheel, cwd=tmp_path)
    # torch and what it needs, from here: packages alone, for a .pth does not read the .pth of an editable install there
    packages = run(python_there, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(packages, "torch_from_outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert run(python_there, "-c", SMOKE, cwd=tmp_path, PYTHONPATH="").endswith("smoke passed\n")
    assert "cpp" in run(tmp_path / "venv/bin/tunable-ops", "info", cwd=tmp_path, PYTHONPATH="")


def test_a_wheel_without_operators_fits_every_python(sdist: Path, tmp_path: Path) -> None:
    wheel = build_wheel(sdist, tmp_path, TUNABLE_OPS_CPP="0", TUNABLE_OPS_CUDA="0")
    assert wheel.name == f"tunable_ops-{tunable_ops.__version__}-py3-none-any.whl"
    assert "tunable_ops/_left_out.txt" in zipfile.ZipFile(wheel).namelist()


def test_a_wheel_has_every_module_and_data_file_and_is_built_in_silence(tmp_path: Path) -> None:
    """Setuptools once printed pages of "Package would be ignored" about the folders of data."""
    command = (sys.executable, "setup.py", "build_py", "--build-lib", tmp_path / "lib")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", "*_left_out.txt"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    result = subprocess.run(
        [*map(str, command)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"TUNABLE_OPS_CPP": "0", "TUNABLE_OPS_CUDA": "0"},
    )
    assert result.returncode == 0, result.stderr
    assert "would be ignored" not in result.stdout + result.stderr
    expected = {f"tunable_ops/{file.relative_to(source / 'tunable_ops')}" for file in files(source / "tunable_ops")}
    for name in ("bench", "triton_kernels"):
        expected |= {f"tunable_ops/{file.relative_to(source)}" for file in files(source / name)}
    measured = {f for f in expected if f.startswith("tunable_ops/bench/results/") and not f.endswith("/schema.json")}
    packed = {str(file.relative_to(tmp_path / "lib")) for file in files(tmp_path / "lib")}
    notes = {f"tunable_ops/{library}_left_out.txt" for library in ("", "_cuda", "_wgmma", "_launcher")}
    assert packed ^ (expected - measured - {"tunable_ops/bench/on_gpu.sh"}) == notes


def files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
