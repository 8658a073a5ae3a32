"""What of a video is done: a folder beside the output, in which a stopped run goes on."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunable_ops.video.shot import Mark

__all__ = ["Job", "Segment", "fingerprint"]

_JOB = "job.json"


@dataclass(frozen=True)
class Segment:
    """Some frames that are done.

    Args:
        mark: The last of them, counted from the first of the video.
        first: Number of the first of them.
        depth: By how many frames decoding runs ahead of what is shown.
        times: (timestamp, duration) of each.
    """

    mark: Mark
    first: int
    depth: int
    times: list[tuple[int, int]]


class Job:
    """The folder of a run.

    Its name is that of the output and `.parts`. It holds `job.json`, what the run was asked for, and for each segment
    NNNNN.json, written last, and, where there is one, NNNNN.mkv.

    Args:
        out: What is written in the end.
        asked: What decides the result, as JSON; a folder of another request is not continued.
        restart: Begin anew whatever is there.

    Attributes:
        folder: The folder.
        segments: Number of segments that are done.

    Raises:
        ValueError: The folder is of another request.
        OSError: It cannot be made.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any], restart: bool = False) -> None:
        self.folder = self.folder_of(out)
        text = json.dumps(asked, sort_keys=True, indent=1)
        note = self.folder / _JOB
        if restart and self.folder.exists():
            shutil.rmtree(self.folder)
        if note.exists():
            differs = _differences(json.loads(note.read_text()), json.loads(text))
            if differs:
                raise ValueError(
                    f"video: {str(self.folder)!r} must be of the same run; got another {', '.join(differs)}: "
                    "start anew (--restart), or choose another --out"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(note, text)
        self.segments = 0
        while self.path(self.segments, "json").exists():
            self.segments += 1
        self.mark = self.read(self.segments - 1).mark if self.segments else None

    @staticmethod
    def folder_of(out: Path) -> Path:
        """Return the folder of the run that writes a file."""
        return out.with_name(out.name.replace("%", "_") + ".parts")

    def path(self, number: int, extension: str) -> Path:
        """Return a file of a segment."""
        return self.folder / f"{number:05d}.{extension}"

    def read(self, number: int) -> Segment:
        """Return what is known of a segment."""
        found = json.loads(self.path(number, "json").read_text())
        return Segment(Mark(**found["mark"]), found["first"], found["depth"], [tuple(pair) for pair in found["times"]])

    def add(self, segment: Segment) -> None:
        """Note that the next segment is done; its file must be there."""
        mark = segment.mark
        found = {
            "mark": {"count": mark.count, "pts": mark.pts, "check": mark.check, "moved": mark.moved},
            "first": segment.first,
            "depth": segment.depth,
            "times": segment.times,
        }
        _write(self.path(self.segments, "json"), json.dumps(found))
        self.segments += 1
        self.mark = mark

    def remove(self) -> None:
        """Delete the folder: the output is there."""
        shutil.rmtree(self.folder)


def fingerprint(path: Path) -> dict[str, Any]:
    """Return what tells a file from another one: name, size, and a checksum of its first and last MiB."""
    about = path.stat()
    with path.open("rb") as file:
        value = zlib.crc32(file.read(1 << 20))
        file.seek(max(0, about.st_size - (1 << 20)))
        value = zlib.crc32(file.read(1 << 20), value)
    return {"name": path.name, "size": about.st_size, "checksum": value}


def _write(path: Path, text: str) -> None:
    """Write a file that appears only when it is complete."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
