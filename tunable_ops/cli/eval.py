"""`tunable-ops eval`: measure PSNR, SSIM and LPIPS of a trained network over lambda, on folders of pictures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS
from tunable_ops.cli.eval_pictures import clean_pictures, pairs_of, skip
from tunable_ops.cli.network import add_network, build_network
from tunable_ops.cli.progress import printable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunable_ops.cli.progress import Progress
    from tunable_ops.modules import LambdaSpec, TunableModel
    from tunable_ops.train.evaluate import Score
    from tunable_ops.train.measure import Measure

__all__ = ["add_parser", "run"]


_METRICS = ("psnr", "ssim", "lpips")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    from tunable_ops.cli.lam import AUTO_HELP, HELP, KNOB

    parser = subparsers.add_parser(
        "eval",
        help=COMMANDS["eval"],
        description="Measure PSNR and SSIM (and LPIPS) of a tunable network at several slider positions. Each "
        "folder of clean pictures is a set with its own table; the degraded pictures are computed (--blur, then "
        "--downsample, then --noise, with a seed) or read from a folder (--input). Outputs are rounded to 8 bits. "
        "Grey pictures, also those stored as three equal channels, are degraded, processed and judged as grey (see "
        "apply). A network for grey pictures is applied to each channel.",
        epilog="Exit code: 0 done; 1 some pictures were skipped; 2 wrong input.",
    )
    parser.add_argument("pictures", nargs="+", type=Path, help="folder of clean pictures, or a single picture")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="tunable network: a file, or the name of a shipped one"
    )
    parser.add_argument("--knob", action="append", default=[], metavar="FILE", help=KNOB)
    add_network(parser)
    parser.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        help="folder of degraded pictures, named as the clean ones (another extension will do), or with x2, x3, ... "
        "added, as in babyx2.png",
    )
    parser.add_argument("--noise", type=float, metavar="SIGMA", help="Gaussian noise, in units of 1/255")
    parser.add_argument("--blur", type=float, metavar="SIGMA", help="Gaussian blur, in pixels")
    parser.add_argument(
        "--downsample",
        type=int,
        choices=[2, 4],
        metavar="F",
        help="bicubic downsampling by 2 or 4, for super-resolution networks",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    positions = parser.add_mutually_exclusive_group()
    positions.add_argument("--lam", action="append", metavar="LAM", help=f"{HELP}; {AUTO_HELP}. Can be repeated")
    positions.add_argument(
        "--sweep", type=int, metavar="N", help="N positions, as in apply (default: the corners and points in between)"
    )
    parser.add_argument("--y", action="store_true", help="PSNR and SSIM of the luma only (BT.601, as in Matlab)")
    parser.add_argument(
        "--border",
        type=int,
        metavar="N",
        help="pixels to ignore on every side (default: the enlargement, or 0)",
    )
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (AlexNet); needs its published weights")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="for --lpips: folder of the published weights (AlexNet's and the heads), or AlexNet's file (default: "
        "$TUNABLE_OPS_DATA/weights and torch.hub's folder)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the values of every picture to FILE")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if available, else cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Measure every set; return 0, or 1 if some pictures were skipped."""
    from tunable_ops.cli.device import choose_device, set_threads
    from tunable_ops.pretrained import load
    from tunable_ops.train.measure import Measure

    _check(args)
    set_threads(args.threads)
    device = choose_device(args.device)
    net = load(args.model, args.knob, build_network(args.network, args.model, args.knob)).to(device)
    lams = _positions(args, net.spec)
    scale = getattr(net.network, "scale", getattr(net.network, "upscale", 1))
    border = (scale if scale > 1 else 0) if args.border is None else args.border
    lpips = _lpips(args.weights) if args.lpips else None
    measure = Measure(y=args.y, border=border, rounded=True, lpips=lpips)
    found, skipped = {}, 0
    for folder in args.pictures:
        pictures, unreadable = clean_pictures(folder)
        triples, bad, subsampled = pairs_of(args, pictures, scale)
        scores, estimates, failed = _scores(
            net, triples, subsampled, lams, measure, args.quiet, _as_given(args, net.spec)
        )
        if args.lam is not None:  # not of a sweep, as in apply
            _compare(folder, lams, net.spec, estimates)
        skipped += unreadable + bad + failed
        found[str(folder)] = scores
        print(_table(printable(folder), scores, net.spec, lams))
    if args.json is not None:
        args.json.write_text(json.dumps(_record(args, border, found), indent=2) + "\n")
    return 1 if skipped else 0


