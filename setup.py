"""Packages and compiled operators of tunable_ops; everything else about the distribution is in pyproject.toml.

`triton_kernels` is also the name of a distribution of Triton's own, so the folder at the top of the
repository installs as `tunable_ops.triton_kernels`; `bench` likewise as `tunable_ops.bench`.

These libraries are built, independently of each other:

- C++, where torch, pybind11 and a compiler are found, unless TUNABLE_OPS_CPP=0;
- CUDA, where torch has CUDA and nvcc is found, or as csrc/build_cuda.py says;
- wgmma, the CUDA kernel for compute capability 9.0, where torch has CUDA and there is a compiler: it needs no nvcc;
- the launcher, which repeats the plans of Triton's kernels without Python, likewise.

Without them the package installs and works in pure Python; one line then says what is missing and why, during the
installation and again when the backend is asked for by name. `python setup.py build_ext` is stricter: it exits with 1
if a library does not compile, or is missing although its variable is set to 1. Building needs the torch that will run
the operators in the environment: `pip install --no-build-isolation .`
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Products and sums contract to fused multiply-adds; nothing else about the arithmetic is relaxed.
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden"]
# For `make sanitize`, which looks for wrong accesses and undefined behaviour, and stops at the first.
SANITIZERS = ["-fsanitize=address", "-fsanitize=undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
if os.environ.get("TUNABLE_OPS_SANITIZE") == "1":
    FLAGS += ["-O1", "-g1", *SANITIZERS]
# For `make portable`: the kernels without AVX on every machine.
if os.environ.get("TUNABLE_OPS_PORTABLE") == "1":
    FLAGS += ["-DTUNABLE_OPS_PORTABLE"]
LINK = [flag for flag in FLAGS if flag.startswith("-fsanitize")]
# Library: the note in the package that says why it is missing, and its files.
LIBRARIES = {
    "C++": ("_left_out.txt", ("_C.*", "_ops_cpu.*", "lib/schema.*")),
    "CUDA": ("_cuda_left_out.txt", ("_ops_cuda.*",)),
    "wgmma": ("_wgmma_left_out.txt", ("_ops_wgmma.*",)),
    "launcher": ("_launcher_left_out.txt", ("_launcher.*",)),
}
VARIABLES = {"C++": "TUNABLE_OPS_CPP"} | dict.fromkeys(("CUDA", "wgmma", "launcher"), "TUNABLE_OPS_CUDA")
FOLDERS = {"tunable_ops.bench": "bench", "tunable_ops.triton_kernels": "triton_kernels"}
DATA = ["py.typed", "schema.json", "*/schema.json", "*/*.toml", "tables/*.json"]
DATA += ["*.safetensors", "*/*.safetensors", "LICENSES.txt"]
DATA += ["page.css", "page.js", "moves.js", "samples/*.jpg", "samples/LICENSES.txt"]


def load_build_cuda() -> ModuleType:
    """Return the module csrc/build_cuda.py, which is not installed."""
    spec = importlib.util.spec_from_file_location("build_cuda", Path(__file__).parent / "csrc" / "build_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_cuda = load_build_cuda()
STABLE_ABI = build_cuda.STABLE_ABI


def missing_libraries() -> dict[str, str]:
    """Return why a library is not built, as far as that is known before a compiler runs."""
    reasons = {name: f"{variable}=0" for name, variable in VARIABLES.items() if os.environ.get(variable) == "0"}
    for package, libraries in (("torch", tuple(VARIABLES)), ("pybind11", ("C++",))):
        if importlib.util.find_spec(package) is None:
            for name in libraries:
                reasons.setdefault(name, f"{package} is not installed where the package is built")
    compiler = shlex.split(os.environ.get("CXX", "c++"))[:1]
    if os.name == "posix" and not (compiler and shutil.which(compiler[0])):
        for name in ("C++", "wgmma", "launcher"):
            reasons.setdefault(name, f"there is no C++ compiler {' '.join(compiler)!r}")
    if "CUDA" not in reasons:
        import torch

        if (reason := build_cuda.left_out(torch.version.cuda)) is not None:
            reasons["CUDA"] = reason
    for name in {"wgmma", "launcher"} - set(reasons):
        import torch

        if (reason := build_cuda.wgmma_left_out(torch.version.cuda)) is not None:
            reasons[name] = reason
    return reasons


MISSING = missing_libraries()
FAILED: set[str] = set()  # the libraries that did not compile


@cache
def say_missing(library: str, reason: str) -> str:
    """Print, in one line, which library is missing and why; return it."""
    text = f"the {library} operators are left out: {reason}. To get them: docs/start/install.md, 'Compiled operators'"
    print(f"tunable_ops: {text}", flush=True)
    return text


def leave_notes(package: Path) -> None:
    """Write into the package why a library is missing, and remove what earlier builds left of that library."""
    if not package.is_dir():
        return
    for library, (note, files) in LIBRARIES.items():
        (package / note).unlink(missing_ok=True)
        if library in MISSING:
            (package / note).write_text(say_missing(library, MISSING[library]) + "\n")
            for stale in [file for pattern in files for file in package.glob(pattern)]:
                stale.unlink()


class BuildPython(build_py):
    """Copy the modules, then leave the notes."""

    def run(self) -> None:
        """Run the command."""
        super().run()
        leave_notes(Path("." if self.editable_mode else self.build_lib, "tunable_ops"))


def cpp_sources() -> list[str]:
    """Return the sources of the C++ operators; those for AVX only where the processor may have it."""
    own_libraries = {"module.cpp", "schema.cpp"}
    found = [*Path("csrc").glob("*.cpp"), *Path("csrc/cpu").glob("*.cpp")]
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return sorted(str(f) for f in found if f.name not in own_libraries and (is_x86 or "avx" not in f.name))


def built_with_digest(*versions: str) -> str:
    """Return a digest of the versions and of what the compiler says of itself.

    As a macro that no source reads it makes ninja compile again when one of them changes: ninja compares command lines
    and times, and neither changes with the compiler, nor surely with another torch in the same place.
    """
    said = ""
    if os.name == "posix":
        command = [*shlex.split(os.environ.get("CXX", "c++")), "--version"]
        said = subprocess.run(command, capture_output=True, text=True).stdout
    return hashlib.sha256("\n".join([*versions, said]).encode()).hexdigest()[:16]


def objects_folder() -> str:
    """Return where an editable installation keeps its objects: where `build_ext` does, not in a temporary folder."""
    return str(Path("build", f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"))


def cpp_extensions() -> list[Any]:
    """Return the operators, their schemas for programs without Python, and the module that says how they were built."""
    import pybind11
    import torch
    from torch.utils.cpp_extension import CppExtension

    if importlib.util.find_spec("ninja"):  # torch looks for it in PATH, where an environment's own need not be
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])

    built_with = ("TO_BUILT_WITH", built_with_digest(torch.__version__, pybind11.__version__))

    def stable(name: str, sources: list[str]) -> Any:
        macros = [("TORCH_TARGET_VERSION", STABLE_ABI), ("TORCH_STABLE_ONLY", None), built_with]
        return CppExtension(
            name, sources, define_macros=macros, extra_compile_args=FLAGS, py_limited_api=True, extra_link_args=LINK
        )

    module = CppExtension(
        "tunable_ops._C",
        ["csrc/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[
            ("TO_FLAGS", " ".join(FLAGS)),
            ("TO_TORCH_VERSION", torch.__version__.replace("+", ".")),
            ("TO_STABLE_ABI", STABLE_ABI),
            built_with,
        ],
        extra_compile_args=FLAGS,
        extra_link_args=LINK,
    )
    module.libraries, module.library_dirs = [], []  # build information alone: it loads whatever torch is there
    # In a folder that is no package: nothing that walks through the modules of tunable_ops may load the schemas.
    schema = stable("tunable_ops.lib.schema", ["csrc/schema.cpp"])
    return [stable("tunable_ops._ops_cpu", cpp_sources()), schema, module]


def build_command() -> type[build_ext]:
    """Return the command that builds each library, or leaves it out: a failure must not stop an installation."""
    base = build_ext
    if "C++" not in MISSING:
        from torch.utils.cpp_extension import BuildExtension

        base = BuildExtension

    class Build(base):  # type: ignore[misc, valid-type]
        def build_extensions(self) -> None:
            names = (build_cuda.NAME, build_cuda.WGMMA_NAME, build_cuda.LAUNCHER_NAME)
            cuda, wgmma, launcher = ([e for e in self.extensions if e.name == name] for name in names)
            cpp = [e for e in self.extensions if e.name not in names]
            built = []
            for library, extensions, build in (
                ("C++", cpp, super().build_extensions),
                ("CUDA", cuda, lambda: self.build_cuda(build_cuda.NAME, build_cuda.build)),
                ("wgmma", wgmma, lambda: self.build_cuda(build_cuda.WGMMA_NAME, build_cuda.build_wgmma)),
                ("launcher", launcher, self.build_launcher),
            ):
                self.extensions = extensions
                try:
                    if extensions:
                        build()
                    built += extensions
                except Exception as error:
                    print(f"tunable_ops: THE {library} OPERATORS WERE NOT BUILT\n{error}", file=sys.stderr, flush=True)
                    first_line = (str(error).splitlines() or ["no message"])[0]
                    MISSING[library] = f"building them failed ({type(error).__name__}: {first_line})"
                    FAILED.add(library)
            self.extensions = built

        def build_cuda(self, name: str, build: Any) -> None:
            import torch

            build(Path(self.get_ext_fullpath(name)), Path(torch.__file__).parent, STABLE_ABI)

        def build_launcher(self) -> None:
            import torch

            path = Path(self.get_ext_fullpath(build_cuda.LAUNCHER_NAME))
            build_cuda.build_launcher(path, Path(torch.__file__).parent, torch.__version__)

        def run(self) -> None:
            if self.editable_mode:
                self.build_temp = objects_folder()
            if self.inplace:
                Path("tunable_ops/lib").mkdir(exist_ok=True)
            super().run()
            leave_notes(Path("." if self.inplace else self.build_lib, "tunable_ops"))
            wanted = FAILED | {name for name in MISSING if os.environ.get(VARIABLES[name]) == "1"}
            if wanted and "build_ext" in self.distribution.commands:
                raise SystemExit(f"build_ext: the {' and '.join(sorted(wanted))} operators were not built")

    return Build


extensions = [] if "C++" in MISSING else cpp_extensions()
if "CUDA" not in MISSING:
    extensions.append(Extension(build_cuda.NAME, []))
if "wgmma" not in MISSING:
    extensions.append(Extension(build_cuda.WGMMA_NAME, []))
if "launcher" not in MISSING:
    extensions.append(Extension(build_cuda.LAUNCHER_NAME, []))
setup(
    packages=[
        *find_packages(include=["tunable_ops", "tunable_ops.*"]),
        *(f"tunable_ops.{name}" for top in FOLDERS.values() for name in find_packages(include=[top, f"{top}.*"])),
    ],
    package_dir=FOLDERS,
    # Data is what DATA matches in a package or in a folder of it that is no package, and nothing else.
    package_data={"": DATA},
    include_package_data=False,
    cmdclass={"build_py": BuildPython, "build_ext": build_command()},
    ext_modules=extensions,
)
