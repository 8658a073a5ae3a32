"""Knob files: what a trained slider adds to a published network, without the network.

net = load_knob(plain, "texture.safetensors")      # plain: the network that the knob was trained on
y = net(x, [0.5])
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops import models
from tunable_ops.models import zoo
from tunable_ops.modules import LambdaSpec, TunableModel
from tunable_ops.modules.fold import base_network
from tunable_ops.modules.knobs import Knob, add_knobs, lower_rank, take_knob
from tunable_ops.modules.model import entries_read
from tunable_ops.serialization import (
    KNOB_FORMAT,
    fill,
    load,
    load_folded,
    read_file,
    read_header,
    read_weights,
    write_file,
)

__all__ = ["fingerprint", "load_base", "load_knob", "read_knob_metadata", "save_knob", "whole_fingerprint"]

VERSION = 1
_PHI = ("phi.weight", "phi.bias")  # a few numbers: always in full precision


def save_knob(
    net: TunableModel,
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    licence: str | None = None,
    dtype: torch.dtype | None = None,
    base: nn.Module | None = None,
    rank: int | None = None,
) -> None:
    """Write what a tunable network adds to its base: new kernels (or their factors), phi, and what its lambda is.

    The base itself stays out; the file holds its fingerprint, by which `load_knob` knows it. What is not tunable
    (norms, excluded layers) belongs to the base.

    Args:
        net: Made by `tunable_ops.convert` on the box.
        path: File to write, by convention ``*.safetensors``; replaced atomically.
        architecture: Name of the base in `models.ARCHITECTURES`: then a file of its plain weights is enough for
            `load_base` and the command line. Default: `net.built_as`, for a network from a file; otherwise the name of
            the class, for messages only.
        arguments: Arguments of the architecture; JSON values. Default: likewise.
        notes: Anything worth keeping, such as training data and scores; JSON values. Default: the network's own, or
            those of the one knob file that it comes from.
        licence: Under which the knob may be used, for instance "MIT". Default: that of this file.
        dtype: Of the new kernels in the file, for instance torch.float16; default as in the network.
        base: The published network. Given, it is compared with the base kernels of `net`, which training may have
            moved.
        rank: Write the best kernels of this rank in place of the network's own, which have more (or full rank): a
            smaller file, another network. Look at what it does.

    Raises:
        TypeError: `net` is not a TunableModel, `licence` not a string, `dtype` not floating point, `rank` not an int,
            or `arguments` or `notes` are not JSON.
        ValueError: `net` is on the simplex or was not made by `convert`, its base is not `base`, `rank` is below 1 or
            not below that of `net`, or a value does not fit `dtype`.
    """
    if not isinstance(net, TunableModel):
        raise TypeError(f"save_knob: net must be a TunableModel; got {type(net).__name__}")
    if licence is not None and not isinstance(licence, str):
        raise TypeError(f"save_knob: licence must be a string; got {licence!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"save_knob: dtype must be a floating-point dtype; got {dtype!r}")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool)):
        raise TypeError(f"save_knob: rank must be an int; got {rank!r}")
    if rank is not None and rank < 1:
        raise ValueError(f"save_knob: rank must be at least 1; got {rank}")
    if notes is None:
        notes, licence = _own_notes(net, licence)
    if architecture is None and arguments is None and net.built_as is not None:
        architecture, arguments = net.built_as["architecture"], net.built_as["arguments"]
    knob = take_knob(net, "save_knob: net")
    if not knob.layers:
        raise ValueError("save_knob: net must have new kernels; got a network that only reads lambda itself")
    if rank is not None:
        knob = lower_rank(knob, rank)
    own = base_network(net)
    layers = fingerprint(own)
    if base is not None and (difference := _difference(fingerprint(base), layers)):
        raise ValueError(f"save_knob: net must have the kernels of base; got {difference}: was the base trained too?")
    tensors = {name: value if name in _PHI else value.to(dtype or value.dtype) for name, value in knob.tensors.items()}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"save_knob: net must have finite kernels in {value.dtype}; got others in {name!r}")
    metadata = {
        "architecture": architecture or type(own).__name__,
        "arguments": None if arguments is None else dict(arguments),
        "base": layers,
        "conversion": dict(knob.conversion),
        "spec": knob.spec.to_dict(),
        "read": list(knob.read),
        "layers": list(knob.layers),
        "notes": dict(notes),
        "licence": licence,
    }
    write_file(path, tensors, metadata, kind=KNOB_FORMAT, version=VERSION)


def load_knob(
    network: nn.Module,
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    rename: Mapping[str, str] | None = None,
) -> TunableModel:
    """Give a network the sliders of one or several knob files.

    Formula: every layer computes with ``W + sum_j alpha_j W_j`` over the new kernels of all knobs, where those of one
    knob follow its own tuning parameters alone. Where all of these are 0, and phi's bias is (as it is where phi was not
    trained), the network is `network`, bit for bit. Tuning parameters that the base reads itself (`LambdaPlanes`, such
    as the noise level of FFDNet) keep their place in lambda, and all knobs share them.

    Args:
        network: The plain network that the knobs were trained on; or a TunableModel made of it by `convert` on the box
            or by this function, which keeps its own knobs. It is copied, not changed.
        path: A file that `save_knob` wrote, or several: their tuning parameters follow each other in this order.
        rename: New names of tuning parameters of these files, such as {"texture": "texture2"}.

    Returns:
        A `TunableModel` in the mode and the dtype of `network`. Its notes have an entry "knobs" with names, licence and
        notes of each.

    Raises:
        FileNotFoundError: A file does not exist.
        TypeError: `network` is not a module, or `path` or `rename` of another type.
        ValueError: A file is not a knob or damaged; the network is not the base of a knob (the message names it, both
            fingerprints and the first layer that differs); two tuning parameters have the same name; `rename` names
            none of them.

    Example:
        >>> import tempfile
        >>> import tunable_ops
        >>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> net = tunable_ops.convert(plain, 1, domain="box", names=["texture"], rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_knob(net, f"{folder}/texture.safetensors", licence="MIT")
        ...     load_knob(plain, f"{folder}/texture.safetensors").spec.names
        ('texture',)
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"load_knob: network must be an nn.Module; got {type(network).__name__}")
    paths = [path] if isinstance(path, str | os.PathLike) else path
    if not (isinstance(paths, Sequence) and all(isinstance(each, str | os.PathLike) for each in paths)):
        raise TypeError(f"load_knob: path must be a path or a sequence of paths; got {path!r}")
    if rename is not None and not isinstance(rename, Mapping):
        raise TypeError(f"load_knob: rename must map names to names; got {rename!r}")
    if not paths:
        raise ValueError("load_knob: path must name at least one file; got []")
    knobs, entries, notes = [], [], {}
    plain = network
    if isinstance(network, TunableModel):
        knobs.append(take_knob(network, "load_knob: network"))
        plain = base_network(network).train(network.training)
        notes = dict(network.notes)
        entries += notes.pop("knobs", [])
    found = fingerprint(plain)
    read = [_read(file) for file in paths]
    _check_rename(rename or {}, [knob for knob, _ in read])
    for file, (knob, metadata) in zip(paths, read, strict=True):
        _check_base(file, metadata, found, plain)
        _check_read(file, knob, entries_read(plain))
        names = tuple((rename or {}).get(name, name) for name in knob.spec.names)
        knobs.append(knob._replace(spec=replace(knob.spec, names=names)))
        entries.append({"names": list(names), "licence": metadata.get("licence"), "notes": metadata.get("notes") or {}})
    net = add_knobs(plain, knobs)
    net.notes = {**notes, "knobs": entries}
    net.built_as = network.built_as if isinstance(network, TunableModel) else None
    for _, about in read:
        if net.built_as is None and about["architecture"] in models.ARCHITECTURES and about["arguments"] is not None:
            net.built_as = {key: about[key] for key in ("architecture", "arguments")}
    return net


