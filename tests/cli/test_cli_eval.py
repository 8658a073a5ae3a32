"""`tunable-ops eval`: tables, JSON, degraded pictures made or given, bad input."""

import json
import math
import shutil

import pytest
import torch

from tunable_ops import convert, images, models
from tunable_ops.serialization import save
from tunable_ops.train.measure import Measure


@pytest.fixture
def clean(tmp_path):
    """A folder with two pictures of odd sizes."""
    folder = tmp_path / "clean"
    folder.mkdir()
    for k, size in enumerate(((26, 31), (24, 29))):
        source = torch.Generator().manual_seed(k)
        small = torch.rand(1, 3, 4, 5, generator=source)
        picture = torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 1)[0]
        images.write_image(picture, folder / f"p{k}.png")
    return folder


@pytest.fixture
def enlarger(tmp_path):
    """A network that enlarges by 2, its kernels as drawn."""
    arguments = {"scale": 2, "num_blocks": 1, "features": 3}
    net = convert(models.build("edsr", **arguments), num_params=2)
    save(net, tmp_path / "sr.safetensors", architecture="edsr", arguments=arguments)
    return tmp_path / "sr.safetensors"


def test_table_and_json(run, model, clean, tmp_path):
    file = tmp_path / "r.json"
    code, out, err = run("eval", clean, "--model", model, "--noise", 25, "--json", file, "--quiet")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"{clean}: mean over 2 pictures"
    assert lines[1].split() == ["PSNR", "dB", "SSIM"]
    assert lines[2].split()[0] == "input" and len(lines) == 2 + 1 + 5
    assert lines[3].startswith("  denoise 1.00, keep 0.00")
    record = json.loads(file.read_text())
    assert (record["noise"], record["border"], record["y"]) == (25.0, 0, False)
    assert len(record["scores"]) == 2 * 6
    of_input = [score for score in record["scores"] if score["lam"] is None]
    assert [score["picture"] for score in of_input] == ["p0", "p1"]
    assert all(score["set"] == str(clean) and 19 < score["psnr"] < 22 and score["lpips"] is None for score in of_input)
    mean = sum(score["psnr"] for score in of_input) / 2
    assert float(lines[2].split()[1]) == pytest.approx(mean, abs=0.006)


def test_positions(run, model, clean):
    words = ["eval", clean / "p0.png", "--model", model, "--blur", 1, "--quiet"]
    out = run(*words, "--lam", "denoise=0.25", "--lam", "1,0")[1]
    assert "mean over 1 picture\n" in out
    assert [line[2:25] for line in out.splitlines()[3:]] == ["denoise 0.25, keep 0.75", "denoise 1.00, keep 0.00"]
    assert len(run(*words, "--sweep", 3)[1].splitlines()) == 3 + 3


def test_enlargement_crops_and_leaves_the_border_out(run, clean, enlarger, tmp_path):
    code, out, err = run(
        "eval",
        clean,
        "--model",
        enlarger,
        "--downsample",
        2,
        "--y",
        "--lam",
        "1,0",
        "--quiet",
        "--json",
        tmp_path / "r.json",
    )
    assert code == 0, err
    assert "input" not in out.splitlines()[2]
    assert json.loads((tmp_path / "r.json").read_text())["border"] == 2


def test_given_pictures_are_those_measured(run, clean, model, tmp_path):
    given = tmp_path / "given"
    shutil.copytree(clean, given)
    (given / "p1.png").rename(given / "p1x1.png")
    out = run("eval", clean, "--model", model, "--input", given, "--lam", "1,0", "--quiet")[1]
    assert out.splitlines()[2].split() == ["input", "inf", "1.0000"]


