"""The command: `python -m bench` in a checkout, `tunable-ops bench` anywhere.

python -m bench --out mine.json                                                     # single layers
python -m bench --case "3x3 C48 O96 100x100 B2 P2 per_sample"                       # a layer of one's own
python -m bench --suite comparison --runs runs/comparison --out mine.json           # train and compare the knobs
python -m bench --from mine.json --plots plots/                                     # tables and plots of stored results
"""

import argparse
import datetime
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tunable_ops.bench import deploy, engines, machine, providers, report, results_file, suites
from tunable_ops.bench.measure import Settings

from tunable_ops.extras import install
from tunable_ops.memory import keep_freed_memory

SUITES = (*suites.SUITES, "comparison", "all")
OWN = "own"  # what results of --case are called
WRITE_EVERY = 5.0  # seconds between two writes of the results so far
DESCRIPTION = "Compare the speed of tunable and plain convolutions on this machine; --suite comparison compares knobs."
# options that apply to one kind of suite only
_OF_TIMINGS = ("device", "cases", "case", "providers", "quick", "list", "budget", "cpu_time", "readme", "compare")
_CHOICES = ("backbone", "tasks", "methods", "seeds", "steps")  # attributes of the comparison's setting
_OF_COMPARISON = ("runs", "setting", "data", "test", "every", "weights", "jobs", *_CHOICES)
_PARTS = ("tasks", "methods", "seeds")  # of a comparison folder, to show a part of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, for both commands."""
    parser.add_argument("--suite", help=f"one of {', '.join(SUITES)} (default operators)")
    parser.add_argument("--rounds", type=int, help="rounds of timing at most (default 11; for the comparison 15)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's; for the comparison 1 per process)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--plots", type=Path, help="write plots into this folder")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        help="measure nothing: show the results of this file or comparison folder; of a folder, a part with --tasks, "
        "--methods and --seeds",
    )
    timings = parser.add_argument_group("timings", "all suites but comparison")
    timings.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    timings.add_argument(
        "--cases", nargs="+", default=[], help="field=value[,value], patterns or parts of the id; all must match"
    )
    timings.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="TEXT",
        help='a case of your own instead of a suite, such as "3x3 C48 O96 100x100 B2 P2 per_sample both"; a wrong one '
        "prints the grammar. Can be repeated",
    )
    timings.add_argument("--providers", nargs="+", default=[], help="who is timed beside the plain convolution")
    timings.add_argument("--quick", action="store_true", help="a handful of cases, few rounds")
    timings.add_argument("--list", action="store_true", help="print the cases and providers, and stop")
    timings.add_argument("--budget", type=float, help=f"seconds a case (default {Settings.budget})")
    timings.add_argument(
        "--cpu-time",
        action="store_true",
        help="take the time of the process on the CPU, not the clock's: for one thread on a machine that others load",
    )
    timings.add_argument("--readme", type=Path, help="replace the section between the markers of this file")
    timings.add_argument("--compare", type=Path, help="name what got slower than in this file; exit 1 if anything did")
    knobs = parser.add_argument_group("comparison", "ways to get a knob, trained alike: docs/comparison.md")
    knobs.add_argument("--runs", type=Path, help="folder of the trainings; what it holds is kept and continued")
    knobs.add_argument("--setting", help="quick, cpu, long or gpu (default cpu)")
    knobs.add_argument("--backbone", help="dncnn or edsr (default dncnn)")
    knobs.add_argument("--tasks", nargs="+", help="strength, level, perception, box (default: the last three)")
    knobs.add_argument("--methods", nargs="+", help="beside affine and separate (default: all)")
    knobs.add_argument("--seeds", type=int, help="how many (default: of the setting)")
    knobs.add_argument("--steps", type=int, help="optimiser steps of a training (default: of the setting)")
    knobs.add_argument("--weights", help="file of VGG16's weights, for the task perception (default: looked for)")
    knobs.add_argument("--data", help="folder of training pictures (default: scikit-image's)")
    knobs.add_argument("--test", help="folder of test pictures (default: scikit-image's)")
    knobs.add_argument("--every", type=int, help="take every N-th test picture of a folder (default 4)")
    knobs.add_argument("--jobs", type=int, help="processes that train in parallel (default 1)")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write.

    Returns:
        0; 1 if `--compare` found regressions, or a provider or a training failed; 130 if a signal stopped the work.
    """
    _check(args)
    old = results_file.read(args.compare) if args.compare else None
    if old is not None and "rows" not in old:
        raise ValueError(f"bench: --compare must name a file of timings; got {args.compare} of suite {old['suite']!r}")
    if args.suite == "comparison" and args.source is None:
        code = _train_knobs(args)
        if code:
            return code
        args.source = args.runs
    if args.source is not None:
        results, code = _stored(args), 0
        print(_markdown(results))
    elif args.list:
        print("\n".join(case.id for _, case in _chosen(args)))
        print("\n".join(f"{p.name}: {p.description}" for p in providers.PROVIDERS.values()))
        return 0
    else:
        results = _measure(args)
        code = 130 if results["interrupted"] else 0
    _write(args, results)
    return code or _judge(args, results, old)


def _given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    return not (value is None or value is False or value == [])


def _check(args: argparse.Namespace) -> None:
    """Check every option before any work is done."""
    if args.case and (args.suite is not None or args.cases):
        option = "--suite" if args.suite is not None else "--cases"
        raise ValueError(f"bench: {option} must be left out beside --case; got {args.suite or ' '.join(args.cases)}")
    args.suite = OWN if args.case else args.suite or "operators"
    if args.case:
        suites.own(args.case)
    if args.suite not in SUITES and not args.case:
        raise ValueError(f"bench: --suite must be one of {', '.join(SUITES)}; got {args.suite!r}")
    if args.source is None:
        _refuse_others(args, args.suite)
    else:
        parts = _PARTS if args.source.is_dir() else ()
        _refuse(args, [name for name in _OF_COMPARISON if name not in parts], f"with --from {args.source}")
    if args.rounds is not None and args.rounds < 3:
        raise ValueError(f"bench: --rounds must be at least 3; got {args.rounds}")
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"bench: --threads must be at least 1; got {args.threads}")
    providers.check_names(args.providers, (*engines.NAMES, *deploy.NAMES))


def _refuse_others(args: argparse.Namespace, suite: str) -> None:
    _refuse(args, _OF_TIMINGS if suite == "comparison" else _OF_COMPARISON, f"for {suite!r} results")


def _refuse(args: argparse.Namespace, names: Sequence[str], where: str) -> None:
    for name in names:
        if _given(args, name):
            raise ValueError(f"bench: --{name} must be left out {where}; got {getattr(args, name)}")


def _train_knobs(args: argparse.Namespace) -> int:
    from tunable_ops.bench.comparison.plan import Data, setting_named
    from tunable_ops.bench.comparison.run import run_all

    if args.runs is None:
        raise ValueError("bench: --runs must name a folder for the trainings of the comparison; got nothing")
    given = {"train": args.data, "test": args.test, "every": args.every, "weights": args.weights}
    data = Data(**{name: value for name, value in given.items() if value is not None})
    setting = setting_named(args.setting or "cpu", **_changes(args, _CHOICES))
    jobs = 1 if args.jobs is None else args.jobs
    try:
        if run_all(setting, data, args.runs, jobs=jobs, threads=args.threads or 1, progress=sys.stderr.isatty()):
            return 0
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("stopped; run the same command again to continue", file=sys.stderr)
    return 130


def _changes(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return what the options say of a setting's attributes."""
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _stored(args: argparse.Namespace) -> dict[str, Any]:
    if args.source.is_dir():
        from tunable_ops.bench.comparison.collect import collect

        _refuse_others(args, "comparison")
        return collect(args.source, rounds=args.rounds or 15, **_changes(args, _PARTS))
    results = results_file.read(args.source)
    _refuse_others(args, results["suite"])
    return results


