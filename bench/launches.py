"""The host time of an eager call that Triton kernels serve, up to the GPU's driver, measured without a GPU.

``python bench/launches.py`` runs the calls with tensors on the CPU and a stand-in for Triton's driver: kernels are
compiled for compute capability 9.0, and launches do nothing. What is left is the Python path, from the public function
to the launcher, that a call has on a GPU too. The driver's own launch and the allocator of CUDA memory come on top, and
the wgmma kernel is not there. ``python bench/launches.py PATH`` runs it with the package in that folder instead.

The second column is of calls whose plans are repeated by C++ (`backends.triton.native`), with a stand-in for the driver
of CUDA itself; "operator" is a call of the operator, past the public function.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


@contextmanager
def taking_cpu_tensors() -> Iterator[None]:
    """Let the Triton backend take tensors on the CPU."""
    from tunable_ops.backends import triton as backend
    from tunable_ops.backends.triton import shortcuts

    with ExitStack() as stack:
        stack.enter_context(patch.object(backend, "unavailable_reason", lambda op: None))
        stack.enter_context(patch.object(backend, "unfit", lambda op, *tensors: None))
        stack.enter_context(patch.object(shortcuts, "DEVICES", frozenset({"cpu"})))
        yield


@contextmanager
def pretended() -> Iterator[Any]:
    """Let the Triton backend take tensors on the CPU, and start nothing."""
    from tunable_ops.triton_kernels.stand_in import StandIn, stand_in

    with stand_in(StandIn()) as active, taking_cpu_tensors():
        yield active


def calls() -> dict[str, Callable[[], Any]]:
    """Return calls of a layer of 64 channels on a small picture, by name."""
    from tunable_ops import tunable_conv2d

    last = torch.channels_last
    x = torch.randn(2, 64, 32, 32, dtype=torch.bfloat16).to(memory_format=last)
    weight = torch.randn(128, 64, 3, 3, dtype=torch.bfloat16).to(memory_format=last).unflatten(0, (2, 64))
    grad = torch.randn_like(x)
    bias, shared, each = torch.randn(2, 64, dtype=torch.bfloat16), torch.rand(2), torch.rand(2, 2)

    def forward(alpha: Tensor) -> Callable[[], Any]:
        return lambda: tunable_conv2d(x, weight, bias, alpha, padding=1, backend="triton")

    def step(alpha: Tensor) -> Callable[[], Any]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, alpha)]

        def run() -> Any:
            output = tunable_conv2d(*leaves, padding=1, backend="triton")
            return torch.autograd.grad(output, leaves, grad)

        return run

    def operator(alpha: Tensor) -> Callable[[], Any]:
        op = torch.ops.tunable_ops.tunable_conv2d_triton.default
        return lambda: op(x, weight, bias, alpha, 1, 1, 1, 1, 1, 1, 1, 0)

    return {
        "shared, forward": forward(shared),
        "shared, operator": operator(shared),
        "per sample, forward": forward(each),
        "per sample, operator": operator(each),
        "per sample, step": step(each),
    }


def microseconds(call: Callable[[], Any], repeats: int = 15, count: int = 200) -> float:
    """Return the processor's time of a call, the median of many runs."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(count):
            call()
        times.append((time.process_time() - start) / count * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print the microseconds of every call."""
    torch.set_num_threads(1)
    with pretended():
        found = {name: [microseconds(call)] for name, call in calls().items()}
    reason = "this package has none"
    if importlib.util.find_spec("tunable_ops.backends.triton.native"):
        from tunable_ops.bench import stand_in_driver

        reason = stand_in_driver.unavailable_reason() or ""
        if not reason:
            with taking_cpu_tensors(), stand_in_driver.driven() as driver:
                driver.keep(False)
                for name, call in calls().items():
                    found[name].append(microseconds(call))
    print(f"{'us':24s}{'Python':>8s}{'C++':>8s}" + (f"  ({reason})" if reason else ""))
    for name, times in found.items():
        print(f"{name:24s}" + "".join(f"{value:8.1f}" for value in times))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print("usage: python bench/launches.py [PATH]", file=sys.stderr)
        sys.exit(2)
    sys.path[:0] = [str(Path(path).resolve()) for path in sys.argv[1:]]
    main()
