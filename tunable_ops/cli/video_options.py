"""The options of `apply` that are for videos alone, and those that are not for them."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_video", "check_options"]

_SEGMENT = 5.0


def add_video(parser: Any) -> None:
    """Add the options."""
    group = parser.add_argument_group("videos")
    group.add_argument(
        "--encoder", metavar="NAME", help="encoder, as FFmpeg names it (default: libx264; webm: libvpx-vp9)"
    )
    group.add_argument(
        "--crf",
        type=int,
        metavar="N",
        help="constant quality on the encoder's own scale, lower is better (default: libx264 18, libx265 20, "
        "libvpx-vp9 24, libsvtav1 25)",
    )
    group.add_argument(
        "--pixel-format",
        metavar="NAME",
        help="format that the encoder gets, such as yuv420p or yuv444p10le (default: that of the video)",
    )
    group.add_argument(
        "--encoder-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the encoder, such as preset=slow; may be repeated",
    )
    group.add_argument("--rate", metavar="N", help="frames per second of numbered pictures: 25, 23.976, 30000/1001")
    group.add_argument(
        "--leave-out",
        action="append",
        default=[],
        choices=("audio", "subtitle", "attachment", "data", "video"),
        help="copy no streams of this kind (beside the video that is restored); may be repeated",
    )
    group.add_argument(
        "--damaged",
        choices=("stop", "keep"),
        help="at a damaged place: stop, with what is done kept (default); or go on, with the frames as the decoder "
        "conceals them",
    )
    group.add_argument(
        "--segment",
        type=float,
        metavar="SECONDS",
        help=f"length of the parts that a stopped run does not do again (default: {_SEGMENT:g})",
    )
    tars = parser.add_argument_group("tars")
    tars.add_argument(
        "--to", choices=("tar", "folder"), help="write tars, named as those that are read (default), or folders"
    )
    both = parser.add_argument_group("videos and tars")
    both.add_argument("--restart", action="store_true", help="do not go on with a run that was stopped: begin anew")


def check_options(args: argparse.Namespace, kind: str) -> None:
    """Check that the options are for this kind of inputs, and set what was not given.

    Raises:
        ValueError: An option is for the other kind, or out of its range.
    """
    import math

    videos = {
        "--encoder": args.encoder,
        "--crf": args.crf,
        "--pixel-format": args.pixel_format,
        "--encoder-option": args.encoder_option,
        "--rate": args.rate,
        "--leave-out": args.leave_out,
        "--damaged": args.damaged,
        "--segment": args.segment,
    }
    pictures = {"--sweep": args.sweep and str(args.sweep), "--noise": args.noise, "--recursive": args.recursive or None}
    pictures |= {"--mask": args.mask, "--inside": args.inside}
    refused = dict(pictures if kind != "pictures" else {}) | (videos if kind != "videos" else {})
    if kind != "tars":
        refused["--to"] = args.to
    given = next((name for name, value in refused.items() if value not in (None, [])), None)
    if given is not None:
        raise ValueError(f"{given} must be left out for {kind}; got {refused[given]!r}")
    if args.restart and kind == "pictures":
        raise ValueError("--restart must be left out for pictures, which are done anew unless --resume is given")
    args.segment = _SEGMENT if args.segment is None else args.segment
    if not (math.isfinite(args.segment) and args.segment > 0):
        raise ValueError(f"--segment must be more than 0 seconds; got {args.segment}")
    args.damaged = args.damaged or "stop"
