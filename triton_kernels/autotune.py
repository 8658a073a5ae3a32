"""Measure the candidates for problems on this GPU and write the table that `choose_algorithm` reads.

This runs on request only, never within a call. A candidate whose result differs from that of the first candidate is
left out; the median of repeated, interleaved runs decides.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tunable_ops.triton_kernels import unavailable_reason
from tunable_ops.triton_kernels.choose_algorithm import (
    TABLES,
    VERSION,
    Choice,
    Problem,
    forget_tables,
    load_table,
    premixed_config,
    table_name,
)
from tunable_ops.triton_kernels.launch import Config
from tunable_ops.triton_kernels.plan_problem import Operands, candidates, make_operands, plan_problem
from tunable_ops.triton_kernels.tunable_parameter import plan_tunable_parameter_forward

Run = Callable[[], Any]
# A choice, a function that runs it, and one that returns its result.
Candidate = tuple[Choice, Run, Callable[[], torch.Tensor]]


def autotune(
    problems: Iterable[Problem],
    out: Path | None = None,
    repeats: int = 30,
    report: Callable[[str], None] = print,
    others: Callable[[Problem, Operands], Iterable[Candidate]] = lambda problem, operands: (),
) -> Path:
    """Measure every problem and merge the winners into the table of the current GPU.

    Args:
        problems: What to measure.
        out: File of the table; default: the one that `choose_algorithm` reads.
        repeats: Runs per candidate.
        report: Called with a line of text per problem.
        others: Lists candidates beyond these kernels for a problem.

    Returns:
        The path of the table.

    Raises:
        RuntimeError: No GPU, no Triton, or a CUDA graph is being captured.
    """
    reason = "it needs a CUDA device" if not torch.cuda.is_available() else unavailable_reason()
    if reason is None and torch.cuda.is_current_stream_capturing():
        reason = "a CUDA graph is being captured"
    if reason is not None:
        raise RuntimeError(f"autotune: the kernels must be able to run here: {reason}")
    device = torch.cuda.get_device_name()
    path = out or TABLES / table_name(device)
    entries = {problem: {"choice": choice} for problem, choice in load_table(path).items()}
    for problem in problems:
        measured = _measure(problem, repeats, others)
        best = min(measured, key=lambda choice: measured[choice])
        entries[problem] = {"choice": best, "milliseconds": measured[best]}
        report(f"{problem}: {best.algorithm} {tuple(best.config)} {measured[best]:.4f} ms, best of {len(measured)}")
        write_table(path, device, entries)
    forget_tables()
    return path


def run_candidates(problem: Problem) -> None:
    """Run every candidate of a problem once, which compiles it: measuring then finds the machine code in the cache."""
    operands = make_operands(problem, "cuda")
    for choice, run, _ in _candidates(problem, operands):
        try:
            run()
        except Exception as error:  # measuring will leave it out too
            print(f"autotune: {choice} fails: {error!r}")


def write_table(path: Path, device: str, entries: dict[Problem, dict[str, Any]]) -> None:
    """Write a table that `load_table` reads: a "choice" for every problem, and its "milliseconds" if measured."""
    rows = [
        {
            "problem": problem._asdict(),
            "algorithm": entry["choice"].algorithm,
            "config": list(entry["choice"].config),
            "milliseconds": entry.get("milliseconds"),
        }
        for problem, entry in entries.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"version": VERSION, "device": device, "torch": torch.__version__, "entries": rows}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")
    partial.replace(path)  # whole or not at all, whenever it is stopped


def _measure(
    problem: Problem, repeats: int, others: Callable[[Problem, Operands], Iterable[Candidate]]
) -> dict[Choice, float]:
    """Return the median milliseconds of every candidate that agrees with the first one that ran."""
    operands = make_operands(problem, "cuda")
    if problem.direction != "forward":
        operands.y.normal_()
    runs: dict[Choice, Run] = {}
    expected = None
    for choice, run, result in chain(_candidates(problem, operands), others(problem, operands)):
        try:
            run()
        except Exception as error:  # such as too little shared memory on this GPU
            print(f"autotune: {choice} left out: {error!r}")
            continue
        value = result().float()
        expected = value if expected is None else expected
        if (value - expected).norm() <= 0.02 * expected.norm():
            runs[choice] = run
    if not runs:
        raise RuntimeError(f"autotune: no candidate ran for {problem}")
    times = _interleaved(list(runs.values()), repeats)
    return dict(zip(runs, times, strict=True))


def _interleaved(runs: Sequence[Run], repeats: int) -> list[float]:
    flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")  # larger than any L2 cache
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, row in zip(runs, times, strict=True):
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            row.append(start.elapsed_time(end))
    return [statistics.median(row) for row in times]


def _candidates(problem: Problem, operands: Operands) -> Iterable[Candidate]:
    """List (choice, function that runs it, function that returns its result)."""
    configs = candidates(problem)
    for config in configs:
        yield Choice("fused", config), *_planned(problem, operands, config)
    if problem.alpha == "shared":
        run, result = _library(problem, operands)
        of_weight = problem.direction == "weight"
        yield Choice("library", configs[0]), run, lambda: result()[None] if of_weight else result()
    if problem.alpha in ("shared", "sample") and problem.direction != "weight" and problem.kind != "depthwise":
        kernel, shift, blend = _blend(operands)
        ready = operands._replace(weight=kernel, bias=shift, alpha=None)
        for config in dict.fromkeys([premixed_config(problem), *configs]):
            run, result = _planned(problem._replace(alpha="none"), ready, config)
            yield Choice("premix", config), lambda run=run: (blend(), run()), result


def _planned(problem: Problem, operands: Operands, config: Config) -> tuple[Run, Callable[[], torch.Tensor]]:
    """Return a function that runs the launches of a problem, and one that returns their result, summed if partial."""
    launches, target = plan_problem(problem, operands, config)
    dim = {"weight": 1, "alpha": 0}.get(problem.direction)

    def run() -> None:
        for launch in launches:
            launch.run()

    return run, lambda: target.clone() if dim is None else target.sum(dim)


def _blend(operands: Operands) -> tuple[torch.Tensor, torch.Tensor, Run]:
    """Return blended kernels [1 or B, ...] in the layout of the stack, blended biases, and what computes both."""
    weight, bias, alpha = operands.weight, operands.bias, operands.alpha
    assert alpha is not None
    rows = alpha if alpha.dim() == 2 else alpha[None]
    size = weight[0].numel()
    kernel = weight.new_empty(rows.shape[0] * size).as_strided(
        (rows.shape[0], *weight.shape[1:]), (size, *weight.stride()[1:])
    )
    shift = bias.new_empty(rows.shape[0], bias.shape[1])
    matrices = (weight.as_strided((weight.shape[0], size), (size, 1)), bias)
    launch = plan_tunable_parameter_forward(*matrices, rows, kernel.as_strided((rows.shape[0], size), (size, 1)), shift)
    return kernel, shift, launch.run


def _library(problem: Problem, operands: Operands) -> tuple[Run, Callable[[], torch.Tensor]]:
    """Return the same for one blend followed by the library's convolution in the problem's direction."""
    kernel, shift, blend = _blend(operands)
    stride, padding, dilation = operands.geometry[:3]
    out: list[torch.Tensor] = []
    wanted = [problem.direction == "input", problem.direction == "weight", False]

    def run() -> None:
        out.clear()
        if wanted[0] or problem.direction == "forward":
            blend()
        if problem.direction == "forward":
            out.append(torch.conv2d(operands.x, kernel[0], shift[0], stride, padding, dilation, problem.groups))
            return
        gradients = torch.ops.aten.convolution_backward(
            operands.y, operands.x, kernel[0], None, stride, padding, dilation, False, [0, 0], problem.groups, wanted
        )
        out.append(gradients[wanted.index(True)])

    return run, lambda: out[0]
