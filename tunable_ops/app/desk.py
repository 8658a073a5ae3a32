"""The sessions of all pages that are open, and the folders of their files."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from tunable_ops.app.networks import Networks
from tunable_ops.app.session import Session
from tunable_ops.app.settings import Settings

__all__ = ["Desk"]

_MOST_SESSIONS = 32


class Desk:
    """The sessions of all pages that are open; the oldest goes where there are too many.

    Args:
        networks: Where networks come from.
        settings: Limits.
        folder: Where files for the screen and for downloads are written.
    """

    def __init__(self, networks: Networks, settings: Settings, folder: Path) -> None:
        self.networks, self.settings, self._folder = networks, settings, folder
        self._sessions: OrderedDict[str, tuple[Session, Path]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: str) -> tuple[Session, Path]:
        """Return the session of a page, and its folder; both are made where it has none."""
        with self._lock:
            if key not in self._sessions:
                folder = Path(tempfile.mkdtemp(dir=self._folder))
                self._sessions[key] = (Session(self.networks, self.settings), folder)
            self._sessions.move_to_end(key)
            while len(self._sessions) > _MOST_SESSIONS:
                self._drop(*self._sessions.popitem(last=False)[1])
            return self._sessions[key]

    def find(self, key: str) -> Session | None:
        """Return the session of a page, None where it has none."""
        with self._lock:
            kept = self._sessions.get(key)
        return None if kept is None else kept[0]

    def close(self, key: str) -> None:
        """Forget the session of a page that was closed, and remove its files."""
        with self._lock:
            kept = self._sessions.pop(key, None)
        if kept is not None:
            self._drop(*kept)

    @staticmethod
    def _drop(session: Session, folder: Path) -> None:
        session.cancel()
        shutil.rmtree(folder, ignore_errors=True)