def _chosen(args: argparse.Namespace) -> list[tuple[suites.Suite, Any]]:
    if args.case:
        return suites.own(args.case)
    return suites.chosen(args.suite, _device(args), args.cases, args.quick)


def _device(args: argparse.Namespace) -> str:
    return machine.check_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    device, chosen = _device(args), _chosen(args)
    for folder in (args.out and args.out.parent, args.plots):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    if device == "cpu":
        keep_freed_memory()
    rounds = args.rounds or Settings.rounds
    settings = Settings(rounds=rounds, budget=Settings.budget if args.budget is None else args.budget)
    if args.quick:
        settings = Settings(rounds=min(rounds, 5), min_call=1e-3, budget=0.5)
    settings = replace(settings, cpu_time=args.cpu_time)
    start = time.perf_counter()
    results: dict[str, Any] = {
        "schema": results_file.TIMINGS.version,
        "suite": args.suite,
        "machine": machine.describe(device),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "interrupted": True,
        "settings": asdict(settings),
        "peaks": machine.peaks(device, {case.dtype for _, case in chosen}),
        "clocks": {"before": machine.clocks(device), "after": {}},
        "rows": [],
    }
    written = 0.0
    print("peaks: " + ", ".join(f"{name} {value:.3g}" for name, value in results["peaks"].items()))
    print(report.header(rounds=settings.rounds), flush=True)
    with _stoppable():
        try:
            for suite, case in chosen:
                results["rows"].append(suite.measure(case, device, settings, args.providers, results["peaks"]))
                print(report.line(results["rows"][-1]), flush=True)
                if args.out and time.perf_counter() - written > WRITE_EVERY:
                    results_file.write(results, args.out)
                    written = time.perf_counter()
            results["interrupted"] = False
        except KeyboardInterrupt:
            print("bench: stopped; what was measured is kept", file=sys.stderr)
    results["seconds"] = time.perf_counter() - start
    results["clocks"]["after"] = machine.clocks(device)
    print("\n".join([*report.summary(results), *report.unsteady_ratios(results)]))
    return results


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM stop like Ctrl-C, so that a time limit keeps what was measured."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _markdown(results: dict[str, Any]) -> str:
    if results["suite"] != "comparison":
        return report.markdown(results)
    from tunable_ops.bench.comparison import report as comparison

    return comparison.markdown(results)


