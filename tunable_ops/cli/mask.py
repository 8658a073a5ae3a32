"""The options `--mask` and `--inside` of `apply`: another lambda for a part of the picture."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tunable_ops.cli.sources import Source

__all__ = ["Masked", "add_mask", "read_masked", "without_mask"]


@dataclass(frozen=True)
class Masked:
    """A part of a picture with a lambda of its own.

    Args:
        mask: [1, H, W] in [0, 1].
        inside: Lambda where it is 1.
        knob: True if grey pictures set the parameter "grey" there.
    """

    mask: Tensor
    inside: tuple[float, ...]
    knob: bool


def add_mask(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="picture of the size of the input that is white where --inside holds, black where --lam does, and grey in "
        "between; transparent pixels are black",
    )
    parser.add_argument("--inside", metavar="LAM", help="slider position where the mask is white, as --lam")


def read_masked(args: argparse.Namespace, spec: Any, plain: bool) -> Masked | None:
    """Read what the options name; None without them.

    Args:
        args: Of the command.
        spec: Names, ranges, ... of lambda.
        plain: Whether the network has no lambda.

    Raises:
        ValueError: One comes without the other, with --sweep or a plain network, or names nothing that can be read.
    """
    from tunable_ops import images
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.grey import PARAMETER
    from tunable_ops.restoration import mask_of

    if args.mask is None and args.inside is None:
        return None
    for given, missing in (("mask", "inside"), ("inside", "mask")):
        if getattr(args, missing) is None:
            raise ValueError(f"--{given} must come with --{missing}; got {str(getattr(args, given))!r} alone")
    for wrong, what in ((args.sweep is not None, "with --sweep"), (plain, "for a plain network")):
        if wrong:
            raise ValueError(f"--mask must be left out {what}; got {str(args.mask)!r}")
    try:
        inside = lambdas.parse(args.inside, spec, warn=lambda text: warnings.warn(_of_inside(text), stacklevel=2))
    except ValueError as error:
        raise ValueError(_of_inside(str(error))) from error
    if not args.mask.is_file():
        raise ValueError(f"--mask must be an existing file; got {str(args.mask)!r}")
    try:
        picture = images.open_picture(args.mask, args.max_pixels)
        if picture.count > 1:
            raise ValueError(f"--mask must be one picture; got {picture.count} frames or pages in {str(args.mask)!r}")
        mask = mask_of(next(picture.frames()))
    except images.PictureError as error:
        raise ValueError(f"--mask must be a picture that can be read; got {str(args.mask)!r} ({error.why})") from error
    return Masked(mask, tuple(inside), not lambdas.sets(args.inside, PARAMETER, spec))


def _of_inside(text: str) -> str:
    return text.replace("--lam", "--inside")


def without_mask(sources: Iterable[Source], mask: Path, inputs: Iterable[Path]) -> tuple[list[Source], list[str]]:
    """Leave out the mask where it lies in a folder of pictures; where it is named among the inputs it stays.

    Args:
        sources: The pictures.
        mask: The file of --mask.
        inputs: What the command names.

    Returns:
        The others, and a line that says so.

    Raises:
        ValueError: Nothing is left.
    """
    sources, real = list(sources), mask.resolve()
    kept = [source for source in sources if source.path.resolve() != real]
    if len(kept) == len(sources) or real in {item.resolve() for item in inputs}:
        return sources, []
    if not kept:
        raise ValueError(f"images: path must be a folder with pictures; got one that holds the mask {str(mask)!r} only")
    return kept, [f"{mask}: ignored, for it is the mask"]
