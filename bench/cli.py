"""The command: `python -m bench` in a checkout, `tunable-ops bench` anywhere."""

import argparse
import datetime
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tunable_ops.bench import cases as suites
from tunable_ops.bench import machine, networks, perceptual, providers, report, results_file
from tunable_ops.bench.measure import Settings, measure

SUITES = (*suites.SUITES, "networks", "perceptual", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, for both commands."""
    parser.add_argument("--suite", default="operators", help=f"one of {', '.join(SUITES)} (default operators)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--cases", nargs="+", default=[], help="field=value[,value] or id patterns; all must match")
    parser.add_argument("--providers", nargs="+", default=[], help="who is timed beside the plain convolution")
    parser.add_argument("--quick", action="store_true", help="a handful of cases, few rounds")
    parser.add_argument("--list", action="store_true", help="print the cases and providers, and stop")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="rounds at most (default %(default)s)")
    parser.add_argument("--budget", type=float, default=Settings.budget, help="seconds a case (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--plots", type=Path, help="write plots into this folder")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing: take the results of this file")
    parser.add_argument("--readme", type=Path, help="replace the section between the markers of this file")
    parser.add_argument("--compare", type=Path, help="name what got slower than in this file; exit 1 if anything did")


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes; 0, or 1 if `--compare` found regressions or a provider was wrong or failed."""
    old = results_file.read(args.compare) if args.compare else None
    if args.source is not None:
        results = results_file.read(args.source)
        print(report.markdown(results))
    else:
        results = _measure(args)
        if results is None:
            return 0
    _write(args, results)
    code = 130 if results["interrupted"] and args.source is None else 0
    bad = [
        f"{row['id']} {name}: {result['status']}: {result['reason']}"
        for row in results["rows"]
        for name, result in row["providers"].items()
        if result["status"] in ("wrong", "failed")
    ]
    for text in bad:
        print(f"bench: {text}", file=sys.stderr)
    if old is not None:
        slower = results_file.regressions(results, old)
        print(f"compared with {args.compare}: {results_file.compared(results, old)} pairs, {len(slower)} regressions")
        for text in slower:
            print(f"regression: {text}")
        code = code or (1 if slower else 0)
    return code or (1 if bad else 0)


def _measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """Checks every option before any work is done, then measures; None if there was only a list to print."""
    device = machine.check_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.suite not in SUITES:
        raise ValueError(f"bench: --suite must be one of {', '.join(SUITES)}; got {args.suite!r}")
    if args.rounds < 3:
        raise ValueError(f"bench: --rounds must be at least 3; got {args.rounds}")
    providers.check_names(args.providers)
    chosen = _chosen_cases(args, device)
    if args.list:
        print("\n".join(case.id for case in chosen))
        print("\n".join(f"{p.name}: {p.description}" for p in providers.PROVIDERS.values()))
        return None
    for folder in (args.out and args.out.parent, args.plots):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    if device == "cpu":
        machine.keep_freed_memory()
    settings = Settings(rounds=args.rounds, budget=args.budget)
    if args.quick:
        settings = Settings(rounds=min(args.rounds, 5), min_call=1e-3, budget=0.5)
    return _measure_all(args, device, chosen, settings)


def _chosen_cases(args: argparse.Namespace, device: str) -> list[Any]:
    chosen: list[Any] = []
    for name in suites.SUITES if args.suite == "all" else (args.suite,):
        if name in suites.SUITES and (args.suite != "all" or name != "per-sample"):
            chosen += suites.SUITES[name](device)
    chosen = list(dict.fromkeys(chosen))
    nets = networks.network_suite(device) if args.suite in ("networks", "all") else []
    if args.suite == "perceptual":
        return suites.select(perceptual.perceptual_suite(device), args.cases)
    if args.suite == "networks":
        return suites.select(nets, args.cases)
    if args.quick and not args.cases:
        return suites.quick(chosen)
    return suites.select(chosen, args.cases) + (nets if not args.cases else [])


def _measure_all(args: argparse.Namespace, device: str, chosen: Sequence[Any], settings: Settings) -> dict[str, Any]:
    start = time.perf_counter()
    dtypes = {case.dtype for case in chosen}
    results: dict[str, Any] = {
        "schema": results_file.SCHEMA,
        "suite": args.suite,
        "machine": machine.describe(device),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "interrupted": True,
        "settings": asdict(settings),
        "peaks": machine.peaks(device, dtypes),
        "clocks": {"before": machine.clocks(device), "after": {}},
        "rows": [],
    }
    print(" ".join(f"{name} {value:.3g}" for name, value in results["peaks"].items()))
    with _stoppable() as stopped:
        try:
            for case in chosen:
                if isinstance(case, networks.NetworkCase):
                    suite = perceptual if case.network == "perceptual" else networks
                    row = suite.measure(case, device, settings)
                else:
                    row = measure(case, providers.select(case, args.providers), device, settings, results["peaks"])
                results["rows"].append(row)
                print(report.line(row), flush=True)
                if args.out and len(results["rows"]) % 10 == 0:
                    results_file.write(results, args.out)
            results["interrupted"] = False
        except KeyboardInterrupt:
            stopped.append(True)
            print("bench: stopped; what was measured is kept", file=sys.stderr)
    results["seconds"] = time.perf_counter() - start
    results["clocks"]["after"] = machine.clocks(device)
    print("\n".join(report.summary(results)))
    return results


@contextmanager
def _stoppable() -> Iterator[list[bool]]:
    """SIGTERM stops like Ctrl-C, so that a time limit keeps what was measured."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield []
    finally:
        signal.signal(signal.SIGTERM, before)


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

            stem = (args.out or args.source or Path(results["suite"])).stem
            for path in plots.write_all(results, args.plots, stem):
                print(f"wrote {path}")
        except ModuleNotFoundError as error:
            print(f"bench: no plots: {error.name} is not installed (pip install 'tunable-ops[bench]')", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m bench`."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Tunable against plain convolutions.")
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except BrokenPipeError:  # the reader went away, as in `python -m bench --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's exit would complain again
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
