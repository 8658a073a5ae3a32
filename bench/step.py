"""One step of a case as a function without arguments: the pass, compiled or captured as the case says."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The profiler prints two lines on stderr each time it is used, unless it is told otherwise before its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Step = Callable[[], list[Tensor]]
LISTED = 20  # kernels of a step whose times are kept
LONGEST_NAME = 120


def make(function: Callable[..., Tensor], tensors: Sequence[Tensor], grad_output: Tensor, direction: str) -> Step:
    """Return a step that gives [output] or [output, *gradients].

    "backward", "grad_input" and "grad_weight" start from an output computed beforehand; the last is the gradient of
    everything but the input, the first of `tensors`.
    """
    wanted = wanted_gradients(direction, len(tensors))
    inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    leaves = [inputs[i] for i in wanted]

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [function(*inputs)]

    def both() -> list[Tensor]:
        output = function(*inputs)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]

    if direction == "forward":
        return forward
    if direction == "both":
        return both
    kept = function(*inputs)

    def backward() -> list[Tensor]:
        return [kept.detach(), *torch.autograd.grad(kept, leaves, grad_output, retain_graph=True)]

    return backward


def wanted_gradients(direction: str, count: int) -> list[int]:
    """Return which of `count` tensors, the input first, a pass differentiates by."""
    return list(
        {"forward": range(0), "grad_input": range(1), "grad_weight": range(1, count)}.get(direction, range(count))
    )


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for the shapes at hand."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def captured(step: Step) -> Step:
    """Return a CUDA graph of the step; calling it replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> list[Tensor]:
        graph.replay()
        return result

    return replay


def peak_bytes(step: Step, device: str) -> int:
    """Return the most memory that the step holds at a time beyond what was held before, its results included.

    On the CPU: what goes through torch's allocator (oneDNN's own scratch memory does not).
    """
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class Kernel(NamedTuple):
    """What a step launches under one name: microseconds of all launches, and their number."""

    name: str
    microseconds: float
    count: int


def kernels(step: Step, device: str) -> list[Kernel] | None:
    """Return the kernels, copies and fills that one step launches on a GPU, the longest first; None on the CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    return summed([(event.name(), event.duration_ns() / 1e3) for event in events if event.device_type() == kind])


def summed(launches: Sequence[tuple[str, float]]) -> list[Kernel]:
    """Return the launches (name, microseconds) by name, the longest first."""
    found: dict[str, list[float]] = {}
    for name, microseconds in launches:
        found.setdefault(name, []).append(microseconds)
    listed = [Kernel(name, sum(times), len(times)) for name, times in found.items()]
    return sorted(listed, key=lambda kernel: -kernel.microseconds)


def resources(step: Step, device: str) -> dict[str, Any]:
    """Return what one step needs: the most memory and, on a GPU, its launches and the longest of them."""
    found: dict[str, Any] = {"peak_bytes": peak_bytes(step, device), "launches": None}
    launched = kernels(step, device)
    if launched is not None:
        found["launches"] = sum(kernel.count for kernel in launched)
        found["kernels"] = [
            [kernel.name[:LONGEST_NAME], kernel.microseconds, kernel.count] for kernel in launched[:LISTED]
        ]
    return found
