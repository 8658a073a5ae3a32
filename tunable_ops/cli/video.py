"""What `tunable-ops apply` does with videos and numbered pictures."""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli.curve import Curve

if TYPE_CHECKING:
    from torch import Tensor

    from tunable_ops.cli.progress import Progress
    from tunable_ops.restorer import Restorer
    from tunable_ops.video import Shot

__all__ = ["run_videos"]

_SAME = (".mp4", ".m4v", ".mov", ".mkv", ".webm")  # whose outputs have their container; others become .mkv
_SAMPLES = 5  # frames in which the noise is estimated
_RATE = "25"


def run_videos(args: argparse.Namespace, device: Any) -> int:
    """Process all videos, or this process's part of them; return 0, 1 if some were skipped, or 2 if all were.

    One of several processes returns 1 where all of its videos were skipped, too.

    Args:
        args: Arguments of the command.
        device: Where the network runs.
    """
    import av

    from tunable_ops.cli import lam as lambdas
    from tunable_ops.cli import one_line
    from tunable_ops.cli.apply_checks import make_folder
    from tunable_ops.cli.curve import parse_curve
    from tunable_ops.cli.progress import Progress, printable
    from tunable_ops.cli.restorer import load_restorer, sets_grey
    from tunable_ops.cli.shards import Shard
    from tunable_ops.pretrained import replaced
    from tunable_ops.video import CONTAINERS, is_pattern

    single = is_pattern(args.out) or args.out.suffix.lower() in CONTAINERS or _odd_suffix(args.out)
    if single and len(args.input) > 1:
        raise ValueError(f"--out must be a folder for {len(args.input)} videos; got {str(args.out)!r}")
    settings = _Settings.of(args)
    restorer = load_restorer(args, device)
    if restorer.fixed is not None:
        curve = Curve((0.0,), (restorer.fixed,))
    else:
        spec = restorer.spec
        curve = Curve((0.0,), (tuple(spec.defaults),))
        if args.lam is not None:
            curve = parse_curve(args.lam, spec, replaced=replaced(args.model))
        lambdas.already_warned()
    make_folder(args.out.parent if single else args.out)
    knob = restorer.fixed is None and not sets_grey(args, restorer.spec)
    done = 0
    shard = Shard.here()
    paths = shard.own(args.input)
    failed: list[tuple[str, str]] = []
    owners = {path.resolve(): path for path in args.input}
    with Progress("tunable-ops apply", len(paths), args.quiet or shard.rank > 0) as progress:
        for path in paths:
            run = _Run(args, settings, restorer, curve, knob, path, args.out if single else None, owners, progress)
            try:
                progress.write(run.run())
                done += 1
            except KeyboardInterrupt:
                run.say_what_is_kept()
                raise
            except (AssertionError, ImportError):
                raise
            except Exception as error:
                text = error.strerror if isinstance(error, av.FFmpegError) and error.strerror else one_line(error)
                progress.write(f"skipped {path}: {text}", sys.stderr)
                failed.append((str(path), text))
                run.say_what_is_kept()
            progress.finish()
    which = f", by process {shard}" if shard.several else ""
    print(f"{done} of {len(paths)} videos done, in {printable(args.out)}{which}", file=sys.stderr)
    if shard.several:
        shard.write_failed(args.out.parent if single else args.out, failed)
        return int(bool(failed))
    if not done:
        return 2
    return 0 if done == len(paths) else 1


def _odd_suffix(out: Path) -> bool:
    """Return True for a name such as film.xyz, which is no folder that exists: the error is about the container."""
    return bool(out.suffix) and not out.is_dir() and out.suffix[1:].isalnum() and not out.suffix[1:].isdigit()


@dataclass(frozen=True)
class _Settings:
    """What the options say of encoding and rate."""

    options: dict[str, str]
    rate: Fraction | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> _Settings:
        options = {}
        for word in args.encoder_option:
            key, equals, value = word.partition("=")
            if not (key and equals):
                raise ValueError(f"--encoder-option must be KEY=VALUE, such as preset=slow; got {word!r}")
            options[key] = value
        rate = None
        if args.rate is not None:
            try:
                rate = Fraction(args.rate)
            except (ValueError, ZeroDivisionError):
                rate = Fraction(0)
            if not 0 < rate <= 1000:
                raise ValueError(f"--rate must lie above 0 and up to 1000, such as 25 or 30000/1001; got {args.rate!r}")
            rate = rate.limit_denominator(1001)
        return cls(options, rate)


