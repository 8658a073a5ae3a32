"""`tunable-ops bench`: the benchmark of `python -m bench`."""

from __future__ import annotations

import argparse
from typing import Any

from tunable_ops.bench import cli
from tunable_ops.cli import COMMANDS


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("bench", help=COMMANDS["bench"], description=cli.DESCRIPTION)
    cli.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    return cli.run(args)
