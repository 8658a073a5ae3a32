"""`tunable-ops apply` on videos and numbered pictures: lambda over time, names, runs that were stopped, bad input."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests import clips
from tests.clips import av
from tunable_ops import images, video
from tunable_ops.serialization import load

FAST = ("--encoder-option", "preset=ultrafast")


def clip(path, frames=12, **options):
    return clips.make(path, frames=frames, audio=options.pop("audio", None), **options)


@torch.no_grad()
def through(model, colour, lam):
    return load(model)(colour[None], lam)[0].clamp(0, 1)


def test_lambda_moves_with_the_time(run, model, tmp_path):
    """Compared with the network at each frame's own lambda, through a lossless encoder."""
    source = clip(tmp_path / "a.mkv", codec="ffv1", rate=10, pixel_format="bgr0")
    out = tmp_path / "out.mkv"
    code, said, err = run(
        "apply", source, "--model", model, "--lam", "denoise=0.2:0.1,1:0.9", "--encoder", "ffv1", "--out", out
    )
    assert code == 0, err
    assert said == f"{out}  denoise 0.10 at 0.2 s, 0.90 at 1 s, keep 0.90 at 0.2 s, 0.10 at 1 s\n"
    for number, (old, new) in enumerate(zip(clips.decoded(source), clips.decoded(out), strict=True)):
        part = min(max((number / 10 - 0.2) / 0.8, 0), 1)
        expected = through(model, clips.tensor(old), (0.1 + 0.8 * part, 0.9 - 0.8 * part))
        assert (clips.tensor(new) - expected).abs().max() <= 1.01 / 255, number
    still = through(model, clips.tensor(clips.decoded(source)[11]), (0.1, 0.9))
    assert (clips.tensor(clips.decoded(out)[11]) - still).abs().max() > 0.02


def test_kernels_are_blended_only_when_lambda_moves(run, model, tmp_path, monkeypatch):
    source = clip(tmp_path / "a.mp4", rate=10)
    from tunable_ops.modules import LiveFold

    calls = []
    blend = LiveFold.set
    monkeypatch.setattr(LiveFold, "set", lambda self, lam=None: calls.append(lam) or blend(self, lam))
    assert run("apply", source, "--model", model, "--lam", "0.3,0.7", *FAST, "--out", tmp_path / "a_out.mp4")[0] == 0
    assert len(calls) == 2  # the defaults, and what was asked for
    calls.clear()
    words = ("--lam", "denoise=0.5:0,0.8:1", *FAST, "--out", tmp_path / "b_out.mp4")
    assert run("apply", source, "--model", model, *words)[0] == 0
    assert len(calls) == 1 + 4  # at rest before 0.5 s and after 0.8 s


def test_names_and_several_videos(run, model, tmp_path):
    for name in ("a.mp4", "b.mkv", "c.avi"):
        clip(tmp_path / name, frames=4, **({"codec": "mpeg4"} if name == "c.avi" else {}))
    (tmp_path / "bad.mp4").write_text("no video")
    inputs = [tmp_path / name for name in ("a.mp4", "bad.mp4", "b.mkv", "c.avi")]
    code, said, err = run("apply", *inputs, "--model", model, "--lam", "0.3,0.7", "--out", tmp_path / "out", *FAST)
    assert code == 1
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_lam0.30-0.70.mp4", "b_lam0.30-0.70.mkv", "c.avi_lam0.30-0.70.mkv"]
    assert "skipped" in err and "bad.mp4: video: path must be a video file" in err
    assert "3 of 4 videos done" in err
    assert [line.split("  ")[1] for line in said.splitlines()] == ["denoise 0.30, keep 0.70"] * 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    words = ("--model", model, "--lam", "0.3,0.7", "--out", tmp_path / "out", "--resume", *FAST)
    code, said, _ = run("apply", *inputs[:1], *inputs[2:], *words)
    assert code == 0 and said.count("done before") == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_numbered_pictures_become_a_video_and_a_video_pictures(run, model, tmp_path):
    for number in range(5):
        images.write_image(clips.tensor(clips.picture(number)), tmp_path / f"f{number:02d}.png")
    out = tmp_path / "film.mp4"
    words = ("apply", tmp_path / "f%02d.png", "--model", model, "--rate", "30000/1001", "--out", out, *FAST)
    code, _, err = run(*words)
    assert code == 0, err
    assert "encoded as yuv420p, which every player shows" in err
    with av.open(str(out)) as file:
        assert file.streams.video[0].average_rate * 1001 == 30000 and file.streams.video[0].frames == 5
        assert next(file.decode(video=0)).colorspace == 5
    code, _, err = run(
        "apply", clip(tmp_path / "a.mp4", frames=4, audio="aac"), "--model", model, "--out", tmp_path / "p/%03d.png"
    )
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [f"{number:03d}.png" for number in (1, 2, 3, 4)]
    assert "pictures hold no 1 audio: left out" in err
    first = clips.decoded(tmp_path / "a.mp4")[0]
    expected = through(model, clips.tensor(first), load(model).spec.defaults)
    assert (images.read_image(tmp_path / "p" / "001.png") - expected).abs().mean() < 0.01


