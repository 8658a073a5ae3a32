"""A CUDA driver that runs nothing, for measurements and tests of the launcher without a GPU.

`csrc/tests/stand_in_cuda.cpp` takes the place of libcuda.so.1, for the launcher as for Triton's own, and notes
launches. Both are built into build/, once per state of their sources. Only a copy of the repository has them.
"""

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from tunable_ops.triton_kernels import launch
from tunable_ops.triton_kernels.stand_in import Launching, stand_in

from tunable_ops.backends.triton import native, plans

ROOT = Path(__file__).parents[1]
_MOST = 256  # values of a launch


class Launched(NamedTuple):
    """A launch that reached the driver."""

    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    parameters: tuple[int, ...]


class Driver(Launching):
    """Triton's own launcher on the driver that runs nothing."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.library, self.stream = library, 0

    def get_current_stream(self, device: int) -> int:
        """Return what `use_stream` set."""
        return self.stream

    def use_stream(self, stream: int) -> None:
        """Make a stream the current one, here and for PyTorch."""
        self.stream = stream
        self.library.stand_in_stream(ctypes.c_uint64(stream))

    def take(self) -> list[Launched]:
        """Return the launches since the last call."""
        values = (ctypes.c_uint64 * _MOST)()
        found = []
        for index in range(self.library.stand_in_kept()):
            size = self.library.stand_in_read(ctypes.c_uint64(index), values, ctypes.c_uint64(_MOST))
            assert size <= _MOST, size
            row = tuple(values[:size])
            found.append(Launched(row[0], row[1:4], row[4:7], row[7], row[8], row[9:]))
        self.keep(True)
        return found

    def keep(self, wanted: bool) -> None:
        """Forget the launches; note those to come, or only count them."""
        self.library.stand_in_keep(int(wanted))


def unavailable_reason() -> str | None:
    """Return why there is no stand-in here, or None if there is one."""
    if torch.cuda.is_available():
        return "the driver of a GPU is there"
    if "tunable_ops._launcher" in sys.modules:
        return "the launcher of this installation is loaded, and a second one would not be called"
    return None if (ROOT / "csrc" / "tests" / "stand_in_cuda.cpp").exists() else "only the repository has its sources"


def _builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc" / "build_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build() -> Path:
    """Return the folder with the driver and the launcher."""
    builder, driver = _builder(), ROOT / "csrc" / "tests" / "stand_in_cuda.cpp"
    files = [driver, *builder.launcher_sources(), *sorted((ROOT / "csrc" / "launcher").glob("*.h"))]
    content = b"".join(file.read_bytes() for file in files) + f"{torch.__version__} {sys.version}".encode()
    folder: Path = ROOT / "build" / f"launcher-{hashlib.sha256(content).hexdigest()[:16]}"
    library = folder / "_launcher.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}.so"
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([*builder.compiler(), *flags, str(driver), "-o", str(partial)], check=True)
        partial.rename(folder / "libcuda.so.1")
        stream = "-Daoti_torch_get_current_cuda_stream=stand_in_current_stream"
        builder.build_launcher(partial, Path(torch.__file__).parent, torch.__version__, stream)
        partial.rename(library)
    return folder


def launcher() -> Any:
    """Return the launcher's module."""
    return _libraries()[1]


@cache
def _libraries() -> tuple[Any, Any]:
    """Return the driver and the launcher, loaded: the driver first, so that its name finds it."""
    folder = _build()
    driver = ctypes.CDLL(str(folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    for name in ("stand_in_count", "stand_in_kept", "stand_in_read"):
        getattr(driver, name).restype = ctypes.c_uint64
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    loader = importlib.machinery.ExtensionFileLoader("tunable_ops._launcher", str(folder / "_launcher.so"))
    spec = importlib.util.spec_from_loader("tunable_ops._launcher", loader)
    assert spec is not None
    launcher = importlib.util.module_from_spec(spec)
    loader.exec_module(launcher)
    return driver, launcher


@contextmanager
def driven() -> Iterator[Driver]:
    """Launch on the stand-in, from plans without Python too; `launches.taking_cpu_tensors` is needed besides."""
    library, launcher = _libraries()
    native.use(launcher)
    with patch.object(launch, "_COMPILED", {}), stand_in(Driver(library)) as driver:
        plans.forget()
        native.serve("cpu")
        driver.keep(True)
        try:
            yield driver
        finally:
            native.serve_no_more("cpu")
            plans.forget()
            driver.use_stream(0)