def read_knob_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a knob file says about itself, without its tensors.

    Returns:
        dict with ``architecture`` and ``arguments`` of the base (the latter None if unknown), ``base`` (layer to
        fingerprint, as `fingerprint`), ``conversion``, ``spec``, ``read`` (the positions of tuning parameters that the
        base reads itself), ``layers``, ``notes``, ``licence``.

    Raises:
        FileNotFoundError, ValueError: As for `load_knob`.
    """
    return read_header(path, kind=KNOB_FORMAT, version=VERSION)


def load_base(
    path: str | os.PathLike[str], knob: str | os.PathLike[str], network: nn.Module | None = None
) -> nn.Module:
    """Load the network that a knob is for, from a checkpoint or from bare weights, in evaluation mode on the CPU.

    Args:
        path: A checkpoint of this package, tunable or plain; or the published weights as safetensors, for a network
            that the knob file names with its arguments; or, for a knob of one of spandrel's networks, a file that
            spandrel reads (`models.zoo.load`).
        knob: File of the knob.
        network: The plain network with any weights, where its architecture is not in `models.ARCHITECTURES`; copied.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: Weights of an architecture that is not one of `models.ARCHITECTURES` without a network, or which do
            not fit it; as `models.zoo.load`.
        RuntimeError: As `models.zoo.load`.
    """
    about = read_knob_metadata(knob)
    name, arguments = about["architecture"], about["arguments"]
    if name == zoo.ARCHITECTURE and network is None:
        return zoo.load(path).network
    weights, metadata = read_weights(path)
    if metadata:
        return load_folded(path, network) if metadata.get("conversion") is None else load(path, network)
    if network is not None:
        network = copy.deepcopy(network)
    elif name in models.ARCHITECTURES and arguments is not None:
        network = models.build(name, **arguments)
    else:
        raise ValueError(
            f"load_base: path must be a checkpoint where {str(knob)!r} does not say how to build its base {name!r}; "
            f"got the bare weights {str(path)!r}: use tunable_ops.load_knob(network, path), or on the command line "
            "--network package.module:Class"
        )
    dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), None)
    network = network.to(dtype)
    fill(path, network, weights)
    return network.eval()


def fingerprint(network: nn.Module) -> dict[str, str]:
    """Return 16 hexadecimal digits for every module of a network that has parameters or buffers of its own.

    They are a hash of names, shapes and values, these rounded to half precision: a network has the same fingerprint
    whether its weights are stored in 64, 32 or 16 bits (not in bfloat16), and changes that half precision loses do not
    count.

    Example:
        >>> list(fingerprint(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))))
        ['0', '2']
    """
    hashes: dict[str, Any] = {}
    for name, value in network.state_dict().items():
        layer, _, attribute = name.rpartition(".")
        found = hashes.setdefault(layer or name, hashlib.blake2b(digest_size=8))
        found.update(f"{attribute} {list(value.shape)};".encode())
        found.update(_rounded(value).numpy().tobytes())
    return {layer: found.hexdigest() for layer, found in hashes.items()}


def whole_fingerprint(layers: Mapping[str, str]) -> str:
    """Return one fingerprint, 16 hexadecimal digits, for all layers of `fingerprint`."""
    return hashlib.blake2b(repr(sorted(layers.items())).encode(), digest_size=8).hexdigest()


def _rounded(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    if not value.is_floating_point():
        return value.contiguous()
    # through fp32, as a file of that precision would; + 0 makes one zero of two
    return (value.float().half() + 0).contiguous()


def _difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Say where two fingerprints differ first; nothing where they are the same."""
    for layer, value in wanted.items():
        if layer not in found:
            return f"fingerprint {whole_fingerprint(found)}, without the layer {layer!r}"
        if found[layer] != value:
            return f"fingerprint {whole_fingerprint(found)}, other values in {layer!r}, the first layer that differs"
    extra = next((layer for layer in found if layer not in wanted), None)
    return (
        ""
        if extra is None
        else f"fingerprint {whole_fingerprint(found)}, with a layer {extra!r} that the base does not have"
    )


