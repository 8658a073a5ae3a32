"""The training state on disk: networks, average, optimisers, position; safetensors with JSON metadata, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunable_ops.serialization import read_file, write_file
from tunable_ops.train.ema import Ema
from tunable_ops.train.resuming import precision_of, refuse_changes
from tunable_ops.train.sections import RunConfig, flatten
from tunable_ops.train.task import Task

__all__ = ["FORMAT", "STATE", "VERSION", "Position", "load_state", "save_state"]

STATE = "state.safetensors"
FORMAT = "tunable_ops.training_state"
VERSION = 2


class Position(NamedTuple):
    """Steps done so far, and the circumstances under which (``world_size``, ``threads``, ``torch``)."""

    step: int
    circumstances: dict[str, Any]


def save_state(path: Path, task: Task, ema: Ema, config: RunConfig, position: Position) -> None:
    """Write everything that decides the rest of the run, all or nothing; randomness needs no state (see seeding)."""
    tensors = {f"ema/{name}": value for name, value in ema.module.state_dict().items()}
    for part, (net, optimizer) in task.parts().items():
        tensors |= {f"{part}/weights/{name}": value for name, value in net.state_dict().items()}
        for name, parameter in net.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{part}/optimizer/{name}/{key}"] = value
    metadata = {**position._asdict(), "config": flatten(config), "counters": task.counters()}
    metadata |= {"files": task.files, "precision": task.precision}
    write_file(path, tensors, metadata, kind=FORMAT, version=VERSION)


def load_state(path: Path, task: Task, ema: Ema, config: RunConfig) -> Position:
    """Put a saved state into a freshly built task and average.

    Raises:
        FileNotFoundError, ValueError: As `tunable_ops.serialization.load`; ValueError also as `refuse_changes`.
    """
    tensors, metadata = read_file(
        path,
        kind=FORMAT,
        version=VERSION,
        advice="finish the run with the version of the code that started it, or start it anew in another folder",
    )
    refuse_changes(path, metadata, config, task)
    task.precision = precision_of(metadata, task.precision_key)
    task.resume(metadata["step"])
    _fill(ema.module, _under(tensors, "ema/"), path)
    for part, (net, optimizer) in task.parts().items():
        _fill(net, _under(tensors, f"{part}/weights/"), path)
        for name, parameter in net.named_parameters():
            if state := _under(tensors, f"{part}/optimizer/{name}/"):
                optimizer.state[parameter] = {k: _placed(v, parameter, optimizer) for k, v in state.items()}
    task.restore(metadata["counters"])
    return Position(metadata["step"], metadata["circumstances"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _placed(value: Tensor, parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Give moments their parameter's device and strides: reductions then add in the same order as in the first run."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    # a count of steps: fused optimisers keep it beside the parameter, others on the CPU
    return value.to(parameter.device) if optimizer.defaults.get("fused") else value


def _fill(module: nn.Module, values: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(values, strict=True)
    except RuntimeError as error:
        raise ValueError(f"train: state must fit the network; got {str(path)!r}: {error}") from None
