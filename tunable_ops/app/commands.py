"""What repeats a picture without the page: a command line, or a short program."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunable_ops.app.pictures import Given, kind_of
from tunable_ops.positions import numbers

if TYPE_CHECKING:
    from tunable_ops.app.engine import Engine
    from tunable_ops.app.networks import Choice

__all__ = ["line", "program", "short_name"]


def short_name(engine: Engine, values: Sequence[float]) -> str:
    """Return the part of a file's name that says how it was made, as `tunable-ops apply` writes it."""
    if engine.spec is None:
        return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in engine.title)
    return f"lam{numbers([tuple(values)])[0]}"


def line(given: Given, engine: Engine, choice: Choice, values: Sequence[float], wanted: str) -> str:
    """Return the command line that writes the same file."""
    words = ["tunable-ops", "apply", given.shown, "--model", choice.model]
    for knob in choice.knobs:
        words += ["--knob", knob]
    if engine.spec is not None:
        pairs = zip(engine.spec.names, values, strict=True)
        words += ["--lam", ",".join(f"{name}={value + 0.0:.12g}" for name, value in pairs)]
    if given.noise:
        words += ["--noise", f"{given.noise:g}"]
    scaled = (engine.scale * given.size[0], engine.scale * given.size[1])
    words += ["--format", kind_of(given, wanted, scaled), "--out", "restored"]
    return " ".join(map(shlex.quote, words))


def program(given: Given, choice: Choice, values: Sequence[float], inside: Sequence[float]) -> str:
    """Return the program that makes the same of a picture with a mask (white: `inside`)."""
    knobs = f", {list(choice.knobs)!r}" if choice.knobs else ""
    size = f"{given.size[1]}x{given.size[0]}"
    return "\n".join(
        [
            "import torch",
            "from tunable_ops import images, pretrained",
            "",
            f"net = pretrained.load({choice.model!r}{knobs})",
            f"picture = images.read_image({given.shown!r})[None]",
            f'mask = images.read_image("mask.png")[None, :1]  # {size}, white where the second values hold',
            f"outside, inside = torch.tensor({_numbers(values)}), torch.tensor({_numbers(inside)})",
            "lam = outside.view(1, -1, 1, 1) + mask * (inside - outside).view(1, -1, 1, 1)",
            "with torch.inference_mode():",
            '    images.write_image(net(picture, lam)[0], "restored.png")',
            *([f"# before that, noise of {given.noise:g} of 255 was added to the picture"] if given.noise else []),
        ]
    )


def _numbers(values: Sequence[Any]) -> str:
    return "[" + ", ".join(repr(float(value)) for value in values) + "]"
