"""The phases of a run: one, or one per objective for a knob of `tunable_ops.control`."""

from __future__ import annotations

from typing import NamedTuple

from tunable_ops.train.config import Config
from tunable_ops.train.optim import Optim

__all__ = ["Phase", "Schedule"]


class Phase(NamedTuple):
    """A stretch of a run.

    Attributes:
        number: From 0 on.
        first: Its first step.
        optim: The optimiser's settings with the number of the phase's steps.
        lam: The lambda that it trains at, where none is drawn.
    """

    number: int
    first: int
    optim: Optim
    lam: list[float]


class Schedule:
    """Equal shares of the steps for every phase; the last takes what does not divide.

    Args:
        config: The run's configuration.

    Raises:
        ValueError: Fewer steps than phases.
    """

    def __init__(self, config: Config) -> None:
        objectives = len(config.objectives)
        self.count = objectives if config.tuning.phased else 1
        self.optim = config.optim
        if self.optim.steps < self.count:
            raise ValueError(f"train: optim.steps must be at least {self.count}, one per phase; got {self.optim.steps}")
        self.share = self.optim.steps // self.count
        corners = [[float(i == k) for i in range(objectives)] for k in range(objectives)]
        self.lams = corners if config.tuning.phased else [config.fixed_lam]

    def at(self, step: int) -> Phase:
        """Return the phase that a step, counted from 0, belongs to."""
        number = min(step // self.share, self.count - 1)
        first = number * self.share
        steps = self.optim.steps - first if number == self.count - 1 else self.share
        return Phase(number, first, self.optim.model_copy(update={"steps": steps}), self.lams[number])
