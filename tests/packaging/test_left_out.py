"""Installing without operators: it succeeds, one line says why, and the backend "cpp" raises with the same words."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tunable_ops
from tunable_ops import backends
from tunable_ops.backends import cpp

ROOT = Path(__file__).parents[2]
HOW = "To get them: docs/start/install.md, 'Compiled operators'"
# The default works; "cpp" raises, and says why. An editable install beside it would lend its own binaries.
CODE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
import torch, tunable_ops
x, weight, alpha = torch.ones(1, 1, 2, 2), torch.ones(2, 1, 1, 1, 1), torch.tensor([1.0, 2.0])
assert tunable_ops.__file__.startswith(sys.argv[1]), tunable_ops.__file__
assert tunable_ops.tunable_conv2d(x, weight, None, alpha).mean() == 3
try:
    tunable_ops.tunable_conv2d(x, weight, None, alpha, backend="cpp")
except RuntimeError as error:
    print(error)
"""
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")


def copy_sources(folder: Path) -> Path:
    """What a build reads, without what earlier builds left."""
    folder.mkdir(exist_ok=True)
    skip = shutil.ignore_patterns("*.so", "*_left_out.txt", "__pycache__", "*.egg-info")
    for name in ("tunable_ops", "bench", "triton_kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(folder: Path, **environment: str) -> str:
    """Builds the copy into folder/lib; returns what was said about the C++ operators."""
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", "base", "--build-lib", "lib"]
    result = subprocess.run(
        command, cwd=copy_sources(folder), capture_output=True, text=True, timeout=600, env=os.environ | environment
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("tunable_ops: the C++")]
    assert len(set(lines)) == 1, result.stdout
    return lines[0].removeprefix("tunable_ops: ")


def message(library: Path) -> str:
    """What the package in this folder says when it is asked for "cpp"."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(library)],
        cwd=library,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(library)},
    )
    assert result.returncode == 0, result.stderr
    prefix = "tunable_conv2d: backend must be one that can run here; got 'cpp': "
    assert result.stdout.startswith(prefix)
    return result.stdout.removeprefix(prefix)


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("TUNABLE_OPS_CPP", "0", "TUNABLE_OPS_CPP=0"),
        ("CXX", "/nonexistent/c++", "there is no C++ compiler '/nonexistent/c++'"),
    ],
)
def test_left_out_on_request_or_without_a_compiler(tmp_path: Path, name: str, value: str, reason: str) -> None:
    said = build(tmp_path, **{name: value})
    assert said == f"the C++ operators are left out: {reason}. {HOW}"
    assert not [file for name in ("_C.*", "_ops_cpu.*") for file in tmp_path.rglob(name)]
    assert message(tmp_path / "lib").startswith(f"{said}. Use backend=None")


@pytest.mark.parametrize(
    "script, reason",
    [
        ("exit 3", r"nvcc does not run \(nvcc failed: no message\)"),
        (None, r"this torch has no CUDA \(TUNABLE_OPS_CUDA=1 builds them all the same\)"),
    ],
)
def test_cuda_left_out_keeps_its_reason(tmp_path: Path, script: str | None, reason: str) -> None:
    """The package notes what setup.py said; `backends.cuda` reads it (tests/backends/test_select.py)."""
    if torch.version.cuda is not None:
        pytest.skip("for a torch without CUDA")
    environment = {"CUDA_HOME": str(tmp_path), "TUNABLE_OPS_CUDA": "1" if script else ""}
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "lib"]
    folder = copy_sources(tmp_path)
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, env=os.environ | environment
    )
    assert result.returncode == 0, result.stderr
    note = (folder / "lib" / "tunable_ops" / "_cuda_left_out.txt").read_text()
    assert f"tunable_ops: {note}" in result.stdout
    assert re.fullmatch(f"the CUDA operators are left out: {reason}. {re.escape(HOW)}", note.strip()), note


# Compilers that answer what a build asks and, for {fails}, fail; for all else they write an empty file.
COMPILER = """#!/bin/sh
case "$*" in
    *--list-gpu-code*) echo sm_80; exit ;;
    *--version*release*|--version) echo release {cuda}; exec c++ --version ;;
    *{fails}*) echo "{fails}: error: seeded"; exit 1 ;;
