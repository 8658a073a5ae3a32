"""Signals that stop a run between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

__all__ = ["StopSignals"]


class StopSignals(contextlib.AbstractContextManager["StopSignals"]):
    """Note SIGINT and SIGTERM as ``received`` instead of dying; a second SIGINT is let through."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
