"""Find the pictures of a folder."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["EXTENSIONS", "Found", "find_images", "search"]

_NAMES = """
apng avif avifs bmp bw cur dcx dds dib flc fli gif icb icns ico im j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo msp
pbm pcd pcx pfm pgm png pnm ppm psd pxr qoi ras rgb rgba sgi tga tif tiff vda vst webp xbm xpm
"""
EXTENSIONS = tuple(f".{name}" for name in _NAMES.split())
"""Extensions of pictures in a folder, in upper or lower case."""


@dataclass
class Found:
    """The pictures of a folder, how many other files there are, by kind, and how many subfolders."""

    paths: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    folders: int = 0


def find_images(path: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """List the pictures of a folder, sorted by name.

    Hidden files are left out. Files are recognised by their extension (`EXTENSIONS`) and not opened.

    Args:
        path: Folder; or a file, which is returned whatever its extension.
        recursive: Search subfolders too, except hidden ones and links.

    Raises:
        ValueError: The path does not exist, or the folder has no pictures.
    """
    return search(path, recursive).paths


def search(path: str | os.PathLike[str], recursive: bool = False) -> Found:
    """Find the pictures of a folder as `find_images`, and count the files that are none.

    Raises:
        ValueError: As for `find_images`.
    """
    root = Path(path)
    if root.is_file():
        return Found([root])
    if not root.is_dir():
        raise ValueError(f"images: path must be an existing file or folder; got {str(root)!r}, which does not exist")
    found = Found()
    _collect(root, recursive, found)
    if not found.paths:
        hint = "; subfolders are not searched unless recursive (--recursive)" if found.folders and not recursive else ""
        raise ValueError(
            f"images: path must be a folder with pictures ({' '.join(EXTENSIONS)}); got {str(root)!r} without one{hint}"
        )
    return found


def _collect(folder: Path, recursive: bool, found: Found) -> None:
    """Add the pictures of a folder, and what else is there."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"images: path must be a readable folder; got {str(folder)!r} ({error.strerror or error})"
        ) from error
    folders = []
    for entry in entries:
        extension = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir():
            if not entry.name.startswith(".") and not entry.is_symlink():
                folders.append(entry)
        elif entry.name.startswith("."):
            found.ignored["hidden"] += 1
        elif not entry.is_file():  # a broken link, a pipe
            found.ignored["not a file"] += 1
        elif extension in EXTENSIONS:
            found.paths.append(folder / entry.name)
        else:
            found.ignored[extension or "without extension"] += 1
    found.folders += len(folders)
    for entry in folders if recursive else ():
        try:
            _collect(folder / entry.name, recursive, found)
        except ValueError:
            found.ignored["unreadable folder"] += 1
