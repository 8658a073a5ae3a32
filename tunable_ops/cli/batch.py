"""What `tunable-ops apply` does with each picture."""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli.shards import Shard

if TYPE_CHECKING:
    from torch import Tensor

    from tunable_ops.cli.mask import Masked
    from tunable_ops.cli.progress import Progress
    from tunable_ops.cli.sources import Source
    from tunable_ops.images import Frame, Picture
    from tunable_ops.restorer import Restorer

__all__ = ["Batch"]

_STRIP_HEIGHT = 512
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other picture could be written either


@dataclass
class Batch:
    """Run a network on pictures and write what it returns.

    Args:
        args: Arguments of the command.
        spec: Names of lambda.
        rows: (name of the parameter that moves, lambdas).
        restorer: The network.
        knob: True if grey pictures set its parameter "grey".
        single: True if --out names a file.
        shard: Which of several processes this one is.
        masked: A part of the pictures with a lambda of its own.

    Attributes:
        failed: (picture, why) of those that were skipped.
        done_before: Number of pictures whose outputs were there.
    """

    args: argparse.Namespace
    spec: Any
    rows: list[tuple[str, list[tuple[float, ...]]]]
    restorer: Restorer
    knob: bool
    single: bool
    shard: Shard = field(default_factory=Shard)
    masked: Masked | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)
    done_before: int = 0
    _owners: dict[Path, Path] = field(default_factory=dict)  # output, and the picture that it was made of

    def run(self, sources: Sequence[Source]) -> int:
        """Process all; return 0, 1 if some were skipped, or 2 if all were (one of several processes: 1)."""
        from tunable_ops import images
        from tunable_ops.cli import one_line
        from tunable_ops.cli.progress import Progress, printable

        self._owners = {source.path.resolve(): source.path for source in sources}
        if self.masked is not None:
            self._owners.setdefault(self.args.mask.resolve(), self.args.mask)
        done = unreadable = 0
        full = False
        with Progress("tunable-ops apply", len(sources), self.args.quiet or self.shard.rank > 0) as progress:
            for source in sources:
                progress.start(source.path.name, sum(len(lams) for _, lams in self.rows))
                try:
                    try:
                        picture = images.open_picture(source.path, self.args.max_pixels)
                    except (ValueError, OSError):
                        unreadable += 1
                        raise
                    progress.begin()
                    for line in self.one(picture, source, progress):
                        progress.write(line)
                    done += 1
                except (AssertionError, ImportError):
                    raise
                except Exception as error:  # too small for the network, too large for memory, damaged, ...
                    full = isinstance(error, OSError) and error.errno in _FULL
                    what = "error" if full else f"skipped {source.path}"
                    progress.write(f"{what}: {one_line(error)}", sys.stderr)
                    self.failed.append((str(source.path), one_line(error)))
                progress.finish()
                if full:
                    break
        stopped = "stopped: " if full else ""
        before = f" ({self.done_before} before)" if self.done_before else ""
        where = printable(self.args.out) + (f", by process {self.shard}" if self.shard.several else "")
        if done or full or not self.single:  # else the line about the one picture says all
            print(f"{stopped}{done} of {len(sources)} images done{before}, in {where}", file=sys.stderr)
        if self.shard.several:
            self.shard.write_failed(self.args.out, self.failed)
            return 2 if full else int(bool(self.failed))
        if unreadable == len(sources):
            raise ValueError(
                f"images: paths must hold at least one readable image; got {unreadable} files, none of them readable"
            )
        if not done:
            return 2
        return 0 if done == len(sources) else 1

    def one(self, picture: Picture, source: Source, progress: Progress) -> Iterator[str]:
        """Process one picture: write its outputs and strips, and yield a line of text for each."""
        from tunable_ops import images
        from tunable_ops.cli.lam import describe, numbers

        args = self.args
        grey, rows, kind, suffix = self._prepared(picture, source, progress)
        names = self._names(source, suffix, [numbers(lams) for _, lams in rows], self._inside(grey))
        if args.resume and all(
            path.exists() for paths, strip in names for path in [*paths, *([strip] if args.sweep else [])]
        ):
            self.done_before += 1
            return
        self._say_losses(picture, source, kind, grey, progress)
        for (name, lams), (paths, strip_path) in zip(rows, names, strict=True):
            columns: list[tuple[Tensor, str]] = []
            for lam, path in zip(lams, paths, strict=True):
                frames = _Frames(self, picture, grey, lam, progress.advance)
                written = list(frames)
                images.write_picture(
                    written,
                    path,
                    quality=args.quality,
                    loop=picture.loop,
                    separate_first=picture.separate_first,
                    warn=False,
                )
                text = describe(self.spec, lam, name if len(rows) > 1 else None)
                inside = "" if self.masked is None else f"inside: {describe(self.spec, self.masked.inside)}"
                yield "  ".join(filter(None, (str(path), describe(self.spec, lam), inside, frames.score)))
                if args.sweep is not None:
                    columns = columns or [frames.given]
                    columns.append((_small(written[0].rgb()), "\n".join(filter(None, (text, frames.score)))))
            if args.sweep is not None:
                if args.noise is not None:
                    columns.append((_small(next(picture.frames()).rgb()), "clean"))
                strip = images.strip([shown for shown, _ in columns], [text for _, text in columns])
                images.write_image(strip, strip_path)
                yield str(strip_path)

    def encoded(self, picture: Picture, source: Source, progress: Progress) -> tuple[bytes, str]:
        """Process one picture at the only position; return its file's content and extension."""
        from tunable_ops import images

        grey, rows, kind, suffix = self._prepared(picture, source, progress)
        self._say_losses(picture, source, kind, grey, progress)
        ((_, (lam,)),) = rows
        frames = list(_Frames(self, picture, grey, lam, lambda part: None))
        quality, separate_first = self.args.quality, picture.separate_first
        content = images.encode_picture(frames, kind, quality=quality, loop=picture.loop, separate_first=separate_first)
        return content, suffix

    def _prepared(
        self, picture: Picture, source: Source, progress: Progress
    ) -> tuple[bool, list[tuple[str, list[Any]]], str, str]:
        """Return whether a picture is grey, its rows of lambdas, and kind and extension of its outputs."""
        from tunable_ops.grey import set_knob

        grey = not self.args.as_colour and all(frame.is_grey for frame in picture.frames())
        rows = self._settled(picture, source, grey, progress)
        kind, suffix = self._target(picture, source)
        rows = [(name, [set_knob(self.spec, lam, grey and self.knob) for lam in lams]) for name, lams in rows]
        return grey, rows, kind, suffix

    def _say_losses(self, picture: Picture, source: Source, kind: str, grey: bool, progress: Progress) -> None:
        from tunable_ops import images

        if grey and self.restorer.net is None and "of 255" in getattr(self.spec, "units", ()):
            said = "a grey picture, but the network was folded for noise in colour: apply the tunable network instead"
            progress.write(f"tunable-ops apply: warning: {source.path}: {said}", sys.stderr)
        for note in images.losses(picture, kind, self.args.bits, colours=None if grey else 3):
            progress.write(f"{source.path}: {note}", sys.stderr)

    def _settled(self, picture: Picture, source: Source, grey: bool, progress: Progress) -> list[tuple[str, list[Any]]]:
        """Return the rows with the noise of the picture estimated where that is asked for; compare others with it.

        Where a sweep moves the noise level there is nothing to estimate or compare. An animation or a document is as
        noisy as its first frame.
        """
        from tunable_ops.cli import noise
        from tunable_ops.cli.lam import AUTO

        if getattr(self.spec, "domain", None) != "box" or "of 255" not in self.spec.units:
            return self.rows
        levels = {
            tuple(value for value, unit in zip(lam, self.spec.units, strict=True) if unit == "of 255")
            for _, lams in self.rows
            for lam in lams
        }
        if len(levels) > 1:
            return self.rows
        lam = self.rows[0][1][0]
        frame, given = next(iter(_given(picture, self.args, grey)))
        sigma = noise.estimate(given, frame.subsampled)
        if AUTO in lam:
            progress.write(f"{source.path}: {noise.finding(sigma, self.spec)}", sys.stderr)
            return [(name, [noise.settle(lam, self.spec, sigma) for lam in lams]) for name, lams in self.rows]
        if text := noise.advice(lam, self.spec, [sigma]):
            progress.write(f"warning: {source.path}: {text}", sys.stderr)
        return self.rows

    def _target(self, picture: Picture, source: Source) -> tuple[str, str]:
        """Choose the kind of file to write, and its extension.

        Raises:
            ValueError: The kind that was asked for cannot hold the picture.
        """
        from tunable_ops import images

        args = self.args
        size = [self.restorer.scale * side for side in picture.size]
        kind = images.kind_of(args.out) if self.single else args.format
        if kind is None:
            kind = images.default_kind(picture, args.bits or picture.bits, (size[0], size[1]))
        images.check_size(kind, size[0], size[1], picture.count)
        suffix = args.out.suffix if self.single else source.path.suffix
        return kind, suffix if images.SUFFIXES.get(suffix.lower()) == kind else f".{kind}"

    def _inside(self, grey: bool) -> str:
        """Return the part of a name that says what holds inside the mask; "" without one."""
        from tunable_ops.cli.lam import numbers
        from tunable_ops.grey import set_knob

        if self.masked is None:
            return ""
        return f"_mask{numbers([set_knob(self.spec, self.masked.inside, grey and self.masked.knob)])[0]}"

    def _names(
        self, source: Source, suffix: str, numbers: Sequence[Sequence[str]], inside: str
    ) -> list[tuple[list[Path], Path]]:
        """Return the files of each row and its strip, and make their folder.

        Raises:
            ValueError: A name is that of a picture to read, or of what another picture has become.
            OSError: A name is too long, or the folder cannot be made.
        """
        from tunable_ops.cli.sources import output_base

        out = self.args.out
        folder = out / source.folder
        base, strip_base = output_base(source.name, suffix), output_base(source.name, ".png")
        rows, end = [], f"{inside}{suffix}"
        sweep = self.args.sweep
        several = len(self.rows) > 1 or (sweep is not None and (sweep.name or self.args.lam) is not None)
        for (name, _), texts in zip(self.rows, numbers, strict=True):
            paths = [folder / f"{base}_{f'lam{text}' if text else 'plain'}{end}" for text in texts]
            mark = f"-{_safe(name)}" if several else ""
            rows.append((paths, folder / f"{strip_base}_sweep{mark}.png"))
        if self.single:
            rows, folder = [([out], out)], out.parent
        else:
            folder.mkdir(parents=True, exist_ok=True)
        longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        for path in [path for paths, strip in rows for path in [*paths, *([strip] if self.args.sweep else [])]]:
            if len(os.fsencode(path.name)) > longest:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
            owner = self._owners.setdefault(path.resolve(), source.path)
            if owner != source.path or path.resolve() == source.path.resolve():
                what = "is an input" if owner.resolve() == path.resolve() else f"belongs to {str(owner)!r}"
                raise ValueError(f"--out must not replace another picture; got {str(path)!r}, which {what}")
        return rows


