"""One case: the gate, then time, memory and launches of every provider that passed it."""

import gc
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tunable_ops.bench import problem as problems
from tunable_ops.bench import step as steps
from tunable_ops.bench.cases import LAYOUTS, Case
from tunable_ops.bench.providers import Provider, leaves
from tunable_ops.bench.timing import Clock, CudaClock, ProcessClock, Timing, WallClock, compare


@dataclass(frozen=True)
class Settings:
    """How long to measure: rounds at most, seconds a turn lasts at least, seconds a case may take.

    `cpu_time`: take the process's time on the CPU, not the clock's.
    """

    rounds: int = 11
    min_call: float = 3e-3
    budget: float = 1.4
    cpu_time: bool = False


def measure(
    case: Case, providers: Sequence[Provider], device: str, settings: Settings, peaks: dict[str, float]
) -> dict[str, Any]:
    """Return the results of a case, JSON-able: per provider a status and, if it is "ok", its figures.

    Statuses: "ok"; "unsupported" (the provider does not serve the case, or is not there); "wrong" (the gate);
    "out_of_memory"; "failed". All but "ok" come with a reason, and none of them with a time.
    """
    row: dict[str, Any] = {"id": case.id, "case": case.to_dict(), "flops": case.flops, "bytes": case.bytes}
    results: dict[str, dict[str, Any]] = {}
    ready: dict[str, steps.Step] = {}
    extras: dict[str, dict[str, Any]] = {}
    if case.mode == "graph" and device != "cuda":
        reason = {"status": "unsupported", "reason": "graph replay needs a GPU"}
        return {**row, "providers": {provider.name: reason for provider in providers}}
    with problems.precision(case):
        try:
            problem = problems.build(case, device)
            want = problems.expected(problem)
        except Exception as error:
            return {**row, "providers": {provider.name: failure(error) for provider in providers}}
        for provider in providers:
            if (reason_text := provider.refuses(problem)) is not None:
                results[provider.name] = {"status": "unsupported", "reason": reason_text}
                continue
            try:
                step, extras[provider.name] = _prepare(provider, problem, want, device)
                ready[provider.name] = step
            except Exception as error:
                results[provider.name] = failure(error)
        del want
        if "plain" in ready:
            timings = time_steps(ready, results, case.mode, device, settings)
            for name, timing in timings.items():
                results[name] = {"status": "ok", **timing.to_dict(), **extras[name], **_speed(case, timing, peaks)}
    del ready
    _free(device)
    ordered = {p.name: results.get(p.name, {"status": "failed", "reason": "the baseline failed"}) for p in providers}
    return {**row, "providers": ordered}


def _prepare(
    provider: Provider, problem: problems.Problem, want: Any, device: str
) -> tuple[steps.Step, dict[str, Any]]:
    case = problem.case
    function = _in_layout(provider.make(problem), LAYOUTS[case.layout])
    if case.mode == "compile" or provider.name == "reference-compiled":
        function = steps.compiled(function)
    step = steps.make(function, leaves(problem, provider.name), problem.grad_output, case.direction)
    if provider.name != "plain":
        problems.check(provider.name, step(), want, problem)
    extra = steps.resources(step, device)
    if case.mode == "graph":
        step = steps.captured(step)
        if provider.name != "plain":
            step()
            problems.check(f"{provider.name}, replayed", step(), want, problem)
    return step, extra


def _in_layout(function: Callable[..., Tensor], layout: torch.memory_format) -> Callable[..., Tensor]:
    """Return the output in the input's memory format, as a layer in the middle of a network has to."""
    return lambda *tensors: function(*tensors).contiguous(memory_format=layout)


def time_steps(
    ready: dict[str, steps.Step],
    results: dict[str, dict[str, Any]],
    mode: str,
    device: str,
    settings: Settings,
    warmup: int = 2,
) -> dict[str, Timing]:
    """Time steps against "plain", the first; one that fails now goes to the results, the rest are timed without it."""
    if device == "cuda":
        clock: Clock = CudaClock(host=mode != "graph")
    else:
        clock = ProcessClock() if settings.cpu_time else WallClock()
    while True:
        failed: list[tuple[str, Exception]] = []
        guarded = {name: _guard(name, step, failed) for name, step in ready.items()}
        try:
            return compare(
                guarded,
                rounds=settings.rounds,
                min_call=settings.min_call,
                budget=settings.budget,
                warmup=warmup,
                clock=clock,
            )
        except Exception:
            if not failed:
                raise
            name, error = failed[0]
            results[name] = failure(error)
            del ready[name]
            _free(device)
            if name == "plain":
                return {}


def _guard(name: str, step: Callable[[], Any], failed: list[tuple[str, Exception]]) -> Callable[[], None]:
    def run() -> None:
        try:
            step()
        except Exception as error:
            failed.append((name, error))
            raise

    return run


def failure(error: Exception) -> dict[str, Any]:
    """Return the result of a provider that gave no time: its status, and why."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ArithmeticError):
        return {"status": "wrong", "reason": text}
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    if no_memory:
        return {"status": "out_of_memory", "reason": text[:300]}
    where = traceback.extract_tb(error.__traceback__)[-1]
    return {"status": "failed", "reason": f"{type(error).__name__}: {text[:300]} ({where.name}, line {where.lineno})"}


def _speed(case: Case, timing: Timing, peaks: dict[str, float]) -> dict[str, float]:
    """Return TFLOP/s and GB/s of the plain convolution's work, and the share of the roofline of the run's own peaks."""
    tflops, gbps = case.flops / timing.seconds / 1e12, case.bytes / timing.seconds / 1e9
    peak_flops, copy = peaks.get(f"matmul_tflops_{case.dtype}"), peaks.get("copy_gbps")
    if not peak_flops or not copy:
        return {"tflops": tflops, "gbps": gbps}
    return {"tflops": tflops, "gbps": gbps, "share": max(tflops / peak_flops, gbps / copy)}


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
