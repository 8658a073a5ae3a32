"""Checkpoints: safetensors files whose metadata describes how to rebuild the network.

Nothing is ever unpickled: a file contains only numbers and JSON, so a checkpoint from a stranger cannot run code. Files
are written under a temporary name and then renamed, so a run that is killed while writing does not damage the previous
file.
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
from tunable_ops.modules.lambda_planes import expect_values

__all__ = [
    "FORMAT",
    "KNOB_FORMAT",
    "VERSION",
    "fill",
    "load",
    "load_folded",
    "read_file",
    "read_header",
    "read_metadata",
    "read_weights",
    "remove_leftovers",
    "save",
    "write_file",
]

FORMAT = "tunable_ops.model"
VERSION = 1
KNOB_FORMAT = "tunable_ops.knob"
# what a file of the wrong kind is, and who reads it
_KINDS = {
    FORMAT: ", a whole network: read it with serialization.load, or a plain one with serialization.load_folded",
    KNOB_FORMAT: ", a knob without its base: add it to that network with tunable_ops.load_knob(network, path), or name "
    "it after --knob, beside --model BASE",
}
_ADVICE = "read it with the release of tunable_ops that wrote it"
_MAX_HEADER = 100_000_000  # the limit of the safetensors format


def save(
    net: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a tunable (or plain) network with everything needed to rebuild it.

    Args:
        net: `TunableModel` or plain network, for instance what `fold` returns.
        path: File to write, by convention ``*.safetensors``; its folder is created if missing, an existing file is
            replaced atomically.
        architecture: Name in `models.ARCHITECTURES`, or any other name; loading the latter needs ``network=``.
        arguments: Arguments of the architecture; JSON values.
        notes: Anything else worth keeping, such as the training data or scores; JSON values. `load` returns them as
            ``net.notes``. Default: the network's current notes.

    Raises:
        TypeError: `net` is not a module, or `arguments` or `notes` are not JSON.
        ValueError: `net` is a TunableModel that was constructed directly, which `load` cannot rebuild.
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
    # the TunableModel's own state dict joins split stacks again
    tensors = {name.removeprefix("network.") if tunable else name: value for name, value in net.state_dict().items()}
    write_file(path, tensors, metadata, kind=FORMAT, version=VERSION)


def _conversion(net: TunableModel) -> dict[str, Any]:
    if net.conversion is None:
        raise ValueError(
            "checkpoint: net must come from convert or control.attach; got a TunableModel that was constructed "
            "directly: save its state_dict"
        )
    return dict(net.conversion)


def load(path: str | os.PathLike[str], network: nn.Module | None = None) -> TunableModel:
    """Rebuild the tunable network of a checkpoint, in evaluation mode on the CPU, in the dtype of the file's tensors.

    Args:
        path: File written by `save`.
        network: The plain network that was converted; needed if the architecture is not in `models.ARCHITECTURES`. It
            is copied, not changed.

    Returns:
        The `TunableModel`; its ``notes`` are those passed to `save`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a checkpoint of this library and version, is truncated, contains a plain network
            (see `load_folded`), or does not match the architecture.
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
    net.built_as = {"architecture": metadata["architecture"], "arguments": dict(metadata.get("arguments") or {})}
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
    """Read the metadata of a checkpoint without its tensors.

    Returns:
        dict with ``format``, ``version``, ``architecture``, ``arguments``, ``conversion`` and ``spec`` (both None for
        a plain network), ``notes``.

    Raises:
        FileNotFoundError, ValueError: As for `load`.
    """
    return read_header(path, kind=FORMAT, version=VERSION)


