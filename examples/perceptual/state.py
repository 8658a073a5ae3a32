"""Everything that a training needs to continue, in a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tunable_ops.serialization import read_file, write_file

KIND = "tunable_ops.example.perceptual"


def save(
    file: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    fitted: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write weights, the optimiser's state, the number of steps done, their time in seconds, and what a loss fitted."""
    tensors = {f"net/{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"loss/{name}": value for name, value in (fitted or {}).items()}
    for index, parameter in enumerate(net.parameters()):
        tensors.update({f"optimizer/{index}/{k}": v for k, v in optimizer.state.get(parameter, {}).items()})
    write_file(file, tensors, {"step": step, "seconds": seconds}, kind=KIND, version=1)


def load(
    file: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    fitted: dict[str, torch.Tensor] | None = None,
) -> tuple[int, float]:
    """Read what `save` wrote; return the number of steps done and their time in seconds."""
    tensors, metadata = read_file(file, kind=KIND, version=1)
    net.load_state_dict({k.removeprefix("net/"): v for k, v in tensors.items() if k.startswith("net/")})
    for index, parameter in enumerate(net.parameters()):
        prefix = f"optimizer/{index}/"
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if optimizer is not None and found:
            optimizer.state[parameter] = found
    for name, value in (fitted or {}).items():
        value.copy_(tensors[f"loss/{name}"])
    return metadata["step"], metadata["seconds"]
