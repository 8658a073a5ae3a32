"""`tunable-ops tune`: measure which algorithm and tiles serve which convolution on this GPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "tune",
        help="measure the kernels on this GPU and keep the fastest",
        description="Measure the Triton kernels on this GPU, write the table that later calls choose from.",
    )
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128], help="channels, inputs = outputs")
    parser.add_argument("--size", type=int, nargs="+", default=[64, 256], help="heights = widths")
    parser.add_argument("--batch", type=int, default=8, help="samples")
    parser.add_argument("--kernels", type=int, default=2, help="kernels that are blended")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "tf32", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=30, help="runs of every candidate")
    parser.add_argument("--out", type=Path, help="the table; default: the one that the kernels read")


def run(args: argparse.Namespace) -> int:
    """Measure and write; returns 0."""
    import torch

    from tunable_ops.triton_kernels import unavailable_reason

    if min(*args.channels, *args.size, args.batch, args.kernels, args.repeats) < 1:
        raise ValueError("channels, size, batch, kernels and repeats must be at least 1")
    if not torch.cuda.is_available():
        raise RuntimeError("it needs a CUDA device; there is none here")
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    from tunable_ops.triton_kernels.choose_algorithm import Problem
    from tunable_ops.triton_kernels.tune import tune

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
    path = tune(problems, args.out, args.repeats)
    print(f"wrote {path}")
    return 0
