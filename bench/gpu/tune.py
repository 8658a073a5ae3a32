"""Measure the table of this GPU for the problems of the targets, the most important first.

    python -m tunable_ops.bench.gpu.tune --out OUT/table.json [--device cuda]

The table goes where calls read it, and a copy of it to OUT after every problem. On a CPU, for a rehearsal, the table
holds what the heuristic chooses, and goes to OUT alone.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from tunable_ops.bench import targets
from tunable_ops.bench.cases import Case
from tunable_ops.triton_kernels import autotune
from tunable_ops.triton_kernels.choose_algorithm import TABLES, Problem, choose_algorithm, table_name


def problems() -> list[Problem]:
    """Return the problems of all target cases: every direction of steps, the forward pass of the others."""
    found: list[Problem] = []
    for case in targets.target_cases("cuda"):
        directions = ("forward",) if case.direction == "forward" else ("forward", "input", "weight")
        found += [problem_of(case, direction) for direction in directions]
    return list(dict.fromkeys(found))


def problem_of(case: Case, direction: str) -> Problem:
    """Return the problem of a case at stride 1 and "same" padding, as the dispatch states it."""
    deep, taps = case.layer.depthwise, case.layer.taps
    kind = "depthwise" if deep else "pointwise" if taps == 1 and direction != "weight" else "dense"
    alpha = {"shared": "shared", "per_sample": "sample", "map": "map"}[case.alpha]
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(case.dtype, case.dtype)
    inputs, outputs = (1, 1) if deep else (case.channels, case.outputs)
    if direction == "input":
        inputs, outputs = outputs, inputs
    layout = "nhwc" if case.layout == "channels_last" else "nchw"
    sizes = (case.batch, case.kernels, inputs, outputs, case.groups, (taps, taps), (1, 1), case.output_grid)
    return Problem(direction, kind, alpha, dtype, layout, *sizes)


def runs(device: str) -> list[tuple[str, Callable[[], None]]]:
    """Return, by name, functions that compile all candidates of a problem by running them; on a CPU none."""
    if device != "cuda":
        return []
    return [(str(problem), lambda problem=problem: autotune.run_candidates(problem)) for problem in problems()]


def main() -> int:
    """Measure until it is done or interrupted; the table keeps what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.device != "cuda":
        chosen = {problem: {"choice": choose_algorithm(problem)} for problem in problems()}
        autotune.write_table(args.out, "stand-in", chosen)
        print(f"{len(chosen)} problems, none measured")
        return 0
    table = TABLES / table_name(torch.cuda.get_device_name())

    def report(line: str) -> None:
        print(line, flush=True)
        if table.exists():  # that of the problems before
            shutil.copy(table, args.out)

    try:
        autotune.autotune(problems(), repeats=20, report=report)
    except KeyboardInterrupt:
        print("tune: stopped; what was measured is kept")
    shutil.copy(table, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
