"""`Task`: what a training run computes. The loop, the files and the signals are the trainer's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["KNOB", "Task"]

KNOB = "knob.safetensors"
"""File of what a training adds to a frozen base, beside the model."""


class Task(ABC):
    """What is trained, on what, and how it is judged.

    A step is ``total, terms = loss(batch, step)``, the backward pass, `clip`, ``optimizer.step()``, the update of the
    average, then `after_step`. Whatever is drawn must depend on the seed and the step alone, or a resumed run would
    end with other bits.

    Attributes:
        net: The network that is trained and averaged.
        optimizer: Of its parameters; a group's ``scale`` multiplies the rate.
        batches: Batch k of the run, for k = 0, 1, ...; the same bits whenever it is asked for.
        parallel: True if several processes can share the work.
        harmless: Beginnings of the configuration keys that may change between a stop and its resumption.
        files: Configuration key -> `fingerprint` of the files that it names, where these decide the weights: the key
            may change, the files may not.
        precision: What is computed in, which a run keeps, in the words of the configuration's ``precision_key``.
        strips_every: `strips` are drawn at every so many validations, 0 for never.
        shown: Names of the logged values that the progress bar shows.
        scores: What the last `validate` found.
    """

    parallel = True
    harmless: tuple[str, ...] = (
        "log.",
        "checkpoints.",
        "validation.",
        "data.workers",
        "data.cache_mb",
        "compute.device",  # another one is warned about: the last bits differ
    )
    files: Mapping[str, str]
    precision: str
    precision_key = "compute.precision"
    strips_every = 0
    shown: tuple[str, ...] = ("loss/total",)
    net: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Dataset[Any]

    def __init__(self) -> None:
        self.scores: list[Any] = []

    @abstractmethod
    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a step, and what of it is logged as ``loss/NAME``."""

    @abstractmethod
    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""

    @abstractmethod
    def clip(self) -> Tensor:
        """Clip the gradients; return their norm before that."""

    @abstractmethod
    def validate(self, average: nn.Module, pictures: Sequence[tuple[str, Tensor]]) -> dict[str, float]:
        """Judge the averaged network by held-out pictures; return what is logged, and keep the details as `scores`."""

    def strips(self, average: nn.Module, pictures: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return pictures [3, H, W] that show what the averaged network makes of held-out ones, by name."""
        return {}

    def describe(self, values: dict[str, float]) -> str:
        """Return what `validate` returned as a line of text."""
        return ", ".join(f"{name}: {value:.2f}" for name, value in values.items())

    @abstractmethod
    def save(self, average: nn.Module, path: Path, step: int) -> None:
        """Write the averaged network, which is what a run delivers."""

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Do what follows a step of the optimiser; return further values to log, averaged like the loss."""
        return {}

    def gauges(self) -> dict[str, float]:
        """Return values that are logged as they are when a line is written."""
        return {}

    def start_phase(self, step: int, average: nn.Module) -> bool:
        """Begin a phase of the training if one begins with this step; True if so: averaging then starts anew."""
        return False

    def first_step(self, step: int) -> int:
        """Return the step with which the phase of a step began."""
        return 0

    def resume(self, step: int) -> None:
        """Prepare for the state of a run of which ``step`` steps are done, before its tensors are filled in."""
        return None

    def parts(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Return all networks whose weights decide the rest of the run, with their optimisers."""
        return {"net": (self.net, self.optimizer)}

    def counters(self) -> dict[str, Any]:
        """Return what else decides the rest of the run, as JSON values."""
        return {}

    def restore(self, counters: dict[str, Any]) -> None:
        """Take over what `counters` returned."""
        return None
