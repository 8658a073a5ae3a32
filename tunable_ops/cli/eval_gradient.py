"""`tunable-ops eval-gradient`: compare the gradients of a perceptual gradient network with those of the loss itself."""

from __future__ import annotations

import argparse
from typing import Any

from tunable_ops.cli import COMMANDS

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "eval-gradient",
        help=COMMANDS["eval-gradient"],
        description="Measure the angle and the ratio of norms between predicted and true gradients on changed "
        "pictures; needs the weights of the loss's own network.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model.safetensors (default: the one that ships)")
    parser.add_argument("--pictures", default="skimage", help='folder, or "skimage" for its photographs (default)')
    parser.add_argument("--crop", type=int, default=128, help="side of the central part (default %(default)s)")
    parser.add_argument("--count", type=int, default=8, help="how many pictures at most (default %(default)s)")
    parser.add_argument("--network", help="vgg16 or vgg19 (default: the one it was trained with)")
    parser.add_argument("--weights", help="of that network: a file or 'download' (default: looked for)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Print the table; return 0."""
    from tunable_ops.cli.device import set_threads
    from tunable_ops.losses import Perceptual
    from tunable_ops.losses.pgn import PGN
    from tunable_ops.train.agreement import evaluate
    from tunable_ops.train.data import held_out

    for name in ("crop", "count"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1; got {getattr(args, name)}")
    set_threads(args.threads)
    pgn = PGN.load(args.model) if args.model else PGN.pretrained()
    config = pgn.notes.get("config", {})
    network = args.network or config.get("loss.network", "vgg19")
    loss = Perceptual(network, config.get("loss.layers", "relus"), config.get("loss.pool", "avg"), weights=args.weights)
    pictures = [picture for _, picture in held_out(args.pictures, args.crop)][: args.count]
    print(f"{pgn.name}, {pgn.notes.get('step', '?')} steps; {network}; {len(pictures)} pictures")
    print(f"{'x':20} {'angle':>6} {'norm ratio':>10} {'angle of x - y':>15}")
    for name, row in evaluate(pgn, loss, pictures).items():
        print(f"{name:20} {row.angle:6.1f} {row.ratio:10.3f} {row.pixels:15.1f}")
    return 0
