"""`tunable-ops autotune`: measure which algorithm and tile sizes are fastest for which convolution on this GPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tunable_ops.cli import COMMANDS

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "autotune",
        help=COMMANDS["autotune"],
        description="Time the kernels on this GPU and write the table that later calls choose from.",
    )
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[16, 32, 64, 128], help="input (and output) channels"
    )
    parser.add_argument("--size", type=int, nargs="+", default=[64, 256], help="heights (and widths) of the images")
    parser.add_argument("--batch", type=int, default=8, help="batch size")
    parser.add_argument("--kernels", type=int, default=2, help="number of kernels to blend")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "tf32", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=30, help="runs per candidate")
    parser.add_argument("--out", type=Path, help="table to write (default: the one that calls read)")


def run(args: argparse.Namespace) -> int:
    """Measure, write the table and return 0."""
    import torch

    from tunable_ops.triton_kernels import unavailable_reason

    if min(*args.channels, *args.size, args.batch, args.kernels, args.repeats) < 1:
        raise ValueError("--channels, --size, --batch, --kernels and --repeats must be at least 1")
    if not torch.cuda.is_available():
        raise RuntimeError("a CUDA device is needed, and there is none here")
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    from tunable_ops.backends.triton.autotune import other_candidates
    from tunable_ops.triton_kernels.autotune import autotune
    from tunable_ops.triton_kernels.choose_algorithm import Problem

    problems = [
        Problem(direction, kind, alpha, args.dtype, "nhwc", args.batch, args.kernels, *sizes, taps, (1, 1), (n, n))
        for channels in args.channels
        for n in args.size
        for direction in ("forward", "input", "weight")
        for kind, sizes, taps in (
            ("dense", (channels, channels, 1), (3, 3)),
            ("pointwise" if direction != "weight" else "dense", (channels, channels, 1), (1, 1)),
            ("depthwise", (1, 1, channels), (3, 3)),
        )
        for alpha in ("shared", "sample")
    ]
    path = autotune(problems, args.out, args.repeats, others=other_candidates)
    print(f"wrote {path}")
    return 0
