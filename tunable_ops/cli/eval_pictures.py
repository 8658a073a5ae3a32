"""Pictures of `tunable-ops eval`: clean ones of a folder, each with its degraded one, computed or read."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tunable_ops.cli.progress import printable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Clean", "clean_pictures", "pairs_of", "skip"]


class Clean(NamedTuple):
    """A clean picture, [3, H, W], and what it is called."""

    name: str
    path: Path
    picture: Tensor


def skip(path: str, error: Exception) -> None:
    """Say on stderr why a picture is left out."""
    from tunable_ops.cli import one_line

    print(f"tunable-ops eval: skipped {printable(path)}: {one_line(error)}", file=sys.stderr)


def clean_pictures(folder: Path) -> tuple[list[Clean], int]:
    """Read the clean pictures of a set; return them and the number of those that could not be read.

    Raises:
        ValueError: The folder is missing, or holds no readable picture.
    """
    from tunable_ops.images import read_image, search
    from tunable_ops.train.data import held_out

    if str(folder) == "skimage":
        return [Clean(name, Path(name), picture) for name, picture in held_out("skimage")], 0
    found = search(folder)
    if found.ignored:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(found.ignored.items()))
        print(f"tunable-ops eval: {printable(folder)}: ignored {printable(kinds)}", file=sys.stderr)
    stems = Counter(path.stem for path in found.paths)
    pictures = []
    for path in found.paths:
        try:
            picture = read_image(path)
        except ValueError as error:
            skip(str(path), error)
            continue
        pictures.append(Clean(path.stem if stems[path.stem] == 1 else path.name, path, picture))
    if not pictures:
        raise ValueError(f"eval: pictures must hold a readable one; got {str(folder)!r}, all of it unreadable")
    return pictures, len(found.paths) - len(pictures)


def pairs_of(
    args: argparse.Namespace, pictures: Sequence[Clean], scale: int
) -> tuple[list[tuple[str, Tensor, Tensor]], int, set[str]]:
    """List (name, clean, degraded) of all pictures; clean ones are cropped to a multiple of the enlargement.

    The second value is the number of pictures that were skipped; the third has the names of those that were read from
    files with fewer pixels of colour than of luma.
    """
    from tunable_ops.train.degradations import Blur, Degradation, Downsample, Noise
    from tunable_ops.train.evaluate import degraded_pictures, grey_as_grey

    multiple = max(scale, args.downsample or 1)
    cropped = []
    for clean in pictures:
        height, width = (size - size % multiple for size in clean.picture.shape[1:])
        if height == 0 or width == 0:
            skip(clean.name, ValueError(f"pictures must be at least {multiple} x {multiple} pixels"))
            continue
        cropped.append(clean._replace(picture=clean.picture[:, :height, :width]))
    skipped = len(pictures) - len(cropped)
    if args.input is not None:
        triples, bad, subsampled = _given(args.input, cropped, scale)
        return triples, skipped + bad, subsampled
    degradation = Degradation(
        blur=None if args.blur is None else Blur(sigma=(args.blur, args.blur)),
        downsample=None if args.downsample is None else Downsample(factors=[args.downsample], enlarge=scale == 1),
        noise=None if args.noise is None else Noise(sigma=(args.noise, args.noise)),
    )
    if scale > 1 and args.downsample != scale:
        raise ValueError(f"--downsample must be {scale}, the enlargement of the network; got {args.downsample}")
    named = grey_as_grey([(clean.name, clean.picture) for clean in cropped])
    return degraded_pictures(named, degradation, args.seed), skipped, set()


def _given(folder: Path, cleans: Sequence[Clean], scale: int) -> tuple[list[tuple[str, Tensor, Tensor]], int, set[str]]:
    """Pair the clean pictures with the degraded ones in a folder by name; count those that cannot be read.

    The third value is as of `pairs_of`.
    """
    from tunable_ops.grey import as_grey, is_grey
    from tunable_ops.images import find_images, open_picture

    pairs = _pairs(folder, find_images(folder), [clean.path for clean in cleans], scale)
    triples, subsampled = [], set()
    for clean, file in zip(cleans, pairs, strict=True):
        try:
            frame = next(open_picture(file).frames())
        except ValueError as error:
            skip(str(file), error)
            continue
        picture, degraded = clean.picture, frame.rgb()
        if is_grey(picture) and is_grey(degraded):
            picture, degraded = as_grey(picture), as_grey(degraded)
        if tuple(scale * size for size in degraded.shape[1:]) != tuple(clean.picture.shape[1:]):
            raise ValueError(
                f"--input must have pictures of 1/{scale} the clean ones' size; got {list(degraded.shape[1:])} for "
                f"{list(clean.picture.shape[1:])} in {str(file)!r}"
            )
        triples.append((clean.name, picture, degraded))
        if frame.subsampled:
            subsampled.add(clean.name)
    if not triples:
        raise ValueError(f"--input must have readable pictures; got none in {str(folder)!r}")
    return triples, len(cleans) - len(triples), subsampled


def _pairs(folder: Path, files: Sequence[Path], cleans: Sequence[Path], scale: int) -> list[Path]:
    """Return the degraded picture of each clean one: the one of the same name, or of the same name but its extension.

    Raises:
        ValueError: There is none, several could be meant, or one is meant twice.
    """
    by_name = {file.name: file for file in files}
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    pairs: dict[Path, Path] = {}
    for clean in cleans:
        candidates = by_stem.get(clean.stem, []) + by_stem.get(f"{clean.stem}x{scale}", [])
        if clean.name in by_name:
            candidates = [by_name[clean.name]]
        if not candidates:
            raise ValueError(
                f"--input must have a picture for each clean one; got none for {clean.stem!r} in {str(folder)!r}"
            )
        if len(candidates) > 1:
            listed = ", ".join(repr(file.name) for file in candidates)
            raise ValueError(f"--input must have one picture for each clean one; got {listed} for {clean.name!r}")
        (file,) = candidates
        other = next((first for first, taken in pairs.items() if taken == file), None)
        if other is not None:
            raise ValueError(
                "--input must have a picture of its own for each clean one; "
                f"got {file.name!r} for {other.name!r} and {clean.name!r}"
            )
        pairs[clean] = file
    return list(pairs.values())
