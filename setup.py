"""Packages and compiled operators of tunable_ops; everything else about the distribution is in pyproject.toml.

`triton_kernels` is also the name of a distribution of Triton's own, so the folder at the top of the
repository installs as `tunable_ops.triton_kernels`.

The C++ operators are built where torch, pybind11 and a compiler are there, unless TUNABLE_OPS_CPP=0; without them the
package installs and works in pure Python, and one line says what was left out. Building needs the torch that will run
it in the environment: `pip install --no-build-isolation .`

The CUDA operators are a library of their own beside them, built where torch has CUDA and nvcc is there, or as
csrc/build_cuda.py says.
"""

import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup

# The oldest torch whose stable ABI the operators keep to: one binary serves it and every later version.
STABLE_ABI = "0x020b000000000000"  # 2.11
OPERATORS = [
    "csrc/tunable_conv2d.cpp",
    "csrc/tunable_conv2d_passes.cpp",
    "csrc/cpu/best_kernels.cpp",
    "csrc/cpu/kernels_portable.cpp",
    *(
        ["csrc/cpu/kernels_avx2.cpp", "csrc/cpu/kernels_avx512.cpp"]
        if platform.machine().lower() in ("x86_64", "amd64")
        else []
    ),
]
# Products and sums contract to fused multiply-adds; nothing else about the arithmetic is relaxed.
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden"]


def leave_out(reason: str, what: str = "C++") -> dict[str, Any]:
    """Says in one line that the package has to do without some of its operators, and why."""
    print(f"tunable_ops: the {what} operators are left out: {reason}. To get them: README.md, 'Compiled operators'")
    return {}


def cuda_builder() -> Any:
    """The module csrc/build_cuda.py, which is not installed."""
    spec = importlib.util.spec_from_file_location("build_cuda", Path(__file__).parent / "csrc" / "build_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def extensions() -> dict[str, Any]:
    """The arguments of setup() that build the operators, or none."""
    if os.environ.get("TUNABLE_OPS_CPP", "1") == "0":
        return leave_out("TUNABLE_OPS_CPP=0")
    for package in ("torch", "pybind11"):
        if importlib.util.find_spec(package) is None:
            return leave_out(f"{package} is not installed where the package is built")
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    cuda = cuda_builder()
    reason = cuda.left_out(torch.version.cuda)

    class Build(BuildExtension):
        """Builds, or leaves the operators out: a compiler that is missing or fails must not stop the installation."""

        def build_extension(self, extension: Extension) -> None:
            if extension.name != cuda.NAME:
                return super().build_extension(extension)
            try:
                path = Path(self.get_ext_fullpath(extension.name))
                cuda.build(path, Path(torch.__file__).parent, STABLE_ABI)
            except Exception as error:
                leave_out(f"building them failed ({error})", "CUDA")
                self.extensions = [e for e in self.extensions if e is not extension]

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                self.extensions = []
                leave_out(f"building them failed ({type(error).__name__}: {str(error).splitlines()[0]})")

    macros = [
        ("TO_FLAGS", " ".join(FLAGS)),
        ("TO_TORCH_VERSION", torch.__version__.replace("+", ".")),
        ("TO_STABLE_ABI", STABLE_ABI),
    ]
    operators = CppExtension(
        "tunable_ops._ops_cpu",
        OPERATORS,
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI), ("TORCH_STABLE_ONLY", None)],
        extra_compile_args=FLAGS,
        py_limited_api=True,
    )
    module = CppExtension(
        "tunable_ops._C",
        ["csrc/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=macros,
        extra_compile_args=FLAGS,
    )
    module.libraries, module.library_dirs = [], []  # build information alone: it loads whatever torch is there
    modules = [operators, module]
    if reason is None:
        modules.append(Extension(cuda.NAME, [], optional=True))
    else:
        leave_out(reason, "CUDA")
    return {"ext_modules": modules, "cmdclass": {"build_ext": Build}}


setup(
    packages=[
        *find_packages(include=["tunable_ops", "tunable_ops.*"]),
        "tunable_ops.triton_kernels",
    ],
    package_dir={"tunable_ops.triton_kernels": "triton_kernels"},
    package_data={"tunable_ops": ["py.typed", "train/configs/*.toml"]},
    **extensions(),
)
