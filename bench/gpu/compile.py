"""Fill Triton's cache with the kernels of a stage, a part of them in this process.

python -m tunable_ops.bench.gpu.compile targets|tune I/N [--device cuda]
"""

import argparse

from tunable_ops.bench import problem, providers, step, targets
from tunable_ops.bench.gpu import tune


def main() -> int:
    """Run what the stage will run, once and without looking at the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("targets", "tune"))
    parser.add_argument("part", help="I/N")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    if args.what == "tune":
        runs = tune.runs(args.device)
    else:
        runs = [
            (f"{case.id} {name}", lambda case=case, name=name: _once(case, name, args.device))
            for case in targets.target_cases(args.device)
            for name in ("tunable", "triton-fused", "triton-premix")
        ]
    for name, run in runs[part - 1 :: parts]:
        try:
            run()
        except Exception as error:  # the stage itself will report it
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
    return 0


def _once(case: targets.Case, name: str, device: str) -> None:
    made = problem.build(case, device)
    who = providers.PROVIDERS[name]
    if who.refuses(made) is None:
        step.make(who.make(made), providers.leaves(made, name), made.grad_output, case.direction)()


if __name__ == "__main__":
    raise SystemExit(main())
