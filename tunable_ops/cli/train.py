"""`tunable-ops train`: train a network as a configuration file says."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from tunable_ops.cli import COMMANDS

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "train",
        help=COMMANDS["train"],
        description="Train a network as a TOML file says (every key: docs/configuration.md, or python -m "
        "tunable_ops.train.keys): a restoration network under several objectives, or a perceptual gradient network. "
        "Writes model.safetensors, knob.safetensors (what it adds, if tuning.freeze keeps the network as it is), "
        "state.safetensors (for --resume), config.json, log.jsonl and TensorBoard logs. "
        "Ctrl-C and SIGTERM save and stop; --resume goes on with the very same bits. Under torchrun several processes "
        "share the work.",
        epilog="Exit code: 0 finished, or at --stop-at; 128 + n stopped by signal n, can be resumed; 2 wrong input.",
    )
    shipped = sorted(file.stem for file in (Path(__file__).parents[1] / "train" / "configs").glob("*.toml"))
    parser.add_argument(
        "config", metavar="CONFIG", help=f"TOML file, or the name of one that ships here: {', '.join(shipped)}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key, such as optim.lr=1e-3 or tuning.kind=none; can be repeated",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME-OF-CONFIG)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew in --out; the run or model that it holds is removed",
    )
    parser.add_argument("--stop-at", type=int, metavar="N", help="stop when N steps are done in all")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's); the bits depend on it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Train; return 0 when all steps are done."""
    import torch

    from tunable_ops.cli.device import set_threads
    from tunable_ops.cli.shards import Shard
    from tunable_ops.memory import keep_freed_memory
    from tunable_ops.train import MODEL, load_config, train

    if args.stop_at is not None and args.stop_at < 1:
        raise ValueError(f"--stop-at must be at least 1; got {args.stop_at}")
    set_threads(args.threads)
    config = load_config(args.config, args.set)
    if config.compute.device == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    out = args.out or Path("runs") / Path(args.config).stem
    logging.basicConfig(level=logging.WARNING if args.quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    progress = not args.quiet
    outcome = train(config, out, resume=args.resume, overwrite=args.overwrite, stop_at=args.stop_at, progress=progress)
    first = Shard.here().rank == 0  # of several processes one says it
    if outcome.finished:
        if first:
            print(f"{out / MODEL}: {outcome.step} steps done")
        return 0
    if first:
        print(f"{out}: stopped at step {outcome.step} of {config.optim.steps}; --resume continues it", file=sys.stderr)
    return 0 if outcome.signal is None else 128 + outcome.signal
