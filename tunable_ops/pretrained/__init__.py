"""Tunable networks that ship with the package, by name.

net = pretrained.load("denoise")
y = net(x, [0.5])                  # x: noisy pictures [B, 3, H, W] in [0, 1]; 0.5 of the strongest noise, sigma 50

Each is a file of `tunable_ops.serialization` in this folder, in half precision; its notes say what it was trained on
and how (`tunable-ops info NAME`).
"""

from __future__ import annotations

import os
from pathlib import Path

from tunable_ops.modules import TunableModel
from tunable_ops.serialization import load as _load

__all__ = ["find", "load", "names"]

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The networks that ship, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def find(model: str | os.PathLike[str]) -> Path:
    """The file of a network: a path that exists, or the name of one that ships.

    Raises:
        FileNotFoundError: Neither; the message lists the names.
    """
    path = Path(model)
    if path.is_file():
        return path
    if str(model) not in names():
        if path.exists():
            return path  # a folder: `load` says so
        raise FileNotFoundError(
            f"pretrained: model must be an existing file or one of {', '.join(names())}; got {str(model)!r}"
        )
    return _FOLDER / f"{model}.safetensors"


def load(model: str | os.PathLike[str]) -> TunableModel:
    """A tunable network in float32, in evaluation mode, on the CPU.

    Args:
        model: a name (`names`), or a checkpoint's file.

    Raises:
        FileNotFoundError: As `find`.
        ValueError: As `tunable_ops.serialization.load`.

    Example:
        >>> load("denoise").spec.names
        ('denoise',)
    """
    return _load(find(model)).float()
