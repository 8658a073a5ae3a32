"""The log of a run: means since the last line, in ``log.jsonl`` and for TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from tunable_ops.train.sections import Log

__all__ = ["EVENTS", "LOG", "RunLog"]

LOG = "log.jsonl"
EVENTS = "logs"
_log = logging.getLogger(__name__)


class RunLog:
    """Collects values step by step; each line holds their means, and NaN is left out.

    Without the package tensorboard ``log.jsonl`` is written alone, which is said once.

    Args:
        out: Folder of the run.
        config: The section ``log``.
        step: Steps done so far; lines of later ones, which a killed run left behind, are dropped.
        writes: True in the one process that writes.

    Raises:
        ValueError: ``out`` has a log.jsonl that no run wrote.
    """

    def __init__(self, out: Path, config: Log, step: int, writes: bool) -> None:
        self.path, self.writes = out / LOG, writes
        self._writer: Any = None
        if writes and self.path.exists():
            _drop_lines_after(step, self.path)
        if writes and config.tensorboard:
            self._writer = _event_writer(out / EVENTS, step)
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._count, self._since = 0, time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Take in the values of a step; what a step does not have is left out of its mean."""
        # sums stay on the device: reading them at every step would stall a GPU
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._count += 1

    @property
    def pending(self) -> bool:
        """True if steps were added since the last call of `means`."""
        return self._count > 0

    def means(self) -> tuple[dict[str, float], float]:
        """Return the means since the last call, and the steps per second."""
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
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

    @property
    def shows_pictures(self) -> bool:
        """True if `show` leads anywhere."""
        return self._writer is not None

    def show(self, step: int, name: str, picture: Tensor) -> None:
        """Write a picture [3, H, W] in [0, 1] for TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, picture, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def _event_writer(folder: Path, step: int) -> Any:
    """Return TensorBoard's writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        _log.warning("no TensorBoard logs (%s): pip install tensorboard, or set log.tensorboard to false", error)
        return None
    # what a killed run wrote after its last checkpoint is repeated
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _drop_lines_after(step: int, path: Path) -> None:
    """Remove the lines of later steps, and a last line that was cut short."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines, 1) if _step_of(line, number, path) <= step]
    if kept != lines:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(b"".join(kept))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _step_of(line: bytes, number: int, path: Path) -> float:
    """Return the step of a line; infinity if it was cut short."""
    start = b'{"step": '
    if not line.endswith(b"\n") and (line.startswith(start) or start.startswith(line)):
        return math.inf
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    # all that a run logs has a name such as loss/total
    if not isinstance(values, dict) or {name for name in values if "/" not in name} != {"step"}:
        raise ValueError(
            f"train: out must be a folder in which {path.name}, if there is one, is the log of a run; got "
            f"{str(path)!r}, whose line {number} is not of one: move it away, or name another folder"
        )
    return int(values["step"])
