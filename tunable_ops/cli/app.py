"""`tunable-ops app`: pictures, networks and sliders in the browser."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunable_ops.cli import COMMANDS

__all__ = ["add_parser", "run"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    from tunable_ops.cli.lam import KNOB

    parser = subparsers.add_parser(
        "app",
        help=COMMANDS["app"],
        description="Serve a page where pictures go through a network while its sliders move: before and after, a "
        "painted mask with values of its own, sweeps, downloads in the format of the input. It asks no other host "
        "for anything, and listens to this machine alone unless --host says otherwise. Ctrl-C or SIGTERM ends it.",
        epilog="Example: tunable-ops app --model denoise, then http://127.0.0.1:7860 in a browser.",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="network that the page offers: a file, or the name of a shipped one; repeat it for several (default: all "
        "that ship)",
    )
    parser.add_argument("--knob", action="append", default=[], metavar="FILE", help=KNOB)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port; 0 takes a free one (default: 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    for option, text in (
        ("--max-bytes", "largest upload (default: 256000000)"),
        ("--max-pixels", "largest picture, before and after the network (default: 40000000)"),
        ("--tile", "tile size in pixels, a multiple of 16; 0: whole picture (default: 512)"),
        ("--overlap", "overlap of tiles in pixels (default: 64)"),
    ):
        parser.add_argument(option, type=int, metavar="N", help=text)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if available, else cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the network (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; return 0."""
    from tunable_ops.ports import free_port

    free_port(args.host, args.port)  # before the networks are loaded
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="tunable-ops-app-") as folder:
        # read when Gradio is imported: no telemetry, and nothing of a picture stays behind
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        from tunable_ops.app import Settings, create_app, launch
        from tunable_ops.cli.device import choose_device, set_threads

        set_threads(args.threads)
        device = choose_device(args.device)
        names = ("max_bytes", "max_pixels", "tile", "overlap")
        given = {name: value for name in names if (value := getattr(args, name)) is not None}
        settings = Settings(**given, paths=args.host in _LOOPBACK)
        if not settings.paths:
            said = f"anyone who reaches {args.host} may use this page"
            print(f"tunable-ops app: warning: {said}", file=sys.stderr)
        demo = create_app(Path(folder), settings, args.model, args.knob, device)
        url = launch(demo, args.host, args.port, settings, wait=False, browser=args.open)
        print(f"tunable-ops app: {url} (Ctrl-C ends it)", flush=True)
        try:
            demo.block_thread()
        finally:
            demo.close(verbose=False)  # before the folder goes
    return 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Leave by an exception where SIGTERM comes, so that folders are removed, and with code 0."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there only
        yield
        return

    def leave(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise SystemExit(0)

    old = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
