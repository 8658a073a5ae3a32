"""Read the frames of a video file, from the start or from where an earlier run stopped."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from tunable_ops.video.colour import Colours, ColourTags, is_subsampled
from tunable_ops.video.shot import DamageError, Mark, Shape, Shot, checksum

__all__ = ["EXTENSIONS", "VideoFile", "main_stream", "open_container"]

_NAMES = "mp4 m4v mov mkv webm avi ts m2ts mts mpg mpeg m2v ogv ogm flv wmv 3gp nut mxf vob h264 hevc h265 ivf y4m"
EXTENSIONS = tuple(f".{name}" for name in _NAMES.split())
"""Extensions of video files, in upper or lower case."""

_USUAL_RATE = Fraction(25)
_CUT_OFF = 0.5  # seconds that may be missing at the end: sound often lasts longer than pictures
_BACK = 10.0  # seconds before the place sought, for files whose index is by another clock than the frames


class VideoFile:
    """The frames of a video file's main stream.

    Frames come in the order in which they are shown, with strictly increasing timestamps: those that the file lacks are
    made from its rate, and those that stand still or go back are moved to the next step (`notes` says so).

    Args:
        path: The file.
        keep_damaged: Go on past damaged places, with frames as the decoder conceals them; otherwise they raise.

    Attributes:
        shape: Size, format, rate, ...
        notes: What happened on the way, in a sentence each.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no video, has no video stream, or cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike[str], keep_damaged: bool = False) -> None:
        self.path, self.keep_damaged = Path(path), keep_damaged
        self.left_out: set[str] = set()  # side data of frames, by name
        self.concealed = self.lost = self.moved = 0
        self._end: float | None = None
        self._colours = Colours()
        with open_container(self.path) as container:
            stream = main_stream(container, self.path)
            first = _first_frame(container, stream, self.path)
            self.shape = _shape(container, stream, first)
            self._start = stream.start_time or 0
            self.interlaced = first.interlaced_frame

    @property
    def notes(self) -> list[str]:
        """What happened on the way, in a sentence each."""
        found = []
        if self.moved:
            found.append(f"{_many(self.moved, 'timestamp')} made or moved: the file has none, or they do not increase")
        if self.concealed:
            found.append(f"{_many(self.concealed, 'damaged frame')} restored as the decoder concealed them")
        if self.lost:
            found.append(f"{_many(self.lost, 'packet')} could not be decoded and are left out")
        if self._end is not None and self.shape.seconds and self._end < self.shape.seconds - _CUT_OFF:
            said, end = self.shape.seconds, self._end
            found.append(
                f"the file says that it lasts {said:.2f} s, but its frames end after {end:.2f} s: it is cut off"
            )
        if self.left_out:
            found.append(f"left out, as PyAV does not write it: {', '.join(sorted(self.left_out))} of the frames")
        return found

    def frames(self, done: Mark | None = None) -> Iterator[Shot]:
        """Yield the frames after those that are done.

        The file is sought to the last frame that is done; if what is decoded there is not what it was, all is decoded
        from the start.

        Raises:
            DamageError: A damaged place, unless they are to be kept; the message names the time.
            ValueError: The frames that are done are not in the file.
        """
        if done is None or not done.count:
            yield from self._shots(self._decoded(None), None)
            return
        if not done.moved:
            for start in (done.pts, done.pts - int(_BACK / self.shape.time_base)):
                frames = self._decoded(start)
                if self._reaches(frames, done):
                    yield from self._shots(frames, done)
                    return
        frames = self._decoded(None)
        last = next(itertools.islice(frames, done.count - 1, None), None)
        if last is None or checksum(self._colours.read(last)[0]) != done.check:
            raise ValueError(
                f"video: frame {done.count} of {str(self.path)!r} must be what it was in the run before; got another: "
                "start anew (--restart)"
            )
        yield from self._shots(frames, done)

    def samples(self, count: int) -> Iterator[Shot]:
        """Yield up to `count` frames, spread over the file, for measurements."""
        seconds = self.shape.seconds
        if not seconds:
            count = 1
        for number in range(count):
            start = None if count == 1 else int(seconds * (number + 0.5) / count / self.shape.time_base)  # type: ignore[operator]
            try:
                frame = next(self._decoded(start), None)
            except DamageError:
                continue
            if frame is not None:
                colour, _ = self._colours.read(frame)
                yield Shot(colour, None, frame.pts or 0, subsampled=is_subsampled(frame.format.name))

    def _reaches(self, frames: Iterator[Any], done: Mark) -> bool:
        """Return True if the frames come to the mark, which is then the last that was taken."""
        try:
            for frame in frames:
                if frame.pts is None or frame.pts > done.pts:
                    return False
                if frame.pts == done.pts:
                    return checksum(self._colours.read(frame)[0]) == done.check
        except DamageError:
            pass
        return False

    def _shots(self, frames: Iterator[Any], done: Mark | None) -> Iterator[Shot]:
        last = None if done is None else done.pts
        moved = done is not None and done.moved
        step = max(1, round(1 / self.shape.rate / self.shape.time_base))
        shape = self.shape
        for frame in frames:
            pts = frame.pts
            if pts is None or (last is not None and pts <= last):
                pts = 0 if last is None else last + (step if pts is None else 1)
                self.moved += 1
                moved = True
            last = pts
            if (frame.width, frame.height) != (shape.width, shape.height):
                at = float(pts * shape.time_base)
                raise ValueError(
                    f"video: frames must keep their size, {shape.width}x{shape.height}; got "
                    f"{frame.width}x{frame.height} at {at:.2f} s"
                )
            self.left_out |= {data.type.name for data in frame.side_data} - _CARRIED
            colour, alpha = self._colours.read(frame)
            yield Shot(colour, alpha, pts, frame.duration or 0, moved)
        if last is not None:
            self._end = float((last + step - self._start) * shape.time_base)

    def _decoded(self, start: int | None) -> Iterator[Any]:
        """Yield PyAV's frames, from the keyframe at or before a timestamp, or from the start."""
        import av

        with open_container(self.path) as container:
            stream = main_stream(container, self.path)
            stream.thread_type = "AUTO"
            if start is not None:
                try:
                    container.seek(max(start, stream.start_time or 0), stream=stream, backward=True)
                except av.FFmpegError:
                    return
            decode = decoder(stream)
            at, sound = None, False
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    decoded = [] if packet is None else decode(packet)
                except av.FFmpegError as error:
                    self._damage(at, error.strerror or str(error))
                    self.lost += 1
                    if packet is None or isinstance(error, OSError):
                        return
                    continue
                for frame in decoded:
                    if frame.is_corrupt and sound:
                        self._damage(at, "the decoder reports a damaged frame")
                    self.concealed += frame.is_corrupt
                    sound = sound or not frame.is_corrupt  # the first frames of a recording may lack what they refer to
                    at = frame.time
                    yield frame
                if packet is None:
                    return

    def _damage(self, at: float | None, why: str) -> None:
        if not self.keep_damaged:
            where = "at the beginning" if at is None else f"after {at:.2f} s"
            raise DamageError(
                f"video: {str(self.path)!r} must be sound; got damage {where} ({why}): --damaged keep goes on past it"
            )


