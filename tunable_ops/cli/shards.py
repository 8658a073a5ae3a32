"""One of several processes, as `torchrun` starts them: its part of the work, and when it may end."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Others", "Shard"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Shard:
    """Part `rank` of `count`. Each process knows its part from these two numbers.

    Args:
        rank: Number of this process, from 0.
        count: Number of processes on all machines.
        local: Number of this process on its machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Shard:
        """Return that of the environment: RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process.

        Raises:
            ValueError: They are no numbers, or do not fit together.
        """
        words = {name: os.environ.get(name, default) for name, default in _NAMES.items()}
        try:
            rank, count, local = (int(words[name]) for name in _NAMES)
        except ValueError:
            rank, count, local = -1, 0, 0
        if not 0 <= rank < count or local < 0:
            shown = ", ".join(f"{name}={value}" for name, value in words.items())
            raise ValueError(f"RANK and WORLD_SIZE must be those of torchrun, 0 <= RANK < WORLD_SIZE; got {shown}")
        return cls(rank, count, local)

    @property
    def several(self) -> bool:
        """True if there are other processes."""
        return self.count > 1

    def __str__(self) -> str:
        """Return the name that its files have."""
        digits = max(2, len(str(self.count)))
        return f"{self.rank:0{digits}d}-of-{self.count:0{digits}d}"

    def own(self, items: Sequence[_Item]) -> list[_Item]:
        """Return every count-th item, from the rank-th on."""
        return list(items[self.rank :: self.count])

    def device(self, device: Any, asked: str | None) -> Any:
        """Return the device of this process: one GPU each, unless a GPU is asked for by its number."""
        import torch

        if self.several and device.type == "cuda" and asked in (None, "cuda"):
            return torch.device("cuda", self.local % torch.cuda.device_count())
        return device

    def write_failed(self, folder: Path, failed: Sequence[tuple[str, str]]) -> None:
        """Write the names of what failed, and why, to failed-RR-of-NN.tsv; without any, delete that of a run before."""
        path = folder / f"failed-{self}.tsv"
        if failed:
            path.write_text("".join(f"{name}\t{why}\n" for name, why in failed), errors="backslashreplace")
        else:
            path.unlink(missing_ok=True)


_NAMES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


class Others:
    """The other processes of `torchrun`, which ends all of them when one returns an error.

    So a process in which pictures have failed waits with its exit code until all have finished. They meet in the store
    of `torchrun`. Processes that something else has started do not wait.

    Args:
        store: A torch.distributed.Store; None where nobody waits.
        count: Number of processes.
        pause: Called between two looks at the store.
    """

    def __init__(self, store: Any, count: int, pause: Callable[[], object] = lambda: time.sleep(0.5)) -> None:
        self._store, self._count, self._pause = store, count, pause

    @classmethod
    def join(cls, shard: Shard) -> Others:
        """Find the others, before the work.

        Raises:
            ValueError: The store of `torchrun` does not answer.
        """
        if not shard.several or "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls(None, shard.count)
        import torch.distributed

        try:
            store, _, _ = next(torch.distributed.rendezvous("env://", timeout=datetime.timedelta(minutes=5)))
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"torchrun must be reachable at MASTER_ADDR and MASTER_PORT; got {why}") from error
        return cls(torch.distributed.PrefixStore("tunable_ops.apply", store), shard.count)

    def finish(self, code: int) -> int:
        """Return the exit code of this process: 0 or 1 when all have finished, another one, which stops them, now."""
        if self._store is None or code not in (0, 1):
            return code
        try:
            self._store.add(_FINISHED, 1)
            while self._store.add(_FINISHED, 0) < self._count:
                self._pause()
        except RuntimeError:  # the process that holds the store has gone, as it does when all have finished
            pass
        return code


_FINISHED = "finished"