def test_lpips_needs_its_weights(run, clean, model, monkeypatch, tmp_path):
    monkeypatch.delenv("TUNABLE_OPS_DATA", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    code, _, err = run("eval", clean, "--model", model, "--noise", 25, "--lpips")
    assert code == 2 and "could not find the weights of alexnet" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--noise, --blur, --downsample or --input must describe the degradation; got none"),
        (["--noise", "-1"], "--noise must be at least 0; got -1.0"),
        (["--noise", "nan"], "--noise must be at least 0; got nan"),
        (["--noise", "5", "--input", "."], "--input must not be combined with --noise"),
        (["--noise", "5", "--border", "-1"], "--border must be at least 0; got -1"),
        (["--noise", "5", "--border", "9"], "pictures must be at least 29 x 29 pixels for a border of 9"),
        (["--noise", "5", "--json", "/no/folder/r.json"], "--json must lie in an existing folder"),
        (["--noise", "5", "--lam", "1,2,3"], "--lam must have 2 values: denoise 0 to 1"),
        (["--noise", "5", "--threads", "0"], "--threads must be at least 1; got 0"),
    ],
)
def test_wrong_words(run, clean, model, words, text):
    code, out, err = run("eval", clean, "--model", model, "--quiet", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in err


def test_folders_that_do_not_fit(run, clean, model, enlarger, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    images.write_image(torch.rand(3, 26, 31), other / "p0.png")
    assert "got" in (err := run("eval", clean, "--model", model, "--input", other)[2]) and "none for 'p1'" in err
    err = run("eval", clean / "p0.png", "--model", enlarger, "--input", other)[2]
    assert "--input must have pictures of 1/2 the clean ones' size; got [26, 31] for [26, 30]" in err
    err = run("eval", clean, "--model", enlarger, "--noise", 5)[2]
    assert "--downsample must be 2, the enlargement of the network; got None" in err


def test_values_are_those_of_measure(run, clean, model, tmp_path):
    """An input that is white: its PSNR by hand."""
    white = tmp_path / "white"
    white.mkdir()
    images.write_image(torch.ones(3, 26, 31), white / "p0.png")
    run(
        "eval",
        clean / "p0.png",
        "--model",
        model,
        "--input",
        white,
        "--lam",
        "1,0",
        "--json",
        tmp_path / "r.json",
        "--quiet",
    )
    (score, _) = json.loads((tmp_path / "r.json").read_text())["scores"]
    picture = images.read_image(clean / "p0.png")
    assert score["psnr"] == pytest.approx(-10 * math.log10(float((1 - picture).square().mean())), abs=1e-4)
    assert score["ssim"] == pytest.approx(Measure()(torch.ones(3, 26, 31), picture).ssim)


def degraded(tmp_path, *names):
    folder = tmp_path / "degraded"
    folder.mkdir()
    for name in names:
        images.write_image(torch.rand(3, 26, 31), folder / name)
    return folder


@pytest.mark.parametrize(
    ("cleans", "names", "text"),
    [
        (["a.png", "a.bmp"], ["a.png"], "a picture of its own for each clean one; got 'a.png' for 'a.bmp' and 'a.png'"),
        (["a.png", "a.bmp"], ["a.tif"], "a picture of its own for each clean one; got 'a.tif' for 'a.bmp' and 'a.png'"),
        (["a.png"], ["a.tif", "a.bmp"], "one picture for each clean one; got 'a.bmp', 'a.tif' for 'a.png'"),
        (["a.png"], ["a.bmp", "ax1.png"], "one picture for each clean one; got 'a.bmp', 'ax1.png' for 'a.png'"),
        (["a.png", "ax1.png"], ["ax1.png"], "its own for each clean one; got 'ax1.png' for 'a.png' and 'ax1.png'"),
        (["a.png"], ["b.png"], "a picture for each clean one; got none for 'a'"),
    ],
)
def test_ambiguous_pairs_are_refused(run, model, tmp_path, cleans, names, text):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in cleans:
        images.write_image(torch.rand(3, 26, 31), folder / name)
    code, out, err = run("eval", folder, "--model", model, "--input", degraded(tmp_path, *names), "--quiet")
    assert (code, out) == (2, "") and "--input must have " in err and text in err


def test_equal_stems_are_pairs_by_their_full_names(run, model, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("a.png", "a.bmp"):
        images.write_image(torch.rand(3, 26, 31), folder / name)
    words = ("--input", degraded(tmp_path, "a.png", "a.bmp", "a.tif"), "--lam", "1,0", "--json", tmp_path / "r.json")
    code, _, err = run("eval", folder, "--model", model, *words, "--quiet")
    assert code == 0, err
    scores = json.loads((tmp_path / "r.json").read_text())["scores"]
    assert {score["picture"] for score in scores} == {"a.png", "a.bmp"}


def test_pictures_too_small_for_a_metric_are_named_and_skipped(run, model, clean):
    whole = run("eval", clean, "--model", model, "--noise", 5, "--quiet", "--lam", "1,0")
    images.write_image(torch.rand(3, 9, 40), clean / "z.png")
    (clean / "zz.png").write_text("no picture")
    (clean / "notes.txt").write_text("no picture")
    code, out, err = run("eval", clean, "--model", model, "--noise", 5, "--quiet", "--lam", "1,0")
    assert code == 1 and out == whole[1]
    assert "tunable-ops eval: skipped z: measure: pictures must be at least 11 x 11 pixels" in err
    assert f"tunable-ops eval: skipped {clean / 'zz.png'}: images: path must be a readable image" in err
    assert f"tunable-ops eval: {clean}: ignored 1 .txt" in err
