"""What repeats a picture without the page: a command line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunable_ops.app.pictures import Given, kind_of
from tunable_ops.app.settings import Settings
from tunable_ops.positions import numbers

if TYPE_CHECKING:
    from tunable_ops.app.engine import Engine
    from tunable_ops.app.networks import Choice

__all__ = ["line", "mask_name", "short_name"]


def short_name(engine: Engine, values: Sequence[float], inside: Sequence[float] = ()) -> str:
    """Return the part of a file's name that says how it was made, as `tunable-ops apply` writes it.

    `inside` where there is a mask.
    """
    if engine.spec is None:
        return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in engine.title)
    return f"lam{numbers([tuple(values)])[0]}" + (f"_mask{numbers([tuple(inside)])[0]}" if inside else "")


def mask_name(given: Given) -> str:
    """Return the name of the file that the mask of a picture is saved as."""
    return f"{given.path.stem}_mask.png"


def line(
    given: Given, engine: Engine, choice: Choice, values: Sequence[float], wanted: str, inside: Sequence[float] = ()
) -> str:
    """Return the command line that writes the same file; `inside`, where there is a mask."""
    words = ["tunable-ops", "apply", given.shown, "--model", choice.model]
    for knob in choice.knobs:
        words += ["--knob", knob]
    if engine.spec is not None:
        words += ["--lam", _named(engine.spec.names, values)]
        if inside:
            words += ["--mask", mask_name(given), "--inside", _named(engine.spec.names, inside)]
    if given.noise:
        words += ["--noise", f"{given.noise:g}"]
    tiles, usual = engine.settings, Settings()  # which are those of the command, too
    if tiles.tile != usual.tile:
        words += ["--tile", str(tiles.tile)]
    if tiles.tile and tiles.overlap != usual.overlap:
        words += ["--overlap", str(tiles.overlap)]
    scaled = (engine.scale * given.size[0], engine.scale * given.size[1])
    words += ["--format", kind_of(given, wanted, scaled), "--out", "restored"]
    return " ".join(map(shlex.quote, words))


def _named(names: Sequence[str], values: Sequence[float]) -> str:
    pairs = zip(names, values, strict=True)
    return ",".join(f"{name}={value + 0.0:.12g}" for name, value in pairs)
