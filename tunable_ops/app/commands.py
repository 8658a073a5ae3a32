"""What repeats a picture without the page: a command line, or a short program."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunable_ops.app.pictures import Given, kind_of
from tunable_ops.app.settings import Settings
from tunable_ops.positions import numbers
from tunable_ops.restoration import MULTIPLE

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
    tiles, usual = engine.settings, Settings()  # which are those of the command, too
    if tiles.tile != usual.tile:
        words += ["--tile", str(tiles.tile)]
    if tiles.tile and tiles.overlap != usual.overlap:
        words += ["--overlap", str(tiles.overlap)]
    scaled = (engine.scale * given.size[0], engine.scale * given.size[1])
    words += ["--format", kind_of(given, wanted, scaled), "--out", "restored"]
    return " ".join(map(shlex.quote, words))


def program(given: Given, engine: Engine, choice: Choice, values: Sequence[float], inside: Sequence[float]) -> str:
    """Return the program that makes the same of a picture with a mask (white: `inside`)."""
    knobs = f", {list(choice.knobs)!r}" if choice.knobs else ""
    size = f"{given.size[1]}x{given.size[0]}"
    lambdas = [_numbers(each) for each in (values, inside)]
    if given.grey:
        lambdas = [f"grey.stronger(net, {each})" for each in lambdas]
    tile, overlap = engine.settings.tile, engine.settings.overlap
    output = f"tiles.apply_tiled(restore, whole, {tile}, {overlap}, {MULTIPLE})" if tile else "restore(whole)"
    return "\n".join(
        [
            "import torch",
            f"from tunable_ops import {'grey, ' * given.grey}images, pretrained{', tiles' * bool(tile)}",
            "",
            f"net = pretrained.load({choice.model!r}{knobs})",
            f"picture = images.read_image({given.shown!r})[None{', :1' * given.grey}]",
            *_noise(given),
            f'mask = images.read_image("mask.png")[None, :1]  # {size}, white where the second values hold',
            f"outside, inside = (torch.tensor(lam).view(1, -1, 1, 1) for lam in ({lambdas[0]}, {lambdas[1]}))",
            "",
            "def restore(x):  # the picture, and the mask as its last channel",
            "    lam = outside + x[:, -1:] * (inside - outside)",
            f"    return {_call(given, engine)}",
            "",
            "with torch.inference_mode():",
            "    whole = torch.cat([picture, mask], 1)",
            f'    images.write_image({output}[0], "restored.png")',
        ]
    )


def _noise(given: Given) -> list[str]:
    """Return the lines that add the noise."""
    if not given.noise:
        return []
    return [
        "generator = torch.Generator().manual_seed(0)",
        f"picture += {given.noise:g} / 255 * torch.randn(picture.shape[1:], generator=generator)",
    ]


def _call(given: Given, engine: Engine) -> str:
    """Return the call of the network: on grey pictures, or on each colour channel where it takes but one."""
    if given.grey:
        return f"grey.on_grey(lambda y: net(y, lam), {engine.channels})(x[:, :-1])"
    if engine.channels == 1:
        return "net(x[:, :-1].transpose(0, 1), lam.expand(3, -1, -1, -1)).transpose(0, 1)"
    return "net(x[:, :-1], lam)"


def _numbers(values: Sequence[Any]) -> str:
    return "[" + ", ".join(repr(float(value)) for value in values) + "]"