class _Frames:
    """The frames of a picture as the network returns them at one lambda, and how close they are to the clean ones.

    A grey picture has noise on one channel, is judged there, and comes out with the channels that its file has.
    """

    def __init__(
        self, batch: Batch, picture: Picture, grey: bool, lam: tuple[float, ...], advance: Callable[[float], Any]
    ) -> None:
        self.batch, self.picture, self.grey, self.lam = batch, picture, grey, lam
        self.advance = lambda part: advance(part / picture.count)
        self.errors: list[float] = []
        self.noisy: list[float] = []
        self._shown: Tensor | None = None
        batch.restorer.set(lam, grey)

    def __iter__(self) -> Iterator[Frame]:
        from tunable_ops.restoration import restored

        noise, bits = self.batch.args.noise, self.batch.args.bits
        for frame, given in _given(self.picture, self.batch.args, self.grey):
            clean = frame.colour[:1] if self.grey else frame.colour.expand(3, -1, -1)
            if noise is not None:
                self.noisy.append(_error(given, clean))
            if self._shown is None:
                self._shown = _small(given).expand(3, -1, -1)
            output = self._restored(given)
            if noise is not None and output.shape == clean.shape:
                self.errors.append(_error(output, clean))
            yield restored(frame, output, bits)

    def _restored(self, given: Tensor) -> Tensor:
        from tunable_ops.grey import set_knob

        batch, masked = self.batch, self.batch.masked
        if masked is None:
            return batch.restorer(given, self.advance)
        inside = set_knob(batch.spec, masked.inside, self.grey and masked.knob)
        return batch.restorer.masked(given, self.lam, inside, masked.mask, self.advance)

    @property
    def score(self) -> str:
        """PSNR of all frames, or nothing."""
        return _decibels(self.errors)

    @property
    def given(self) -> tuple[Tensor, str]:
        """The first frame that the network was given, small, and what it is."""
        assert self._shown is not None
        return self._shown, f"noisy {_decibels(self.noisy)}" if self.noisy else "input"


