"""Progress on stderr: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress", "printable"]

_EVERY = 15.0  # seconds between lines
_LAYOUT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def printable(text: object) -> str:
    """Return a text in which bytes of a file name that are no characters are escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


class Progress:
    """Context: a bar for the picture in work, and one for all pictures where there are several.

    Args:
        command: What lines begin with.
        pictures: Number of pictures.
        quiet: Show nothing.
    """

    def __init__(self, command: str, pictures: int, quiet: bool = False) -> None:
        self.command, self.pictures, self.quiet = command, pictures, quiet
        self.terminal = sys.stderr.isatty() and not quiet
        self.number = 0
        self._overall: Any = None
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.terminal and self.pictures > 1:
            self._overall = self._tqdm(self.pictures, "all pictures", 1)
        return self

    def __exit__(self, *_: object) -> None:
        for bar in (self._bar, self._overall):
            if bar is not None:
                bar.close()

    def _tqdm(self, total: float, text: str, position: int) -> Any:
        from tqdm import tqdm

        return tqdm(total=total, desc=text, bar_format=_LAYOUT, leave=False, position=position, dynamic_ncols=True)

    def start(self, name: str, steps: float) -> None:
        """Begin the next picture, of so many steps."""
        self.number += 1
        self.name = f"{printable(name)} ({self.number} of {self.pictures})" if self.pictures > 1 else printable(name)
        self.steps, self.done = max(steps, 1e-9), 0.0
        self.said = time.monotonic()
        if self.terminal:
            self._bar = self._tqdm(steps, self.name, 0)
        self.begin()

    def begin(self) -> None:
        """The picture has been read: the estimate counts from here."""
        self.began = time.monotonic()
        if self._bar is not None:
            self._bar.reset()

    def advance(self, steps: float) -> None:
        """Some steps of the picture are done."""
        self.done = min(self.done + steps, self.steps)
        part = self.done / self.steps
        if self._bar is not None:
            self._bar.update(self.done - self._bar.n)
            if self._overall is not None:
                self._overall.n = self.number - 1 + part
                self._overall.refresh()
        elif not self.quiet and not self.terminal and time.monotonic() - self.said >= _EVERY:
            self.said = time.monotonic()
            left = (self.said - self.began) * (1 - part) / part
            minutes, seconds = divmod(round(left), 60)
            self.write(f"{self.name}: {100 * part:.0f} %, about {minutes}:{seconds:02d} left", sys.stderr)

    def finish(self) -> None:
        """The picture is done, or skipped."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._overall is not None:
            self._overall.n = self.number
            self._overall.refresh()

    def write(self, line: str, file: Any = None) -> None:
        """Print a line above the bars; on stderr it begins with the command."""
        file = sys.stdout if file is None else file
        text = f"{self.command}: {line}" if file is sys.stderr else line
        if self.terminal:
            from tqdm import tqdm

            tqdm.write(printable(text), file=file)
        else:
            print(printable(text), file=file, flush=True)