def test_grey_frames_stay_grey(run, model, tmp_path):
    grey = lambda number, height, width: np.repeat(clips.picture(number, height, width)[..., 1:2], 3, axis=2)  # noqa: E731
    source = clip(tmp_path / "a.mkv", frames=3, codec="ffv1", source=grey)
    assert run("apply", source, "--model", model, "--encoder", "ffv1", "--out", tmp_path / "out.mkv")[0] == 0
    for frame in clips.decoded(tmp_path / "out.mkv"):
        assert (frame == frame[..., :1]).all()


@pytest.mark.parametrize("pixel_format", ["bgr0", "yuv420p"])
def test_noise_is_estimated_over_the_video(run, save_network, tmp_path, pixel_format):
    path = tmp_path / "box.safetensors"
    save_network(path, domain="box", names=("sigma", "texture"), ranges=((0, 50), (0, 1)), units=("of 255", ""))
    noisy = lambda number, height, width: np.clip(  # noqa: E731
        128 + np.random.default_rng(number).normal(0, 20, (height, width, 3)), 0, 255
    ).astype(np.uint8)
    source = clip(tmp_path / "a.mkv", size=(96, 96), codec="ffv1", pixel_format=pixel_format, source=noisy)
    words = ("--lam", "sigma=auto,texture=0:0,1:1", "--encoder", "ffv1", "--out", tmp_path / "out.mkv")
    code, said, err = run("apply", source, "--model", path, *words)
    assert code == 0, err
    assert "noise estimated at 20." in err or "noise estimated at 19." in err
    assert "texture 0.00 at 0 s, 1.00 at 1 s" in said


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sweep", "3"], "--sweep must be left out for videos; got '3'"),
        (["--noise", "10"], "--noise must be left out for videos"),
        (["--rate", "25"], "--rate must be left out for a video file"),
        (["--out", "film.xyz"], "path must end in one of .mp4"),
        (["--segment", "0"], "--segment must be more than 0 seconds"),
        (["--encoder", "nonsense"], "encoder must be one that this build of PyAV has; got 'nonsense'"),
        (["--encoder-option", "preset"], "--encoder-option must be KEY=VALUE"),
        (["--quality", "90"], "--quality must be left out for a video file"),
        (["--lam", "0:0.2,10:0.8"], "--lam must name what moves, as denoise=0:0.2,10:0.8"),
        (["--lam", "denoise=10:0.2,0:0.8"], "--lam must have times that increase"),
        (["--lam", "denoise=x:0.2"], "--lam must be SECONDS:VALUE where it moves, such as 10:0.8; got 'x:0.2'"),
        (["--lam", "nonsense=0:0.2,1:0.3"], "--lam must name"),
        (["--max-pixels", "10"], "--max-pixels must allow 64x48; got 10"),
    ],
)
def test_bad_input(run, model, tmp_path, monkeypatch, words, message):
    source = clip(tmp_path / "a.mp4", frames=2)
    monkeypatch.chdir(tmp_path)
    code, said, err = run("apply", source, "--model", model, *words)
    assert code == 2 and message in err and "Traceback" not in err and not said
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("a.mp4", "net.safetensors")
    ]


