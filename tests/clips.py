"""Small videos that PyAV makes, for tests."""

from fractions import Fraction

import numpy as np
import pytest
import torch

av = pytest.importorskip("av", reason="PyAV is not installed (tunable-ops[video])")

RATE = 48000


def picture(number, height=48, width=64):
    """A picture with a moving bar on smooth colours, uint8 [H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    red = 128 + 80 * np.sin(columns / 9 + number / 5)
    green = 128 + 60 * np.cos(rows / 7)
    blue = 100 + 50 * np.sin((rows + columns) / 15)
    values = np.stack([red, green, blue], axis=2)
    values[:, (3 * number) % width : (3 * number) % width + 4] = 220
    return values.clip(0, 255).astype(np.uint8)


def make(
    path,
    frames=30,
    size=(48, 64),
    codec="libx264",
    rate=25,
    times=None,
    time_base=None,
    pixel_format="yuv420p",
    options=None,
    audio="aac",
    subtitles=False,
    chapters=(),
    metadata=None,
    attachment=None,
    rotation=None,
    tags=None,
    second_audio=False,
    source=picture,
    data=None,
):
    """Write a clip; `times` are timestamps in `time_base`. Returns the path."""
    options = {"preset": "ultrafast", "g": "12", "bf": "2"} if options is None and codec == "libx264" else options or {}
    format_name = {".mkv": "matroska"}.get(path.suffix)
    with av.open(str(path), "w", format=format_name) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        clock = time_base or Fraction(1, 12800)
        stream.time_base = stream.codec_context.time_base = clock
        stream.thread_count = 1
        if tags is not None:
            tags.put(stream)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        sounds = []
        for language in ("eng", "deu")[: (1 + second_audio) if audio else 0]:
            sound = file.add_stream(audio, rate=RATE)
            sound.layout = "mono"
            sound.metadata["language"] = language
            sounds.append(sound)
        if attachment is not None:
            file.add_attachment("font.ttf", "application/x-truetype-font", attachment)
        text = "subrip" if path.suffix == ".mkv" else "mov_text"
        words = file.add_mux_stream(text, time_base=Fraction(1, 1000)) if subtitles else None
        if chapters:
            file.set_chapters(
                [
                    {"id": k, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                    for k, (start, end, title) in enumerate(chapters)
                ]
            )
        file.metadata.update(metadata or {})
        step = round(1 / Fraction(rate) / clock)
        times = [step * number for number in range(frames)] if times is None else times
        for number, pts in enumerate(times):
            frame = av.VideoFrame.from_ndarray(source(number, *size), "rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = pts, clock
            if tags is not None:
                tags.put(frame)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        seconds = float(times[-1] * clock)
        for number, sound in enumerate(sounds):
            for frame in sine(seconds, 220 * (number + 1), sound.codec_context.format.name):
                file.mux(sound.encode(frame))
            file.mux(sound.encode(None))
        if words is not None:
            line = b"A line of text"
            packet = av.Packet(line if text == "subrip" else len(line).to_bytes(2, "big") + line)
            packet.pts = packet.dts = 100
            packet.duration, packet.time_base = 500, Fraction(1, 1000)
            packet.stream = words
            file.mux(packet)
    return path


def sine(seconds, hertz, sample_format):
    """Frames of a sine, of 1024 samples."""
    resampler = av.AudioResampler(format=sample_format, layout="mono", rate=RATE)
    for start in range(0, int(seconds * RATE) + 1024, 1024):
        wave = 0.3 * np.sin(2 * np.pi * hertz * (start + np.arange(1024)) / RATE)
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], "flt", "mono")
        frame.pts, frame.sample_rate, frame.time_base = start, RATE, Fraction(1, RATE)
        yield from resampler.resample(frame)


def packets(path, kind):
    """(stream, timestamp, decoding time, bytes) of all packets of a kind, in seconds."""
    with av.open(str(path)) as file:
        streams = [stream for stream in file.streams if stream.type == kind]
        return [
            (streams.index(p.stream), p.pts * p.time_base, None if p.dts is None else p.dts * p.time_base, bytes(p))
            for p in (file.demux(streams) if streams else ())
            if p.pts is not None
        ]


def timestamps(path):
    """Times of the frames, as exact fractions of a second."""
    with av.open(str(path)) as file:
        return [frame.pts * frame.time_base for frame in file.decode(video=0)]


def decoded(path, pixel_format="rgb24"):
    """The values of the frames, uint8."""
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format=pixel_format) for frame in file.decode(video=0)]


def tensor(values):
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255
