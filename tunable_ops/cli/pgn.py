"""`tunable-ops pgn`: train a perceptual gradient network, or compare one with the loss that it imitates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "pgn",
        help="train or evaluate a perceptual gradient network",
        description="Perceptual gradient networks: the gradient of a perceptual loss from a small network.",
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    train = actions.add_parser(
        "train",
        help="train one as a TOML file says",
        description="Train (every key: tunable_ops/pgn/config.py). Writes pgn.safetensors, state.safetensors (for "
        "--resume) and log.jsonl: the terms of the loss, the angle and the ratio of norms between the predicted and "
        "the true gradients. Ctrl-C and SIGTERM save and stop; --resume goes on with the very same bits.",
        epilog="Exit code: 0 done; 128 + n stopped by signal n, can be resumed; 2 wrong input.",
    )
    train.add_argument(
        "config", metavar="CONFIG", help="TOML file, or one that ships here: unet_vgg16_small, unet_vgg19"
    )
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key; can be repeated")
    train.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME-OF-CONFIG)")
    train.add_argument("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    train.add_argument("--stop-at", type=int, metavar="N", help="stop when N steps are done in all")
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    train.add_argument("--quiet", action="store_true", help="print no log")
    compare = actions.add_parser(
        "eval",
        help="angle and ratio of norms between predicted and true gradients",
        description="Compare a PGN's fields with the true gradients on changed pictures; needs the loss's own network.",
    )
    compare.add_argument("model", metavar="MODEL", nargs="?", help="pgn.safetensors (default: the one that ships)")
    compare.add_argument("--pictures", default="skimage", help='folder, or "skimage" for its photographs (default)')
    compare.add_argument("--crop", type=int, default=128, help="side of the central part (default %(default)s)")
    compare.add_argument("--count", type=int, default=8, help="how many pictures at most (default %(default)s)")
    compare.add_argument("--network", help="vgg16 or vgg19 (default: the one it was trained with)")
    compare.add_argument("--weights", help="of that network: a file or 'download' (default: looked for)")
    compare.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Train or compare; returns 0."""
    import torch

    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1; got {args.threads}")
        torch.set_num_threads(args.threads)
    return _train(args) if args.action == "train" else _eval(args)


def _train(args: argparse.Namespace) -> int:
    from tunable_ops.pgn.config import load_pgn_config
    from tunable_ops.pgn.trainer import MODEL, PGNTrainer

    config = load_pgn_config(args.config, args.set)
    out = args.out or Path("runs") / Path(args.config).stem
    trainer = PGNTrainer(config, out, resume=args.resume)
    stopped = trainer.run(stop_at=args.stop_at, progress=not args.quiet)
    print(f"{out / MODEL}: {trainer.step} of {config.optim.steps} steps done")
    return 0 if stopped is None else 128 + stopped


def _eval(args: argparse.Namespace) -> int:
    from tunable_ops.losses import Perceptual
    from tunable_ops.pgn import PGN
    from tunable_ops.pgn.evaluate import evaluate_pgn
    from tunable_ops.train.data import held_out

    if min(args.crop, args.count) < 1:
        raise ValueError(f"--crop and --count must be at least 1; got {args.crop} and {args.count}")
    pgn = PGN.load(args.model) if args.model else PGN.pretrained()
    config = pgn.notes.get("config", {})
    network = args.network or config.get("loss.network", "vgg19")
    loss = Perceptual(network, config.get("loss.layers", "relus"), config.get("loss.pool", "avg"), weights=args.weights)
    pictures = [picture for _, picture in held_out(args.pictures, args.crop)][: args.count]
    print(f"{pgn.name}, {pgn.notes.get('step', '?')} steps; {network}; {len(pictures)} pictures")
    print(f"{'x':20} {'angle':>6} {'norm ratio':>10} {'angle of x - y':>15}")
    for name, row in evaluate_pgn(pgn, loss, pictures).items():
        print(f"{name:20} {row.angle:6.1f} {row.ratio:10.3f} {row.pixels:15.1f}")
    return 0
