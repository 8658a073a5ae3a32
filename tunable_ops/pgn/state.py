"""The state of a PGN's training on disk: safetensors with JSON metadata, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunable_ops.serialization import read_file, write_file
from tunable_ops.train.sections import flatten

if TYPE_CHECKING:
    from tunable_ops.pgn.trainer import PGNTrainer

FORMAT = "tunable_ops.pgn_training"
VERSION = 1
HARMLESS = ("every.", "optim.steps")
"""Keys that may change between a stop and its resumption; the rate then follows the cosine of the new length."""


def _parts(trainer: PGNTrainer) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    toys = {f"toy{k}": (toy.net, toy.optimizer) for k, toy in enumerate(trainer.driven)}
    return {"pgn": (trainer.pgn, trainer.optimizer), **toys}


def save_state(trainer: PGNTrainer, path: Path) -> None:
    """Write the networks, their optimisers, and the counters of the resets, all or nothing."""
    tensors: dict[str, Tensor] = {}
    for part, (net, optimizer) in _parts(trainer).items():
        tensors.update({f"{part}/net/{name}": value for name, value in net.state_dict().items()})
        for name, parameter in net.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{part}/optimizer/{name}/{key}"] = value
    tensors.update({f"ema/{name}": value for name, value in trainer.average.state_dict().items()})
    toys = [  # str: inf is no JSON
        [str(toy.best), toy.since, str(toy.average), toy.resets] for toy in trainer.driven
    ]
    metadata = {
        "step": trainer.step,
        "running": str(trainer.clip.running),
        "toys": toys,
        "config": flatten(trainer.config),
    }
    write_file(path, tensors, metadata, kind=FORMAT, version=VERSION)


def load_state(trainer: PGNTrainer, path: Path) -> None:
    """Put a saved state into a fresh trainer.

    Raises:
        ValueError: as `tunable_ops.serialization.read_file`, or where the configuration differs.
    """
    tensors, metadata = read_file(path, kind=FORMAT, version=VERSION)
    saved, given = metadata["config"], flatten(trainer.config)
    differing = [key for key in sorted({*saved, *given}) if saved.get(key) != given.get(key)]
    differing = [key for key in differing if not key.startswith(HARMLESS)]
    if differing:
        texts = ", ".join(f"{key} was {saved.get(key)!r}, is {given.get(key)!r}" for key in differing)
        raise ValueError(f"pgn: a resumed run must keep its configuration; got {texts} (saved in {str(path)!r})")
    for part, (net, optimizer) in _parts(trainer).items():
        net.load_state_dict(_under(tensors, f"{part}/net/"))
        for name, parameter in net.named_parameters():
            found = _under(tensors, f"{part}/optimizer/{name}/")
            if found:
                optimizer.state[parameter] = {key: _like(parameter, value) for key, value in found.items()}
    trainer.average.load_state_dict(_under(tensors, "ema/"))
    for toy, (best, since, average, resets) in zip(trainer.driven, metadata["toys"], strict=True):
        toy.best, toy.since, toy.average, toy.resets = float(best), since, float(average), resets
    trainer.step, trainer.clip.running = metadata["step"], float(metadata["running"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Moments take their parameter's device and strides: reductions then add in the same order as before."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
