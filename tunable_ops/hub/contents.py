"""What a repository or a folder holds: our file is found and fetched, everything else is named and left alone."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from tunable_ops.pretrained import FOLDER_FILES

__all__ = ["CONFIG", "FILES", "LIBRARY", "Found", "Place", "find"]

LIBRARY = "tunable_ops"
CONFIG = "config.json"
FILES = FOLDER_FILES
"""The one file of tensors, by what it is."""

_HARMLESS = {".md", ".txt", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg"}
_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
_NAMED = 5  # foreign files that a message names


class Found(NamedTuple):
    """What a repository holds of ours.

    Args:
        file: On this machine.
        format: Key of `FILES`.
        config: Of config.json; empty where there is none.
    """

    file: Path
    format: str
    config: dict[str, Any]


class Place:
    """A local folder, or a repository of a hub.

    Args:
        source: Existing folder, or "owner/name".
        revision: Branch, tag or commit of a repository; None: its main branch.
        options: token, cache_dir, force_download and local_files_only of `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: Neither a folder nor the name of a repository.
        ValueError: A folder with a revision.
    """

    def __init__(self, source: str | os.PathLike[str], revision: str | None = None, **options: Any) -> None:
        self.name = os.fspath(source)
        self.folder = Path(source) if os.path.isdir(source) else None
        if self.folder is not None and revision is not None:
            raise ValueError(f"hub: revision must be left out for a folder; got {revision!r} for {self.name!r}")
        if self.folder is None:
            _check_name(self.name)
        self.revision, self.options = revision, options

    def names(self) -> list[str] | None:
        """Return what is there; None where it cannot be asked, without a connection."""
        if self.folder is not None:
            return _files(self.folder)
        if self.options.get("local_files_only"):
            return None
        try:
            return HfApi(token=self.options.get("token")).list_repo_files(self.name, revision=self.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception:  # no connection, a server that is busy: the cache may have what is needed, `fetch` will tell
            return None

    def fetch(self, name: str) -> Path:
        """Return the path of a file on this machine.

        Raises:
            EntryNotFoundError: It is not there; or it is not in the cache, and there is no connection.
        """
        if self.folder is None:
            return Path(hf_hub_download(self.name, name, revision=self.revision, **self.options))
        if not (self.folder / name).is_file():
            raise EntryNotFoundError(f"{name} is not in {self.name!r}")
        return self.folder / name


def find(place: Place) -> Found:
    """Find and fetch the one file of ours, and say what else there is.

    Warns:
        UserWarning: The repository holds other files that are no text and no pictures, or names code to be run.

    Raises:
        ValueError: It holds neither a network nor a knob of this package; the message names what it holds instead.
        EntryNotFoundError: As `Place.fetch`, without a list of what is there.
        HfHubHTTPError: The hub refuses, or has no such repository or revision. This message and the one before begin
            by saying that there is no folder of that name: it may be mistyped.
    """
    try:
        return _find(place)
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        if place.folder is None:
            error.args = (f"hub: no folder {place.name!r} exists here, and as a repository: {error}", *error.args[1:])
        raise


def _find(place: Place) -> Found:
    names = place.names()
    config = _read_config(place, names)
    if names is not None:
        _warn_of_others(place.name, names, config)
    kinds = [config["format"]] if "format" in config else list(FILES)
    for kind in kinds:
        if names is not None and FILES[kind] not in names:
            continue
        try:
            return Found(place.fetch(FILES[kind]), kind, config)
        except EntryNotFoundError:
            if names is not None or kind == kinds[-1]:
                raise
    wanted = " or ".join(FILES[kind] for kind in kinds)
    raise ValueError(f"hub: source must hold {wanted}; got {place.name!r} with {_instead(names or [])}")


def _check_name(name: str) -> None:
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    try:
        if looks_local:
            raise ValueError(name)
        validate_repo_id(name)
    except ValueError:
        raise FileNotFoundError(
            f"hub: source must be an existing folder or a repository 'owner/name'; got {name!r}"
        ) from None


def _files(folder: Path) -> list[str]:
    """Return the files below a folder, but for hidden folders (.git, .cache)."""
    found: list[str] = []
    for here, below, names in os.walk(folder):
        below[:] = sorted(each for each in below if not each.startswith("."))
        found += [(Path(here) / name).relative_to(folder).as_posix() for name in sorted(names)]
    return found


def _read_config(place: Place, names: Sequence[str] | None) -> dict[str, Any]:
    if names is not None and CONFIG not in names:
        return {}
    try:
        text = place.fetch(CONFIG).read_bytes().decode()
    except EntryNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise ValueError(f"hub: {CONFIG} must be text; got {error} in {place.name!r}") from None
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"hub: {CONFIG} must be JSON; got {error} in {place.name!r}") from None
    if not isinstance(config, dict):
        raise ValueError(f"hub: {CONFIG} must hold an object; got {type(config).__name__} in {place.name!r}")
    if config.get("format") not in list(FILES):  # a list, for what is compared may be of any type
        library = config.get("library_name") or config.get("model_type") or "another library"
        raise ValueError(
            f"hub: source must hold a network or a knob of {LIBRARY}; got {place.name!r}, whose {CONFIG} names "
            f"{library!r}, with {_instead(names or [])}"
        )
    return config


def _warn_of_others(name: str, names: Sequence[str], config: Mapping[str, Any]) -> None:
    others = _foreign(names)
    if "auto_map" in config:
        others.append(f"auto_map in {CONFIG}")
    if others:
        warnings.warn(
            f"hub: {name!r} also holds {_listed(others)}: not used; nothing in it is run or unpickled", stacklevel=2
        )


def _foreign(names: Sequence[str]) -> list[str]:
    known = {CONFIG, *FILES.values(), ".gitattributes", ".gitignore", "LICENSE", "LICENCE", "NOTICE"}
    return [name for name in names if name not in known and PurePosixPath(name).suffix.lower() not in _HARMLESS]


def _instead(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    others = _foreign(names) or list(names)
    pickles = [name for name in others if PurePosixPath(name).suffix.lower() in _PICKLES]
    never = " (pickles, which are never opened: loading one can run code)" if pickles else ""
    return f"{_listed(pickles or others)}{never}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
