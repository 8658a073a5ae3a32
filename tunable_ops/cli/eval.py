"""`tunable-ops eval`: PSNR and SSIM of a trained network over the slider, on folders of pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunable_ops.train.config import Degradation
    from tunable_ops.train.evaluate import Score, View

__all__ = ["add_parser", "run"]

_METRICS = ("psnr", "ssim")
# A network's picture before and after degradation, with its name: as `evaluate` takes them.
_Pictures = list[tuple[str, "Tensor", "Tensor"]]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    from tunable_ops.cli.lam import HELP

    parser = subparsers.add_parser(
        "eval",
        help="measure a trained network over the slider on folders of pictures",
        description="Degrade the clean pictures of each folder (or take their degraded twins from --input), run the "
        "network at several slider positions, and print mean PSNR in dB and SSIM. Pictures are rounded to 8 bits "
        "before they are compared. The degradation is the one that the network was validated on, unless --set "
        "changes it.",
        epilog="Exit code: 0 done; 2 wrong input.",
    )
    parser.add_argument("model", type=Path, metavar="CKPT", help="network, tunable or plain, .safetensors")
    parser.add_argument(
        "--on", required=True, action="append", metavar="DIR", help="folder of clean pictures, or skimage; repeatable"
    )
    parser.add_argument("--input", type=Path, metavar="DIR", help="folder of degraded pictures of the same names")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the degradation, such as noise.sigma=[25,25] or downsample.factors=[2]; repeatable",
    )
    position = parser.add_mutually_exclusive_group()
    position.add_argument("--lam", action="append", metavar="LAM", help=f"{HELP}. Repeatable")
    position.add_argument("--sweep", type=int, default=5, metavar="N", help="N positions per slider (default: 5)")
    parser.add_argument("--y", action="store_true", help="compare the Y channel of BT.601, as super-resolution does")
    parser.add_argument("--border", type=int, default=0, metavar="N", help="pixels left out at each side (default: 0)")
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="central part of each picture; 0: all of it")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every picture's figures too")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Measure; returns 0."""
    import torch

    from tunable_ops.cli.device import choose_device
    from tunable_ops.train.data import held_out
    from tunable_ops.train.evaluate import View, evaluate, sweep

    for name, least in (("border", 0), ("crop", 0), ("threads", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}; got {value}")
    device = choose_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    net, channels, notes = _load(args.model)
    lams = _positions(net, args)
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    view = View(luma=args.y, border=args.border, eight_bits=True)
    options: dict[str, Any] = {"view": view, "progress": sys.stderr.isatty()}
    results = {}
    for folder in args.on:
        clean = held_out(folder, args.crop)
        if channels == 1:
            clean = [(name, _grey(picture)) for name, picture in clean]
        if args.input is None:
            found = sweep(net, clean, _degradation(args, notes), lams, args.seed, **options)
        else:
            found = evaluate(net, _pairs(clean, args, channels), lams, **options)
        results[folder] = found
        print(_table(folder, len(clean), found, lams, view))
    if args.json:
        _write(args, results)
    return 0


def _load(path: Path) -> tuple[nn.Module, int, dict[str, Any]]:
    """The network, tunable or plain, the channels of its pictures, and its notes."""
    from tunable_ops.serialization import load, load_folded, read_metadata

    metadata = read_metadata(path)
    net = load(path) if metadata.get("conversion") is not None else load_folded(path)
    inner: Any = getattr(net, "network", net)
    return net, getattr(inner, "channels", 3), dict(metadata.get("notes") or {})


def _positions(net: nn.Module, args: argparse.Namespace) -> list[tuple[float, ...]]:
    """The points of the sweep; one empty point for a plain network."""
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.modules import TunableModel

    if not isinstance(net, TunableModel):
        if args.lam:
            raise ValueError(f"--lam must be left out for a plain network; got {args.lam[0]!r}")
        return [()]
    if args.lam:
        return [tuple(lambdas.parse(text, net.spec, _warn)) for text in args.lam]
    rows = lambdas.sweep(net.spec, args.sweep)
    return list(dict.fromkeys(tuple(lam) for _, lams in rows for lam in lams))


def _degradation(args: argparse.Namespace, notes: dict[str, Any]) -> Degradation:
    """That of the checkpoint's validation, changed by --set."""
    from tunable_ops.train.config import read_degradation

    trained: dict[str, Any] = notes.get("config") or {}
    tree = (trained.get("validation") or {}).get("degradation") or trained.get("degradation") or {}
    degradation = read_degradation({key: value for key, value in tree.items() if value is not None}, args.set)
    if not degradation.model_dump(exclude_none=True):
        raise ValueError("--set must say what is done to the pictures, such as noise.sigma=[25,25]; got nothing")
    return degradation


def _pairs(clean: Sequence[tuple[str, Tensor]], args: argparse.Namespace, channels: int) -> _Pictures:
    """The clean pictures with their twins of --input."""
    from tunable_ops.train.data import held_out

    if args.set or args.crop:
        raise ValueError("--input must stand alone; got --set or --crop beside it")
    degraded = dict(held_out(str(args.input)))
    missing = [name for name, _ in clean if name not in degraded]
    if missing:
        raise ValueError(f"--input must hold a picture of every name; got none for {', '.join(missing[:3])}")
    return [(name, picture, _grey(degraded[name]) if channels == 1 else degraded[name]) for name, picture in clean]


def _grey(picture: Tensor) -> Tensor:
    """[3, H, W] -> [1, H, W], luma as JPEG has it (black is 0)."""
    import torch

    return torch.einsum("c,chw->hw", picture.new_tensor((0.299, 0.587, 0.114)), picture)[None]


def _table(folder: str, count: int, found: Sequence[Score], lams: Sequence[tuple[float, ...]], view: View) -> str:
    """Means over a folder's pictures, a line per position."""
    from tunable_ops.train.evaluate import mean

    what = "Y" if view.luma else "RGB"
    lines = [f"{folder}: {count} pictures, {what}, border {view.border}", f"{'lambda':<20}  PSNR dB    SSIM"]
    for lam in (None, *lams):
        psnr, ssim = (mean(found, lam, metric) for metric in _METRICS)
        if psnr == psnr:  # an input of another size than the clean picture has no figures
            label = "input" if lam is None else ", ".join(f"{value:.2f}" for value in lam) or "plain"
            lines.append(f"{label:<20}  {psnr:7.2f}  {ssim:.4f}")
    return "\n".join(lines)


def _write(args: argparse.Namespace, results: dict[str, list[Score]]) -> None:
    from dataclasses import asdict

    document = {
        "model": str(args.model),
        "luma": args.y,
        "border": args.border,
        "degradation": args.set,
        "scores": {folder: [asdict(score) for score in found] for folder, found in results.items()},
    }
    args.json.write_text(json.dumps(document, indent=1) + "\n")


def _warn(text: str) -> None:
    print(f"tunable-ops eval: warning: {text}", file=sys.stderr)
