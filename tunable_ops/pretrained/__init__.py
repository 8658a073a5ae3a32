"""Tunable networks that ship with the package, by name.

net = pretrained.load("denoise")
y = net(x, {"sigma": 25})          # x: noisy pictures [B, 3, H, W] in [0, 1]; 25: how noisy they are, of 255

Each is a half-precision checkpoint of `tunable_ops.serialization` in this folder; its notes describe how and on what it
was trained (`tunable-ops info NAME`).
"""

from __future__ import annotations

import os
from pathlib import Path

from tunable_ops.modules import TunableModel
from tunable_ops.serialization import load as _load

__all__ = ["find", "load", "names"]

_FOLDER = Path(__file__).parent


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


def load(model: str | os.PathLike[str]) -> TunableModel:
    """Load a tunable network in float32, in evaluation mode, on the CPU.

    Args:
        model: Name of a shipped network (see `names`), or a checkpoint file.

    Raises:
        FileNotFoundError: As for `find`.
        ValueError: As for `tunable_ops.serialization.load`.

    Example:
        >>> load("denoise").spec.names
        ('sigma',)
    """
    return _load(find(model)).float()