def read_header(path: str | os.PathLike[str], *, kind: str, version: int) -> dict[str, Any]:
    """Read the metadata that `write_file` wrote, without the tensors; arguments and errors as for `read_file`."""
    return _open(path, kind, version, tensors=False)[1]


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, kind: str, version: int
) -> None:
    """Write tensors and JSON metadata to a safetensors file atomically.

    Args:
        path: File to write or replace.
        tensors: dict name -> tensor, on any device; shared memory is written once per name.
        metadata: JSON values.
        kind: Kind of file, checked by `read_file`.
        version: Version of the layout, checked by `read_file`.

    Raises:
        TypeError: The metadata is not JSON.
    """
    from safetensors.torch import save as to_bytes

    path = Path(path)
    header = {"format": kind, "version": str(version)}
    for key, value in metadata.items():
        try:
            header[key] = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"checkpoint: {key} must be JSON values; got {value!r}: {error}") from None
    # clones: safetensors rejects tensors that share memory, such as those of tied layers
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # not save_file, whose files only their owner can read, whatever the umask
        with open(temporary, "wb") as file:
            file.write(to_bytes(plain, metadata=header))
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure could lose the contents but keep the new name
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove temporary files of killed processes; use it only if no other process writes ``path``."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def read_file(
    path: str | os.PathLike[str], *, kind: str, version: int, advice: str = _ADVICE
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_file` wrote.

    Args:
        path: File to read.
        kind: As given to `write_file`.
        version: As given to `write_file`.
        advice: What the error says to do about a file of another version.

    Returns:
        Tensors on the CPU, and the given metadata with ``format`` and ``version`` added.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not a complete file of this kind and version.
    """
    return _open(path, kind, version, tensors=True, advice=advice)


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of any safetensors file.

    Returns:
        Tensors on the CPU, and metadata as from `read_metadata`, empty for a file that `save` did not write.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not a complete safetensors file.
    """
    return _open(path, None, VERSION, tensors=True)


def _open(
    path: str | os.PathLike[str], kind: str | None, version: int, tensors: bool, advice: str = _ADVICE
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    _refuse_other_files(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            if kind is None and header.get("format") not in _KINDS:
                return {name: file.get_tensor(name).clone() for name in file.keys()}, {}  # noqa: SIM118
            if header.get("format") != (kind or FORMAT):
                found = f"format {header['format']!r}" if "format" in header else "bare weights without our metadata"
                found += _KINDS.get(header.get("format", ""), "")
                raise ValueError(f"checkpoint: path must hold {kind or FORMAT!r}; got {str(path)!r}: {found}")
            if header.get("version") != str(version):
                raise ValueError(
                    f"checkpoint: version must be {version}; got {header.get('version')!r} in {str(path)!r}: {advice}"
                )
            # clones: otherwise the file stays mapped, and overwriting it would change the tensors
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
    """Reject files that cannot be safetensors files, judging by their first bytes and length."""
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
    plausible = len(start) == 9 and header <= _MAX_HEADER and start[8:9] == b"{"  # lengths can look like pickles
    if start[:4] == b"PK\x03\x04" or (pickled and not plausible):
        raise ValueError(
            f"checkpoint: path must be a safetensors file; got {str(path)!r}, a pickle as written by torch.save: it is "
            "never opened, because unpickling can run code; if you trust it, save its tensors with safetensors"
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
    """Return the plain network to fill, a copy of the given one or built by name, in the dtype of the tensors."""
    dtype = next((value.dtype for value in tensors.values() if value.is_floating_point()), None)
    if network is not None:
        if not isinstance(network, nn.Module) or isinstance(network, TunableModel):
            raise TypeError(f"checkpoint: network must be the plain network; got {type(network).__name__}")
        return copy.deepcopy(network).to(dtype)
    name = metadata.get("architecture")
    if name not in models.ARCHITECTURES:
        raise ValueError(
            f"checkpoint: architecture must be one of {', '.join(sorted(models.ARCHITECTURES))}; got {name!r} in "
            f"{str(path)!r}: pass network=, the plain network that was converted (on the command line --network, its "
            "package.module:Class, or the file that spandrel reads)"
        )
    return models.build(name, **metadata.get("arguments", {})).to(dtype)


def fill(path: str | os.PathLike[str], network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the network; names and shapes must match exactly.

    Only those that the network names in its attribute ``added`` may be missing, such as the skip of `models.FFDNet`:
    they are then 0.

    Raises:
        ValueError: They do not; the message names the first few that are missing, unknown or of another shape.
    """
    expect_values(network, tensors)
    wanted = network.state_dict()
    added = {name: torch.zeros_like(wanted[name]) for name in getattr(network, "added", ()) if name not in tensors}
    tensors = {**tensors, **added}
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
            "is this the checkpoint of another network?"
        )
    with torch.no_grad():
        network.load_state_dict(dict(tensors), strict=True)