def _write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    if args.out:
        results_file.write(results, args.out)
        print(f"wrote {args.out}")
    if args.readme:
        report.write_readme(args.readme, report.headline(results))
        print(f"wrote {args.readme}")
    if args.plots:
        try:
            from tunable_ops.bench import plots
            from tunable_ops.bench.comparison import plots as comparison

            stem = (args.out or args.source or Path(results["suite"])).stem
            figures = comparison.figures(results) if results["suite"] == "comparison" else plots.figures(results, stem)
            for path in plots.save(figures, args.plots):
                print(f"wrote {path}")
        except ModuleNotFoundError as error:
            print(f"bench: no plots: {error.name} is not installed ({install('bench')})", file=sys.stderr)


def _judge(args: argparse.Namespace, results: dict[str, Any], old: dict[str, Any] | None) -> int:
    """Name what failed, and what got slower than in older results; return 1 if there was any of it."""
    bad = [
        f"{row['id']} {name}: {result['status']}: {result['reason']}"
        for row in results.get("rows", ())
        for name, result in row["providers"].items()
        if result["status"] in ("wrong", "failed")
    ]
    for text in bad:
        print(f"bench: {text}", file=sys.stderr)
    slower = []
    if old is not None:
        slower, pairs = results_file.regressions(results, old)
        print(f"compared with {args.compare}: {pairs} pairs, {len(slower)} regressions")
        for text in slower:
            print(f"regression: {text}")
    return 1 if bad or slower else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m bench`."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=DESCRIPTION)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader went away, as in `python -m bench --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's exit would complain again
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
