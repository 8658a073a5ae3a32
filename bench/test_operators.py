"""The same cases for pytest-benchmark: `pytest bench --benchmark-only --benchmark-group-by=param:case`.

pytest-benchmark times one function after the other, so its ratios move with the machine; `python -m bench`, which
takes turns, is what the project quotes.
"""

import pytest
import torch
from tunable_ops.bench import problem as problems
from tunable_ops.bench import step as steps
from tunable_ops.bench.cases import Case, cpu_suite, gpu_suite
from tunable_ops.bench.providers import leaves, select

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODE = "graph" if DEVICE == "cuda" else "eager"
CASES = [case for case in (gpu_suite() if DEVICE == "cuda" else cpu_suite()) if case.mode == MODE]
PAIRS = [(case, provider) for case in CASES for provider in select(case, [])]


@pytest.mark.parametrize("case, provider", PAIRS, ids=lambda v: v.id if isinstance(v, Case) else v.name)
def test_step(benchmark, case, provider) -> None:  # type: ignore[no-untyped-def]
    problem = problems.build(case, DEVICE)
    if (reason := provider.refuses(problem)) is not None:
        pytest.skip(reason)
    with problems.precision(case):
        step = steps.make(provider.make(problem), leaves(problem, provider.name), problem.grad_output, case.direction)
        if provider.name != "plain":  # a red gate prints no timing
            problems.check(provider.name, step(), problems.expected(problem), problem)
        if case.mode == "graph":
            step = steps.captured(step)

        def run() -> None:
            step()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark(run)
