"""`tunable-ops serve`: trained networks behind HTTP."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS
from tunable_ops.cli.network import add_network

if TYPE_CHECKING:
    from tunable_ops.serve import Served, Settings

__all__ = ["add_parser", "run"]

_KEY = "TUNABLE_OPS_API_KEY"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "serve",
        help=COMMANDS["serve"],
        description="Answer POST /v1/restore with restored pictures, GET /v1/models, /healthz, /metrics and "
        "/openapi.json. Requests of one size that come together share a call of the network, each with its own lambda. "
        f"The API key, if there is to be one, comes from the environment ({_KEY}) or a file, not from the command "
        "line, where other users see it. SIGTERM and Ctrl-C end the service when what it has taken is done.",
        epilog="Example: tunable-ops serve --model denoise & curl --data-binary @noisy.png "
        "'http://127.0.0.1:8000/v1/restore?model=denoise&lam=sigma=25' -o clean.png",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]MODEL",
        help="network to serve: a file, or the name of a shipped one, and what requests call it (default: its own "
        "name); repeat it for several (default: all that ship)",
    )
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="FILE",
        help="knob to add to the network of the one --model, which is then its base; repeat it for several",
    )
    add_network(parser)
    parser.add_argument(
        "--engine",
        default="eager",
        choices=("eager", "livefold", "onnxruntime", "openvino"),
        help="what computes; eager alone puts requests with different lambdas into one call (default: eager)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument("--api-key-file", metavar="FILE", help="file that holds the API key")
    _add_limits(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if available, else cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the network (default: PyTorch's)")
    parser.add_argument("--quiet", action="store_true", help="no line for each request")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for option, kind, text in (
        ("--max-bytes", int, "largest upload (default: 32000000)"),
        ("--max-pixels", int, "largest picture, before and after the network (default: 40000000)"),
        ("--max-frames", int, "most frames of an animation, or pages of a document (default: 1000)"),
        ("--queue", int, "requests that are received, wait or run at one time; others get 429 (default: 64)"),
        ("--timeout", float, "seconds until a request is dropped with 503 (default: 120)"),
        ("--upload-timeout", float, "seconds that an upload may take (default: 30)"),
        ("--batch-wait-ms", float, "longest wait for other pictures of the same size, in milliseconds (default: 5)"),
        ("--max-batch", int, "pictures in one call of the network; 1: no batches (default: 16)"),
        ("--batch-pixels", int, "pixels in one call of several pictures (default: 32768 on a CPU, 4194304 on a GPU)"),
        ("--tile", int, "tile size in pixels, a multiple of 16; 0: whole picture (default: 512)"),
        ("--overlap", int, "overlap of tiles in pixels (default: 64)"),
        ("--workers", int, "pictures that are decoded and encoded at one time (default: 16)"),
    ):
        parser.add_argument(option, type=kind, metavar="X" if kind is float else "N", help=text)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it; return 0."""
    import uvicorn

    from tunable_ops.cli.device import choose_device, set_threads
    from tunable_ops.ports import free_port
    from tunable_ops.serve import create_app

    free_port(args.host, args.port)  # before the networks are loaded
    set_threads(args.threads)
    device = choose_device(args.device)
    settings = _settings(args, device.type != "cpu")
    app = create_app(_models(args, device), settings)
    if args.host not in _LOOPBACK and settings.api_key is None:
        said = f"anyone who reaches {args.host} may use this service: set {_KEY}, or leave --host out"
        print(f"tunable-ops serve: warning: {said}", file=sys.stderr)
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        log_level="warning" if args.quiet else "info",
        server_header=False,
        limit_concurrency=settings.queue + 256,  # connections, those without a request too
        timeout_graceful_shutdown=int(settings.timeout) + 10,  # no request lasts longer
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again once it has ended in good order
    try:
        uvicorn.Server(config).run()
    except SystemExit:  # it has said why it cannot listen there
        return 2
    return 0


def _settings(args: argparse.Namespace, on_gpu: bool) -> Settings:
    from tunable_ops.deploy.batching import default_batch_pixels
    from tunable_ops.serve import Settings
    from tunable_ops.serve.settings import read_key

    names = (
        "max_bytes max_pixels queue timeout upload_timeout batch_wait_ms max_batch batch_pixels tile overlap workers"
    )
    given = {name: value for name in names.split() if (value := getattr(args, name)) is not None}
    given.setdefault("batch_pixels", default_batch_pixels(on_gpu))
    key = os.environ.get(_KEY) or None
    if args.api_key_file is not None:
        key = read_key(args.api_key_file)
    return Settings(**given, api_key=key)


def _models(args: argparse.Namespace, device: Any) -> dict[str, Served]:
    """Load the networks, by the names of requests."""
    from tunable_ops import pretrained
    from tunable_ops.cli.network import build_network
    from tunable_ops.restorer import load
    from tunable_ops.serve import Served

    words = pretrained.names() if args.model is None else args.model
    for option in ("knob", "network"):
        if getattr(args, option) and len(words) != 1:
            raise ValueError(f"--{option} must come with one --model, which it belongs to; got {len(words)} models")
    served: dict[str, Served] = {}
    for word in words:
        name, equals, model = word.partition("=")
        model = model if equals else word
        found = pretrained.find(model)
        name = name if equals else found.name
        if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
            raise ValueError(f"--model must have a name of letters, digits, '-', '_' and '.'; got {word!r}")
        if name in served:
            raise ValueError(f"--model must have a different name for each network (NAME=MODEL); got {name!r} twice")
        net, _, _ = load(model, args.knob, build_network(args.network, model, args.knob))
        notes = getattr(net, "notes", None) or {}
        purpose = notes.get("purpose") or pretrained.PURPOSES.get(found.name)
        served[name] = Served(name, net, purpose, device, args.engine)
    return served
