"""Which encoder, and the segments that it writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tunable_ops.video.colour import Colours, ColourTags, has_alpha
from tunable_ops.video.shot import Shape

__all__ = ["CONTAINERS", "Coding", "SegmentWriter", "choose_coding", "container_of"]

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".nut": "nut",
}
"""FFmpeg's name of the container of a file to write, by its extension."""

_ENCODERS = {"webm": "libvpx-vp9", "avi": "mpeg4"}  # libx264 elsewhere
_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "medium"},
    "libx265": {"preset": "medium", "x265-params": "log-level=error"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "2", "row-mt": "1"},
    "libsvtav1": {"preset": "6"},
    "ffv1": {"level": "3"},
}
_CRF = {"libx264": 18, "libx265": 20, "libvpx-vp9": 24, "libsvtav1": 25}
_MPEG4_RATE = 0.2  # bits per pixel
LEAD = 64  # packets of a segment are numbered from here on, so that those shown late have a positive decoding number
_TICK = Fraction(1, 1000)


@dataclass(frozen=True)
class Coding:
    """How frames are encoded.

    Args:
        encoder: FFmpeg's name of the encoder.
        pixel_format: Name of the format that it gets.
        options: Its options, as FFmpeg has them.
        threads: Threads of the encoder; part of what decides the bits.
        notes: What was chosen otherwise than the source has it, in a sentence each.
    """

    encoder: str
    pixel_format: str
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    notes: tuple[str, ...] = ()

    def set_up(self, context: Any, width: int, height: int, shape: Shape, tags: ColourTags) -> None:
        """Set an encoder's context up."""
        context.width, context.height, context.pix_fmt = width, height, self.pixel_format
        context.time_base, context.framerate = shape.time_base, shape.rate
        if shape.aspect is not None:
            context.sample_aspect_ratio = shape.aspect
        tags.put(context)
        context.thread_count = self.threads
        context.bit_rate = int(_MPEG4_RATE * width * height * shape.rate) if self.encoder == "mpeg4" else 0


def container_of(path: Path) -> str:
    """Return FFmpeg's name of the container of a file to write.

    Raises:
        ValueError: The extension is none of `CONTAINERS`.
    """
    name = CONTAINERS.get(path.suffix.lower())
    if name is None:
        raise ValueError(f"video: path must end in one of {' '.join(CONTAINERS)}; got {str(path)!r}")
    return name


