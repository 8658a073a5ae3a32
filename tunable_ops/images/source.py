"""Where the bytes of a picture are, a file or memory, and the errors about them."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from PIL import Image

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

__all__ = [
    "TIFF_MAGIC",
    "PictureError",
    "Source",
    "TooManyPixels",
    "UnknownFormat",
    "errors",
    "format_of",
    "opened_with_pillow",
    "quiet",
    "tiff_pages",
]

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_START = 256  # bytes that tell formats and bits apart


class PictureError(ValueError):
    """A picture that cannot be read; `why` is the reason alone, without the name of the file."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class UnknownFormat(PictureError):
    """Something that is no picture, or one of a format that the caller does not read."""


class TooManyPixels(PictureError):
    """A picture that is larger than the caller allows; nothing of it has been decoded."""


@dataclass(frozen=True)
class Source:
    """The bytes of one picture.

    Args:
        path: The file; None for memory.
        content: The bytes in memory; None for a file.
    """

    path: Path | None = None
    content: bytes | None = None

    @classmethod
    def of(cls, given: str | os.PathLike[str] | bytes) -> Source:
        """Return the source of a file that exists, or of bytes.

        Raises:
            ValueError: The file does not exist, or is a folder.
        """
        if isinstance(given, bytes):
            return cls(content=given)
        file = Path(given)
        if file.is_dir():
            got = f"the folder {str(file)!r} (find_images lists its pictures)"
            raise ValueError(f"images: path must be a file; got {got}")
        if not file.exists():
            raise ValueError(f"images: path must be a readable image; got {str(file)!r}, which does not exist")
        return cls(path=file)

    def given(self) -> Path | BinaryIO:
        """Return what decoders are given: the path, which lets them map the file, or a stream."""
        return self.path if self.path is not None else io.BytesIO(self.read())

    def open(self) -> BinaryIO:
        """Open the bytes for reading."""
        return open(self.path, "rb") if self.path is not None else io.BytesIO(self.read())

    def read(self, count: int = -1) -> bytes:
        """Return the bytes, or the first `count` of them."""
        if self.path is None:
            assert self.content is not None
            return self.content if count < 0 else self.content[:count]
        with open(self.path, "rb") as stream:
            return stream.read(count)

    def start(self) -> bytes:
        """Return the first bytes."""
        return self.read(_START)

    def __str__(self) -> str:
        """Return how errors name the source."""
        return repr(str(self.path)) if self.path is not None else f"{len(self.read())} bytes"


@contextmanager
def errors(source: Source) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a `PictureError` that names it."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything, even SyntaxError
        why = error.why if isinstance(error, PictureError) else str(error)
        why = "not a picture, or an unknown format" if isinstance(error, Image.UnidentifiedImageError) else why
        why = " ".join(why.split()) or type(error).__name__
        kind = type(error) if isinstance(error, PictureError) else PictureError
        what = "path" if source.path is not None else "content"
        raise kind(f"images: {what} must be a readable image; got {source} ({why})", why) from error


def format_of(start: bytes) -> str | None:
    """Return PNG, JPEG, WEBP or TIFF by the first bytes of a file; None for any other."""
    if start[:4] in TIFF_MAGIC:
        return "TIFF"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "JPEG" if start.startswith(b"\xff\xd8\xff") else None


class _Unlimited:
    """Context in which Pillow opens pictures of any size; `max_pixels` is the limit for those who want one."""

    _lock = threading.Lock()
    _depth = 0
    _limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if _Unlimited._depth == 0:
                _Unlimited._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _Unlimited._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            _Unlimited._depth -= 1
            if _Unlimited._depth == 0:
                Image.MAX_IMAGE_PIXELS = _Unlimited._limit


@contextmanager
def opened_with_pillow(source: Source) -> Iterator[Image.Image]:
    """Open a picture of any size with Pillow; nothing is decoded yet."""
    known = format_of(source.start())  # a damaged file is not tried as another format
    with _Unlimited(), Image.open(source.given(), formats=None if known is None else [known]) as opened:
        yield opened


@contextmanager
def quiet() -> Iterator[None]:
    """Keep tifffile from logging what it finds damaged: what matters is raised."""
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def tiff_pages(tiff: TiffFile, most: int | None = None) -> Iterator[TiffPage]:
    """Yield the pages of a TIFF file.

    Args:
        tiff: The opened file.
        most: Number of pages that are allowed; None: any.

    Raises:
        ValueError: A damaged file leads back to a page that was there before.
        TooManyPixels: There are more than `most`.
    """
    seen: set[int] = set()
    for page in tiff.pages:
        if page.offset in seen:
            raise ValueError("its pages form a circle")
        if most is not None and len(seen) >= most:
            raise TooManyPixels("", f"it has more than {most} frames or pages")
        seen.add(page.offset)
        yield cast("TiffPage", page)