def _scores(
    net: TunableModel,
    triples: Sequence[tuple[str, Tensor, Tensor]],
    subsampled: Collection[str],
    lams: Sequence[tuple[float, ...]],
    measure: Measure,
    quiet: bool,
    as_given: Collection[tuple[float, ...]],
) -> tuple[list[Score], list[float | None], int]:
    """Score every picture at every lambda.

    `subsampled` has the names of those pictures whose noise is estimated so (`images.estimate_noise`).

    Returns:
        The scores; what the noise of each picture is estimated at; and the number of pictures that were skipped.

    Raises:
        ValueError: No picture can be measured; the error is that of the first.
    """
    from tunable_ops.cli import noise
    from tunable_ops.cli.progress import Progress

    scores: list[Score] = []
    estimates: list[float | None] = []
    errors: list[tuple[str, Exception]] = []
    with Progress("tunable-ops eval", len(triples), quiet) as progress:
        hook = net.register_forward_hook(lambda *_: progress.advance(1))
        for triple in triples:
            progress.start(triple[0], len(lams))
            try:
                measure(triple[1], triple[1])  # before the network runs
                sigma = noise.estimate(triple[2], triple[0] in subsampled)
                scores += _at(net, triple, lams, measure, as_given, progress, sigma)
                estimates.append(sigma)
            except (ValueError, RuntimeError) as error:  # too small for the metrics or the network, ...
                errors.append((triple[0], error))
            progress.finish()
        hook.remove()
    if errors and not scores:
        raise errors[0][1]
    for name, why in errors:
        skip(name, why)
    return scores, estimates, len(errors)


def _compare(
    folder: Path, lams: Sequence[tuple[Any, ...]], spec: LambdaSpec, estimates: Sequence[float | None]
) -> None:
    """Warn about lambdas that are far from what the noise of the pictures is estimated at."""
    from tunable_ops.cli.noise import advice

    for lam in lams:
        if text := advice(lam, spec, estimates):
            print(f"tunable-ops eval: warning: {printable(folder)}: {text}", file=sys.stderr)


def _at(
    net: TunableModel,
    triple: tuple[str, Tensor, Tensor],
    lams: Sequence[tuple[Any, ...]],
    measure: Measure,
    as_given: Collection[tuple[Any, ...]],
    progress: Progress,
    sigma: float | None,
) -> list[Score]:
    """Score a picture at every lambda, `AUTO` standing for its noise, ``sigma``; the scores keep that word."""
    from dataclasses import replace

    from tunable_ops.cli import noise
    from tunable_ops.cli.lam import AUTO
    from tunable_ops.train.evaluate import evaluate

    positions = lams
    if any(AUTO in lam for lam in lams):
        progress.write(f"{triple[0]}: {noise.finding(sigma, net.spec)}", sys.stderr)
        positions = [noise.settle(lam, net.spec, sigma) for lam in lams]
    kept = {position for position, lam in zip(positions, lams, strict=True) if lam in as_given}
    scores = evaluate(net, [triple], positions, measure=measure, as_given=kept)
    first = len(scores) - len(lams)  # that of the input, if it was scored
    return scores[:first] + [replace(score, lam=lam) for score, lam in zip(scores[first:], lams, strict=True)]