def choose_coding(
    container: str,
    shape: Shape,
    size: tuple[int, int],
    *,
    encoder: str | None = None,
    pixel_format: str | None = None,
    crf: int | None = None,
    options: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Coding:
    """Choose encoder, quality and pixel format, and try them.

    The format is the source's own if the encoder has it, or the one that loses least. An encoder that refuses an odd
    size with halved chroma gets whole chroma, if the format was not asked for.

    Args:
        container: FFmpeg's name of the container.
        shape: Of the source.
        size: Height and width of what is written.
        encoder: Name of an encoder; default libx264, or libvpx-vp9 for webm.
        pixel_format: Name of a format.
        crf: Constant quality, lower is better; the scale is the encoder's own.
        options: Options of the encoder.
        threads: Its threads; default one per core, 16 at most.

    Raises:
        ValueError: The encoder is unknown, is none for video, has no such format or option, or refuses the size.
    """
    name = encoder or _ENCODERS.get(container, "libx264")
    codec = _encoder(name)
    chosen = dict(_OPTIONS.get(name, {}))
    quality = _CRF.get(name) if crf is None else crf
    if quality is not None:
        if name not in _CRF and not _has_option(name, "crf"):
            raise ValueError(f"video: crf must be left out for {name}, which has none; got {crf}: set its own options")
        chosen["crf"] = str(quality)
    chosen.update(options or {})
    notes: list[str] = []
    formats = [each.name for each in codec.video_formats or ()]
    wanted = pixel_format or _nearest(shape.pixel_format, formats)
    if formats and wanted not in formats:
        raise ValueError(f"video: pixel_format must be one of {' '.join(formats)} for {name}; got {wanted!r}")
    count = threads or min(16, os.cpu_count() or 1)
    coding = Coding(name, wanted, chosen, count)
    error = _refusal(coding, size, shape)
    if error and _halves(wanted, size):
        whole = _nearest(wanted.replace("420", "444").replace("422", "444"), formats)
        if pixel_format is None and whole != wanted and not _halves(whole, size):
            notes.append(f"encoded as {whole}: {name} takes no {wanted} of an odd size, {size[1]}x{size[0]}")
            wanted, coding = whole, Coding(name, whole, chosen, count)
            error = _refusal(coding, size, shape)
        else:
            raise ValueError(
                f"video: pixel_format must suit the size: {wanted} takes even sizes alone with {name}; got "
                f"{size[1]}x{size[0]}: use yuv444p, or an encoder that takes them (libvpx-vp9, ffv1)"
            )
    if error:
        raise ValueError(f"video: encoder {name} must take {wanted} of {size[1]}x{size[0]} with {chosen}; got: {error}")
    if not notes and pixel_format is None and wanted != shape.pixel_format.replace("yuvj", "yuv"):
        notes.append(f"encoded as {wanted}: {name} has no {shape.pixel_format}")
    if has_alpha(shape.pixel_format) and not has_alpha(wanted):
        notes.append(f"transparency is left out: {name} writes {wanted} (libvpx-vp9 and ffv1 keep it)")
    return Coding(name, wanted, chosen, count, tuple(notes))


def _encoder(name: str) -> Any:
    import av

    try:
        codec = av.Codec(name, "w")
    except (av.codec.codec.UnknownCodecError, ValueError) as error:
        raise ValueError(f"video: encoder must be one that this build of PyAV has; got {name!r}") from error
    if codec.type != "video":
        raise ValueError(f"video: encoder must be one for video; got {name!r}, which is for {codec.type}")
    return codec


def _has_option(name: str, option: str) -> bool:
    import av

    return any(each.name == option for each in av.CodecContext.create(name, "w").supported_options.private)


def _nearest(pixel_format: str, formats: list[str]) -> str:
    """Return the format, or the one of a list that loses least."""
    from av.codec.codec import find_best_pix_fmt_of_list

    plain = pixel_format.replace("yuvj", "yuv")
    if not formats or plain in formats:
        return plain
    # every player shows Y'CbCr; some show RGB in the same codecs
    common = [each for each in formats if "yuvj" not in each and not each.startswith("gbr")]
    best, _ = find_best_pix_fmt_of_list(common or formats, plain, has_alpha(plain))
    return best.name if best is not None else formats[0]


def _halves(pixel_format: str, size: tuple[int, int]) -> bool:
    """Return True if chroma is halved along a side of odd length."""
    from av import VideoFormat

    form = VideoFormat(pixel_format, 64, 64)
    return any(form.chroma_width(64) < 64 and side % 2 for side in size[1:]) or (
        form.chroma_height(64) < 64 and size[0] % 2 == 1
    )


def _refusal(coding: Coding, size: tuple[int, int], shape: Shape) -> str:
    """Return why an encoder does not open, or nothing."""
    import av

    context = av.CodecContext.create(coding.encoder, "w")
    coding.set_up(context, size[1], size[0], shape, shape.tags)
    context.options = dict(coding.options)
    if coding.encoder == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors alone
    level = av.logging.get_level()
    try:
        av.logging.set_level(av.logging.ERROR)
        with av.logging.Capture() as said:
            context.open()
    except (av.FFmpegError, ValueError) as error:
        lines = [line.strip() for _, _, line in said if line.strip()]
        return "; ".join(lines[:2]) or getattr(error, "strerror", None) or str(error)
    finally:
        av.logging.set_level(level)
    unknown = set(context.options) & set(coding.options)
    return f"it has no option {', '.join(sorted(unknown))}" if unknown else ""


class SegmentWriter:
    """Encode some frames into a file of its own, which begins with a keyframe.

    The file is Matroska with packets numbered in the order in which they are shown; when that is, is kept beside it
    (`times`), since Matroska rounds to milliseconds.

    Args:
        path: File to write.
        coding: How.
        shape: Of the source.
        size: Height and width of the frames.
        tags: Colours to write.
    """

    def __init__(self, path: Path, coding: Coding, shape: Shape, size: tuple[int, int], tags: ColourTags) -> None:
        import av

        self.coding, self.tags = coding, tags
        self._colours = Colours()
        self._file = av.open(str(path), "w", format="matroska", container_options={"fflags": "+bitexact"})
        self._stream: Any = self._file.add_stream(coding.encoder, rate=shape.rate, options=dict(coding.options))
        coding.set_up(self._stream.codec_context, size[1], size[0], shape, tags)
        self._time_base = shape.time_base
        self.times: list[tuple[int, int]] = []
        self.depth = self._coded = 0
        self._number: dict[int, int] = {}

    def add(self, colour: Any, alpha: Any, pts: int, duration: int) -> None:
        """Encode a frame, [1 or 3, H, W]."""
        frame = self._colours.write(colour, alpha, self.coding.pixel_format, self.tags)
        frame.pts, frame.time_base, frame.duration = pts, self._time_base, duration
        self._number[pts] = len(self.times)
        self.times.append((pts, duration))
        self._mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file; afterwards `depth` is by how many frames decoding runs ahead of what is shown."""
        self._mux(self._stream.encode(None))
        self._file.close()
        if self._number:
            raise ValueError(
                f"video: encoder {self.coding.encoder} must return every frame; got {len(self._number)} less"
            )

    def abandon(self) -> None:
        """Close the file, which is of no use."""
        self._file.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            number = self._number.pop(packet.pts)
            self.depth = max(self.depth, self._coded - number)
            packet.pts, packet.dts, packet.duration = number + LEAD, self._coded, 1
            packet.time_base = _TICK
            self._coded += 1
            self._file.mux(packet)
