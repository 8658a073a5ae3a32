"""What the page allows, and how long a preview may take."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Refused", "Settings"]


class Refused(ValueError):
    """Something that the page does not do; the message is for the person in front of it."""


@dataclass(frozen=True)
class Settings:
    """Limits of the page.

    Args:
        max_bytes: Largest upload.
        max_pixels: Largest picture, height times width, before and after the network.
        tile: Size of the tiles of large pictures, a multiple of 16; 0: the whole picture.
        overlap: Overlap of the tiles.
        preview_ms: Time that the network may take for a preview, in milliseconds; the size of the preview follows.
        paths: Whether the page may name files of the machine that runs the app; only for a page that is served to that
            machine alone.

    Raises:
        ValueError: A value out of its range.
    """

    max_bytes: int = 256_000_000
    max_pixels: int = 40_000_000
    tile: int = 512
    overlap: int = 64
    preview_ms: float = 40.0
    paths: bool = True

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"app: {name} must be at least 1; got {getattr(self, name)}")
        if not (math.isfinite(self.preview_ms) and self.preview_ms > 0):
            raise ValueError(f"app: preview_ms must be positive; got {self.preview_ms}")
        if self.tile < 0 or self.tile % 16:
            raise ValueError(f"app: tile must be 0 or a multiple of 16; got {self.tile}")
        if self.tile and not 0 <= self.overlap <= self.tile - 16:
            raise ValueError(f"app: overlap must lie in 0..{self.tile - 16} (tile - 16); got {self.overlap}")
