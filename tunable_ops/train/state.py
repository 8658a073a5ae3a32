"""The training state on disk: network, average, optimiser, position; safetensors with JSON metadata, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunable_ops.serialization import read_file, write_file
from tunable_ops.train.config import Config
from tunable_ops.train.ema import Ema
from tunable_ops.train.sections import flatten

__all__ = ["FORMAT", "HARMLESS", "VERSION", "Position", "load_training_state", "save_training_state"]

FORMAT = "tunable_ops.training_state"
VERSION = 1
HARMLESS = ("log.", "checkpoints.", "validation.")
"""Sections that may change between a stop and its resumption: they do not touch the weights."""


class Position(NamedTuple):
    """Steps done so far, and the circumstances under which (``world_size``, ``threads``, ``torch``)."""

    step: int
    circumstances: dict[str, Any]


def save_training_state(
    path: Path,
    *,
    net: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    step: int,
    config: Config,
    circumstances: dict[str, Any],
) -> None:
    """Write everything that decides the rest of the run, all or nothing; randomness needs no state (see seeding)."""
    tensors: dict[str, Tensor] = {}
    tensors.update({f"net/{name}": value for name, value in net.state_dict().items()})
    tensors.update({f"ema/{name}": value for name, value in ema.module.state_dict().items()})
    scalars: dict[str, Any] = {}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                scalars[f"{name}/{key}"] = value
    metadata = {"step": step, "config": flatten(config), "circumstances": circumstances, "optimizer": scalars}
    write_file(path, tensors, metadata, kind=FORMAT, version=VERSION)


def load_training_state(
    path: Path, *, net: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, config: Config
) -> Position:
    """Put a saved state into freshly built objects.

    Raises:
        FileNotFoundError, ValueError: as `tunable_ops.serialization.load`; ValueError also where the configuration
            differs in a key that changes the weights: the keys and both values are named.
    """
    tensors, metadata = read_file(path, kind=FORMAT, version=VERSION)
    _refuse_other_config(path, metadata["config"], flatten(config))
    _fill(net, tensors, "net/", path)
    _fill(ema.module, tensors, "ema/", path)
    for name, parameter in net.named_parameters():
        prefix = f"optimizer/{name}/"
        state = {
            key.removeprefix(prefix): _like(parameter, value)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        prefix = f"{name}/"
        state.update(
            {k.removeprefix(prefix): v for k, v in metadata["optimizer"].items() if k.rpartition("/")[0] == name}
        )
        if state:
            optimizer.state[parameter] = state
    return Position(metadata["step"], metadata["circumstances"])


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Moments take their parameter's strides, as in the run that made them: reductions then add in the same order."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    values = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(values, strict=True)
    except RuntimeError as error:
        raise ValueError(f"train: state must fit the network; got {str(path)!r}: {error}") from None


def _refuse_other_config(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    differing = [
        f"{key} was {saved.get(key)!r}, is {given.get(key)!r}"
        for key in sorted({*saved, *given})
        if saved.get(key) != given.get(key) and not key.startswith(HARMLESS)
    ]
    if differing:
        raise ValueError(
            f"train: a resumed run must keep its configuration; got {'; '.join(differing)} (saved in {str(path)!r}): "
            "change it back, or start a new run in another folder"
        )
