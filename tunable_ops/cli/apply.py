"""`tunable-ops apply`: run a trained network on images, at one slider position or along a sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tunable_ops.cli import COMMANDS
from tunable_ops.cli.network import add_network

__all__ = ["add_parser", "run"]

_FORMATS = ("png", "jpg", "webp", "tiff")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    from tunable_ops.cli.curve import CURVE_HELP
    from tunable_ops.cli.lam import AUTO_HELP, HELP, KNOB, Once, Sweep
    from tunable_ops.cli.mask import add_mask
    from tunable_ops.cli.video_options import add_video

    parser = subparsers.add_parser(
        "apply",
        help=COMMANDS["apply"],
        description="Run a network on images. Writes NAME_lam0.30-0.70.png (with --mask and --inside "
        "NAME_lam0.30-0.70_mask1.00-0.00.png) for each image and position and, for a sweep, the labelled strip "
        "NAME_sweep.png; NAME is the name of the input without its extension or, if the output has another one, with "
        "it. Bits, "
        "transparency, ICC profile, EXIF, resolution, frames and pages are kept; what a format cannot hold is said. "
        "Files that are not readable images are reported and skipped. "
        "Grey pictures, also those stored as three equal channels, stay grey: a network for colour gets them on each "
        "of its channels and its output is averaged; its parameter 'grey', if it has one, is 1 unless --lam sets it; "
        "without one, a noise level that lambda sets is taken about sqrt(3) times as strong inside. "
        "A network for grey images (one channel) is applied to each colour channel. "
        "Videos keep their timestamps, sound, subtitles, chapters and metadata; a run that was stopped goes on where "
        "it was when the same command is given again.",
        epilog="Exit code: 0 all done; 1 some inputs were skipped; 2 nothing done.",
    )
    parser.add_argument(
        "input",
        nargs="+",
        type=Path,
        help="images or folders of images; or videos, numbered pictures (frames/%%05d.png); or tars of pictures",
    )
    parser.add_argument("--recursive", action="store_true", help="search subfolders; outputs get the same subfolders")
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="tunable network: a file, the name of a shipped one, or a folder of `save_pretrained`; or what `fold` "
        "wrote",
    )
    parser.add_argument("--knob", action="append", default=[], metavar="FILE", help=KNOB)
    add_network(parser)
    parser.add_argument(
        "--lam",
        action=Once,
        metavar="LAM",
        help=f"{HELP}; {AUTO_HELP}; {CURVE_HELP}. Default: the network's default. With --sweep: the parameters that do "
        "not move",
    )
    parser.add_argument(
        "--sweep",
        type=Sweep.read,
        metavar="N",
        help="N positions; `texture=N`: of this parameter. Without a name, two weights that sum to one go from (1,0) "
        "to (0,1); otherwise there is one strip per parameter that --lam does not set, over its range. The others are "
        "as --lam says, at their defaults, or share the rest",
    )
    add_mask(parser)
    _add_output(parser)
    parser.add_argument(
        "--as-colour", action="store_true", help="process grey pictures as colour, with output in colour (style)"
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=512,
        metavar="N",
        help="tile size in pixels, a multiple of 16; 0: whole image (default: 512)",
    )
    parser.add_argument("--overlap", type=int, default=64, metavar="N", help="overlap of tiles in pixels (default: 64)")
    parser.add_argument(
        "--noise", type=float, metavar="SIGMA", help="first add Gaussian noise, in units of 1/255, and report PSNR"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise, the same for every image (default: 0)")
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="skip images of more pixels, width times height (default: no limit)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if available, else cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument(
        "--resume", action="store_true", help="skip inputs whose outputs are there, from a run with the same options"
    )
    add_video(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("output"),
        metavar="PATH",
        help="output folder; or, for a single image at one position, a file such as picture.png, for a single video "
        "one such as film.mkv, or numbered pictures (default: output)",
    )
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="format of the outputs (default: the input's own where it is lossless or an animation, else png)",
    )
    parser.add_argument(
        "--quality", type=int, metavar="N", help="1 to 100, for jpg (default: 95) and webp (default: lossless)"
    )
    parser.add_argument(
        "--bits", type=int, choices=(8, 16), help="bits per channel of png and tiff (default: the input's)"
    )


def run(args: argparse.Namespace) -> int:
    """Process all inputs; return 0, 1 if some were skipped, or 2 if all were.

    One of several processes returns 1 for both, under `torchrun` once all have finished.
    """
    from tunable_ops.cli.shards import Others, Shard
    from tunable_ops.cli.sources import kind_of_inputs
    from tunable_ops.cli.video_options import check_options

    kind = kind_of_inputs(args.input)
    check_options(args, kind)
    others = Others.join(Shard.here())
    return others.finish(_run_kind(args, kind))


def _run_kind(args: argparse.Namespace, kind: str) -> int:
    from tunable_ops.cli.apply_checks import check_numbers

    if kind == "videos":
        from tunable_ops.cli.video import run_videos

        return run_videos(args, check_numbers(args))
    if kind == "tars":
        from tunable_ops.cli.tars import run_tars

        return run_tars(args, check_numbers(args))
    return _run_pictures(args)


def _run_pictures(args: argparse.Namespace) -> int:
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.cli.apply_checks import check_numbers, check_output, make_folder
    from tunable_ops.cli.batch import Batch
    from tunable_ops.cli.mask import read_masked, without_mask
    from tunable_ops.cli.progress import printable
    from tunable_ops.cli.restorer import load_restorer, sets_grey
    from tunable_ops.cli.shards import Shard
    from tunable_ops.cli.sources import find_sources
    from tunable_ops.pretrained import replaced

    single = _is_file(args.out)
    folder = args.out.parent if single else args.out
    sources, said = find_sources(args.input, folder, args.recursive)
    device = check_numbers(args)
    check_output(args, single)
    restorer = load_restorer(args, device)
    spec = restorer.spec
    if restorer.fixed is not None:
        rows = [("", [restorer.fixed])]
    elif args.sweep is None:
        was = replaced(args.model)
        lam = spec.defaults if args.lam is None else lambdas.parse(args.lam, spec, auto=True, replaced=was)
        rows = [("", [tuple(lam)])]
    else:
        rows = lambdas.sweep(spec, args.sweep.count, args.sweep.name, args.lam, replaced(args.model))
    lambdas.already_warned()
    masked = read_masked(args, spec, restorer.fixed is not None)
    if masked is not None:
        sources, ignored = without_mask(sources, args.mask, args.input)
        said += ignored
    if single and (len(sources) > 1 or args.sweep is not None):
        many = f"{len(sources)} images" if len(sources) > 1 else "a sweep"
        raise ValueError(f"--out must be a folder for {many}; got {str(args.out)!r}")
    make_folder(folder)
    for line in said:
        print(f"tunable-ops apply: {printable(line)}", file=sys.stderr)
    knob = restorer.fixed is None and not sets_grey(args, spec)
    shard = Shard.here()
    return Batch(args, spec, rows, restorer, knob, single, shard, masked).run(shard.own(sources))


def _is_file(out: Path) -> bool:
    """Return True if --out names a picture and not a folder."""
    from tunable_ops.images import SUFFIXES

    return out.suffix.lower() in SUFFIXES and not out.is_dir()
