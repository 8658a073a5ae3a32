"""`tunable-ops models`: the networks that ship, with their knobs, sizes and licences."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS

if TYPE_CHECKING:
    from tunable_ops.pretrained import Found

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

    found = [describe(pretrained.find(name)) for name in pretrained.names()]
    print(json.dumps(found, indent=2) if args.json else "\n\n".join(map(_paragraph, found)))
    return 0


def describe(found: Found) -> dict[str, Any]:
    """Collect what is known about a shipped network without loading it, as JSON values.

    Returns:
        dict with name, purpose, megabytes (10^6 bytes, all its files), base (name, source and licence, or None),
        licence (of what was trained; None if not stated), trained_on (a sentence, or None), domain, knobs (as
        `info.knobs`).
    """
    from tunable_ops import pretrained
    from tunable_ops.cli.info import base_facts, knobs
    from tunable_ops.knob_files import read_knob_metadata
    from tunable_ops.serialization import read_metadata

    if found.base is not None and not found.knobs:
        base = pretrained.BASES[found.base]
        parts: list[dict[str, Any]] = [{"spec": {"domain": "box", **base.spec}, "licence": base.licence}]
    else:
        parts = [read_knob_metadata(path) for path in found.knobs] or [read_metadata(found.file)]
    notes = parts[0].get("notes") or {}
    known = {knob["name"]: knob for part in parts for knob in knobs(part["spec"])}
    return {
        "name": found.name,
        "purpose": notes.get("purpose") or pretrained.PURPOSES.get(found.name),
        "megabytes": round(found.bytes / 1e6, 2),
        "base": None if found.base is None else base_facts(found.base),
        "licence": "; ".join(dict.fromkeys(filter(None, map(_licence, parts)))) or None,
        "trained_on": notes.get("trained_on"),
        "domain": parts[0]["spec"]["domain"],
        "knobs": list(known.values()),
    }


def _licence(metadata: dict[str, Any]) -> str | None:
    return metadata.get("licence") or (metadata.get("notes") or {}).get("licence")


def _paragraph(found: dict[str, Any]) -> str:
    from tunable_ops.cli.info import knob_lines

    lines = [f"{found['name']}  ({found['megabytes']:.2f} MB)"]
    lines += textwrap.wrap(found["purpose"] or "", 100, initial_indent="  ", subsequent_indent="  ")
    sums = " (weights that sum to 1)" if found["domain"] == "simplex" else ""
    for index, line in enumerate(knob_lines(found["knobs"])):
        lines.append(f"  {'' if index else 'knobs':<9}{line}{sums}")
    if (base := found["base"]) is not None:
        lines += _wrapped("base", f"{base['name']} ({base['licence']}): {base['source']}")
    if found["trained_on"]:
        lines += _wrapped("trained", found["trained_on"])
    lines += _wrapped(
        "licence", (found["licence"] or "not stated") + (", for the knobs" if base and found["trained_on"] else "")
    )
    return "\n".join(lines)


def _wrapped(title: str, text: str) -> list[str]:
    return [f"  {'' if index else title:<9}{line}" for index, line in enumerate(textwrap.wrap(text, 89))]
