"""One process, or several that `torchrun` started: its rank, its device, and whether any asks to stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Process:
    """Rank of this process among ``world_size``, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True if this process writes files and logs."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return True if the flag is up in any process; the same answer everywhere."""
        if self.world_size == 1:
            return flag
        # on the CPU (gloo), so that a GPU is not made to wait
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)


@contextmanager
def process(device: str) -> Iterator[Process]:
    """Join the process group that torchrun's environment variables describe, for the duration of the block.

    Args:
        device: "auto" for CUDA where there is a GPU, else the CPU; or the name of a device.

    Raises:
        ValueError: The device's name is unknown.
        RuntimeError: The device cannot be used here.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size == 1:
        yield Process(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Process(rank, world_size, chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"train: compute.device must be auto, cpu or cuda; got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"train: compute.device must be usable here; got {name!r} without a GPU: use cpu or auto")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank)
    return device