esac
while [ $# -gt 1 ]; do [ "$1" = -o ] && touch "$2"; shift; done
exit 0
"""


@pytest.mark.parametrize("command", [pytest.param("build", marks=pytest.mark.slow), "build_ext"])
@pytest.mark.parametrize("library", ["C++", "CUDA"])
def test_a_library_that_fails_leaves_the_other(tmp_path: Path, library: str, command: str) -> None:
    """And says so: an installation goes on, `build_ext` exits with 1. Once a C++ error dropped the CUDA library too."""
    others = {"_ops_cuda", "_ops_cpu", "_ops_wgmma"} - {"_ops_cpu" if library == "C++" else "_ops_cuda"}
    fails = "csrc/module.cpp" if library == "C++" else "depthwise.cu"
    for compiler in (tmp_path / "c++", tmp_path / "bin" / "nvcc"):
        compiler.parent.mkdir(exist_ok=True)
        compiler.write_text(COMPILER.format(fails=fails, cuda=torch.version.cuda or "13.0"))
        compiler.chmod(0o755)
    environment = {"CXX": str(tmp_path / "c++"), "CUDA_HOME": str(tmp_path), "TUNABLE_OPS_CUDA": "1"}
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", command, "--build-lib", "lib"],
        cwd=copy_sources(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )
    assert f"{fails}: error: seeded" in result.stdout + result.stderr
    assert f"tunable_ops: THE {library} OPERATORS WERE NOT BUILT" in result.stderr
    assert f"tunable_ops: the {library} operators are left out: building them failed (" in result.stdout
    assert {file.name.split(".")[0] for file in (tmp_path / "lib").rglob("_ops_*.so")} == others
    assert result.returncode == (1 if command == "build_ext" else 0)
    if command == "build_ext":
        assert result.stderr.endswith(f"build_ext: the {library} operators were not built\n")


def test_build_ext_fails_without_a_library_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "c++").write_text(COMPILER.format(fails="nothing", cuda="13.0"))
    (tmp_path / "c++").chmod(0o755)
    environment = {"TUNABLE_OPS_CPP": "0", "TUNABLE_OPS_CUDA": "1", "CUDA_HOME": str(tmp_path)}
    environment["CXX"] = str(tmp_path / "c++")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "lib"],
        cwd=copy_sources(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )
    assert result.returncode == 1
    assert result.stderr.endswith("build_ext: the CUDA operators were not built\n")


@pytest.mark.slow
def test_a_second_editable_installation_compiles_only_what_has_changed(tmp_path: Path) -> None:
    """Adding an extra installs the package again."""
    pytest.importorskip("ninja", reason="without ninja everything is compiled each time")
    compiler, log = tmp_path / "c++", tmp_path / "log"
    folder = copy_sources(tmp_path / "sources")

    def compiled(release: str = "13.0") -> set[str]:
        text = COMPILER.format(fails="nothing", cuda=release)
        logged = text.replace('case "$*"', f'echo "$*" >>{log}\ncase "$*"', 1)
        compiler.write_text(logged.replace("exec c++ --version", "exit"))
        compiler.chmod(0o755)
        log.write_text("")
        result = subprocess.run(
            [sys.executable, "setup.py", "--quiet", "editable_wheel", "--dist-dir", str(tmp_path / "dist")],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            env=os.environ | {"CXX": str(compiler), "CC": str(compiler), "TUNABLE_OPS_CUDA": "0"},
        )
        assert result.returncode == 0, result.stderr
        assert list((folder / "tunable_ops").glob("_ops_cpu.*"))
        return {Path(name).name for name in re.findall(r" -c (\S+\.cpp)", log.read_text())}

    everything = compiled()
    assert {"module.cpp", "schema.cpp", "tunable_conv2d.cpp"} <= everything
    assert compiled() == set()
    with open(folder / "csrc/schema.cpp", "a") as file:
        file.write("// changed\n")
    assert compiled() == {"schema.cpp"}
    assert compiled(release="14.0") == everything


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_them_out(tmp_path: Path) -> None:
    compiler = tmp_path / "failing-c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-c\\ *) exit 1;; *) exec c++ "$@";; esac\n')
    compiler.chmod(0o755)
    said = build(tmp_path, CXX=str(compiler))
    assert said.startswith("the C++ operators are left out: building them failed (")
    assert said.endswith(HOW)
    assert not list((tmp_path / "lib").rglob("*.so"))
    assert message(tmp_path / "lib").startswith(f"{said}. Use backend=None")


def test_operators_of_another_python_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_C.cpython-37m-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(cpp, "_PACKAGE", tmp_path)
    monkeypatch.setattr(cpp, "_missing", None)
    monkeypatch.setattr(cpp.importlib.util, "find_spec", lambda name: None)
    cpp.load()
    with pytest.raises(RuntimeError, match=r"built for another Python \(_C\.cpython-37m-x86_64-linux-gnu\.so\)"):
        backends.select("tunable_conv2d", "cpp")


def _damage_module(package: Path) -> None:
    (package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("not a library" * 1000)


def _damage_operators(package: Path) -> None:
    (package / "_ops_cpu.abi3.so").write_text("not a library" * 1000)


def _remove_operators(package: Path) -> None:
    next(package.glob("_ops_cpu.*")).unlink()


def _foreign_module(package: Path) -> None:
    next(package.glob("_C.*")).unlink()
    (package / "_C.py").write_text("library = '_ops_cpu'\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage, reason",
    [
        (_damage_module, r"ImportError: .*invalid ELF header"),
        (_damage_operators, r"OSError: .*invalid ELF header"),
        (_remove_operators, r"FileNotFoundError: no _ops_cpu in "),
        (_foreign_module, r"AttributeError: .*'compiler'"),
    ],
)
def test_binaries_that_do_not_load(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    if sys.platform != "linux" or cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("needs the compiled operators, on Linux")
    package = tmp_path / "tunable_ops"
    shutil.copytree(Path(tunable_ops.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("bench", "triton_kernels"):
        shutil.copytree(ROOT / name, package / name)
    damage(package)
    said = message(tmp_path)
    assert said.startswith("the C++ operators are left out: they do not load here (")
    assert re.search(reason, said), said
    assert said.endswith(f"{HOW}. Use backend=None for the fastest that can\n")


def test_what_was_built_is_told() -> None:
    facts = cpp.build_information()
    if cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("needs the compiled operators")
    assert facts is not None
    assert "++" in facts["compiler"] or "clang" in facts["compiler"]
    assert facts["stable_abi"] == "torch 2.11 and later"
    assert Path(facts["library"]).is_file()
    assert torch.__version__.replace("+", ".") == facts["torch"]
