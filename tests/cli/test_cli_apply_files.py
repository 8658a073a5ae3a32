"""`tunable-ops apply`: nothing that a file holds is lost in silence, and batches go on."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tunable_ops import convert, images, models
from tunable_ops.serialization import load, load_folded, save

pytest.importorskip("imagecodecs", reason="imagecodecs is not installed (tunable-ops[train])")
pytest.importorskip("tifffile", reason="tifffile is not installed (tunable-ops[train])")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def colours(height=20, width=24, dtype=np.uint8, channels=3, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype, endpoint=True)


@pytest.fixture
def same(tmp_path):
    """A network that returns its input, whatever lambda is."""
    net = convert(models.build("dncnn", channels=3, features=4, depth=3), num_params=2, names=("denoise", "keep"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    save(net, tmp_path / "same.safetensors", architecture="dncnn", arguments={"channels": 3, "features": 4, "depth": 3})
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(load(tmp_path / "same.safetensors")(x, (0.5, 0.5)), x)
    return tmp_path / "same.safetensors"


@pytest.fixture
def apply(run, same, tmp_path):
    """Run `apply` with that network at one position: (exit code, stdout, stderr)."""

    def call(*words, out=tmp_path / "out"):
        return run("apply", *words, "--model", same, "--lam", "1,0", "--out", out)

    return call


# -- nothing is lost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["png", "tif", "TIFF"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_and_alpha_in_and_out(apply, tmp_path, extension, channels):
    pixels = colours(dtype=np.uint16, channels=channels)
    images.write_picture([images.Frame(pixels)], tmp_path / f"a.{extension}")
    code, _, err = apply(tmp_path / f"a.{extension}")
    assert (code, err) == (0, f"1 of 1 images done, in {tmp_path / 'out'}\n")
    (frame,) = images.open_picture(tmp_path / "out" / f"a_lam1.00-0.00.{extension}").frames()
    assert np.array_equal(frame.pixels, pixels)
    assert apply(tmp_path / f"a.{extension}", "--bits", 8)[0] == 0
    (frame,) = images.open_picture(tmp_path / "out" / f"a_lam1.00-0.00.{extension}").frames()
    assert frame.pixels.dtype == np.uint8 and np.abs(frame.pixels.astype(int) - pixels / 257).max() <= 0.5


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *[("a.png", "a_X.png"), ("a.bmp", "a_X.bmp"), ("a.ppm", "a_X.ppm"), ("a.jpg", "a.jpg_X.png")],
        *[("a.tga", "a.tga_X.png"), ("a.gif", "a.gif_X.png"), ("a.jp2", "a.jp2_X.png")],
    ],
)
def test_the_format_is_the_inputs_own_where_it_is_lossless(apply, tmp_path, source, target):
    Image.fromarray(colours()).save(tmp_path / source)
    assert apply(tmp_path / source)[0] == 0
    assert names(tmp_path / "out") == [target.replace("X", "lam1.00-0.00")]


def test_webp_stays_webp_if_it_is_lossless(apply, tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(colours()).save(tmp_path / "b.webp", quality=80)
    assert apply(tmp_path / "a.webp", tmp_path / "b.webp")[0] == 0
    assert names(tmp_path / "out") == ["a_lam1.00-0.00.webp", "b.webp_lam1.00-0.00.png"]
    assert torch.equal(
        images.read_image(tmp_path / "out" / "a_lam1.00-0.00.webp"), images.read_image(tmp_path / "a.webp")
    )


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff"])
def test_format_and_quality(apply, tmp_path, kind):
    photo = tmp_path / "photo.png"
    Image.fromarray(colours()).save(photo)
    assert apply(photo, "--format", kind)[0] == 0
    path = tmp_path / "out" / ("photo_lam1.00-0.00.png" if kind == "png" else f"photo.png_lam1.00-0.00.{kind}")
    with Image.open(path) as picture:
        assert picture.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF"}[kind]
    if kind in ("jpg", "webp"):
        size = path.stat().st_size
        assert apply(photo, "--format", kind, "--quality", 20)[0] == 0
        assert path.stat().st_size < size


def test_out_names_a_file(apply, photo, tmp_path):
    for name, kind in (("x.png", "PNG"), ("deep/x.jpg", "JPEG"), ("x.tif", "TIFF")):
        code, out, err = apply(photo, out=tmp_path / name)
        assert code == 0, err
        assert out.startswith(f"{tmp_path / name}  denoise 1.00")
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind
    (tmp_path / "folder.png").mkdir()
    assert apply(photo, out=tmp_path / "folder.png")[0] == 0
    assert names(tmp_path / "folder.png") == ["photo_lam1.00-0.00.png"]


def test_alpha_is_enlarged_with_the_colours(run, tmp_path):
    arguments = {"scale": 2, "num_blocks": 1, "features": 3}
    net = convert(models.build("edsr", **arguments), num_params=2)
    save(net, tmp_path / "sr.safetensors", architecture="edsr", arguments=arguments)
    alpha = np.zeros((10, 12), np.uint8)
    alpha[:, 6:] = 255
    Image.fromarray(np.dstack([colours(10, 12), alpha])).save(tmp_path / "a.png")
    assert run("apply", tmp_path / "a.png", "--model", tmp_path / "sr.safetensors", "--out", tmp_path / "out")[0] == 0
    (path,) = (tmp_path / "out").iterdir()
    large = np.asarray(Image.open(path))
    assert large.shape == (20, 24, 4)
    assert (large[:, :10, 3] == 0).all() and (large[:, 14:, 3] == 255).all()


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animations_are_processed_frame_by_frame(apply, tmp_path, kind):
    frames = [Image.new("RGB", (24, 20), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(
        tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], duration=[50, 90, 130], loop=2, **options
    )
    code, _, err = apply(tmp_path / f"a.{kind}")
    assert code == 0 and ("gif has 256 colours" in err) == (kind == "gif")
    picture = images.open_picture(tmp_path / "out" / f"a_lam1.00-0.00.{kind}")
    assert (picture.count, picture.loop) == (3, 2)
    for frame, duration, colour in zip(picture.frames(), [50, 90, 130], frames, strict=True):
        assert frame.duration == duration and np.array_equal(frame.pixels, np.asarray(colour))
    code, _, err = apply(tmp_path / f"a.{kind}", "--format", "jpg", out=tmp_path / "jpg")
    assert code == 2 and "images: jpg holds one picture; got 3 frames: use tiff, png or webp" in err


def test_all_pages_of_a_tiff(apply, tmp_path):
    pages = [colours(20, 24), colours(16, 30, np.uint16), colours(18, 18, channels=4)]
    images.write_picture([images.Frame(page) for page in pages], tmp_path / "a.tif")
    assert apply(tmp_path / "a.tif")[0] == 0
    again = images.open_picture(tmp_path / "out" / "a_lam1.00-0.00.tif").frames()
    assert all(np.array_equal(frame.pixels, page) for frame, page in zip(again, pages, strict=True))


def test_what_is_lost_is_said_once_with_the_way_to_keep_it(apply, tmp_path):
    Image.fromarray(colours(channels=4)).save(tmp_path / "a.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "b.jpg")
    code, _, err = apply(tmp_path / "a.png", tmp_path / "b.jpg", "--format", "jpg")
    assert code == 0
    assert f"tunable-ops apply: {tmp_path / 'a.png'}: jpg has no transparency: laid on white; png, tiff" in err
    assert f"tunable-ops apply: {tmp_path / 'b.jpg'}: CMYK inks without a profile become RGB" in err
    assert err.count("\n") == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--quality", 80], "--quality must go with --format jpg or webp; got no --format"),
        (["--quality", 80, "--format", "png"], "--quality must go with --format jpg or webp; got png"),
        (["--quality", 0, "--format", "jpg"], "--quality must lie in 1..100; got 0"),
        (["--bits", 16, "--format", "jpg"], "--bits must be 8 for jpg; got 16: use png or tiff"),
        (["--max-pixels", 0], "--max-pixels must be at least 1; got 0"),
        (["--out", "x.png", "--format", "jpg"], "--format must be that of --out; got jpg for 'x.png'"),
    ],
)
def test_wrong_words(run, same, photo, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("apply", photo, "--model", same, *words)
    assert (code, out, err) == (2, "", f"tunable-ops apply: error: {text}\n")


def test_a_file_cannot_hold_several_images(apply, run, same, photo, tmp_path):
    shutil.copy(photo, tmp_path / "b.png")
    assert "--out must be a folder for 2 images; got" in apply(photo, tmp_path / "b.png", out=tmp_path / "x.png")[2]
    words = ("apply", photo, "--model", same, "--sweep", 2, "--out", tmp_path / "x.png")
    assert "--out must be a folder for a sweep; got" in run(*words)[2]
    before = photo.read_bytes()
    code, _, err = apply(photo, out=photo)
    assert code == 2 and "--out must not replace another picture; got" in err and photo.read_bytes() == before
    assert "images done" not in err


def test_a_picture_in_colour_as_a_gif_loses_colours(apply, photo, tmp_path):
    code, _, err = apply(photo, out=tmp_path / "out.gif")
    assert code == 0 and f"{photo}: gif has 256 colours a frame: the nearest are taken; png and webp keep all" in err
    grey = images.write_image(torch.linspace(0, 1, 256).expand(1, 20, 256), tmp_path / "grey.png")
    code, _, err = apply(grey, out=tmp_path / "grey.gif")
    assert code == 0 and "256 colours" not in err


# -- batches go on ----------------------------------------------------------------------------------------------------


def folder_of(tmp_path, *found):
    folder = tmp_path / "in"
    for name in found:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours()).save(path, format="PNG")
    return folder


def test_names_that_are_no_text(same, tmp_path):
    folder = folder_of(tmp_path, b"a.png", b"b\xff\xfe.png", "é.png".encode())
    words = [sys.executable, "-m", "tunable_ops", "apply", folder, "--model", same, "--lam", "1,0", "--out", "out"]
    for variables in (
        {},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        done = subprocess.run(
            [*map(str, words[:-1]), str(tmp_path / "out")],
            capture_output=True,
            env={**os.environ, **variables, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stderr
        assert b"3 of 3 images done" in done.stderr and done.stdout.count(b"\n") == 3
        found = set(os.listdir(os.fsencode(tmp_path / "out")))
        assert found >= {b"a_lam1.00-0.00.png", b"b\xff\xfe_lam1.00-0.00.png", "é_lam1.00-0.00.png".encode()}


def test_a_name_without_room_for_more_is_skipped(apply, tmp_path):
    long = "x" * 245 + ".png"
    folder = folder_of(tmp_path, b"a.png", long.encode())
    code, _, err = apply(folder)
    assert code == 1 and names(tmp_path / "out") == ["a_lam1.00-0.00.png"]
    assert f"skipped {folder / long}: File name too long: '{tmp_path / 'out'}" in err


def test_an_error_of_the_system_skips_one_file(apply, tmp_path, monkeypatch):
    folder = folder_of(tmp_path, b"a.png", b"b.png", b"c.png")
    replace = os.replace

    def refuse(source, target):
        if "b_lam" in str(target):
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    code, _, err = apply(folder)
    assert code == 1 and names(tmp_path / "out") == ["a_lam1.00-0.00.png", "c_lam1.00-0.00.png"]
    assert "b_lam1.00-0.00.png' (Permission denied)" in err and "2 of 3 images done" in err


def test_a_full_disk_stops_at_once(apply, tmp_path, monkeypatch):
    folder = folder_of(tmp_path, b"a.png", b"b.png", b"c.png", b"d.png")
    replace, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = apply(folder)
    assert code == 1 and len(calls) == 2 and names(tmp_path / "out") == ["a_lam1.00-0.00.png"]
    assert "tunable-ops apply: error: images: path must be writable; got" in err
    assert "(No space left on device)" in err and "stopped: 1 of 4 images done" in err


def test_other_endings_are_taken_and_what_is_ignored_is_counted(apply, tmp_path):
    folder = folder_of(tmp_path, b"a.jfif", b"b.jpe", b"c.tga", b"d.AVIF", b"deep/e.png")
    for name in ("notes.txt", "more.txt", "README", ".hidden.png"):
        (folder / name).write_text("no picture")
    code, out, err = apply(folder)
    assert code == 0 and out.count("\n") == 4
    line = f"{folder}: ignored 2 .txt, 1 hidden, 1 without extension, 1 subfolder (--recursive searches them)"
    assert f"tunable-ops apply: {line}\n" in err


def test_recursive_mirrors_the_folders(apply, tmp_path):
    folder = folder_of(tmp_path, b"a.png", b"x/a.png", b"x/y/b.png", b".hidden/c.png")
    assert apply(folder, "--recursive")[0] == 0
    assert names(tmp_path / "out") == ["a_lam1.00-0.00.png", "x/a_lam1.00-0.00.png", "x/y/b_lam1.00-0.00.png"]


@pytest.mark.parametrize("where", [".", "out"])
def test_own_outputs_are_no_inputs(run, same, tmp_path, where):
    folder = folder_of(tmp_path, b"a.png", b"sub/b.png", b"a.jpg")
    words = ("apply", folder, "--recursive", "--model", same, "--out", folder / where)
    assert run(*words, "--sweep", 2)[0] == 0
    before = names(folder)
    for _ in range(2):
        code, _, err = run(*words, "--sweep", 2)
        assert code == 0 and "3 of 3 images done" in err and "9 outputs of earlier runs" in err
        assert names(folder) == before
    code, _, err = run("apply", folder / where / "a_lam0.00-1.00.png", "--model", same, "--out", tmp_path / "again")
    assert code == 0 and names(tmp_path / "again") == ["a_lam0.00-1.00_lam0.50-0.50.png"]


def test_outputs_without_their_sources_are_inputs_of_another_network(apply, tmp_path):
    folder = folder_of(tmp_path, b"a.png")
    assert apply(folder)[0] == 0
    code, _, err = apply(tmp_path / "out", out=tmp_path / "next")
    assert code == 0 and names(tmp_path / "next") == ["a_lam1.00-0.00_lam1.00-0.00.png"]
    code, _, err = apply(tmp_path / "out")
    assert code == 2 and "which holds outputs of earlier runs only" in err


def test_equal_stems_never_overwrite_each_other_across_runs(apply, tmp_path):
    folder = folder_of(tmp_path, b"a.png", b"a.jpg", b"a.bmp")
    for name in ("a.png", "a.jpg", "a.bmp"):
        assert apply(folder / name)[0] == 0
    assert len(names(tmp_path / "out")) == 3


def test_max_pixels(apply, tmp_path):
    folder = folder_of(tmp_path, b"a.png")
    Image.new("RGB", (60, 10)).save(folder / "b.png")
    code, _, err = apply(folder, "--max-pixels", 599)
    assert code == 1 and "60x10 pixels are more than the limit of 599" in err


def test_a_read_only_folder_is_said_before_any_work(apply, photo, tmp_path, monkeypatch):
    import tempfile

    def refuse(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, _, err = apply(photo)
    assert code == 2 and "--out must be a folder to write in; got" in err and "(Read-only file system)" in err


# -- folded networks and progress -------------------------------------------------------------------------------------


def test_what_fold_writes(run, model, photo, tmp_path):
    plain = tmp_path / "plain.safetensors"
    assert run("fold", model, "--lam", "0.3,0.7", "--out", plain)[0] == 0
    code, out, err = run("apply", photo, "--model", plain, "--out", tmp_path / "out")
    assert code == 0, err
    path = tmp_path / "out" / "photo_lam0.30-0.70.png"
    assert out == f"{path}  denoise 0.30, keep 0.70\n"
    with torch.no_grad():
        expected = load_folded(plain)(images.read_image(photo)[None])[0]
    assert (images.read_image(path) - expected.clamp(0, 1)).abs().max() <= 0.51 / 255
    for words in (["--lam", "1,0"], ["--sweep", 2]):
        code, _, err = run("apply", photo, "--model", plain, "--out", tmp_path / "out", *words)
        text = f"{words[0]} must be left out for a plain network; got {str(plain)!r}, fixed at denoise 0.30, keep 0.70"
        assert code == 2 and text in err
    arguments = {"channels": 3, "features": 4, "depth": 3}
    save(models.build("dncnn", **arguments), plain, architecture="dncnn", arguments=arguments)
    code, out, err = run("apply", photo, "--model", plain, "--out", tmp_path / "plain")
    assert code == 0 and out == f"{tmp_path / 'plain' / 'photo_plain.png'}\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(apply, tmp_path, monkeypatch):
    from tunable_ops.cli import progress

    monkeypatch.setattr(progress, "_EVERY", 0.0)
    Image.fromarray(colours(64, 64)).save(tmp_path / "a.png")
    words = ("--tile", 32, "--overlap", 16)
    err = apply(tmp_path / "a.png", *words)[2]
    assert "tunable-ops apply: a.png: 11 %, about 0:0" in err and "a.png: 100 %" in err
    assert "%" not in apply(tmp_path / "a.png", *words, "--quiet")[2]


def test_bars_on_a_terminal(same, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    folder = folder_of(tmp_path, b"a.png", b"b.png")
    words = [sys.executable, "-m", "tunable_ops", "apply", folder, "--model", same, "--out", tmp_path / "out"]
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL, stderr=end, env=environment)
    os.close(end)
    shown = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert done.wait() == 0
    assert b"a.png (1 of 2): " in shown and b"all pictures: " in shown and b"2 of 2 images done" in shown