def _check(args: argparse.Namespace) -> None:
    """Check what argparse cannot."""
    for name in ("noise", "blur"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{name} must be at least 0; got {value}")
    made = [f"--{name}" for name in ("noise", "blur", "downsample") if getattr(args, name) is not None]
    if args.input is not None and made:
        raise ValueError(
            f"--input must not be combined with {', '.join(made)}, because its pictures are degraded already; got both"
        )
    if args.input is None and not made:
        raise ValueError("--noise, --blur, --downsample or --input must describe the degradation; got none")
    if args.weights is not None and not args.lpips:
        raise ValueError(f"--weights must go with --lpips; got {str(args.weights)!r} without it")
    if args.border is not None and args.border < 0:
        raise ValueError(f"--border must be at least 0; got {args.border}")
    if args.json is not None and not args.json.parent.is_dir():
        raise ValueError(f"--json must lie in an existing folder; got {str(args.json)!r}")


def _positions(args: argparse.Namespace, spec: LambdaSpec) -> list[tuple[float, ...]]:
    from tunable_ops.cli.lam import already_warned, parse, sweep
    from tunable_ops.pretrained import replaced
    from tunable_ops.train.evaluate import positions

    if args.lam is not None:
        was = replaced(args.model)
        lams = list(dict.fromkeys(parse(text, spec, auto=True, replaced=was) for text in args.lam))
        already_warned()
        return lams
    if args.sweep is not None:
        return list(dict.fromkeys(lam for _, lams in sweep(spec, args.sweep) for lam in lams))
    return [tuple(lam) for lam in positions(spec)]


def _as_given(args: argparse.Namespace, spec: LambdaSpec) -> set[tuple[float, ...]]:
    """Return the positions that set the network's parameter "grey" themselves."""
    from tunable_ops.cli.lam import parse, sets
    from tunable_ops.grey import PARAMETER

    if args.lam is None:
        return set(_positions(args, spec)) if spec.names == (PARAMETER,) else set()
    return {parse(text, spec, warn=lambda _: None, auto=True) for text in args.lam if sets(text, PARAMETER, spec)}


def _lpips(weights: Path | None) -> nn.Module:
    """Return LPIPS with the weights of a folder, or with a file of AlexNet's and the heads beside it or elsewhere."""
    from tunable_ops import losses
    from tunable_ops.losses.weights import FILES

    if weights is None:
        return losses.LPIPS("alex")
    if not weights.exists():
        raise ValueError(f"--weights must be an existing file or folder; got {str(weights)!r}")
    folder = weights if weights.is_dir() else weights.parent
    beside = weights.is_dir() or any((folder / file.name).is_file() for file in FILES["lpips"])
    return losses.LPIPS("alex", weights=weights, heads=folder if beside else None)


def _mean(scores: Sequence[Score], lam: tuple[float, ...] | None, metric: str) -> float | None:
    values = [getattr(score, metric) for score in scores if score.lam == lam]
    return None if not values or None in values else sum(values) / len(values)


def _table(title: str, scores: Sequence[Score], spec: LambdaSpec, lams: Sequence[tuple[float, ...]]) -> str:
    """Return a table of the means over the pictures, with a line per position and the input first."""
    from tunable_ops.cli.lam import describe

    shown = [metric for metric in _METRICS if _mean(scores, lams[0], metric) is not None]
    labels = [None, *lams] if any(score.lam is None for score in scores) else list(lams)
    names = ["input" if lam is None else describe(spec, lam) for lam in labels]
    width = max(map(len, names))
    count = len({score.picture for score in scores})
    lines = [f"{title}: mean over {count} picture{'s' if count > 1 else ''}"]
    lines.append("  " + " " * width + "".join(f"{'PSNR dB' if m == 'psnr' else m.upper():>10}" for m in shown))
    for name, lam in zip(names, labels, strict=True):
        values = "".join(f"{_mean(scores, lam, m):>10.{2 if m == 'psnr' else 4}f}" for m in shown)
        lines.append(f"  {name:{width}}{values}")
    return "\n".join(lines)


def _record(args: argparse.Namespace, border: int, found: dict[str, list[Score]]) -> dict[str, Any]:
    from dataclasses import asdict

    settings = {name: getattr(args, name) for name in ("noise", "blur", "downsample", "seed", "y")}
    finite = [
        {k: None if v == math.inf else v for k, v in asdict(s).items()} for scores in found.values() for s in scores
    ]
    sets = [folder for folder, scores in found.items() for _ in scores]
    return {
        "model": str(args.model),
        "knobs": args.knob,
        "input": None if args.input is None else str(args.input),
        **settings,
        "border": border,
        "scores": [{"set": name, **score} for name, score in zip(sets, finite, strict=True)],
    }
