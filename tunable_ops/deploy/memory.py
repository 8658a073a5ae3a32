"""What a call takes of memory, and the tiles that keep it below a limit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunable_ops.deploy.source import Source
from tunable_ops.modules import TunableModel, fold

__all__ = ["peak_bytes", "tile_for"]

_SIDES = (64, 128)  # pixels of the pictures between which the growth is measured
_WORKSPACE = 2  # beside activations, what the libraries take for themselves: transformed inputs, other layouts
_LEAST = 64


def tile_for(memory: int, source: Source, dtype: torch.dtype, multiple: int) -> int:
    """Return the largest tile, a multiple of `multiple`, whose call stays below a limit.

    Args:
        memory: Bytes.
        source: A network.
        dtype: Of its activations.
        multiple: Factor of the tile's side.

    Raises:
        TypeError: `memory` is not an int.
        ValueError: `memory` is not positive; the smallest sensible tile, 64 x 64, takes more; or `source` is a file,
            which cannot be looked into.
    """
    if not isinstance(memory, int) or isinstance(memory, bool):
        raise TypeError(f"Runner: memory must be an int, bytes; got {memory!r}")
    if memory < 1:
        raise ValueError(f"Runner: memory must be positive, bytes; got {memory}")
    if source.net is None:
        raise ValueError(f"Runner: memory must be left out for a file: give tile; got {memory}")
    net = fold(source.net) if isinstance(source.net, TunableModel) else source.net
    least = max(_LEAST, -(-source.description.smallest // multiple) * multiple)
    small, large = (peak_bytes(net, torch.zeros(1, source.description.channels, n, n)) for n in _SIDES)
    a_pixel = _WORKSPACE * (large - small) / (_SIDES[1] ** 2 - _SIDES[0] ** 2) * dtype.itemsize / 4
    side = int((memory / a_pixel) ** 0.5) // multiple * multiple
    if side < least:
        needed = int(a_pixel * least**2)
        raise ValueError(f"Runner: memory must be at least {needed:,} bytes, for tiles of {least}; got {memory:,}")
    return side


def peak_bytes(net: Any, x: Tensor) -> int:
    """Return the bytes of the tensors that a call makes, at the moment when most of them are alive."""
    with torch.no_grad(), _Watch() as watch:
        net(x)
    return watch.peak


class _Watch(TorchDispatchMode):
    """Counts the memory of tensors from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[int, Any]] = {}  # by address: bytes, and a weak reference to the storage
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage.data_ptr()] = (
                    storage.nbytes(),
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                )
        self.alive = {key: (size, ref) for key, (size, ref) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for size, _ in self.alive.values()))
        return result
