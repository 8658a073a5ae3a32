"""The loop: frames in, frames out, segment by segment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tunable_ops import images
from tunable_ops.video import mux
from tunable_ops.video.encode import Coding, SegmentWriter, container_of
from tunable_ops.video.job import Job, Segment
from tunable_ops.video.read import VideoFile
from tunable_ops.video.sequence import Sequence, numbered
from tunable_ops.video.shot import Mark, Shape, Shot

__all__ = ["FileSink", "PictureSink", "Sink", "restore"]


class Sink(Protocol):
    """Where restored frames go."""

    def begin(self, job: Job) -> None:
        """Begin the next segment."""

    def add(self, shot: Shot, colour: Tensor) -> None:
        """Take a frame: what it was made of, and [1 or 3, H, W]."""

    def end(self) -> int:
        """Finish the segment, which must then be on disk; return by how many frames its decoding runs ahead."""

    def abandon(self) -> None:
        """Drop the segment that was begun."""

    def finish(self, job: Job) -> list[str]:
        """Make the output of all segments; return what it does not hold, in a sentence each."""


class FileSink:
    """A video file.

    Args:
        out: File to write.
        shape: Of the source.
        coding: How its frames are encoded.
        source: File that sound, subtitles, ... are copied from, if there is one.
        copied: Indices of its streams that are.
    """

    def __init__(
        self, out: Path, shape: Shape, coding: Coding, source: Path | None = None, copied: Collection[int] = ()
    ) -> None:
        self.out, self.shape, self.coding, self.source, self.copied = out, shape, coding, source, copied
        self.container = container_of(out)
        self._writer: SegmentWriter | None = None

    def begin(self, job: Job) -> None:
        """Begin the next segment; the encoder is opened with its first frame."""
        self._path, self._writer = job.path(job.segments, "mkv"), None

    def add(self, shot: Shot, colour: Tensor) -> None:
        """Encode a frame."""
        size = (colour.shape[1], colour.shape[2])
        if self._writer is None:
            tags = self.shape.tags.fitting(self.coding.pixel_format, self.shape.pixel_format, size)
            self._writer = SegmentWriter(self._path, self.coding, self.shape, size, tags)
        self._writer.add(colour, resized(shot.alpha, size), shot.pts, shot.duration)

    def end(self) -> int:
        """Finish the segment's file."""
        assert self._writer is not None
        self._writer.close()
        return self._writer.depth

    def abandon(self) -> None:
        """Close the segment's file; the next run writes it anew."""
        if self._writer is not None:
            self._writer.abandon()

    def finish(self, job: Job) -> list[str]:
        """Write the file."""
        return mux.finish(job, self.shape, self.out, self.container, self.source, self.copied)


class PictureSink:
    """Numbered pictures.

    Args:
        pattern: Such as `out/%05d.png`.
        first: Number of the first.
        bits: Bits per channel.
        quality: 1 to 100, for jpg and webp.
    """

    def __init__(self, pattern: Path, first: int, bits: int, quality: int | None = None) -> None:
        self.pattern, self.first, self.bits, self.quality = pattern, first, bits, quality

    def begin(self, job: Job) -> None:
        """Begin the next segment."""
        self._number = self.first + (job.mark.count if job.mark is not None else 0)

    def add(self, shot: Shot, colour: Tensor) -> None:
        """Write a picture."""
        metadata = shot.metadata or images.Metadata()
        alpha = resized(shot.alpha, (colour.shape[1], colour.shape[2]))
        frame = images.Frame.of(colour, alpha, bits=self.bits, duration=None, metadata=metadata)
        first = self._number == self.first
        images.write_picture([frame], numbered(self.pattern, self._number), quality=self.quality, warn=first)
        self._number += 1

    def end(self) -> int:
        """Do nothing: every picture is on disk."""
        return 0

    def abandon(self) -> None:
        """Do nothing: the next run writes the segment's pictures anew."""

    def finish(self, job: Job) -> list[str]:
        """Do nothing."""
        return []


def restore(
    source: VideoFile | Sequence,
    sink: Sink,
    function: Callable[[Shot, float], Tensor],
    job: Job,
    length: int,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[str]:
    """Pass all frames of a source that are not done yet through a function, and finish the output.

    Memory holds one frame and what the codecs hold. A run that stops, for whatever reason, loses the segment in work;
    the same call goes on after the last one that is done, and the output is the same, bit for bit.

    Args:
        source: Where frames come from.
        sink: Where they go.
        function: (frame, seconds) -> [1 or 3, s H, s W], with an s that does not change.
        job: What is done.
        length: Frames of a segment, at least 1.
        advance: Called with 1 after every frame.

    Returns:
        What the output does not hold, in a sentence each.

    Raises:
        DamageError: A damaged place of the source.
        ValueError: The source has no frames, or whatever `function` raises.
    """
    time_base: Fraction = source.shape.time_base
    frames = source.frames(job.mark)
    while True:
        part = itertools.islice(frames, length)
        first = next(part, None)
        if first is None:
            break
        times: list[tuple[int, int]] = []
        sink.begin(job)
        try:
            for shot in itertools.chain([first], part):
                sink.add(shot, function(shot, float(shot.pts * time_base)))
                times.append((shot.pts, shot.duration))
                advance(1)
            depth = sink.end()
        except BaseException:
            sink.abandon()
            raise
        before = job.mark.count if job.mark is not None else 0
        job.add(Segment(Mark(before + len(times), shot.pts, shot.check, shot.moved), before, depth, times))
    if not job.segments:
        raise ValueError(f"video: path must have frames; got {str(source.path)!r} without one")
    notes = sink.finish(job)
    job.remove()
    return notes


def resized(alpha: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """Enlarge opacity [1, H, W] as the network did the colours."""
    import torch.nn.functional as F

    if alpha is None or tuple(alpha.shape[1:]) == size:
        return alpha
    return F.interpolate(alpha[None], size, mode="bicubic")[0].clamp(0, 1)
