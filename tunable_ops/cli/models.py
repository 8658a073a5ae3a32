"""`tunable-ops models`: the networks that ship, with their knobs, sizes and licences."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from tunable_ops.cli import COMMANDS

__all__ = ["add_parser", "describe", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "models",
        help=COMMANDS["models"],
        description="List the networks that ship with the package: what each is for, its knobs with their ranges and "
        "defaults, size and licence. `tunable-ops info NAME` tells more about one.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list and return 0."""
    from tunable_ops import pretrained

    found = [describe(name, pretrained.find(name)) for name in pretrained.names()]
    print(json.dumps(found, indent=2) if args.json else "\n\n".join(map(_paragraph, found)))
    return 0


def describe(name: str, path: Path) -> dict[str, Any]:
    """Collect what is known about a shipped network without loading it, as JSON values.

    Returns:
        dict with name, purpose, megabytes (10^6 bytes), licence, domain, knobs (as `info.knobs`).
    """
    from tunable_ops import pretrained
    from tunable_ops.cli.info import knobs
    from tunable_ops.serialization import read_metadata

    metadata = read_metadata(path)
    notes = metadata.get("notes") or {}
    return {
        "name": name,
        "purpose": notes.get("purpose") or pretrained.PURPOSES.get(name),
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "licence": notes.get("licence"),
        "domain": metadata["spec"]["domain"],
        "knobs": knobs(metadata["spec"]),
    }


def _paragraph(found: dict[str, Any]) -> str:
    from tunable_ops.cli.info import knob_lines

    lines = [f"{found['name']}  ({found['megabytes']:.2f} MB)"]
    lines += textwrap.wrap(found["purpose"] or "", 100, initial_indent="  ", subsequent_indent="  ")
    sums = " (weights that sum to 1)" if found["domain"] == "simplex" else ""
    for index, line in enumerate(knob_lines(found["knobs"])):
        lines.append(f"  {'' if index else 'knobs':<9}{line}{sums}")
    licence = textwrap.wrap(found["licence"] or "not stated", 89)
    lines += [f"  {'' if index else 'licence':<9}{line}" for index, line in enumerate(licence)]
    return "\n".join(lines)
