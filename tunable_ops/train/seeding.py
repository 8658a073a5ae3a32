"""Stateless randomness: what is drawn at a step depends on (seed, step, rank) alone.

There is no generator whose position would have to be saved: a resumed run draws at step k what an uninterrupted one
does.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed for one purpose, such as ``derive_seed(0, "batch", step, rank)``."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a fresh CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))
