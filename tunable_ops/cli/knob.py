"""`tunable-ops knob`: write what a tunable network adds to its base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS
from tunable_ops.cli.network import add_network, build_network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "knob",
        help=COMMANDS["knob"],
        description="Write what a tunable network on the box adds to its base: new kernels, the map from lambda to "
        "them, names and ranges. Whoever has the base gets the slider with tunable_ops.load_knob(network, FILE), or "
        "with `--model BASE --knob FILE` in apply, eval and fold.",
    )
    parser.add_argument("checkpoint", help="tunable network: a file, such as a training's model.safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--base",
        metavar="FILE",
        help="published weights of the base (a file, or the name of a base that ships), "
        "compared with the network's base kernels",
    )
    add_network(parser)
    parser.add_argument("--licence", metavar="TEXT", help="licence of the knob, such as MIT; kept in the file")
    parser.add_argument("--half", action="store_true", help="store the new kernels in half precision")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="write the best kernels of rank R in place of those that have more"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file and return 0."""
    import torch

    from tunable_ops import serialization
    from tunable_ops.knob_files import save_knob
    from tunable_ops.models import zoo
    from tunable_ops.pretrained import find

    out: Path = args.out
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors; got {str(out)!r}")
    if not out.parent.is_dir():
        raise ValueError(f"--out must lie in an existing folder; got {str(out)!r}")
    found = find(args.checkpoint)
    if found.base is not None:
        raise ValueError(
            f"checkpoint must be a file, such as a training's model.safetensors; got {found.name!r}, which is made "
            f"of {found.base} and knob files already"
        )
    file = found.file
    if out.exists() and out.samefile(file):
        raise ValueError(f"--out must not be the checkpoint itself; got {str(out)!r}")
    metadata = serialization.read_metadata(file)
    architecture, arguments = metadata["architecture"], metadata["arguments"]
    network = build_network(args.network, args.checkpoint)
    if network is None and args.base is not None and architecture == zoo.ARCHITECTURE:
        network = zoo.load(args.base).network
    net = serialization.load(file, network)
    base = None if args.base is None else _base(args.base, architecture, arguments, network)
    save_knob(
        net,
        out,
        architecture=architecture,
        arguments=arguments,
        licence=args.licence,
        dtype=torch.float16 if args.half else None,
        base=base,
        rank=args.rank,
    )
    print(f"{out}: {', '.join(net.spec.names)} for {architecture}, {out.stat().st_size:,} bytes")
    return 0


def _base(name: str, architecture: str, arguments: dict[str, Any], network: nn.Module | None) -> nn.Module:
    """Return the published network, to be compared with: of spandrel, the given one, or of this package."""
    from tunable_ops import models, serialization
    from tunable_ops.models import zoo
    from tunable_ops.pretrained import weights_file

    if architecture == zoo.ARCHITECTURE:
        return zoo.load(name).network
    base = models.build(architecture, **arguments) if network is None else network
    file = weights_file(name)
    serialization.fill(file, base, serialization.read_weights(file)[0])
    return base
