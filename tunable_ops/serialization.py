"""Checkpoints: a safetensors file whose metadata says how to rebuild the network around the tensors.

Nothing here unpickles: a file can hold numbers and JSON only, so a checkpoint from a stranger cannot run code. Files
appear under their name only when they are complete (written aside, then renamed), so a run that is killed while it
writes leaves the previous file whole.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops import control, models
from tunable_ops.modules import LambdaSpec, TunableModel, convert

__all__ = [
    "FORMAT",
    "VERSION",
    "fill",
    "load",
    "load_folded",
    "read_file",
    "read_metadata",
    "read_weights",
    "remove_leftovers",
    "save",
    "write_file",
]

FORMAT = "tunable_ops.model"
VERSION = 1
_MAX_HEADER = 100_000_000  # the bound of the safetensors format itself


def save(
    net: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a tunable (or plain) network with all that is needed to rebuild it.

    Args:
        net: a `TunableModel`, or a plain network, for instance what `fold` returns.
        path: The file, by convention ``*.safetensors``; its folder is made if missing, an old file is replaced at once.
        architecture: a name in `models.ARCHITECTURES`, or any name of your own; loading the latter needs ``network=``.
        arguments: Arguments of the architecture; JSON values.
        notes: Anything else worth keeping, such as the training data or scores; JSON values. Returned by `load` as
            ``net.notes``; default those that the network already has.

    Raises:
        TypeError: If net is not a module, or arguments or notes are not JSON.
        ValueError: If net is a TunableModel made by hand; `load` could not rebuild it.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"checkpoint: net must be a module; got {type(net).__name__}")
    tunable = isinstance(net, TunableModel)
    metadata = {
        "architecture": architecture,
        "arguments": dict(arguments),
        "conversion": _conversion(net) if isinstance(net, TunableModel) else None,
        "spec": net.spec.to_dict() if isinstance(net, TunableModel) else None,
        "notes": dict(getattr(net, "notes", {}) if notes is None else notes),
    }
    # through the TunableModel, which puts split stacks together again
    tensors = {name.removeprefix("network.") if tunable else name: value for name, value in net.state_dict().items()}
    write_file(path, tensors, metadata, kind=FORMAT, version=VERSION)


def _conversion(net: TunableModel) -> dict[str, Any]:
    if net.conversion is None:
        raise ValueError(
            "checkpoint: net must come from convert or control.attach; got a TunableModel around a network by hand: "
            "save its state_dict"
        )
    return dict(net.conversion)


def load(path: str | os.PathLike[str], network: nn.Module | None = None) -> TunableModel:
    """Rebuild the tunable network of a checkpoint, in evaluation mode on the CPU, in the dtype of the file's tensors.

    Args:
        path: a file that `save` wrote.
        network: The plain network of which the checkpoint holds the conversion; needed where the architecture is not
            one of `models.ARCHITECTURES`. It is copied, not changed.

    Returns:
        The `TunableModel`; its ``notes`` are those given to `save`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint of this library and version, is cut short, holds a plain network (see
            `load_folded`), or does not fit the architecture.
    """
    tensors, metadata = read_file(path, kind=FORMAT, version=VERSION)
    if metadata.get("conversion") is None:
        raise ValueError(
            f"checkpoint: path must hold a tunable network; got {str(path)!r}, a plain one: "
            "use serialization.load_folded"
        )
    arguments = dict(metadata["conversion"])
    plain = _plain(path, metadata, tensors, network)
    method = arguments.pop("control", None)
    net = convert(plain, **arguments) if method is None else control.attach(plain, method, **arguments)
    fill(path, net.network, tensors)
    net.spec = LambdaSpec.from_dict(metadata["spec"])
    net.notes = dict(metadata.get("notes", {}))
    return net.eval()


def load_folded(path: str | os.PathLike[str], network: nn.Module | None = None) -> nn.Module:
    """Rebuild the plain network of a checkpoint, in evaluation mode on the CPU; arguments and errors as for `load`."""
    tensors, metadata = read_file(path, kind=FORMAT, version=VERSION)
    if metadata.get("conversion") is not None:
        raise ValueError(
            f"checkpoint: path must hold a plain network; got {str(path)!r}, a tunable one: use serialization.load"
        )
    plain = _plain(path, metadata, tensors, network)
    fill(path, plain, tensors)
    return plain.eval()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a checkpoint says about itself, without its tensors.

    Returns:
        dict with ``format``, ``version``, ``architecture``, ``arguments``, ``conversion`` and ``spec`` (both None for
        a plain network), ``notes``.

    Raises:
        FileNotFoundError, ValueError: As for `load`.
    """
    return _open(path, FORMAT, VERSION, tensors=False)[1]


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, kind: str, version: int
) -> None:
    """Write tensors and JSON metadata as one safetensors file, all or nothing.

    Args:
        path: The file; the new one replaces the old one in a single step.
        tensors: Name to tensor, on any device; shared memory is written once per name.
        metadata: JSON values.
        kind: What the file is, checked by `read_file`.
        version: Of the layout of tensors and metadata, checked by `read_file`.

    Raises:
        TypeError: If the metadata is not JSON.
    """
    from safetensors.torch import save as to_bytes

    path = Path(path)
    header = {"format": kind, "version": str(version)}
    for key, value in metadata.items():
        try:
            header[key] = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"checkpoint: {key} must be JSON values; got {value!r}: {error}") from None
    # clones: safetensors refuses tensors that share memory, as those of tied layers do
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # not save_file: it makes files that only their owner can read, whatever the umask
        with open(temporary, "wb") as file:
            file.write(to_bytes(plain, metadata=header))
            file.flush()
            os.fsync(file.fileno())  # else a power cut could keep the new name and lose the bytes
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes what killed processes left of writing ``path``; for files that one process alone writes."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def read_file(path: str | os.PathLike[str], *, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_file` wrote.

    Returns:
        (tensors on the CPU, metadata as given, with ``format`` and ``version`` added).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is anything else than a whole file of this kind and version.
    """
    return _open(path, kind, version, tensors=True)


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of any safetensors file, ours or not.

    Returns:
        (tensors on the CPU, metadata as `read_metadata` returns it; empty for a file that `save` did not write).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no whole safetensors file.
    """
    return _open(path, None, VERSION, tensors=True)