_CARRIED = {
    "DISPLAYMATRIX",
    "SEI_UNREGISTERED",
    "MOTION_VECTORS",
    "VIDEO_ENC_PARAMS",
    "VIDEO_HINT",
    "FILM_GRAIN_PARAMS",
}


def open_container(path: Path) -> Any:
    """Open a file for reading, with errors of this package."""
    import av

    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    # before 19 PyAV refuses a file with metadata that are no UTF-8, unless it is told not to
    options: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        return av.open(str(path), **options)
    except av.FFmpegError as error:
        raise ValueError(f"video: path must be a video file; got {str(path)!r} ({error.strerror or error})") from error


def main_stream(container: Any, path: Path) -> Any:
    """Return the video stream to restore: the best that is no cover picture.

    Raises:
        ValueError: There is none, or no decoder for it.
    """
    best = container.streams.best("video")
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        kinds = ", ".join(stream.type for stream in container.streams) or "no stream at all"
        raise ValueError(f"video: path must have a video stream; got {str(path)!r} with {kinds}")
    stream = next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])
    if stream.codec_context is None:
        raise ValueError(f"video: path must have a video stream that can be decoded; got {str(path)!r}")
    return stream


def decoder(stream: Any) -> Callable[[Any], list[Any]]:
    """Return what decodes a stream's packets: FFmpeg's own decoder of VP8 and VP9 leaves transparency out."""
    import av

    name = f"libvpx-{stream.codec_context.name}".replace("-vp8", "")
    if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1" or name not in (
        "libvpx",
        "libvpx-vp9",
    ):
        return lambda packet: packet.decode()
    context: Any = av.CodecContext.create(name, "r")
    context.extradata = stream.codec_context.extradata
    return lambda packet: context.decode(packet if packet.size else None)


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _first_frame(container: Any, stream: Any, path: Path) -> Any:
    import av

    decode = decoder(stream)
    for packet in container.demux(stream):
        try:
            frames = decode(packet)
        except av.FFmpegError:
            continue
        if frames:
            return frames[0]
    raise ValueError(f"video: path must have a frame that can be decoded; got {str(path)!r} without one")


def _shape(container: Any, stream: Any, first: Any) -> Shape:
    import av

    rate = stream.average_rate or stream.guessed_rate or stream.base_rate or _USUAL_RATE
    seconds = float(stream.duration * stream.time_base) if stream.duration else None
    if seconds is None and container.duration:
        seconds = container.duration / av.time_base
    matrix = next((bytes(data) for data in first.side_data if data.type.name == "DISPLAYMATRIX"), None)
    aspect = stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio
    return Shape(
        width=first.width,
        height=first.height,
        pixel_format=first.format.name,
        time_base=stream.time_base,
        rate=rate,
        count=stream.frames or (round(seconds * rate) if seconds else None),
        seconds=seconds,
        aspect=aspect if aspect and aspect != 1 else None,
        tags=ColourTags.of(first),
        matrix=struct.unpack("=9i", matrix) if matrix else None,
    )


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
