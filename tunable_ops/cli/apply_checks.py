"""What `tunable-ops apply` checks before any work, whatever its inputs are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["check_numbers", "check_output", "make_folder"]


def check_numbers(args: argparse.Namespace) -> Any:
    """Check what argparse cannot, set the number of threads, and return the device.

    Raises:
        ValueError: A number is out of its range, or the device does not work here.
    """
    import math

    from tunable_ops.cli.device import choose_device, set_threads
    from tunable_ops.cli.shards import Shard
    from tunable_ops.restoration import MULTIPLE

    if args.tile < 0 or args.tile % MULTIPLE:
        raise ValueError(f"--tile must be 0 or a positive multiple of {MULTIPLE}; got {args.tile}")
    if args.tile and not 0 <= args.overlap <= args.tile - MULTIPLE:
        raise ValueError(f"--overlap must lie in 0..{args.tile - MULTIPLE} (--tile - {MULTIPLE}); got {args.overlap}")
    if args.noise is not None and not (math.isfinite(args.noise) and args.noise >= 0):
        raise ValueError(f"--noise must be at least 0; got {args.noise}")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed must lie in 0..2^63 - 1; got {args.seed}")
    if args.max_pixels is not None and args.max_pixels < 1:
        raise ValueError(f"--max-pixels must be at least 1; got {args.max_pixels}")
    set_threads(args.threads)
    return Shard.here().device(choose_device(args.device), args.device)


def check_output(args: argparse.Namespace, single: bool) -> None:
    """Check that format, quality, bits and the name of the output go together.

    Args:
        args: Arguments of the command.
        single: True if --out names a file.

    Raises:
        ValueError: They do not.
    """
    from tunable_ops.images import KINDS, kind_of

    kind = args.format
    if single:
        if kind not in (None, kind_of(args.out)):
            raise ValueError(f"--format must be that of --out; got {kind} for {str(args.out)!r}")
        kind = kind_of(args.out)
    if args.quality is not None:
        if kind is None or not KINDS[kind].quality:
            raise ValueError(f"--quality must go with --format jpg or webp; got {kind or 'no --format'}")
        if not 1 <= args.quality <= 100:
            raise ValueError(f"--quality must lie in 1..100; got {args.quality}")
    if args.bits == 16 and kind is not None and KINDS[kind].bits < 16:
        raise ValueError(f"--bits must be 8 for {kind}; got 16: use png or tiff")


def make_folder(folder: Path) -> None:
    """Make the folder of the outputs.

    Raises:
        ValueError: Nothing can be written there.
    """
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--out must be a folder to write in; got {str(folder)!r} ({error.strerror})") from error
