"""Tunable networks that ship with the package, by name.

net = pretrained.load("denoise")
y = net(x, {"sigma": 25, "texture": 0.5})    # x: noisy pictures [B, 3, H, W] in [0, 1]; 25: how noisy, of 255

Each is a published network, in full precision, with knob files (`tunable_ops.load_knob`): with the knobs at 0 they
give what that network gives, bit for bit. The notes of a knob describe how and on what it was trained (`tunable-ops
info NAME`); LICENSES.txt in this folder has the notices of the published networks.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tunable_ops import models
from tunable_ops.knob_files import fingerprint, load_knob, read_knob_metadata
from tunable_ops.knob_files import load_base as _load_base
from tunable_ops.modules import TunableModel, convert
from tunable_ops.nearest import hint
from tunable_ops.pretrained.table import BASES, NETWORKS, Base, Network
from tunable_ops.serialization import FORMAT, KNOB_FORMAT, fill, read_weights
from tunable_ops.serialization import load as _load

__all__ = [
    "BASES",
    "FOLDER_FILES",
    "NETWORKS",
    "PURPOSES",
    "Base",
    "Found",
    "Network",
    "find",
    "folder_file",
    "knob_file",
    "load",
    "load_base",
    "names",
    "replaced",
    "shipped_base",
    "weights_file",
]

_FOLDER = Path(__file__).parent

PURPOSES = {name: network.purpose for name, network in NETWORKS.items()}
"""What each network is for, unless its notes say it (`purpose`)."""


FOLDER_FILES = {FORMAT: "model.safetensors", KNOB_FORMAT: "knob.safetensors"}
"""The file of tensors in a folder that `save_pretrained` wrote, by what it is."""
_TENSORS = tuple(FOLDER_FILES.values())


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
    """Find a network, given as a file, the name of a shipped network or of a base, or a folder of `save_pretrained`.

    A folder that holds a knob is that knob on its base, which must ship. The name of a shipped network or of a base
    comes before a folder of that name, with a warning.

    Raises:
        FileNotFoundError: It is none of these; the message lists the names.
        ValueError: A folder as for `folder_file`, or one of a knob whose base does not ship.
    """
    path, name = Path(model), str(model)
    if path.is_file():
        return Found(path.stem, path)
    if path.is_dir() and (name in NETWORKS or name in BASES) and any((path / file).is_file() for file in _TENSORS):
        warnings.warn(
            f"pretrained: {name!r} is the network that ships, not the folder of that name: write './{name}' for that",
            stacklevel=2,
        )
    if name in NETWORKS:
        base = NETWORKS[name].base
        knobs = tuple(_FOLDER / f"{name}.{knob}.safetensors" for knob in NETWORKS[name].knobs)
        return Found(name, _FOLDER / f"{base}.safetensors", knobs, base)
    if name in BASES:
        return Found(name, _FOLDER / f"{name}.safetensors", (), name)
    if path.is_dir():
        return _in_folder(path)
    raise FileNotFoundError(
        f"pretrained: model must be an existing file or folder, or one of {', '.join(names())}, or one of the bases "
        f"{', '.join(BASES)}; got {name!r}{hint(name, [*NETWORKS, *BASES])}"
    )


def folder_file(folder: str | os.PathLike[str]) -> Path:
    """Return the file of tensors in a folder that `save_pretrained` wrote: of a network, or of a knob.

    Of both, that which config.json names.

    Raises:
        ValueError: There is neither.
    """
    files = [path for name in FOLDER_FILES.values() if (path := Path(folder, name)).is_file()]
    if len(files) > 1:
        try:
            named = json.loads(Path(folder, "config.json").read_bytes())["format"]
            files = [path for path in files if path.name == FOLDER_FILES[named]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # the network
    if not files:
        found = ", ".join(sorted(path.name for path in Path(folder).iterdir())[:5]) or "nothing"
        wanted = " or ".join(FOLDER_FILES.values())
        raise ValueError(
            f"pretrained: a folder must be one that save_pretrained wrote, with {wanted}; got {str(folder)!r} with "
            f"{found}"
        )
    return files[0]


def knob_file(knob: str | os.PathLike[str]) -> Path:
    """Return the file of a knob, given as that or as a folder that `KnobFile.save_pretrained` wrote.

    Raises:
        ValueError: The folder holds no knob.
    """
    if not os.path.isdir(knob):
        return Path(knob)
    file = folder_file(knob)
    if file.name != FOLDER_FILES[KNOB_FORMAT]:
        raise ValueError(f"pretrained: the folder of a knob must hold one; got the network {str(file)!r}: use --model")
    return file


def shipped_base(knob: str | os.PathLike[str]) -> str | None:
    """Return the name in `BASES` of the network that a knob file was made for, None where it does not ship."""
    wanted = read_knob_metadata(knob)
    for name, base in BASES.items():
        if base.architecture == wanted["architecture"]:
            plain = _load_base(_FOLDER / f"{name}.safetensors", knob)
            if fingerprint(plain) == wanted["base"]:
                return name
    return None


def _in_folder(folder: Path) -> Found:
    file, name = folder_file(folder), folder.resolve().name
    if file.name == FOLDER_FILES[FORMAT]:
        return Found(name, file)
    base = shipped_base(file)
    if base is None:
        raise ValueError(
            f"pretrained: model must be a network, or the folder of a knob whose base ships; got {str(folder)!r}, "
            f"whose base does not: name the base (--model BASE) and the folder as its knob (--knob {folder})"
        )
    return Found(name, _FOLDER / f"{base}.safetensors", (file,), base)


def load(
    model: str | os.PathLike[str], knobs: Sequence[str | os.PathLike[str]] = (), network: nn.Module | None = None
) -> TunableModel:
    """Load a tunable network in float32, in evaluation mode, on the CPU.

    Args:
        model: Name of a shipped network (see `names`), a checkpoint file, or a folder that `save_pretrained` wrote;
            with knobs also the name of a base (`BASES`), or a file of published weights that the first knob says how to
            read.
        knobs: Knob files, or folders of them, trained on that network (`tunable_ops.load_knob`): they are added to
            those that it ships with.
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
    files = [*found.knobs, *map(knob_file, knobs)]
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
        raise ValueError(f"pretrained: name must be one of {', '.join(known)}; got {name!r}{hint(name, known)}")
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
