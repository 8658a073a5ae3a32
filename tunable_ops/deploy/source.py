"""What a Runner runs: a network, one that ships, a checkpoint, or an exported file."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tunable_ops import pretrained
from tunable_ops.deploy.description import Description, describe
from tunable_ops.deploy.engine import Options, unavailable_reason
from tunable_ops.deploy.exported import Exported, load
from tunable_ops.modules import LambdaSpec, TunableModel
from tunable_ops.serialization import load_folded, read_metadata

__all__ = ["Source", "open_source", "two_lambdas"]


@dataclass(frozen=True)
class Source:
    """A network or a file, and what it says of itself.

    Args:
        kind: "network", "onnx" or "pt2".
        description: Which pictures it takes, and how it takes lambda.
        fingerprint: Of its values, and of what it computes with them.
        net: The network, in evaluation mode on the CPU; None for a file.
        path: The exported file; None for a network.
        exported: Of a .pt2 file, as a function.
    """

    kind: str
    description: Description
    fingerprint: str
    net: nn.Module | None = None
    path: Path | None = None
    exported: Exported | None = None

    @property
    def spec(self) -> LambdaSpec | None:
        """Names, units, ranges and defaults of lambda; None where there is none."""
        return self.description.spec


def open_source(
    model: nn.Module | str | os.PathLike[str], example: Tensor | None = None, copied: bool = True
) -> Source:
    """Load a network or a file.

    Args:
        model: A TunableModel or a plain network; the name of a shipped one; or a file: a checkpoint (*.safetensors),
            or what `export_onnx`, `export_program` or `compile_package` wrote.
        example: A picture [B, C, H, W], for networks that do not say how many channels they take (`channels`).
        copied: False: take the network itself and change its mode, dtype and device.

    Raises:
        TypeError: `model` is none of these.
        FileNotFoundError: It is neither a file nor the name of a shipped network.
        ValueError: A file of another kind; a network that does not run on pictures.
        ModuleNotFoundError: onnxruntime is not installed.
    """
    if isinstance(model, nn.Module):
        return _of_network(copy.deepcopy(model) if copied else model, example)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"Runner: model must be a module, a name or a path; got {type(model).__name__}")
    path = Path(model)
    if path.suffix == ".pt2":
        exported = load(path)
        return Source("pt2", exported.description, _of_bytes(path), path=path, exported=exported)
    if path.suffix == ".onnx":
        return Source("onnx", _described(path), _of_bytes(path), path=path)
    return _of_network(_load_network(model), example)


def _load_network(model: str | os.PathLike[str]) -> nn.Module:
    found = pretrained.find(model)
    if found.base is not None:
        tunable = bool(found.knobs or pretrained.BASES[found.base].spec)
        return pretrained.load(model) if tunable else pretrained.load_base(found.name)
    if read_metadata(found.file).get("conversion") is None:
        return load_folded(found.file).float()
    return pretrained.load(found.file)


def _of_network(net: nn.Module, example: Tensor | None) -> Source:
    net = net.eval().cpu().float().requires_grad_(False)
    form = "shared" if isinstance(net, TunableModel) else "folded"
    description = describe(net, form, "Runner", example)
    digest = hashlib.sha256(repr(net).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return Source("network", description, digest.hexdigest()[:32], net)


def _described(path: Path) -> Description:
    """Read what an ONNX file says of itself, for which every engine needs ONNX Runtime."""
    reason = unavailable_reason("onnxruntime", "onnx", Options())
    if reason is not None:
        rule = "a file that can be read here, which takes ONNX Runtime with any engine"
        raise ModuleNotFoundError(f"Runner: model must be {rule}; got {str(path)!r}, {reason}")
    return load(path).description


def _of_bytes(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


def two_lambdas(spec: LambdaSpec) -> list[tuple[float, ...]]:
    """Return the defaults, and another lambda of the domain, if there is one."""
    if spec.domain == "simplex":
        corners = [tuple(float(name == other) for other in spec.names) for name in spec.names]
        return [spec.defaults, next((corner for corner in corners if corner != spec.defaults), spec.defaults)]
    pairs = zip(spec.ranges, spec.defaults, strict=True)
    return [spec.defaults, tuple(high if default == low else low for (low, high), default in pairs)]
