"""What `tunable-ops apply` does with tars of pictures, such as WebDataset's: streams in, streams out."""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli.shards import Shard

if TYPE_CHECKING:
    from tunable_ops.cli.batch import Batch
    from tunable_ops.cli.progress import Progress

__all__ = ["Member", "key_of", "read_samples", "run_tars"]

_BLOCK = 512
_RECORD = 20 * _BLOCK


@dataclass(frozen=True)
class Member:
    """A file of a tar: its header and its content."""

    header: tarfile.TarInfo
    content: bytes


def key_of(name: str) -> str:
    """Return what the members of a sample share: folder and name up to the first dot, as WebDataset has it."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def read_samples(path: Path) -> Iterator[tuple[list[Member], int]]:
    """Yield the samples of a tar in its order, and where in the file each ends; one at a time is in memory.

    Members that follow each other and share a key are a sample. Folders and links are passed over.

    Raises:
        ValueError: The file is no tar, or ends too early.
    """
    sample: list[Member] = []
    end = 0
    try:
        with tarfile.open(path, "r|*") as tar:
            for header in tar:
                if not header.isfile():
                    continue
                if sample and key_of(header.name) != key_of(sample[0].header.name):
                    yield sample, end
                    sample = []
                file = tar.extractfile(header)
                assert file is not None
                content = file.read()
                if len(content) < header.size:
                    raise ValueError(f"tar must be whole; got {str(path)!r}, which ends within {header.name!r}")
                sample.append(Member(header, content))
                end = header.offset_data + header.size
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"tar must be whole; got {str(path)!r} ({error})") from error
    if sample:
        yield sample, end


def run_tars(args: argparse.Namespace, device: Any) -> int:
    """Process all tars, or this process's part of them; return 0, 1 if something was skipped, or 2 if all was.

    With as many tars as processes, or more, each process takes whole tars; otherwise every process reads all of them
    and takes its part of the samples. One of several processes returns 1 where all of its samples were skipped, too.
    """
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.cli.apply_checks import check_output, make_folder
    from tunable_ops.cli.batch import Batch
    from tunable_ops.cli.progress import Progress
    from tunable_ops.cli.restorer import load_restorer, sets_grey
    from tunable_ops.pretrained import replaced

    for path in args.input:
        if not path.is_file():
            raise ValueError(f"tar must be an existing file; got {str(path)!r}")
    stems = [_stem(path) for path in args.input]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise ValueError(f"tars must have different names, which their outputs get; got {twice!r} twice")
    check_output(args, False)
    restorer = load_restorer(args, device)
    spec = restorer.spec
    lam = restorer.fixed
    if lam is None:
        lam = tuple(spec.defaults)
        if args.lam is not None:
            lam = lambdas.parse(args.lam, spec, auto=True, replaced=replaced(args.model))
        lambdas.already_warned()
    make_folder(args.out)
    shard = Shard.here()
    whole = len(args.input) >= shard.count
    paths = shard.own(args.input) if whole else list(args.input)
    knob = restorer.fixed is None and not sets_grey(args, spec)
    batch = Batch(args, spec, [("", [lam])], restorer, knob, False)
    asked = {
        "model": restorer.checksum,
        "lambda": list(lam),
        "output": [args.to or "tar", args.format, args.quality, args.bits, args.as_colour, args.max_pixels],
        "tiles": [args.tile, args.overlap],
        "device": device.type,
    }
    done = failed = 0
    with Progress("tunable-ops apply", len(paths), args.quiet or shard.rank > 0) as progress:
        for path in paths:
            progress.start(path.name, 1)
            part = _Tar(path, args, batch, Shard() if whole else shard, asked, progress)
            try:
                good, bad = part.run()
            except (ValueError, OSError) as error:
                progress.write(f"skipped {path}: {error}", sys.stderr)
                good, bad = part.good, part.bad + 1
            done, failed = done + good, failed + bad
            progress.finish()
    which = f", by process {shard}" if shard.several else ""
    print(f"{done} of {done + failed} samples done, in {args.out}{which}", file=sys.stderr)
    return 0 if not failed else 1 if done or shard.several else 2


class _Tar:
    """One tar, or a part of its samples.

    What is done is on disk after every sample, with a journal beside it: NAME.tar.json, which says how many samples and
    how many bytes that is. A run that was stopped cuts the output there, passes over those samples and goes on.

    Args:
        path: The tar.
        args: Arguments of the command.
        batch: Processes a picture.
        shard: Which part of the samples.
        asked: What decides the result.
        progress: Told how much of the tar is done.
    """

    def __init__(
        self,
        path: Path,
        args: argparse.Namespace,
        batch: Batch,
        shard: Shard,
        asked: dict[str, Any],
        progress: Progress,
    ) -> None:
        from tunable_ops.video import fingerprint

        self.path, self.args, self.batch, self.shard, self.progress = path, args, batch, shard, progress
        name = _stem(path) + (f".{shard}" if shard.several else "")
        self.target = args.out / f"{name}.tar"
        self.folder = args.out / _stem(path) if args.to == "folder" else None
        self.journal = args.out / f"{name}.tar.json"
        self.failures = args.out / f"{name}.failed.tsv"
        self.asked = asked | {"source": fingerprint(path), "shard": str(shard)}
        self.good = self.bad = 0

    def run(self) -> tuple[int, int]:
        """Process the samples that are not done; return how many are done and how many failed, earlier ones included.

        Raises:
            ValueError: The tar is damaged, or the journal is of another run.
            OSError: Something cannot be read or written.
        """
        state = self._begun()
        if state["finished"]:
            self.progress.write(f"{self.target if self.folder is None else self.folder}  done before")
            return self.good, self.bad
        if _unmarked(self.path):
            self.progress.write(f"{self.path}: it has no mark at its end, and may be cut off", sys.stderr)
        part = self.target.with_name(self.target.name + ".part")
        size = max(1, self.path.stat().st_size)
        shown = 0.0
        failures = self._opened(self.failures, state["failed_bytes"])
        output = self._opened(part, state["bytes"]) if self.folder is None else None
        try:
            for number, (sample, end) in enumerate(read_samples(self.path)):
                if number % self.shard.count != self.shard.rank or number // self.shard.count < self.good + self.bad:
                    continue
                members, why = self._restored(sample)
                if why:
                    self.bad += 1
                    failures.write(f"{why}\n".encode(errors="backslashreplace"))
                    failures.flush()
                else:
                    self._write(output, members)
                    self.good += 1
                if output is not None:
                    output.flush()
                self._note(output.tell() if output is not None else 0, failures.tell())
                self.progress.advance(max(0.0, min(1.0, end / size) - shown))
                shown = max(shown, min(1.0, end / size))
            written = 0
            if output is not None:
                output.write(bytes(-(output.tell() + 2 * _BLOCK) % _RECORD + 2 * _BLOCK))
                written = output.tell()
        finally:
            failures.close()
            if output is not None:
                output.close()
        if output is not None:
            part.replace(self.target)
        if not self.bad:
            self.failures.unlink(missing_ok=True)
        self._note(written, 0, finished=True)
        self.progress.write(f"{self.target if self.folder is None else self.folder}  {self.good} samples")
        return self.good, self.bad

    def _begun(self) -> dict[str, Any]:
        """Return what is done, from the journal."""
        new = {"good": 0, "bad": 0, "bytes": 0, "failed_bytes": 0, "finished": False}
        if not self.journal.exists() or self.args.restart:
            return new
        found = json.loads(self.journal.read_text())
        differs = sorted(key for key in self.asked if found["asked"].get(key) != self.asked[key])
        kept = self.target if found["finished"] else self.target.with_name(self.target.name + ".part")
        if self.folder is None and (kept.stat().st_size if kept.exists() else 0) < found["bytes"]:
            return new  # the output was deleted, its journal was not
        if differs:
            raise ValueError(
                f"{str(self.journal)!r} must be of the same run; got another {', '.join(differs)}: start anew "
                "(--restart)"
            )
        self.good, self.bad = found["good"], found["bad"]
        return found

    @staticmethod
    def _opened(path: Path, size: int) -> Any:
        """Open a file for writing after its first bytes, which are kept."""
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(size)
        file.seek(size)
        return file

    def _note(self, size: int, failed_size: int, finished: bool = False) -> None:
        """Write the journal, which is there as a whole or not at all."""
        state = {
            "asked": self.asked,
            "good": self.good,
            "bad": self.bad,
            "bytes": size,
            "failed_bytes": failed_size,
            "finished": finished,
        }
        part = self.journal.with_name(self.journal.name + ".part")
        part.write_text(json.dumps(state))
        part.replace(self.journal)

    def _restored(self, sample: list[Member]) -> tuple[list[Member], str]:
        """Return the members of a sample with its pictures restored; or none, and the failure."""
        from tunable_ops import images
        from tunable_ops.cli import one_line
        from tunable_ops.cli.sources import Source

        members = []
        for member in sample:
            name = member.header.name
            if os.path.splitext(name)[1].lower() not in images.EXTENSIONS:
                members.append(member)
                continue
            shown = f"{self.path}:{name}"
            with _as_file(member.content, name) as file:
                try:
                    picture = images.open_picture(file, self.args.max_pixels)
                    source = Source(Path(shown), Path(), os.path.basename(name))
                    content, suffix = self.batch.encoded(picture, source, self.progress)
                except (AssertionError, ImportError):
                    raise
                except Exception as error:
                    why = one_line(error).replace(str(file), name)
                    self.progress.write(f"skipped {shown}: {why}", sys.stderr)
                    return [], f"{shown}\t{why}"
            header = copy.copy(member.header)
            header.name = os.path.splitext(name)[0] + suffix
            members.append(Member(header, content))
        return members, ""

    def _write(self, output: Any, members: list[Member]) -> None:
        for member in members:
            header, content = member.header, member.content
            if self.folder is not None:
                self._write_file(self.folder, header.name, content)
                continue
            header = copy.copy(header)
            header.size = len(content)
            header.pax_headers = {k: v for k, v in header.pax_headers.items() if k not in ("path", "size")}
            output.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            output.write(content)
            output.write(bytes(-len(content) % _BLOCK))

    @staticmethod
    def _write_file(folder: Path, name: str, content: bytes) -> None:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"names of members must stay in their folder; got {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        part.replace(path)


def _stem(path: Path) -> str:
    from tunable_ops.cli.sources import TARS

    return next(
        path.name[: -len(end)] for end in sorted(TARS, key=len, reverse=True) if path.name.lower().endswith(end)
    )


def _unmarked(path: Path) -> bool:
    """Return True for a tar without the two empty blocks at its end; one that is compressed has a checksum there."""
    if not path.name.lower().endswith(".tar"):
        return False
    with path.open("rb") as file:
        file.seek(-min(2 * _BLOCK, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return any(file.read())


@contextmanager
def _as_file(content: bytes, name: str) -> Iterator[Path]:
    """Give bytes a path: in memory on Linux, in a temporary file elsewhere."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("member")
        try:
            with os.fdopen(number, "wb", closefd=False) as file:
                file.write(content)
            yield Path(f"/proc/self/fd/{number}")
        finally:
            os.close(number)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"member{os.path.splitext(name)[1]}"
        path.write_bytes(content)
        yield path
