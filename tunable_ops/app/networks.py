"""The networks that the page offers: those that ship, and files that are named or uploaded."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunable_ops import pretrained
from tunable_ops.app.engine import Engine
from tunable_ops.app.settings import Refused, Settings
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.restorer import load

__all__ = ["Choice", "Networks"]

_KEPT = 4  # networks that stay in memory


class Choice(NamedTuple):
    """What a command names.

    Args:
        model: --model, a name or a file.
        knobs: Each --knob, a file.
    """

    model: str
    knobs: tuple[str, ...] = ()


class Networks:
    """Loads networks, and keeps those that were used last.

    Args:
        device: Where they run.
        settings: Limits of the page.
        models: What the list of the page offers: names, or files; None: all that ship.
        knobs: Files of knobs that are added to each of them.
    """

    def __init__(
        self, device: Any, settings: Settings, models: Sequence[str] | None = None, knobs: Sequence[str] = ()
    ) -> None:
        self._device, self._settings, self.knobs = device, settings, tuple(knobs)
        self.names = list(models) if models else pretrained.names()
        self._kept: OrderedDict[Choice, tuple[Any, Engine]] = OrderedDict()
        self._lock = threading.Lock()

    def engine(self, model: str, knobs: Sequence[str] = ()) -> Engine:
        """Return a network, loaded if need be: also where one of its files is another than before.

        Raises:
            Refused: There is none of this name, the file is none, or a knob is of another base.
        """
        choice = Choice(model, tuple(knobs))
        with self._lock:
            stamps = [_stamp(file) for file in (choice.model, *choice.knobs)]  # before they are read
            if choice not in self._kept or self._kept[choice][0] != stamps:
                self._kept[choice] = stamps, self._load(choice)
            self._kept.move_to_end(choice)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[choice][1]

    def _load(self, choice: Choice) -> Engine:
        try:
            net, spec, fixed = load(choice.model, list(choice.knobs))
            name = Path(choice.model).name.removesuffix(".safetensors")
            title = " + ".join([name, *(Path(knob).name.removesuffix(".safetensors") for knob in choice.knobs)])
            return Engine(title, net, spec, fixed, self._device, self._settings)
        except (ValueError, TypeError, RuntimeError, OSError, KeyError) as error:
            if isinstance(error, Refused):
                raise
            raise Refused(" ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())) from error

    def sort(self, files: Sequence[str | os.PathLike[str]], model: str) -> Choice:
        """Return what files are together: knobs go onto the network among them, or onto `model`.

        Raises:
            Refused: One is no safetensors file, or there is more than one network.
        """
        knobs: list[str] = []
        networks: list[str] = []
        for file in map(_file_of, files):
            if file.suffix != ".safetensors":
                raise Refused(f"a network or knob must be a .safetensors file; got {file.name!r}")
            if not file.is_file():
                raise Refused(f"a network or knob must be an existing file; got {str(file)!r}")
            (knobs if _is_knob(file) else networks).append(str(file))
        if len(networks) > 1:
            names = ", ".join(Path(name).name for name in networks)
            raise Refused(f"files must hold one network, with any number of knobs; got {names}")
        return Choice(networks[0] if networks else model, tuple(knobs))


def _file_of(path: str | os.PathLike[str]) -> Path:
    """Return a file itself, or that of a folder of `save_pretrained`."""
    try:
        return pretrained.folder_file(path) if os.path.isdir(path) else Path(path)
    except (ValueError, OSError) as error:
        raise Refused(" ".join(str(error).split())) from error


def _stamp(file: str) -> tuple[int, int, int] | None:
    """Return what changes with a file, or with that of a folder; None for a name that is none."""
    try:
        found = os.stat(pretrained.folder_file(file) if os.path.isdir(file) else file)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _is_knob(file: Path) -> bool:
    try:
        read_knob_metadata(file)
    except (ValueError, OSError):
        return False
    return True