@dataclass
class _Run:
    """One video.

    Args:
        args: Arguments of the command.
        settings: Of encoding.
        restorer: The network.
        curve: Lambda over time.
        knob: True if grey frames set the parameter "grey".
        path: The video, or the pattern of its pictures.
        out: What --out names, if it is no folder.
        owners: Files that are read or written, and the input that each belongs to.
        progress: Told of every tile.
    """

    args: argparse.Namespace
    settings: _Settings
    restorer: Restorer
    curve: Curve
    knob: bool
    path: Path
    out: Path | None
    owners: dict[Path, Path]
    progress: Progress
    job: Any = None

    def run(self) -> str:
        """Process it, and return a line of text for it."""
        from tunable_ops import video

        args, path = self.args, self.path
        numbered = video.is_pattern(path) and not path.exists()
        if self.settings.rate is not None and not numbered:
            raise ValueError(f"--rate must be left out for a video file, which has its own; got {args.rate}")
        if numbered:
            rate = self.settings.rate or Fraction(_RATE)
            source: Any = video.Sequence(path, rate, args.max_pixels)
        else:
            source = video.VideoFile(path, args.damaged == "keep")
        shape = source.shape
        if args.max_pixels is not None and shape.width * shape.height > args.max_pixels:
            raise ValueError(f"--max-pixels must allow {shape.width}x{shape.height}; got {args.max_pixels}")
        self.curve = self._settled(source)
        described = self.curve.describe(self.restorer.spec)
        out = self.out or args.out / _output_name(path, self.curve, numbered)
        owner = self.owners.setdefault(out.resolve(), path)
        if owner != path or out.resolve() == path.resolve():
            what = "is an input" if owner.resolve() == out.resolve() else f"belongs to {str(owner)!r}"
            raise ValueError(f"--out must not replace another video; got {str(out)!r}, which {what}")
        if args.resume and out.exists() and not video.Job.folder_of(out).exists():
            return f"{out}  done before"
        for note in self._remarks(source):
            self._say(f"warning: {path}: {note}")
        sink, about = self._sink(source, numbered, out)
        asked = {  # --damaged is none of it: a run that stopped at a damaged place may go on past it
            "source": self._identity(source, numbered),
            "model": self.restorer.checksum,
            "lambda": [list(self.curve.times), [list(lam) for lam in self.curve.lams]],
            "output": about,
            "tiles": [args.tile, args.overlap],
            "as_colour": args.as_colour,
            "segment": args.segment,
            "device": self.restorer.device.type,
        }
        length = max(1, round(args.segment * shape.rate))
        self.job = job = video.Job(out, asked, args.restart)
        before = job.mark.count if job.mark is not None else 0
        if before:
            self._say(f"{path}: goes on after {before} frames that are done")
        self.progress.start(path.name, max(1, (shape.count or before + 1) - before))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            notes = video.restore(source, sink, self._function, job, length)
        for note in dict.fromkeys([*(str(each.message) for each in said), *source.notes, *notes]):
            self._say(f"{path}: {note}")
        self.job = None
        return "  ".join(filter(None, (str(out), described)))

    def say_what_is_kept(self) -> None:
        """Say, after an error, what the next run does not do again."""
        if self.job is not None and self.job.mark is not None:
            self._say(
                f"{self.path}: {self.job.mark.count} frames that are done are kept in {self.job.folder}: the same "
                "command goes on after them"
            )

    def _function(self, shot: Shot, seconds: float) -> Tensor:
        from tunable_ops.grey import set_knob

        grey = shot.grey and not self.args.as_colour
        lam = self.curve.at(seconds)
        if self.restorer.fixed is None:
            lam = set_knob(self.restorer.spec, lam, grey and self.knob)
        self.restorer.set(lam, grey)
        colour = shot.colour[:1] if grey else shot.colour.expand(3, -1, -1)
        return self.restorer(colour, self.progress.advance)

    def _settled(self, source: Any) -> Curve:
        """Return the curve with the noise of the video estimated where that is asked for; compare others with it."""
        from tunable_ops.cli import noise
        from tunable_ops.cli.lam import AUTO

        spec = self.restorer.spec
        if getattr(spec, "domain", None) != "box" or "of 255" not in spec.units:
            return self.curve
        samples = [
            (shot.colour[:1] if shot.grey else shot.colour, shot.subsampled) for shot in source.samples(_SAMPLES)
        ]
        estimates = [sigma for sample in samples if (sigma := noise.estimate(*sample)) is not None]
        sigma = statistics.median(estimates) if estimates else None
        if any(AUTO in lam for lam in self.curve.lams):
            self._say(f"{self.path}: {noise.finding(sigma, spec)}")
            return self.curve.settled(lambda lam: noise.settle(lam, spec, sigma))
        if not self.curve.moves and (text := noise.advice(self.curve.lams[0], spec, [sigma])):
            self._say(f"warning: {self.path}: {text}")
        return self.curve

    def _remarks(self, source: Any) -> list[str]:
        found = []
        if name := source.shape.tags.high_dynamic_range:
            found.append(f"its values are of high dynamic range ({name}); networks are trained on others")
        if source.interlaced:
            found.append("it is interlaced; frames are processed and encoded as whole ones: deinterlace it before")
        return found

    def _sink(self, source: Any, numbered: bool, out: Path) -> tuple[Any, dict[str, Any]]:
        """Return where frames go, tried before any work, and what decides its bits."""
        import av

        from tunable_ops import images, video

        args, shape = self.args, source.shape
        if video.is_pattern(out):
            kind = images.kind_of(out)
            bits = args.bits or (16 if self._deep(source) and images.KINDS[kind].bits == 16 else 8)
            if images.KINDS[kind].bits < bits:
                raise ValueError(f"--bits must be 8 for {kind}; got {bits}: use png or tiff")
            if not out.parent.is_dir():
                out.parent.mkdir(parents=True)
            if not numbered and (rest := video.inventory(self.path)):
                self._say(f"{self.path}: pictures hold no {rest}: left out")
            return video.PictureSink(out, getattr(source, "first", 1), bits, args.quality), {"bits": bits, "kind": kind}
        for name, value in (("--bits", args.bits), ("--quality", args.quality), ("--format", args.format)):
            if value is not None:
                raise ValueError(f"{name} must be left out for a video file (--crf, --pixel-format); got {value}")
        container = video.container_of(out)
        scale = self.restorer.scale
        size = (scale * shape.height, scale * shape.width)
        common = "yuv420p" if numbered and not any(side % 2 for side in size) else None
        coding = video.choose_coding(
            container,
            shape,
            size,
            encoder=args.encoder,
            pixel_format=args.pixel_format or (common if args.encoder in (None, "libx264", "libx265") else None),
            crf=args.crf,
            options=self.settings.options,
            threads=args.threads,
        )
        if common and args.pixel_format is None and coding.pixel_format == common:
            self._say(
                f"{self.path}: encoded as yuv420p, which every player shows; --pixel-format yuv444p keeps colours whole"
            )
        nothing = video.Plan(frozenset(), ())
        plan = nothing if numbered else video.plan(self.path, container, coding, args.leave_out)
        for note in (*coding.notes, *plan.notes):
            self._say(f"{self.path}: {note}")
        about = {
            "container": container,
            "encoder": [coding.encoder, coding.pixel_format, dict(coding.options), coding.threads],
            "copied": sorted(plan.copied),
            "libraries": {name: list(version) for name, version in av.library_versions.items()},
        }
        return video.FileSink(out, shape, coding, None if numbered else self.path, plan.copied), about

    def _identity(self, source: Any, numbered: bool) -> dict[str, Any]:
        from tunable_ops import video

        if not numbered:
            return video.fingerprint(self.path)
        first = video.fingerprint(video.numbered(self.path, source.first))
        return {"pattern": self.path.name, "count": source.shape.count, "first": first, "rate": str(source.shape.rate)}

    @staticmethod
    def _deep(source: Any) -> bool:
        import av

        return any(component.bits > 8 for component in av.VideoFormat(source.shape.pixel_format).components)

    def _say(self, line: str) -> None:
        self.progress.write(line, sys.stderr)


def _output_name(path: Path, curve: Curve, numbered: bool) -> str:
    from tunable_ops.cli.lam import numbers

    text = "_lam-moving" if curve.moves else f"_lam{numbers([curve.lams[0]])[0]}" if curve.lams[0] else "_plain"
    if numbered:
        stem = path.stem.partition("%")[0].rstrip("-_. ") or path.parent.name or "sequence"
        return f"{stem}{text}.mp4"
    suffix = path.suffix if path.suffix.lower() in _SAME else ".mkv"
    return f"{path.stem if suffix == path.suffix else path.name}{text}{suffix}"
