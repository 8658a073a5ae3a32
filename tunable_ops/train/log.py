"""The log of a run: means since the last line, in ``log.jsonl`` and for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from tunable_ops.train.sections import Log

__all__ = ["LOG", "RunLog"]

LOG = "log.jsonl"


class RunLog:
    """Collects values step by step; each line holds their means, and NaN is left out.

    Args:
        out: Folder of the run.
        config: The section ``log``.
        step: Steps done so far; lines of later ones, which a killed run left behind, are dropped.
        writes: True in the one process that writes.
    """

    def __init__(self, out: Path, config: Log, step: int, writes: bool) -> None:
        self.path, self.writes = out / LOG, writes
        self._writer: Any = None
        if writes and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
            self.path.write_text("".join(kept), encoding="utf-8")
        if writes and config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out / "logs"), purge_step=step or None)
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count, self._since = 0, time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Take in the values of a step."""
        # sums stay on the device: reading them at every step would stall a GPU
        self._sums = {name: self._sums.get(name, 0) + value for name, value in values.items()}
        self._count += 1

    def means(self) -> tuple[dict[str, float], float]:
        """Return the means since the last call, and the steps per second."""
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        speed = self._count / (time.perf_counter() - self._since)
        self._reset()
        return means, speed

    def restart_clock(self) -> None:
        """Do not count the time so far in the speed: it was not spent on steps."""
        self._since = time.perf_counter()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line."""
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in values.items()}}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
