"""One step of a case as a function without arguments: the pass, compiled or captured as the case says."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# The profiler prints two lines on stderr each time it is used, unless it is told otherwise before its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Step = Callable[[], list[Tensor]]


def make(function: Callable[..., Tensor], tensors: Sequence[Tensor], grad_output: Tensor, direction: str) -> Step:
    """Return a step that gives [output], or [output, *gradients] (for "backward" of an output computed beforehand)."""
    inputs = [t.detach().requires_grad_(direction != "forward") for t in tensors]

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [function(*inputs)]

    def both() -> list[Tensor]:
        output = function(*inputs)
        return [output.detach(), *torch.autograd.grad(output, inputs, grad_output)]

    if direction == "forward":
        return forward
    if direction == "both":
        return both
    kept = function(*inputs)

    def backward() -> list[Tensor]:
        return [kept.detach(), *torch.autograd.grad(kept, inputs, grad_output, retain_graph=True)]

    return backward


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


def launches(step: Step, device: str) -> int | None:
    """Return how many kernels, copies and fills one step launches on a GPU; None on the CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA
    return sum(e.device_type() == kind for e in profile.profiler.kineto_results.events())  # type: ignore[union-attr]