def test_inputs_of_both_kinds(run, model, photo, tmp_path):
    code, _, err = run("apply", clip(tmp_path / "a.mp4", frames=2), photo, "--model", model, "--out", tmp_path / "out")
    assert code == 2 and "inputs must be of one kind, videos or pictures" in err
    code, _, err = run("apply", photo, "--model", model, "--lam", "denoise=0:0.2,1:0.4", "--out", tmp_path / "out")
    assert code == 2 and "only a video has a lambda that moves" in err
    code, _, err = run("apply", photo, "--model", model, "--crf", 3, "--out", tmp_path / "out")
    assert code == 2 and "--crf must be left out for pictures; got 3" in err


def test_processes_take_their_part(run, model, tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        clip(tmp_path / name, frames=2)
    (tmp_path / "c.mp4").write_text("no video")
    words = ("apply", *(tmp_path / f"{name}.mp4" for name in "abc"), "--model", model, "--out", tmp_path / "out", *FAST)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, _, err = run(*words)
    assert code == 1 and "1 of 2 videos done" in err and "by process 00-of-02" in err
    assert (tmp_path / "out" / "failed-00-of-02.tsv").read_text().startswith(f"{tmp_path / 'c.mp4'}\tvideo: path must")
    assert [path.name[:1] for path in (tmp_path / "out").glob("*.mp4")] == ["a"]
    monkeypatch.setenv("RANK", "1")
    assert run(*words)[0] == 0
    assert sorted(path.name[:1] for path in (tmp_path / "out").glob("*.mp4")) == ["a", "b"]


def test_an_input_is_never_replaced(run, model, tmp_path):
    source = clip(tmp_path / "a.mp4", frames=2)
    before = source.read_bytes()
    code, _, err = run("apply", source, "--model", model, "--out", source)
    assert code == 2 and "--out must not replace another video" in err and source.read_bytes() == before


def test_damage_is_named_and_the_same_command_goes_on(run, model, tmp_path):
    source = clip(tmp_path / "a.mp4", frames=60)
    values = bytearray(source.read_bytes())
    values[len(values) // 3 : len(values) // 3 + 1500] = np.random.default_rng(0).bytes(1500)
    source.write_bytes(values)
    words = ("apply", source, "--model", model, "--segment", 0.2, *FAST, "--out", tmp_path / "out.mp4")
    code, _, err = run(*words)
    assert code == 2 and "got damage after 0." in err
    assert "frames that are done are kept in" in err and "the same command goes on after them" in err
    code, _, err = run(*words, "--damaged", "keep")
    assert code == 0 and "goes on after" in err and "1 of 1 videos done" in err


@pytest.mark.slow
def test_a_killed_run_gives_the_same_file(model, tmp_path):
    """SIGKILL while frames are in work, twice; the third run finishes, with the bytes of a run that was left alone."""
    source = clip(tmp_path / "a.mp4", frames=300, size=(240, 320), audio="aac")
    command = [
        sys.executable,
        "-m",
        "tunable_ops",
        "apply",
        source,
        "--model",
        model,
        "--segment",
        "0.5",
        "--threads",
        "1",
    ]
    command = [str(word) for word in [*command, "--lam", "denoise=0:0.2,10:0.8"]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, parts = tmp_path / "whole.mp4", tmp_path / "parts.mp4"
    subprocess.run([*command, "--out", str(whole)], check=True, env=environment)
    folder = video.Job.folder_of(parts)
    for least in (2, 4):
        with subprocess.Popen([*command, "--out", str(parts)], env=environment) as process:
            while len(list(folder.glob("0*.json"))) < least and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL and not parts.exists()
    subprocess.run([*command, "--out", str(parts)], check=True, env=environment)
    assert parts.read_bytes() == whole.read_bytes() and not folder.exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(model, tmp_path):
    """Ten times the frames, with the same peak within 40 MiB."""
    peaks = []
    for frames in (250, 2500):
        source = clip(tmp_path / f"a{frames}.mp4", frames=frames, size=(240, 320), audio="aac")
        words = ["apply", source, "--model", model, "--threads", "1", "--out", tmp_path / f"out{frames}.mp4", *FAST]
        code = (
            "import resource, sys\nfrom tunable_ops import cli\n"
            f"assert cli.main({[str(word) for word in words]!r}) == 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks
