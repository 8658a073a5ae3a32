"""The option `--network`: how to build a network that is none of this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["add_network", "build_network", "metadata_of"]


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="package.module:Class of a network that is none of this package, which is imported and built with the "
        "arguments that the file names (name only what you trust); or, for a checkpoint of a network of spandrel, the "
        "file of its published weights",
    )


def build_network(name: str | None, model: str, knobs: Sequence[str | Path] = ()) -> nn.Module | None:
    """Return the plain network of `--network`, whose weights do not matter; None where it is not given.

    A file never decides what is imported: only the option does.

    Args:
        name: The option.
        model: File of the network, or of its base.
        knobs: Files of the knobs on it.

    Raises:
        FileNotFoundError, ValueError, RuntimeError, TypeError: As `models.build_imported`, `models.zoo.load` and
            `pretrained.find`; or `model` is a network that ships.
    """
    if name is None:
        return None
    from tunable_ops import models
    from tunable_ops.models import zoo
    from tunable_ops.pretrained import find

    found = find(model)
    if found.base is not None:
        raise ValueError(f"--network must be left out for a network that ships; got {name!r} for {model!r}")
    if Path(name).is_file():
        return zoo.load(name).network
    if ":" not in name:
        raise ValueError(f"--network must be package.module:Class or an existing file; got {name!r}")
    return models.build_imported(name, **(metadata_of(found.file, knobs).get("arguments") or {}))


def metadata_of(file: Path, knobs: Sequence[str | Path]) -> dict[str, Any]:
    """Return architecture and arguments of a network; of published weights, what the first knob on them says."""
    from tunable_ops.knob_files import read_knob_metadata
    from tunable_ops.models import zoo
    from tunable_ops.pretrained import knob_file
    from tunable_ops.serialization import read_metadata, read_weights

    if knobs:
        about = read_knob_metadata(knob_file(knobs[0]))
        if about["architecture"] == zoo.ARCHITECTURE or not read_weights(file)[1]:
            return about
    return read_metadata(file)
