"""Tunable networks that ship with the package, by name.

net = pretrained.load("denoise")
y = net(x, {"sigma": 25, "texture": 0.5})    # x: noisy pictures [B, 3, H, W] in [0, 1]; 25: how noisy, of 255

Each is a published network, in full precision, with knob files (`tunable_ops.load_knob`): with the knobs at 0 they
give what that network gives, bit for bit. The notes of a knob describe how and on what it was trained (`tunable-ops
info NAME`); LICENSES.txt in this folder has the notices of the published networks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tunable_ops import models
from tunable_ops.knob_files import load_base as _load_base
from tunable_ops.knob_files import load_knob, read_knob_metadata
from tunable_ops.modules import TunableModel, convert
from tunable_ops.pretrained.table import BASES, NETWORKS, Base, Network
from tunable_ops.serialization import fill, read_weights
from tunable_ops.serialization import load as _load

__all__ = [
    "BASES",
    "NETWORKS",
    "PURPOSES",
    "Base",
    "Found",
    "Network",
    "find",
    "load",
    "load_base",
    "names",
    "replaced",
    "weights_file",
]

_FOLDER = Path(__file__).parent

PURPOSES = {name: network.purpose for name, network in NETWORKS.items()}
"""What each network is for, unless its notes say it (`purpose`)."""


class Found(NamedTuple):
    """Where a network is.

    Args:
        name: What it is called: that of a network that ships or of a base, or of a file without its extension.
        file: The checkpoint, or the weights of the base.
        knobs: The files of the knobs that belong to it.
        base: Name in `BASES` of its base, for a network that ships and for the base itself.
    """

    name: str
    file: Path
    knobs: tuple[Path, ...] = ()
    base: str | None = None

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(path.stat().st_size for path in (self.file, *self.knobs))


def names() -> list[str]:
    """Return the names of the shipped networks in alphabetical order."""
    return sorted(NETWORKS)


def find(model: str | os.PathLike[str]) -> Found:
    """Find a network, given as an existing path, or as the name of a shipped network or of a base.

    Raises:
        FileNotFoundError: It is none of these; the message lists the names.
    """
    path, name = Path(model), str(model)
    if path.is_file():
        return Found(path.stem, path)
    if name in NETWORKS:
        base = NETWORKS[name].base
        knobs = tuple(_FOLDER / f"{name}.{knob}.safetensors" for knob in NETWORKS[name].knobs)
        return Found(name, _FOLDER / f"{base}.safetensors", knobs, base)
    if name in BASES:
        return Found(name, _FOLDER / f"{name}.safetensors", (), name)
    if path.exists():
        return Found(path.name, path)  # a folder: `load` reports it
    raise FileNotFoundError(
        f"pretrained: model must be an existing file or one of {', '.join(names())}, or one of the bases "
        f"{', '.join(BASES)}; got {name!r}"
    )


def load(
    model: str | os.PathLike[str], knobs: Sequence[str | os.PathLike[str]] = (), network: nn.Module | None = None
) -> TunableModel:
    """Load a tunable network in float32, in evaluation mode, on the CPU.

    Args:
        model: Name of a shipped network (see `names`), or a checkpoint file; with knobs also the name of a base
            (`BASES`), or a file of published weights that the first knob says how to read.
        knobs: Knob files to add, trained on that network (`tunable_ops.load_knob`), to those that it ships with.
        network: For files only: the plain network with any weights, where its architecture is not in
            `models.ARCHITECTURES`.

    Raises:
        FileNotFoundError: As for `find`, or a knob does not exist.
        ValueError: A base without knobs; as for `tunable_ops.serialization.load`; with knobs as for
            `tunable_ops.knob_files.load_base` and `tunable_ops.load_knob`.

    Example:
        >>> load("denoise").spec.names
        ('sigma', 'texture')
    """
    found = find(model)
    files = [*found.knobs, *knobs]
    if not files and found.base is not None and not BASES[found.base].spec:
        raise ValueError(
            f"pretrained: model must be a tunable network; got the base {found.name!r}, which has no knob: name the "
            "knob files (--knob), or read it plain with pretrained.load_base"
        )
    if not files and found.base is None:
        return _load(found.file, network).float()
    if files:
        net = load_knob(_plain(found, files[0], network).float(), files)
    else:
        spec: dict[str, Any] = dict(BASES[str(found.base)].spec)
        net = convert(load_base(str(found.base)), len(spec["names"]), domain="box", **spec)
        base = BASES[str(found.base)]
        net.built_as = {"architecture": base.architecture, "arguments": dict(base.arguments)}
    if found.base is not None and BASES[found.base].grey_noise is not None:
        net.notes["grey_noise"] = BASES[found.base].grey_noise
    return net


def _plain(found: Found, knob: str | os.PathLike[str], network: nn.Module | None) -> nn.Module:
    """Return the network that a knob is for; a base with the arguments that the knob wants, such as a skip."""
    if found.base is None:
        return _load_base(found.file, knob, network)
    fits = read_knob_metadata(knob)["architecture"] == BASES[found.base].architecture
    return _load_base(found.file, knob) if fits else load_base(found.base)


def load_base(name: str) -> nn.Module:
    """Load the published network of a shipped one, plain, in float32, in evaluation mode, on the CPU.

    Args:
        name: Of a base (`BASES`), or of a shipped network.

    Raises:
        ValueError: It is neither.

    Example:
        >>> type(load_base("super_resolution_x2")).__name__
        'CARN'
    """
    known = {**{each: each for each in BASES}, **{each: network.base for each, network in NETWORKS.items()}}
    if name not in known:
        raise ValueError(f"pretrained: name must be one of {', '.join(known)}; got {name!r}")
    base = known[name]
    file = _FOLDER / f"{base}.safetensors"
    network = models.build(BASES[base].architecture, **BASES[base].arguments)
    fill(file, network, read_weights(file)[0])
    return network.eval()


def weights_file(name: str | os.PathLike[str]) -> Path:
    """Return the file of weights to start from: the one of a base (`BASES`), else the path itself."""
    path = Path(name)
    return _FOLDER / f"{name}.safetensors" if str(name) in BASES and not path.exists() else path


def replaced(model: str | os.PathLike[str]) -> dict[str, str]:
    """Return the names that the parameters of a shipped network had before, with what they are now."""
    network = None if Path(model).is_file() else NETWORKS.get(str(model))
    return {} if network is None else dict(network.replaced)
