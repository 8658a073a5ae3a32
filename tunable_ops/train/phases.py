"""The phases of a run: one, or one per objective for a knob of `tunable_ops.control`."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from tunable_ops.control import PhasedModel
from tunable_ops.train.config import Optim

__all__ = ["Phase", "Schedule"]


class Phase(NamedTuple):
    """A stretch of a run: its number, its first step, and the optimiser's settings with the number of its steps."""

    number: int
    first: int
    optim: Optim


class Schedule:
    """Equal shares of the steps for every phase of a network; the last takes what does not divide.

    Args:
        net: A `PhasedModel`, or any other network, which has one phase.
        optim: The settings of the whole run.

    Raises:
        ValueError: Fewer steps than phases.
    """

    def __init__(self, net: nn.Module, optim: Optim) -> None:
        self.count = net.phases if isinstance(net, PhasedModel) else 1
        if optim.steps < self.count:
            raise ValueError(f"train: optim.steps must be at least {self.count}, one per phase; got {optim.steps}")
        self.optim = optim
        self.share = optim.steps // self.count

    def at(self, step: int) -> Phase:
        """The phase that a step, counted from 0, belongs to."""
        number = min(step // self.share, self.count - 1)
        first = number * self.share
        steps = self.optim.steps - first if number == self.count - 1 else self.share
        return Phase(number, first, self.optim.model_copy(update={"steps": steps}))
