"""Tunable networks that ship with the package, by name.

net = pretrained.load("denoise")
y = net(x, {"sigma": 25})          # x: noisy pictures [B, 3, H, W] in [0, 1]; 25: how noisy they are, of 255

Each is a half-precision checkpoint of `tunable_ops.serialization` in this folder; its notes describe how and on what it
was trained (`tunable-ops info NAME`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tunable_ops.knob_files import load_base, load_knob
from tunable_ops.modules import TunableModel
from tunable_ops.serialization import load as _load

__all__ = ["PURPOSES", "find", "load", "names"]

_FOLDER = Path(__file__).parent

PURPOSES = {
    "denoise": "removes white noise of a known strength from photographs; grey ones too",
    "denoise_deblur": "removes white noise and Gaussian blur of known strengths from photographs",
    "super_resolution_x2": "doubles the size of photographs: from the smallest error to the sharpest look",
}
"""What each network is for, unless its notes say it (`purpose`)."""


def names() -> list[str]:
    """Return the names of the shipped networks in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def find(model: str | os.PathLike[str]) -> Path:
    """Return the file of a network, given as an existing path or as the name of a shipped network.

    Raises:
        FileNotFoundError: It is neither; the message lists the names.
    """
    path = Path(model)
    if path.is_file():
        return path
    if str(model) not in names():
        if path.exists():
            return path  # a folder: `load` reports it
        raise FileNotFoundError(
            f"pretrained: model must be an existing file or one of {', '.join(names())}; got {str(model)!r}"
        )
    return _FOLDER / f"{model}.safetensors"


def load(model: str | os.PathLike[str], knobs: Sequence[str | os.PathLike[str]] = ()) -> TunableModel:
    """Load a tunable network in float32, in evaluation mode, on the CPU.

    Args:
        model: Name of a shipped network (see `names`), or a checkpoint file; with knobs also a file of published
            weights that the first knob says how to read.
        knobs: Knob files to add, trained on that network (`tunable_ops.load_knob`).

    Raises:
        FileNotFoundError: As for `find`, or a knob does not exist.
        ValueError: As for `tunable_ops.serialization.load`; with knobs as for `tunable_ops.knob_files.load_base` and
            `tunable_ops.load_knob`.

    Example:
        >>> load("denoise").spec.names
        ('sigma',)
    """
    if knobs:
        return load_knob(load_base(find(model), knobs[0]).float(), knobs)
    return _load(find(model)).float()
