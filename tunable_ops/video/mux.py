"""Put the restored video and everything else of the source into one file."""

from __future__ import annotations

import io
import itertools
from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunable_ops.video.encode import LEAD, Coding
from tunable_ops.video.job import Job
from tunable_ops.video.read import main_stream, open_container
from tunable_ops.video.shot import Shape

__all__ = ["KINDS", "Plan", "finish", "inventory", "plan"]

KINDS = ("audio", "subtitle", "attachment", "data", "video")
"""Kinds of streams beside the one that is restored."""

_OPTIONS = {"fflags": "+bitexact"}  # no random number, no date of writing: equal runs give equal files
# of the file or the stream that was, not of what is in it
_OF_THE_FILE = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "handler_name", "vendor_id"}
_STATISTICS = ("BPS", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES", "_STATISTICS", "DURATION", "ENCODER")


@dataclass(frozen=True)
class Plan:
    """Which streams of a source are copied.

    Args:
        copied: Their indices.
        notes: What is left out, in a sentence each.
    """

    copied: frozenset[int]
    notes: tuple[str, ...]


def plan(path: Path, container: str, coding: Coding, leave_out: Collection[str] = ()) -> Plan:
    """Decide what is copied from a file, by asking the container.

    Args:
        path: The source.
        container: FFmpeg's name of the container that is written.
        coding: Of the restored video.
        leave_out: Kinds of streams to leave out, of `KINDS`.

    Raises:
        ValueError: The container cannot hold the video's codec, or a stream of sound that is not to be left out.
    """
    copied, notes = set(), []
    if why := _refusal(container, encoder=coding.encoder):
        raise ValueError(f"video: container {container} must hold {coding.encoder}; got: {why}: use .mkv")
    with open_container(path) as source:
        main = main_stream(source, path)
        for stream in source.streams:
            if stream.index == main.index or _is_chapters(stream, source):
                continue
            name = _name(stream)
            if stream.type in leave_out:
                notes.append(f"{name} left out, as asked for")
            elif why := _refusal(container, template=stream):
                if stream.type == "audio":
                    raise ValueError(
                        f"video: container {container} must hold every audio stream; got {name}: {why}: use .mkv, or "
                        "leave it out (--leave-out audio)"
                    )
                notes.append(f"{name} left out: {container} cannot hold it{_hint(container)}: {why}")
            else:
                copied.add(stream.index)
                if stream.type == "video" and not stream.disposition & 0x400:
                    notes.append(f"{name} is copied as it is: one video stream is restored")
    return Plan(frozenset(copied), tuple(notes))


def inventory(path: Path) -> str:
    """Return what a file holds beside its main video, such as "1 audio, 2 subtitle, 3 chapters"; or nothing."""
    with open_container(path) as source:
        main = main_stream(source, path)
        kinds = Counter(
            stream.type for stream in source.streams if stream.index != main.index and not _is_chapters(stream, source)
        )
        parts = [f"{count} {kind}" for kind, count in kinds.items()]
        chapters = len(source.chapters())
        return ", ".join([*parts, *([f"{chapters} chapters"] if chapters else [])])


def finish(
    job: Job, shape: Shape, out: Path, container: str, source: Path | None, copied: Collection[int]
) -> list[str]:
    """Write the file of the segments that are done, with what is copied from the source.

    The file appears only when it is complete. Timestamps are those of the source, as finely as the container has them.

    Args:
        job: Its segments.
        shape: Of the source.
        out: File to write.
        container: FFmpeg's name of its container.
        source: The file that everything but the video is from, if it is one.
        copied: Indices of the streams to copy.

    Returns:
        What the container did not keep, in a sentence each.
    """
    import av

    part = job.folder / f"out{out.suffix}"
    with av.open(str(part), "w", format=container, container_options=_OPTIONS) as file:
        if source is None:
            video = _video_stream(file, job, shape)
            for packet in _packets(job, shape):
                packet.stream = video
                file.mux(packet)
        else:
            _write(file, job, shape, source, copied)
    notes = [] if source is None else _missing(source, part, copied)
    notes += _clock(part, shape, job.read(0).times[0][0])
    part.replace(out)
    return notes


def _write(file: Any, job: Job, shape: Shape, path: Path, copied: Collection[int]) -> None:
    """Write video and copied packets in the order of their decoding times."""
    with open_container(path) as source:
        main = main_stream(source, path)
        targets: dict[int, Any] = {}
        for stream in source.streams:
            if stream.index == main.index:
                video = _video_stream(file, job, shape)
                _describe(stream, video, restored=True)
            elif stream.index in copied:
                targets[stream.index] = file.add_stream_from_template(stream, opaque=True)
                _describe(stream, targets[stream.index])
        kept = {key: value for key, value in source.metadata.items() if key.lower() not in _OF_THE_FILE}
        file.metadata.update(kept)
        file.set_chapters(source.chapters())
        restored = _packets(job, shape)
        waiting = next(restored, None)
        streams = [source.streams[index] for index in targets if source.streams[index].type != "attachment"]
        for packet in source.demux(streams) if streams else ():
            target = targets[packet.stream.index]
            if packet.dts is None and packet.pts is None:  # the end
                continue
            if packet.size == 2 and bytes(packet) == b"\0\0" and _is_timed_text(packet.stream):
                continue  # the end of a subtitle, which the muxer writes itself
            if packet.dts is None:
                packet.dts = packet.pts
            time = packet.dts * packet.time_base
            while waiting is not None and waiting.dts * shape.time_base <= time:
                waiting.stream = video
                file.mux(waiting)
                waiting = next(restored, None)
            packet.stream = target
            file.mux(packet)
        for packet in itertools.chain([waiting] if waiting is not None else [], restored):
            packet.stream = video
            file.mux(packet)


def _video_stream(file: Any, job: Job, shape: Shape) -> Any:
    """Add the restored stream, as the first segment has it."""
    with open_container(job.path(0, "mkv")) as first:
        stream = file.add_stream_from_template(first.streams.video[0], opaque=True)
    stream.time_base = shape.time_base
    if shape.matrix is not None:
        stream.set_display_matrix(shape.matrix)
    return stream


def _describe(source: Any, target: Any, restored: bool = False) -> None:
    """Carry language, title, ... and disposition over; not the numbers of a stream that was encoded anew."""
    for key, value in source.metadata.items():
        if not (restored and key.upper().startswith(_STATISTICS)):
            target.metadata[key] = value
    target.disposition = source.disposition


def _packets(job: Job, shape: Shape) -> Iterator[Any]:
    """Yield the packets of all segments with their times in the source's time base.

    With a depth of D frames, the packet at place i is decoded when frame i - D is shown, and the first D before that,
    at the distance of the first two frames: that increases, and no frame is decoded after it is shown.
    """
    segments = [job.read(number) for number in range(min(job.segments, 1))]
    depth = max((job.read(number).depth for number in range(job.segments)), default=0)
    times = segments[0].times
    step = times[1][0] - times[0][0] if len(times) > 1 else max(1, round(1 / shape.rate / shape.time_base))
    early = deque(times[0][0] - (depth - place) * step for place in range(depth))
    for number in range(job.segments):
        times = job.read(number).times
        after = job.read(number + 1).times[0][0] if number + 1 < job.segments else None
        early.extend(pts for pts, _ in times)
        with open_container(job.path(number, "mkv")) as file:
            for packet in file.demux(video=0):
                if packet.pts is None:
                    continue
                place = round(packet.pts * packet.time_base * 1000) - LEAD
                pts, duration = times[place]
                following = times[place + 1][0] if place + 1 < len(times) else after
                packet.pts, packet.dts = pts, early.popleft()
                packet.duration = duration if following is None else following - pts
                packet.time_base = shape.time_base
                yield packet


def _refusal(container: str, *, template: Any = None, encoder: str | None = None) -> str:
    """Return why a container does not hold a stream, or nothing."""
    import av

    try:
        file = av.open(io.BytesIO(), "w", format=container)
        if encoder is not None:
            file.add_stream(encoder)
        else:
            file.add_stream_from_template(template, opaque=True)
            file.start_encoding()
            if template.type != "attachment":
                file.close()
    except (av.FFmpegError, ValueError, NotImplementedError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _missing(source: Path, part: Path, copied: Collection[int]) -> list[str]:
    """Compare a file with its source, and say what it has not kept."""
    notes = []
    with open_container(source) as old, open_container(part) as new:
        texts = {key.lower(): value for key, value in new.metadata.items()}
        lost = [key for key in old.metadata if key.lower() not in _OF_THE_FILE and key.lower() not in texts]
        if lost:
            why = f"as the container does not hold them{_hint(new.format.name)}"
            notes.append(f"metadata left out, {why}: {', '.join(sorted(lost))}")
        if len(new.chapters()) < len(old.chapters()):
            notes.append(f"{len(old.chapters()) - len(new.chapters())} chapters are left out: the container has none")
        kinds = Counter(old.streams[index].type for index in copied)
        kinds.subtract(stream.type for stream in new.streams if not _is_chapters(stream, new))
        notes += [
            f"{count} {kind} streams were not kept by the container" for kind, count in kinds.items() if count > 0
        ]
    return notes


def _clock(part: Path, shape: Shape, first: int) -> list[str]:
    """Say so if the container's clock is coarser than the timestamps, or begins elsewhere."""
    with open_container(part) as file:
        stream = file.streams.video[0]
        start, base = next(packet.pts for packet in file.demux(stream)), stream.time_base
    notes = []
    if (shape.time_base / base).denominator != 1:
        notes.append(f"timestamps are rounded to the container's {base} s (.mp4 and .mov keep those of the source)")
    shift = float(start * base - first * shape.time_base)
    if abs(shift) > base:
        notes.append(
            f"all timestamps are later by {shift:.3f} s, as the container begins at 0 and the source before it"
        )
    return notes


def _hint(container: str) -> str:
    return "" if "matroska" in container else " (.mkv may)"


def _is_chapters(stream: Any, container: Any) -> bool:
    """Return True for the track of texts by which MP4 stores chapters."""
    return stream.type == "data" and stream.name == "bin_data" and bool(container.chapters())


def _is_timed_text(stream: Any) -> bool:
    return stream.type == "subtitle" and stream.codec_context is not None and stream.codec_context.name == "mov_text"


def _name(stream: Any) -> str:
    codec = stream.codec_context.name if stream.codec_context is not None else stream.metadata.get("filename", "")
    return f"{stream.type} stream {stream.index}" + (f" ({codec})" if codec else "")
