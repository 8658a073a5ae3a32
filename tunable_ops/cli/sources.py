"""The pictures that a command processes, and the names of what it writes for each."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TARS", "Source", "find_sources", "kind_of_inputs", "output_base"]

TARS = (".tar", ".tar.gz", ".tgz")
_NUMBERS = r"-?\d+\.\d{2,6}(?:--?\d+\.\d{2,6})*"
_OUTPUT = re.compile(rf"(?P<base>.+)_(?:lam{_NUMBERS}(?:_mask{_NUMBERS})?|plain|(?P<strip>sweep(?:-[\w.-]+)?))\.\w+")


@dataclass(frozen=True)
class Source:
    """A picture to process.

    Args:
        path: The file.
        folder: Folder of its outputs, relative to that of all outputs.
        name: Name that its outputs are called after: its file name, with a number where that is taken.
    """

    path: Path
    folder: Path
    name: str


def kind_of_inputs(inputs: Iterable[Path]) -> str:
    """Return what the inputs are: "pictures", "videos" or "tars"; a pattern of numbered pictures is a video.

    Raises:
        ValueError: They are of several kinds.
    """
    from tunable_ops.video import EXTENSIONS, is_pattern

    kinds: dict[str, Path] = {}
    for item in inputs:
        video = not item.is_dir() and (item.suffix.lower() in EXTENSIONS or (is_pattern(item) and not item.exists()))
        tar = not item.is_dir() and item.name.lower().endswith(TARS)
        kinds.setdefault("videos" if video else "tars" if tar else "pictures", item)
    if len(kinds) > 1:
        shown = ", ".join(repr(str(item)) for item in kinds.values())
        raise ValueError(f"inputs must be of one kind, {' or '.join(kinds)}; got {shown}: run the command for each")
    return next(iter(kinds))


def find_sources(inputs: Iterable[Path], out: Path, recursive: bool = False) -> tuple[list[Source], list[str]]:
    """List all pictures of the inputs, each once, in the given order.

    Outputs of earlier runs are left out: files named like one that lie in `out`, or whose source is found too. A file
    that is named itself is always taken.

    Args:
        inputs: Files and folders.
        out: Folder of the outputs.
        recursive: Search subfolders; the outputs get the same subfolders.

    Returns:
        The sources, and a line for each folder of which something is ignored.

    Raises:
        ValueError: An input does not exist, or a folder has no picture.
    """
    from tunable_ops.images import search

    sources: list[Source] = []
    said: list[str] = []
    seen: set[Path] = set()
    taken: set[tuple[Path, str]] = set()
    for item in inputs:
        found = search(item, recursive)
        paths = found.paths
        ignored = [f"{number} {kind}" for kind, number in sorted(found.ignored.items())]
        if item.is_dir():
            paths = _without_outputs(paths, out)
            outputs = len(found.paths) - len(paths)
            if outputs:
                ignored.append(f"{outputs} output{'s' * (outputs > 1)} of earlier runs")
            if not paths:
                raise ValueError(
                    f"images: path must be a folder with pictures; got {str(item)!r}, which holds outputs of earlier "
                    "runs only: name them one by one, or choose another --out"
                )
            if found.folders and not recursive:
                ignored.append(f"{found.folders} subfolder{'s' * (found.folders > 1)} (--recursive searches them)")
        if ignored:
            said.append(f"{item}: ignored {', '.join(ignored)}")
        for path in paths:
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            folder = path.parent.relative_to(item) if item.is_dir() else Path()
            name = _free_name(path.name, folder, taken)
            taken.add((folder, name))
            sources.append(Source(path, folder, name))
    return sources, said


def output_base(name: str, suffix: str) -> str:
    """Return what the outputs of a picture are called, before `_lam...` or `_sweep`.

    It is the name without its extension where the output has the same one, else the whole name: the outputs of a.png
    and a.jpg differ, whenever they are made.
    """
    from tunable_ops.images import EXTENSIONS

    stem, extension = os.path.splitext(name)
    ambiguous = os.path.splitext(stem)[1].lower() in EXTENSIONS  # a.jpg.png, which is not the output of a.jpg
    return stem if extension in (suffix, "") and not ambiguous else name


def _free_name(name: str, folder: Path, taken: set[tuple[Path, str]]) -> str:
    stem, extension = os.path.splitext(name)
    free, number = name, 2
    while (folder, free) in taken:
        free, number = f"{stem}-{number}{extension}", number + 1
    return free


def _without_outputs(paths: list[Path], out: Path) -> list[Path]:
    """Leave out what earlier runs wrote."""
    names = {name for path in paths for name in (path.name, path.stem)}
    matches = {path: match for path in paths if (match := _OUTPUT.fullmatch(path.name))}
    results = Counter(match["base"] for match in matches.values() if not match["strip"])
    target = out.resolve()

    def is_output(path: Path) -> bool:
        match = matches.get(path)
        if match is None:
            return False
        base = match["base"]
        source_here = bool({base, re.sub(r"-\d+(\.\w+)?$", r"\1", base)} & names)
        strip_of = bool(match["strip"]) and results[base] > 0
        return source_here or strip_of or target in (parent := path.parent.resolve(), *parent.parents)

    return [path for path in paths if not is_output(path)]