def _open(
    path: str | os.PathLike[str], kind: str | None, version: int, tensors: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    _refuse_other_files(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            if kind is None and header.get("format") != FORMAT:
                return {name: file.get_tensor(name).clone() for name in file.keys()}, {}  # noqa: SIM118
            if kind is not None and header.get("format") != kind:
                found = f"format {header['format']!r}" if "format" in header else "bare weights without our metadata"
                raise ValueError(f"checkpoint: path must hold {kind!r}; got {str(path)!r}: {found}")
            if header.get("version") != str(version):
                raise ValueError(
                    f"checkpoint: version must be {version}; got {header.get('version')!r} in {str(path)!r}: "
                    "read it with the release of tunable_ops that wrote it"
                )
            # clones: the file stays mapped otherwise, and replacing it later would pull the ground away
            values = {name: file.get_tensor(name).clone() for name in file.keys()} if tensors else {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint: path must be a whole file; got {str(path)!r}, cut short or damaged: {error}"
        ) from None
    metadata: dict[str, Any] = {}
    for key, text in header.items():
        try:
            metadata[key] = text if key == "format" else json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(f"checkpoint: metadata must be JSON; got {key}={text!r} in {str(path)!r}") from None
    return values, metadata


def _refuse_other_files(path: str | os.PathLike[str]) -> None:
    """Say what a file is that cannot be a safetensors file, from its first bytes and its length."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"checkpoint: path must be a file; got the folder {str(path)!r}")
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: path must exist; got {str(path)!r}")
    with open(path, "rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    header = int.from_bytes(start[:8], "little")
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    plausible = len(start) == 9 and header <= _MAX_HEADER and start[8:9] == b"{"  # a header may begin with these bytes
    if start[:4] == b"PK\x03\x04" or (pickled and not plausible):
        raise ValueError(
            f"checkpoint: path must be a safetensors file; got {str(path)!r}, a pickle as torch.save writes it: it is "
            "never opened, since unpickling can run code; if you trust it, re-save its tensors with safetensors"
        )
    if not plausible:
        raise ValueError(
            f"checkpoint: path must be a safetensors file; got {str(path)!r}, {size} bytes of something else"
        )
    if size < 8 + header:
        raise ValueError(f"checkpoint: path must be a whole file; got {str(path)!r}, cut short within its header")


def _plain(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    network: nn.Module | None,
) -> nn.Module:
    """The plain network to fill: a copy of the one that is given, or built by name; in the dtype of the tensors."""
    dtype = next((value.dtype for value in tensors.values() if value.is_floating_point()), None)
    if network is not None:
        if not isinstance(network, nn.Module) or isinstance(network, TunableModel):
            raise TypeError(f"checkpoint: network must be the plain network; got {type(network).__name__}")
        return copy.deepcopy(network).to(dtype)
    name = metadata.get("architecture")
    if name not in models.ARCHITECTURES:
        raise ValueError(
            f"checkpoint: architecture must be one of {', '.join(sorted(models.ARCHITECTURES))}; got {name!r} in "
            f"{str(path)!r}: pass network=, the plain network it was made from"
        )
    return models.build(name, **metadata.get("arguments", {})).to(dtype)


def fill(path: str | os.PathLike[str], network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the network if names and shapes agree exactly.

    Raises:
        ValueError: If they do not; the first few that are missing, unknown or of another shape are named.
    """
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} is {list(tensors[name].shape)} in the file, {list(wanted[name].shape)} in the network"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    parts = [
        f"{len(names)} {what} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
        if names
    ]
    if parts:
        raise ValueError(
            f"checkpoint: tensors must fit the architecture; got {', '.join(parts)} in {str(path)!r}: "
            "is it the checkpoint of another network?"
        )
    with torch.no_grad():
        network.load_state_dict(dict(tensors), strict=True)