def _own_notes(net: TunableModel, licence: str | None) -> tuple[Mapping[str, Any], str | None]:
    """Return the notes of a network and a licence; those of its knob where it has been loaded with one."""
    entries = net.notes.get("knobs", [])
    if len(entries) != 1:
        return net.notes, licence
    rest = {key: value for key, value in net.notes.items() if key != "knobs"}
    return {**rest, **entries[0]["notes"]}, licence or entries[0]["licence"]


def _check_base(
    path: str | os.PathLike[str], metadata: Mapping[str, Any], found: Mapping[str, str], network: nn.Module
) -> None:
    difference = _difference(metadata["base"], found)
    if difference:
        arguments = ", ".join(f"{key}={value!r}" for key, value in (metadata["arguments"] or {}).items())
        raise ValueError(
            f"load_knob: network must be the base of {str(path)!r}, {metadata['architecture']}({arguments}) with "
            f"fingerprint {whole_fingerprint(metadata['base'])}; got {difference}"
            f": {_in_words(metadata['architecture'], network)}"
        )


def _in_words(architecture: str, network: nn.Module) -> str:
    """Say which network a knob is for and which was given; only the names of `models.ARCHITECTURES` tell its class."""
    if architecture not in models.ARCHITECTURES:
        return "the knob is for another network than this one, or for one with other weights"
    wanted, given = models.ARCHITECTURES[architecture].__name__, type(network).__name__
    if wanted == given:
        return f"the knob is for another {wanted} than this one, with other weights or arguments"
    return f"the knob is for the network {wanted}, and the one given is {given}"


