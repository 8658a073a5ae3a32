"""A stand-in for Triton's driver, so that launches can be compiled, counted and timed where there is no GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar


class StandIn:
    """A driver of Triton on a pretended GPU of compute capability 9.0: `launches` counts what was started."""

    def __init__(self) -> None:
        self.launches = 0
        self.utils = self
        self.launcher_cls = self._launcher

    def _launcher(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(*arguments: Any) -> None:
            self.launches += 1

        return launch

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Pretend to load: module, function, registers, spills, threads."""
        return 1, 2, 128, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return the limits that Triton checks."""
        return {"max_shared_mem": 227 << 10, "multiprocessor_count": 132}

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_current_target(self) -> Any:
        """Return what to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


class Launching(StandIn):
    """The same with Triton's own launcher, for a libcuda.so.1 that runs nothing: it must be loaded already."""

    def __init__(self) -> None:
        from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

        super().__init__()
        utils = CudaUtils()
        self.launcher_cls = CudaLauncher
        self.load_binary = utils.load_binary
        for name in ("launch", "build_signature_metadata"):  # since Triton 3.7; before, each kernel has a launcher in C
            if hasattr(utils, name):
                setattr(self, name, getattr(utils, name))


Driver = TypeVar("Driver", bound=StandIn)


@contextmanager
def stand_in(driver: Driver) -> Iterator[Driver]:
    """Let Triton compile for the pretended GPU and start its launches there."""
    from triton.runtime import driver as active

    before = active._active
    active.set_active(driver)
    try:
        yield driver
    finally:
        active._active = before  # its own reset would look for a GPU
