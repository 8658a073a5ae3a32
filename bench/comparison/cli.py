"""The command: train what is missing, or report.

python -m bench.comparison --setting cpu --data TRAIN --test TEST --out runs/comparison --jobs 2
python -m bench.comparison --report runs/comparison --json bench/results/comparison_cpu.json --plots docs/images
python -m bench.comparison --report bench/results/comparison_cpu.json --plots docs/images
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tunable_ops.bench.comparison import plots, report, results
from tunable_ops.bench.comparison.plan import SETTINGS, Data, setting_named
from tunable_ops.bench.comparison.run import run_all


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 130 where a signal stopped the training (run again to go on), 1 if it failed, 2 for bad input."""
    args = _parser().parse_args(argv)
    try:
        return _report(args) if args.report else _train(args)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.comparison", description="Ways to get a knob, compared.")
    parser.add_argument("--setting", default="cpu", help=f"one of {', '.join(SETTINGS)} (default cpu)")
    parser.add_argument("--data", default="skimage", help="folder of training pictures (default: scikit-image's)")
    parser.add_argument("--test", default="skimage", help="folder of test pictures (default: scikit-image's)")
    parser.add_argument("--every", type=int, default=Data.every, help="take every N-th test picture of a folder")
    parser.add_argument("--out", type=Path, help="folder of the runs; what it holds is kept and gone on with")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train beside each other")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default 1)")
    parser.add_argument("--report", type=Path, metavar="DIR|FILE", help="train nothing: report a folder or a JSON file")
    parser.add_argument("--json", type=Path, help="with --report DIR: write the results here")
    parser.add_argument("--plots", type=Path, help="with --report: write plots into this folder")
    parser.add_argument("--rounds", type=int, default=15, help="with --report DIR: of the timing (default 15)")
    return parser


def _train(args: argparse.Namespace) -> int:
    if args.out is None:
        raise ValueError("comparison: --out must name a folder where --report is not given; got nothing")
    if args.json or args.plots:
        raise ValueError("comparison: --json and --plots must come with --report; got them without")
    data = Data(args.data, args.test, args.every)
    setting, bars = setting_named(args.setting), sys.stderr.isatty()
    if run_all(setting, data, args.out, jobs=args.jobs, threads=args.threads, progress=bars):
        print(f"all is trained; next: --report {args.out}")
        return 0
    print("stopped; the same command goes on", file=sys.stderr)
    return 130


def _report(args: argparse.Namespace) -> int:
    found = results.read(args.report) if args.report.is_file() else results.collect(args.report, rounds=args.rounds)
    print(report.markdown(found))
    if args.json:
        results.write(found, args.json)
        print(f"wrote {args.json}", file=sys.stderr)
    if args.plots:
        for path in plots.write_all(found, args.plots):
            print(f"wrote {path}", file=sys.stderr)
    return 0
