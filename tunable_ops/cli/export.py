"""`tunable-ops export`: write a network as a file for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS
from tunable_ops.cli.lam import numbers
from tunable_ops.cli.network import add_network, build_network

if TYPE_CHECKING:
    from torch import nn

    from tunable_ops.deploy import Description
    from tunable_ops.pretrained import Found

__all__ = ["add_parser", "run"]

_ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2", "safetensors": ".safetensors"}


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    from tunable_ops.cli.lam import HELP, KNOB

    parser = subparsers.add_parser(
        "export",
        help=COMMANDS["export"],
        description="Write a network as a file for other runtimes, for every batch and size of pictures. lambda is an "
        "input of the file, in its units, unless --fold fixes it. docs/deploy.md says which format is for whom.",
    )
    parser.add_argument("checkpoint", help="tunable or folded network: a file, or the name of a shipped one")
    parser.add_argument("--format", choices=tuple(_ENDINGS), default="onnx", help="kind of file (default: %(default)s)")
    parser.add_argument("--knob", action="append", default=[], metavar="FILE", help=KNOB)
    add_network(parser)
    parser.add_argument("--fold", metavar="LAM", help=f"export the plain network for one {HELP}")
    parser.add_argument("--per-sample", action="store_true", help="take a lambda for each picture of a batch: [B, p]")
    parser.add_argument("--map", action="store_true", help="take a lambda for each pixel: [B, p, H, W]")
    parser.add_argument(
        "--operators",
        action="store_true",
        help="with --format aoti: keep this package's C++ operators, which whoever loads the file needs too",
    )
    parser.add_argument("--half", action="store_true", help="convert kernels and pictures to half precision")
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators, from 18 on (default: 18)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: CHECKPOINT.FORMAT in the current folder)"
    )


def run(args: argparse.Namespace) -> int:
    """Export, write the file and return 0."""
    from tunable_ops.pretrained import find

    ending = _ENDINGS[args.format]
    _check(args, ending)
    found = find(args.checkpoint)
    net, lam = _network(args, found)
    name = found.name if lam is None else f"{found.name}_lam{numbers([lam])[0]}"
    out: Path = Path(f"{name}{ending}") if args.out is None else args.out
    if out.exists() and any(out.samefile(path) for path in (found.file, *found.knobs, *args.knob)):
        raise ValueError(f"--out must not be the checkpoint itself or one of its knobs; got {str(out)!r}")
    is_checkpoint = args.format == "safetensors"
    text = _save(args, net, out, found, lam) if is_checkpoint else _inputs(_export(args, net, out, lam))
    print(f"{out}: {out.stat().st_size:,} bytes, {text}")
    return 0


def _check(args: argparse.Namespace, ending: str) -> None:
    """Refuse options that do not go together, before anything is read."""
    out: Path | None = args.out
    if out is not None and out.suffix != ending:
        raise ValueError(f"--out must end in {ending} with --format {args.format}; got {str(out)!r}")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out must lie in an existing folder; got {str(out)!r}")
    if args.fold is not None and (args.per_sample or args.map):
        raise ValueError("--fold must be left out with --per-sample or --map, which take lambda later; got both")
    if args.operators and args.format != "aoti":
        raise ValueError(f"--operators must be left out with --format {args.format}, which needs none; got it")
    if args.opset is not None and args.format != "onnx":
        raise ValueError(f"--opset must be left out with --format {args.format}; got {args.opset}")
    if args.format == "safetensors" and (args.per_sample or args.map or args.half):
        raise ValueError("--format must be another one with --per-sample, --map or --half; got 'safetensors'")
    if args.per_sample and args.map:
        raise ValueError("--per-sample must be left out with --map, which is one per picture already; got both")


def _network(args: argparse.Namespace, found: Found) -> tuple[nn.Module, tuple[float, ...] | None]:
    """Return the network, tunable or plain, and where it is to be folded."""
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.pretrained import BASES, load, load_base, replaced
    from tunable_ops.serialization import load_folded, read_weights

    network = build_network(args.network, args.checkpoint, args.knob)
    plain: nn.Module | None = None
    if not args.knob and not found.knobs:
        if found.base is not None:
            plain = None if BASES[found.base].spec else load_base(found.base)
        elif read_weights(found.file)[1].get("conversion", ...) is None:
            plain = load_folded(found.file, network)
    if plain is not None:
        if args.fold is not None:
            raise ValueError(f"--fold must be left out for a plain network; got {args.fold!r} for {found.name!r}")
        return plain, None
    net = load(args.checkpoint, args.knob, network)
    if args.fold is None:
        return net, None
    lam = lambdas.parse(args.fold, net.spec, replaced=replaced(args.checkpoint))
    lambdas.already_warned()
    return net, lam


def _export(args: argparse.Namespace, net: Any, out: Path, lam: tuple[float, ...] | None) -> Description:
    """Write a graph or compiled code."""
    from tunable_ops.deploy import compile_package, export_onnx, export_program
    from tunable_ops.modules import fold

    options: dict[str, Any] = {"per_sample": args.per_sample, "lambda_map": args.map, "half": args.half}
    if lam is not None:
        options["folded_at"] = dict(zip(net.spec.names, lam, strict=True))
        net = fold(net, lam)
    if args.format == "pt2":
        return export_program(net, out, **options)
    if args.format == "aoti":
        return compile_package(net, out, operators=args.operators, **options)
    return export_onnx(net, out, **options, **({} if args.opset is None else {"opset": args.opset}))


def _save(args: argparse.Namespace, net: Any, out: Path, found: Found, lam: tuple[float, ...] | None) -> str:
    """Write a checkpoint: the tunable network with its knobs, or the plain one."""
    from tunable_ops.cli.fold import known_metadata, write_folded
    from tunable_ops.cli.lam import describe, describe_spec
    from tunable_ops.modules import TunableModel
    from tunable_ops.serialization import save

    about = known_metadata(found, [*found.knobs, *args.knob])
    if lam is not None:
        write_folded(net, lam, out, found, about)
        return f"{about['architecture']} folded at {describe(net.spec, lam)}"
    save(net, out, architecture=about["architecture"], arguments=about["arguments"])
    return f"{about['architecture']}, " + (describe_spec(net.spec) if isinstance(net, TunableModel) else "plain")


def _inputs(description: Description) -> str:
    """Format what the file takes, for people."""
    from tunable_ops.cli.lam import describe_spec

    sizes = f"{description.channels}, H, W"
    text = f"input [B, {sizes}] {description.dtype}"
    if description.smallest > 1:
        text += f" of at least {description.smallest} x {description.smallest} pixels"
    if description.spec is None:
        return text
    count = description.spec.num_params
    shape = {"shared": f"[{count}]", "per_sample": f"[B, {count}]", "map": f"[B, {count}, H, W]"}[description.form]
    return f"{text}, lam {shape}: {describe_spec(description.spec)}"
