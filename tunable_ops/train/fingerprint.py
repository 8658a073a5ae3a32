"""Fingerprints of the files that a configuration names: what decides the weights is their content, not their place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["fingerprint", "fingerprints"]

_BLOCK, _BLOCKS = 2**16, 16  # of a file larger than 1 MiB: 64 KiB at 16 places


def fingerprints(named: Mapping[str, Sequence[Path] | str | None]) -> dict[str, str]:
    """Return the `fingerprint` of the files that each configuration key names.

    Args:
        named: Key -> files, or the path of one; keys without a path, or with that of no file, are left out.
    """
    found = {key: [Path(given)] if isinstance(given, str) else given for key, given in named.items()}
    return {key: fingerprint(files) for key, files in found.items() if files and all(map(Path.is_file, files))}


def fingerprint(files: Sequence[Path]) -> str:
    """Return a text that tells whether these are the files that were there before.

    It depends on their order, names, sizes and content. Of a file of more than 1 MiB it reads 16 blocks of 64 KiB at
    equal distances, the first and the last among them: a thousand photographs take a second.

    Args:
        files: Paths; the folders above the one that holds them all do not count.

    Returns:
        Such as "3 files, 0123456789abcdef".

    Raises:
        ValueError: A file cannot be read.
    """
    total = hashlib.blake2b(digest_size=8)
    folder = _common(files)
    for file in files:
        name = file.relative_to(folder).as_posix()
        total.update(name.encode(errors="surrogateescape") + b"\0" + _digest(file))
    return f"{len(files)} file{'s' * (len(files) != 1)}, {total.hexdigest()}"


def _common(files: Sequence[Path]) -> Path:
    folder = files[0].parent if files else Path()
    while not all(file.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder


def _digest(file: Path) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb") as stream:
            size = file.stat().st_size
            found.update(size.to_bytes(8, "big"))
            if size <= _BLOCK * _BLOCKS:
                found.update(stream.read())
            else:
                for place in range(_BLOCKS):
                    stream.seek((size - _BLOCK) * place // (_BLOCKS - 1))
                    found.update(stream.read(_BLOCK))
    except OSError as error:
        raise ValueError(f"train: files must be readable; got {str(file)!r} ({error.strerror or error})") from error
    return found.digest()