def _check_read(path: str | os.PathLike[str], knob: Knob, read: Sequence[int]) -> None:
    """Check that the base reads the same entries of lambda itself, such as FFDNet the noise level."""
    if list(knob.read) != list(read):
        wanted = {place: knob.spec.names[place] for place in knob.read}
        raise ValueError(
            f"load_knob: network must read the same entries of lambda itself as the base of {str(path)!r}, {wanted} "
            f"(tunable_ops.LambdaPlanes); got one that reads {list(read)}"
        )


def _check_rename(rename: Mapping[str, str], knobs: Sequence[Knob]) -> None:
    known = [name for knob in knobs for name in knob.spec.names]
    for name, new in rename.items():
        if name not in known:
            raise ValueError(f"load_knob: rename must name parameters of the knobs ({', '.join(known)}); got {name!r}")
        if not isinstance(new, str) or not new:
            raise TypeError(f"load_knob: rename must hold names; got {new!r} for {name!r}")


def _read(path: str | os.PathLike[str]) -> tuple[Knob, dict[str, Any]]:
    tensors, metadata = read_file(path, kind=KNOB_FORMAT, version=VERSION)
    keys = {"architecture", "arguments", "base", "conversion", "spec", "read", "layers"}
    missing = sorted(keys - set(metadata)) + sorted({*_PHI} - set(tensors))
    if missing:
        raise ValueError(f"load_knob: path must be a whole knob file; got {str(path)!r} without {', '.join(missing)}")
    spec = LambdaSpec.from_dict(metadata["spec"])
    weight, bias = (tensors[name] for name in _PHI)
    wanted = [len(metadata["layers"]), *bias.shape[1:], spec.num_params]
    if bias.dim() != 2 or list(weight.shape) != wanted or len(bias) != len(weight):
        raise ValueError(
            f"load_knob: path must hold phi.weight [layers, R, p] and phi.bias [layers, R] for {wanted[0]} layers and "
            f"p = {spec.num_params}; got {list(weight.shape)} and {list(bias.shape)} in {str(path)!r}"
        )
    return Knob(spec, metadata["read"], metadata["conversion"], metadata["layers"], tensors), metadata