def _given(picture: Picture, args: argparse.Namespace, grey: bool) -> Iterator[tuple[Frame, Tensor]]:
    """Yield the frames of a picture and what the network is given of each: the noise of --noise added.

    [3, H, W], or [1, H, W] in grey.
    """
    import torch

    generator = torch.Generator().manual_seed(args.seed)
    for frame in picture.frames():
        given = frame.colour[:1] if grey else frame.colour.expand(3, -1, -1)
        if args.noise is not None:
            given = given + args.noise / 255 * torch.randn(given.shape, generator=generator)
        yield frame, given


def _small(image: Tensor) -> Tensor:
    """Shrink an image to _STRIP_HEIGHT, so that a strip of large images stays small."""
    import torch.nn.functional as F

    height, width = image.shape[1:]
    if height <= _STRIP_HEIGHT:
        return image
    size = (_STRIP_HEIGHT, max(1, round(width * _STRIP_HEIGHT / height)))
    return F.interpolate(image[None].float(), size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _error(image: Tensor, clean: Tensor) -> float:
    """Return the mean squared error, with values clamped to [0, 1] as in a file, but not rounded."""
    return float((image.clamp(0, 1) - clean).double().square().mean())


def _decibels(errors: Sequence[float]) -> str:
    """Return the PSNR in dB of mean squared errors, for a peak of 1."""
    return f"{-10 * math.log10(max(sum(errors) / len(errors), 1e-12)):.2f} dB" if errors else ""


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
