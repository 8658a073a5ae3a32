"""Videos through a function: timestamps, sound and all the rest are kept; a stopped run gives the same file."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests import clips
from tests.clips import av
from tunable_ops import images, video

VP9 = {"codec": "libvpx-vp9", "audio": "libopus", "options": {"cpu-used": "8", "deadline": "realtime"}}
KINDS = {
    "a.mp4": {},
    "a.mkv": {"audio": "libopus"},
    "a.webm": VP9,
    "a.ts": {},
    "a.avi": {"codec": "mpeg4", "audio": "mp3", "options": {}},
    "a.h264": {"audio": None},
}


class StopError(Exception):
    """A run that ends in the middle."""


def darker(shot, seconds):
    return shot.colour * 0.9


def same(shot, seconds):
    return shot.colour


def restore(source, out, function=same, length=7, stop=None, keep=False, restart=False, leave_out=(), **coding):
    """Restore a file; returns (frames that the function saw, notes)."""
    reader = video.VideoFile(source, keep)
    shape = reader.shape
    container = video.container_of(out)
    if container != "webm" and coding.get("encoder", "libx264") == "libx264":
        coding["options"] = {"preset": "ultrafast", "bf": "2"} | dict(coding.get("options", {}))
    chosen = video.choose_coding(container, shape, (shape.height, shape.width), threads=1, **coding)
    plan = video.plan(source, container, chosen, leave_out)
    sink = video.FileSink(out, shape, chosen, source, plan.copied)
    job = video.Job(out, {"source": video.fingerprint(source), "coding": chosen.encoder}, restart)
    seen = []

    def counted(shot, seconds):
        if len(seen) == stop:
            raise StopError
        seen.append(seconds)
        return function(shot, seconds)

    notes = video.restore(reader, sink, counted, job, length)
    return seen, [*chosen.notes, *plan.notes, *reader.notes, *notes]


def variable(count=40, seed=0):
    steps = random.Random(seed).choices((300, 512, 2000), k=count - 1)
    return [0, *itertools.accumulate(steps)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_timestamps_and_sound_are_kept(name, tmp_path):
    source = clips.make(tmp_path / name, second_audio=True, **KINDS[name])
    out = tmp_path / f"out{source.suffix}"
    seen, notes = restore(source, out)
    assert notes == []
    assert clips.timestamps(out) == clips.timestamps(source)
    assert seen == [float(time) for time in clips.timestamps(source)]
    sound = clips.packets(source, "audio")
    assert len(sound) > 50 and {stream for stream, *_ in sound} == {0, 1}
    assert clips.packets(out, "audio") == sound  # streams, times and bytes
    pairs = zip(clips.decoded(source, "gray"), clips.decoded(out, "gray"), strict=True)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in pairs) < 2
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("suffix, base", [(".mp4", Fraction(1, 12800)), (".mkv", Fraction(1, 1000))])
@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_variable_frame_rate_keeps_its_timestamps(suffix, base, codec, tmp_path):
    """With B-frames across the ends of segments, whose decoding times would go back."""
    times = [time if suffix == ".mp4" else time * 10 // 128 for time in variable()]
    source = clips.make(tmp_path / f"a{suffix}", times=times, time_base=base)
    out = tmp_path / f"out{suffix}"
    options = {"bf": "3"} if codec == "libx264" else {"cpu-used": "8", "deadline": "realtime"}
    restore(source, out, encoder=codec, options=options, length=9)
    assert clips.timestamps(out) == clips.timestamps(source)
    packets = clips.packets(out, "video")
    if suffix == ".mp4":  # Matroska has none
        decoding = [dts for _, _, dts, _ in packets]
        assert decoding == sorted(set(decoding)) and all(dts <= pts for _, pts, dts, _ in packets)


def test_what_is_beside_the_video_is_kept_in_mp4(tmp_path):
    tags = video.ColourTags(1, 1, 1, 1)
    source = clips.make(
        tmp_path / "a.mp4",
        tags=tags,
        rotation=90,
        subtitles=True,
        second_audio=True,
        chapters=[(0, 500, "One"), (500, 1200, "Two")],
        metadata={"title": "A film", "artist": "Somebody"},
    )
    out = tmp_path / "out.mp4"
    _, notes = restore(source, out)
    assert notes == []
    with av.open(str(source)) as old, av.open(str(out)) as new:
        assert [s.type for s in new.streams] == [s.type for s in old.streams]
        assert [s.language for s in new.streams] == [s.language for s in old.streams]
        assert [s.disposition for s in new.streams] == [s.disposition for s in old.streams]
        assert new.metadata["title"] == "A film" and new.metadata["artist"] == "Somebody"
        assert new.chapters() == old.chapters() and len(new.chapters()) == 2
        frame = next(new.decode(video=0))
    assert frame.rotation == 90 and video.ColourTags.of(frame) == tags
    assert clips.packets(out, "subtitle") == clips.packets(source, "subtitle") != []


def test_what_is_beside_the_video_is_kept_in_matroska(tmp_path):
    tags = video.ColourTags(9, 2, 9, 16)
    source = clips.make(
        tmp_path / "a.mkv",
        tags=tags,
        rotation=180,
        audio="libopus",
        subtitles=True,
        attachment=b"a font" * 50,
        chapters=[(0, 500, "One"), (500, 1200, "Two")],
        metadata={"title": "A film", "MOOD": "calm"},
    )
    out = tmp_path / "out.mkv"
    _, notes = restore(source, out)
    assert notes == []
    with av.open(str(source)) as old, av.open(str(out)) as new:
        assert [s.type for s in new.streams] == [s.type for s in old.streams]
        assert new.metadata["title"] == "A film" and new.metadata["MOOD"] == "calm"
        assert new.chapters() == old.chapters() and len(new.chapters()) == 2
        attachment = next(stream for stream in new.streams if stream.type == "attachment")
        assert attachment.data == b"a font" * 50 and attachment.metadata["filename"] == "font.ttf"
        frame = next(new.decode(video=0))
    assert abs(frame.rotation) == 180 and video.ColourTags.of(frame) == tags
    assert clips.packets(out, "subtitle") == clips.packets(source, "subtitle") != []


def test_what_a_container_cannot_hold_is_said(tmp_path):
    source = clips.make(
        tmp_path / "a.mkv",
        audio="libopus",
        subtitles=True,
        attachment=b"x" * 9,
        metadata={"title": "A film", "MOOD": "calm"},
    )
    _, notes = restore(source, tmp_path / "out.mp4")
    assert len(notes) == 3
    assert notes[0].startswith("subtitle stream 2 (srt) left out: mp4 cannot hold it (.mkv may)")
    assert notes[1].startswith("attachment stream 3 (font.ttf) left out: mp4 cannot hold it")
    assert notes[2] == "metadata left out, as the container does not hold them (.mkv may): MOOD"
    sound = clips.make(tmp_path / "b.mp4")
    with pytest.raises(ValueError, match=r"container webm must hold every audio stream; got audio stream 1 \(aac\)"):
        restore(sound, tmp_path / "out.webm")
    _, notes = restore(sound, tmp_path / "out.webm", leave_out=["audio"], options={"cpu-used": "8"})
    assert notes[0] == "audio stream 1 (aac) left out, as asked for"
    assert clips.packets(tmp_path / "out.webm", "audio") == []


def test_a_clock_that_is_coarser_or_begins_later_is_said(tmp_path):
    """Sound of AAC begins before 0, which Matroska cannot hold: everything moves by the same."""
    source = clips.make(tmp_path / "a.mp4", times=variable(20))
    out = tmp_path / "out.mkv"
    _, notes = restore(source, out)
    assert any("rounded to the container's 1/1000 s" in note for note in notes)
    assert any("all timestamps are later by 0.021 s" in note for note in notes)
    shifts = [new - old for new, old in zip(clips.timestamps(out), clips.timestamps(source), strict=True)]
    assert max(shifts) - min(shifts) <= Fraction(1, 1000)


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_run_gives_the_same_file(name, tmp_path):
    """Also where frames have no timestamps, or the file cannot be sought."""
    source = clips.make(tmp_path / name, frames=24, **KINDS[name])
    suffix = source.suffix if source.suffix in (".mp4", ".webm") else ".mkv"
    options = {"cpu-used": "8", "deadline": "realtime"} if suffix == ".webm" else {}
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    seen, _ = restore(source, whole, darker, options=options)
    assert len(seen) == 24
    done = []
    for stop in (9, 15, 2):
        with pytest.raises(StopError):
            restore(source, parts, darker, stop=stop, options=options)
        done.append(len(list(tmp_path.glob("parts.*.parts/*.json"))) - 1)
        assert not parts.exists()
    assert done == [1, 3, 3]
    seen, _ = restore(source, parts, darker, options=options)
    assert len(seen) == 24 - 21
    assert parts.read_bytes() == whole.read_bytes()


def test_a_run_goes_on_although_the_file_cannot_be_sought(tmp_path, monkeypatch):
    """Where another frame is found than was done last, all is decoded from the start."""
    source = clips.make(tmp_path / "a.mp4", frames=20)
    whole, parts = tmp_path / "whole.mp4", tmp_path / "parts.mp4"
    restore(source, whole)
    with pytest.raises(StopError):
        restore(source, parts, stop=15)
    decoded = video.VideoFile._decoded
    monkeypatch.setattr(video.VideoFile, "_decoded", lambda self, start: decoded(self, start and 0))
    monkeypatch.setattr(video.VideoFile, "_reaches", lambda self, frames, done: False)
    seen, _ = restore(source, parts)
    assert len(seen) == 6 and parts.read_bytes() == whole.read_bytes()


def test_another_request_is_not_continued(tmp_path):
    source, out = clips.make(tmp_path / "a.mp4", frames=20), tmp_path / "out.mp4"
    with pytest.raises(StopError):
        restore(source, out, stop=10)
    with pytest.raises(ValueError, match=r"out.mp4.parts' must be of the same run; got another coding: start anew"):
        restore(source, out, encoder="mpeg4")
    seen, _ = restore(source, out, encoder="mpeg4", restart=True)
    assert len(seen) == 20


def broken(path, tmp_path, seed=1):
    """A copy with noise in its middle."""
    values = bytearray(path.read_bytes())
    middle = len(values) // 3
    values[middle : middle + 1500] = random.Random(seed).randbytes(1500)
    damaged = tmp_path / f"broken{path.suffix}"
    damaged.write_bytes(values)
    return damaged


def test_damage_stops_where_it_is_and_what_was_done_is_kept(tmp_path):
    damaged = broken(clips.make(tmp_path / "a.mp4", frames=60, audio=None), tmp_path)
    out = tmp_path / "out.mp4"
    with pytest.raises(
        video.DamageError, match=r"broken.mp4' must be sound; got damage after 0\.\d\d s \(.*--damaged keep"
    ):
        restore(damaged, out, length=5)
    kept = len(list(tmp_path.glob("out.mp4.parts/*.json"))) - 1
    assert kept >= 1 and not out.exists()
    seen, notes = restore(damaged, out, length=5, keep=True)
    total = len(clips.timestamps(out))
    assert len(seen) == total - 5 * kept and 30 < total <= 60
    assert any("could not be decoded" in note or "damaged frame" in note for note in notes)


def test_a_file_that_is_cut_off_is_said(tmp_path):
    source = clips.make(tmp_path / "a.mkv", frames=60, audio=None)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    _, notes = restore(cut, tmp_path / "out.mkv", keep=True)
    assert any(note.startswith("the file says that it lasts 2.40 s, but its frames end after 1.") for note in notes)


def test_files_that_are_no_videos(tmp_path):
    with pytest.raises(FileNotFoundError):
        video.VideoFile(tmp_path / "none.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ValueError, match=r"^video: path must be a video file; got '.*text.mp4' \(Invalid data"):
        video.VideoFile(text)
    whole = clips.make(tmp_path / "a.mp4").read_bytes()
    text.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^video: path must be a video file"):
        video.VideoFile(text)
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as file:
        stream = file.add_stream("libopus", rate=clips.RATE)
        stream.layout = "mono"
        for frame in clips.sine(0.2, 440, stream.codec_context.format.name):
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"^video: path must have a video stream; got '.*sound.mkv' with audio"):
        video.VideoFile(sound)
    with pytest.raises(ValueError, match=r"^video: path must end in one of \.mp4 .*; got '.*out.xyz'"):
        video.container_of(tmp_path / "out.xyz")


SHAPE = video.Shape(64, 48, "yuv420p", Fraction(1, 12800), Fraction(25))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder": "nonsense"}, "encoder must be one that this build of PyAV has; got 'nonsense'"),
        ({"encoder": "aac"}, "encoder must be one for video; got 'aac', which is for audio"),
        ({"encoder": "ffv1", "crf": 4}, "crf must be left out for ffv1, which has none; got 4"),
        ({"pixel_format": "rgb24"}, "pixel_format must be one of yuv420p .* for libx264; got 'rgb24'"),
        ({"options": {"colour": "nice"}}, "encoder libx264 must take .*; got: it has no option colour"),
        ({"options": {"crf": "many"}}, "encoder libx264 must take yuv420p of 64x48 .*many"),
        (
            {"size": (47, 65), "pixel_format": "yuv420p"},
            "yuv420p takes even sizes alone with libx264; got 65x47: use yuv444p",
        ),
    ],
)
def test_encoders_are_tried_before_any_work(options, message):
    size = options.pop("size", (48, 64))
    with pytest.raises(ValueError, match=f"^video: .*{message}"):
        video.choose_coding("mp4", SHAPE, size, **options)


def test_defaults_of_encoding():
    chosen = video.choose_coding("mp4", SHAPE, (48, 64))
    assert (chosen.encoder, chosen.pixel_format, chosen.options["crf"], chosen.notes) == (
        "libx264",
        "yuv420p",
        "18",
        (),
    )
    assert video.choose_coding("webm", SHAPE, (48, 64)).encoder == "libvpx-vp9"
    odd = video.choose_coding("mp4", SHAPE, (47, 65))
    assert odd.pixel_format == "yuv444p" and "libx264 takes no yuv420p of an odd size, 65x47" in odd.notes[0]
    clear = video.Shape(64, 48, "yuva420p", Fraction(1, 1000), Fraction(25))
    assert "transparency is left out" in video.choose_coding("mp4", clear, (48, 64)).notes[-1]
    assert video.choose_coding("webm", clear, (48, 64)).pixel_format == "yuva420p"
    deep = video.Shape(64, 48, "yuv420p10le", Fraction(1, 1000), Fraction(25))
    assert video.choose_coding("mp4", deep, (48, 64)).pixel_format == "yuv420p10le"


def test_odd_sizes_and_larger_outputs(tmp_path):
    source = clips.make(tmp_path / "a.mkv", size=(47, 65), codec="ffv1", frames=6)
    restore(source, tmp_path / "out.mkv")
    assert clips.decoded(tmp_path / "out.mkv")[0].shape == (47, 65, 3)
    restore(source, tmp_path / "twice.mkv", lambda shot, _: shot.colour.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert clips.decoded(tmp_path / "twice.mkv")[0].shape == (94, 130, 3)


def test_a_lossless_codec_keeps_the_luma(tmp_path):
    source = clips.make(tmp_path / "a.mkv", codec="ffv1", frames=5)
    restore(source, tmp_path / "out.mkv", encoder="ffv1", length=2)
    with av.open(str(source)) as old, av.open(str(tmp_path / "out.mkv")) as new:
        for a, b in zip(old.decode(video=0), new.decode(video=0), strict=True):
            off = np.abs(a.to_ndarray()[:48].astype(int) - b.to_ndarray()[:48])
            assert (off > 0).mean() < 0.05 and off.max() <= 8  # where chroma was out of RGB's range


def test_transparency_travels(tmp_path):
    source = tmp_path / "a.webm"
    with av.open(str(source), "w") as file:
        stream = file.add_stream("libvpx-vp9", rate=25, options={"cpu-used": "8", "deadline": "realtime"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuva420p"
        for number in range(4):
            values = np.dstack([clips.picture(number), np.full((48, 64), 77, np.uint8)])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(values, "rgba").reformat(format="yuva420p")))
        file.mux(stream.encode(None))
    restored = []
    reader = video.VideoFile(source)
    assert reader.shape.pixel_format == "yuva420p"
    restore(source, tmp_path / "out.webm", lambda shot, _: restored.append(shot.alpha) or shot.colour)
    assert len(restored) == 4 and all((alpha - 77 / 255).abs().max() < 0.02 for alpha in restored)


def test_numbered_pictures_are_read_and_written(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3, 12):
        images.write_image(clips.tensor(clips.picture(number)), tmp_path / "in" / f"f{number:03d}.png", bits=16)
    source = video.Sequence(tmp_path / "in" / "f%03d.png", Fraction(24))
    assert (source.shape.count, source.shape.width, source.shape.pixel_format) == (9, 64, "rgb48le")
    (tmp_path / "out").mkdir()
    job = video.Job(tmp_path / "out" / "%03d.png", {})
    video.restore(source, video.PictureSink(tmp_path / "out" / "%03d.png", 3, 16), same, job, 4)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{number:03d}.png" for number in range(3, 12)]
    for number in range(3, 12):
        old, new = (
            images.read_image(tmp_path / folder) for folder in (f"in/f{number:03d}.png", f"out/{number:03d}.png")
        )
        assert torch.equal(old, new)
    (tmp_path / "in" / "f007.png").unlink()
    with pytest.raises(ValueError, match=r"without a gap; got '.*' with 8 from 3 to 11, but no 'f007.png'"):
        video.Sequence(tmp_path / "in" / "f%03d.png", Fraction(24))
    with pytest.raises(ValueError, match=r"^video: pattern must match numbered pictures"):
        video.Sequence(tmp_path / "in" / "g%03d.png", Fraction(24))


def test_frames_of_another_size_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    for number, width in enumerate((64, 64, 32)):
        images.write_image(torch.rand(3, 48, width), tmp_path / "in" / f"{number}.png")
    source = video.Sequence(tmp_path / "in" / "%d.png", Fraction(24))
    with pytest.raises(ValueError, match=r"pictures must have one size, 64x48; got 32x48 for '2.png'"):
        list(source.frames())
