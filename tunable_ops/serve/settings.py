"""What the service allows, and how it batches."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

__all__ = ["Settings", "read_key"]


@dataclass(frozen=True)
class Settings:
    """Limits of the service.

    Args:
        max_bytes: Largest upload.
        max_pixels: Largest picture, height times width, before and after the network; frames and pages add up.
        max_frames: Most frames of an animation, or pages of a document.
        queue: Most requests that are received, wait or run at one time; the next is refused with 429.
        timeout: Seconds from the first byte to the answer, after which a request is dropped with 503.
        upload_timeout: Seconds that an upload may take, after which it is dropped with 408.
        batch_wait_ms: Longest time that a picture waits for others of its size, in milliseconds; it does not wait while
            no other request is on its way.
        max_batch: Most pictures in one call of the network; 1: no batches.
        batch_pixels: Most pixels in one call of more than one picture; larger batches no longer fit a CPU's caches
            (docs/serve.md).
        tile: Size of the tiles of large pictures, a multiple of 16; 0: the whole picture.
        overlap: Overlap of the tiles.
        workers: Pictures that are decoded, restored and encoded at one time.
        api_key: Key that every request under /v1 and /metrics must show; None: none is asked for.

    Raises:
        TypeError: A value of another type.
        ValueError: A value out of its range.
    """

    max_bytes: int = 32_000_000
    max_pixels: int = 40_000_000
    max_frames: int = 1000
    queue: int = 64
    timeout: float = 120.0
    upload_timeout: float = 30.0
    batch_wait_ms: float = 5.0
    max_batch: int = 16
    batch_pixels: int = 1 << 15
    tile: int = 512
    overlap: int = 64
    workers: int = 16
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_frames", "queue", "max_batch", "batch_pixels", "workers"):
            self._check(name, int, 1)
        for name in ("timeout", "upload_timeout"):
            self._check(name, (int, float), 0.001)
        self._check("batch_wait_ms", (int, float), 0)
        self._check("tile", int, 0)
        self._check("overlap", int, 0)
        if self.tile % 16:
            raise ValueError(f"serve: tile must be 0 or a multiple of 16; got {self.tile}")
        if self.tile and self.overlap > self.tile - 16:
            raise ValueError(f"serve: overlap must lie in 0..{self.tile - 16} (tile - 16); got {self.overlap}")
        if self.api_key is not None:
            _check_key(self.api_key)

    def _check(self, name: str, kind: Any, least: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"serve: {name} must be {'an int' if kind is int else 'a number'}; got {value!r}")
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"serve: {name} must be at least {least}; got {value}")


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"serve: api_key must be a string; got {type(key).__name__}")
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"serve: api_key must be at least 16 printable ASCII characters without spaces; got {len(key)} characters"
        )


def read_key(file: str | os.PathLike[str]) -> str:
    """Return the key in a file, without white space around it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no key.
    """
    with open(file, encoding="utf-8") as stream:
        key = stream.read(4096).strip()
    _check_key(key)
    return key
