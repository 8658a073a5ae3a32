"""`tunable-ops fold`: write the plain network for one slider position."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS
from tunable_ops.cli.network import add_network, build_network, metadata_of

if TYPE_CHECKING:
    from tunable_ops.modules import TunableModel
    from tunable_ops.pretrained import Found

__all__ = ["add_parser", "known_metadata", "run", "write_folded"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    from tunable_ops.cli.lam import HELP, KNOB, Once

    parser = subparsers.add_parser(
        "fold",
        help=COMMANDS["fold"],
        description="Blend the kernels of a tunable network at one slider position and write the plain network: the "
        "same architecture, no lambda, no overhead. The file is a safetensors file with the plain state dict: load it "
        "with serialization.load_folded(FILE), or with "
        "models.build(architecture, **arguments).load_state_dict(safetensors.torch.load_file(FILE)).",
    )
    parser.add_argument("checkpoint", help="tunable network: a file, or the name of a shipped one")
    parser.add_argument("--knob", action="append", default=[], metavar="FILE", help=KNOB)
    add_network(parser)
    parser.add_argument("--lam", action=Once, required=True, metavar="LAM", help=HELP)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (default: CHECKPOINT_lam....safetensors in the current folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Fold, write the file and return 0."""
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.pretrained import find, load, replaced

    out: Path | None = args.out
    if out is not None and out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors; got {str(out)!r}")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out must lie in an existing folder; got {str(out)!r}")
    found = find(args.checkpoint)
    net = load(args.checkpoint, args.knob, build_network(args.network, args.checkpoint, args.knob))
    metadata = known_metadata(found, [*found.knobs, *args.knob])
    lam = lambdas.parse(args.lam, net.spec, replaced=replaced(args.checkpoint))
    lambdas.already_warned()
    if out is None:
        out = Path(f"{found.name}_lam{lambdas.numbers([lam])[0]}.safetensors")
    if out.exists() and any(out.samefile(path) for path in (found.file, *found.knobs, *args.knob)):
        raise ValueError(f"--out must not be the checkpoint itself or one of its knobs; got {str(out)!r}")
    write_folded(net, lam, out, found, metadata)
    print(f"{out}: {metadata['architecture']} folded at {lambdas.describe(net.spec, lam)}")
    return 0


def write_folded(net: TunableModel, lam: Sequence[float], out: Path, found: Found, metadata: Mapping[str, Any]) -> None:
    """Write the plain network at `lam`, with architecture and arguments of `metadata`, and where it is from."""
    from tunable_ops.modules import fold
    from tunable_ops.serialization import save

    notes = dict(net.notes)
    notes["lambda"] = dict(zip(net.spec.names, lam, strict=True))
    if any(net.spec.units):
        notes["units"] = dict(zip(net.spec.names, net.spec.units, strict=True))
    notes["folded_from"] = found.file.name if found.base is None else found.name
    about = {"architecture": metadata["architecture"], "arguments": metadata["arguments"]}
    save(fold(net, lam), out, **about, notes=notes)


def known_metadata(found: Found, knobs: Sequence[str | Path]) -> dict[str, Any]:
    """Return architecture and arguments of a network, which for bare weights its knob or the table knows."""
    from tunable_ops.pretrained import BASES

    if found.base is not None and not knobs:
        base = BASES[found.base]
        return {"architecture": base.architecture, "arguments": dict(base.arguments)}
    return metadata_of(found.file, knobs)
