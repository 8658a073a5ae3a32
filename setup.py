"""Packages and compiled operators of tunable_ops; everything else about the distribution is in pyproject.toml.

`triton_kernels` is also the name of a distribution of Triton's own, so the folder at the top of the
repository installs as `tunable_ops.triton_kernels`; `bench` likewise as `tunable_ops.bench`.

The C++ operators are built where torch, pybind11 and a compiler are there, unless TUNABLE_OPS_CPP=0; without them the
package installs and works in pure Python. One line then says what was left out and why: while it is built, and again
where the backend "cpp" is asked for. Building needs the torch that will run it in the environment:
`pip install --no-build-isolation .`

The CUDA operators are a library of their own beside them, built where torch has CUDA and nvcc is there, or as
csrc/build_cuda.py says.
"""

import importlib.util
import os
import platform
import shlex
import shutil
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# The oldest torch whose stable ABI the operators keep to: one binary serves it and every later version.
STABLE_ABI = "0x020b000000000000"  # 2.11
OPERATORS = sorted(
    str(source)
    for source in Path("csrc/cpu").glob("*.cpp")
    if platform.machine().lower() in ("x86_64", "amd64") or "avx" not in source.name
)
# Products and sums contract to fused multiply-adds; nothing else about the arithmetic is relaxed.
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden"]
BINARIES = ("_C.*", "_ops_cpu.*", "lib/schema.*")


def reason_to_leave_out() -> str | None:
    """Why no operators are built here, as far as it shows before the compiler runs."""
    if os.environ.get("TUNABLE_OPS_CPP", "1") == "0":
        return "TUNABLE_OPS_CPP=0"
    for package in ("torch", "pybind11"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed where the package is built"
    compiler = shlex.split(os.environ.get("CXX", "c++"))[:1]
    if os.name == "posix" and not (compiler and shutil.which(compiler[0])):
        return f"there is no C++ compiler {' '.join(compiler)!r}"
    return None


def say_left_out(operators: str, reason: str) -> str:
    """Prints, in one line, what the package has to do without, and why; returns it."""
    text = f"the {operators} operators are left out: {reason}. To get them: README.md, 'Compiled operators'"
    print(f"tunable_ops: {text}", flush=True)
    return text


CUDA_LEFT_OUT: list[str] = []  # what was said about the CUDA operators


def settle_cuda(package: Path) -> None:
    """As `settle`, for the CUDA operators."""
    note = package / "_cuda_left_out.txt"
    note.unlink(missing_ok=True)
    if CUDA_LEFT_OUT and package.is_dir():
        note.write_text(CUDA_LEFT_OUT[-1] + "\n")


def settle(package: Path, reason: str | None) -> None:
    """Leaves in the folder of the package why it has no operators; the package reads it when it is imported."""
    note = package / "_left_out.txt"
    note.unlink(missing_ok=True)
    if reason is None:
        return
    note.write_text(say_left_out("C++", reason) + "\n")
    for stale in (file for pattern in BINARIES for file in package.glob(pattern)):
        stale.unlink()


LEFT_OUT = reason_to_leave_out()


class BuildPython(build_py):
    """The package, and the note in it if it has no operators."""

    def run(self) -> None:
        """Copies the modules, then settles."""
        super().run()
        package = Path("." if self.editable_mode else self.build_lib, "tunable_ops")
        settle(package, LEFT_OUT)
        settle_cuda(package)


def cuda_builder() -> Any:
    """The module csrc/build_cuda.py, which is not installed."""
    spec = importlib.util.spec_from_file_location("build_cuda", Path(__file__).parent / "csrc" / "build_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def extensions() -> dict[str, Any]:
    """The arguments of setup() that build the operators."""
    import pybind11
    import torch
    from torch.utils.cpp_extension import CppExtension

    if importlib.util.find_spec("ninja"):  # torch looks for it in PATH, where an environment's own need not be
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])

    def stable(name: str, sources: list[str]) -> Any:
        macros = [("TORCH_TARGET_VERSION", STABLE_ABI), ("TORCH_STABLE_ONLY", None)]
        return CppExtension(name, sources, define_macros=macros, extra_compile_args=FLAGS, py_limited_api=True)

    module = CppExtension(
        "tunable_ops._C",
        ["csrc/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[
            ("TO_FLAGS", " ".join(FLAGS)),
            ("TO_TORCH_VERSION", torch.__version__.replace("+", ".")),
            ("TO_STABLE_ABI", STABLE_ABI),
        ],
        extra_compile_args=FLAGS,
    )
    module.libraries, module.library_dirs = [], []  # build information alone: it loads whatever torch is there
    # In a folder that is no package: nothing that walks through the modules of tunable_ops may load the schemas.
    schema = stable("tunable_ops.lib.schema", ["csrc/schema.cpp"])
    modules = [stable("tunable_ops._ops_cpu", OPERATORS), schema, module]
    cuda = cuda_builder()
    if (reason := cuda.left_out(torch.version.cuda)) is None:
        modules.append(Extension(cuda.NAME, [], optional=True))
    else:
        CUDA_LEFT_OUT.append(say_left_out("CUDA", reason))
    return {"ext_modules": modules}


def build_command() -> type[build_ext]:
    """The command that builds the operators, or leaves them out: a failing compiler must not stop an installation."""
    base = build_ext
    if LEFT_OUT is None:
        from torch.utils.cpp_extension import BuildExtension

        base = BuildExtension

    class Build(base):  # type: ignore[misc, valid-type]
        left_out = LEFT_OUT

        def build_extension(self, extension: Extension) -> None:
            cuda = cuda_builder()
            if extension.name != cuda.NAME:
                return super().build_extension(extension)
            import torch

            try:
                path = Path(self.get_ext_fullpath(extension.name))
                cuda.build(path, Path(torch.__file__).parent, STABLE_ABI)
            except Exception as error:
                CUDA_LEFT_OUT.append(say_left_out("CUDA", f"building them failed ({error})"))
                self.extensions = [e for e in self.extensions if e is not extension]

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                self.extensions = []
                self.left_out = f"building them failed ({type(error).__name__}: {str(error).splitlines()[0]})"

        def run(self) -> None:
            if self.inplace:
                Path("tunable_ops/lib").mkdir(exist_ok=True)
            super().run()
            package = Path("." if self.inplace else self.build_lib, "tunable_ops")
            settle(package, self.left_out)
            settle_cuda(package)

    return Build


setup(
    packages=[
        *find_packages(include=["tunable_ops", "tunable_ops.*"]),
        "tunable_ops.bench",
        "tunable_ops.bench.comparison",
        "tunable_ops.triton_kernels",
    ],
    package_dir={"tunable_ops.bench": "bench", "tunable_ops.triton_kernels": "triton_kernels"},
    package_data={
        "tunable_ops": [
            "py.typed",
            "train/configs/*.toml",
            "pgn/configs/*.toml",
            "pgn/weights/*.safetensors",
            "pretrained/*.safetensors",
        ],
        "tunable_ops.bench": ["results/schema.json"],
        "tunable_ops.bench.comparison": ["schema.json"],
        "tunable_ops.triton_kernels": ["tables/*.json"],
    },
    cmdclass={"build_py": BuildPython, "build_ext": build_command()},
    **({} if LEFT_OUT else extensions()),
)
