"""--lam auto: the noise of each picture is estimated; and a warning where the knob is far from the estimate."""

import io
import json
import re

import pytest
import torch
from PIL import Image

from tests.cli.test_cli_lam import silent, spec
from tunable_ops import LambdaSpec, serialization
from tunable_ops.cli import lam as lambdas
from tunable_ops.cli import main
from tunable_ops.cli.noise import advice, settle
from tunable_ops.images import estimate_noise, open_picture, write_image
from tunable_ops.models import build
from tunable_ops.modules import convert
from tunable_ops.train.data import held_out

SIGMA = LambdaSpec(("sigma", "blur"), ((0.0, 50.0), (0.0, 2.0)), (25.0, 1.0), "box", ("of 255", "pixels"))


def noisy(sigma, side=96):
    photo = dict(held_out("skimage", side))["chelsea"]
    return photo + sigma / 255 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0, 5, 15, 25, 50])
def test_the_estimate(sigma):
    assert estimate_noise(noisy(sigma, 128)) == pytest.approx(sigma, abs=4, rel=0.1)


def test_the_estimate_of_white_noise_alone_and_of_a_plane():
    draw = torch.randn(2, 400, 300, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(0.5 + 20 / 255 * draw) == pytest.approx(20, rel=0.02)
    assert estimate_noise(torch.linspace(0, 1, 64).expand(1, 40, 64)) == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match=r"^estimate_noise: picture must be \[C, H, W\] of at least 8 x 8 pixels; got"):
        estimate_noise(torch.zeros(3, 7, 9))


def jpeg(picture, subsampling, quality=95):
    stream = io.BytesIO()
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return stream.getvalue()


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2"])
def test_the_estimate_where_colour_is_subsampled(subsampling):
    """The mean of the channels read a third too low."""
    (frame,) = open_picture(jpeg(noisy(25, 128), subsampling)).frames()
    assert frame.subsampled and estimate_noise(frame.colour) < 20.5
    assert estimate_noise(frame.colour, frame.subsampled) == pytest.approx(25, rel=0.1)


def encoded(lossless):
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "WEBP", lossless=lossless)
    return stream.getvalue()


def test_where_colour_is_not_subsampled():
    (frame,) = open_picture(jpeg(noisy(25, 128), "4:4:4")).frames()
    assert not frame.subsampled and estimate_noise(frame.colour) == pytest.approx(25, rel=0.12)
    stream = io.BytesIO()
    Image.new("L", (32, 32)).save(stream, "JPEG")
    assert not next(open_picture(stream.getvalue()).frames()).subsampled
    assert not next(open_picture(encoded(lossless=True)).frames()).subsampled
    assert next(open_picture(encoded(lossless=False)).frames()).subsampled
    grey = noisy(25)[:1]
    assert estimate_noise(grey, subsampled=True) == estimate_noise(grey)


def test_parse_auto():
    assert lambdas.parse("auto", SIGMA, silent, auto=True) == ("auto", 1.0)
    assert lambdas.parse("blur=0.5,sigma=auto", SIGMA, silent, auto=True) == ("auto", 0.5)
    assert settle(("auto", 0.5), SIGMA, 12.346) == (12.35, 0.5)
    assert settle(("auto", 0.5), SIGMA, 70.0) == (50.0, 0.5)
    assert lambdas.describe(SIGMA, ("auto", 0.5)) == "sigma auto, blur 0.50 pixels"
    assert lambdas.describe(SIGMA, (25, 0.5)) == "sigma 25.00 of 255, blur 0.50 pixels"
    with pytest.raises(ValueError, match=r"--lam must be numbers .* for noise \(of 255\); got denoise \("):
        lambdas.parse("auto", spec(), silent, auto=True)
    for text in ("auto", "sigma=auto"):
        with pytest.raises(ValueError, match=f"--lam must be numbers where there is no picture .*; got '{text}'"):
            lambdas.parse(text, SIGMA, silent)
    with pytest.raises(ValueError, match="--lam must be a number for 'blur', 'auto' is for 'sigma' alone; got 'blur"):
        lambdas.parse("blur=auto", SIGMA, silent, auto=True)


@pytest.mark.parametrize(
    ("value", "sigma", "warned"),
    [
        (25, 24, False),
        (25, 2, True),
        (0.5, 20, True),
        (5, 12, False),
        (25, 13, False),
        (50, 90, False),
        (0, 12.6, False),
    ],
)
def test_advice(value, sigma, warned):
    assert (advice((value, 1.0), SIGMA, [sigma]) is not None) == warned


def test_no_advice_for_other_networks():
    assert advice((0.5, 0.5), spec(), [50.0]) is None


def test_advice_for_several_pictures():
    assert advice((10, 1.0), SIGMA, [30.0, 10.0, None, 40.0]) == (
        "sigma is 10 of 255, but the noise of 2 of 4 pictures is estimated at 30.0 to 40.0: consider --lam sigma=auto"
    )
    assert advice((10, 1.0), SIGMA, [None]) is None and advice((10, 1.0), SIGMA, []) is None
    assert advice(("auto", 1.0), SIGMA, [30.0]) is None


@pytest.fixture
def model(tmp_path):
    arguments = {"features": 4, "depth": 2}
    torch.manual_seed(0)
    net = convert(build("dncnn", **arguments), 2, domain="box", names=SIGMA.names, ranges=SIGMA.ranges,
                  defaults=SIGMA.defaults, units=SIGMA.units)  # fmt: skip
    serialization.save(net, tmp_path / "net.safetensors", architecture="dncnn", arguments=arguments)
    return str(tmp_path / "net.safetensors")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for sigma in (5, 30):
        write_image(noisy(sigma), tmp_path / "in" / f"s{sigma}.png")
    return tmp_path / "in"


def test_apply_estimates_each_picture(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["apply", str(folder), "--model", model, "--lam", "auto", "--out", str(out), "--quiet"]) == 0
    said, err = capsys.readouterr()
    assert err.count("noise estimated at") == 2 and "warning" not in err
    assert [line.partition("_lam")[0] for line in said.splitlines()] == [str(out / "s30"), str(out / "s5")]
    levels = sorted(float(path.stem.partition("_lam")[2].split("-")[0]) for path in out.iterdir())
    assert levels == pytest.approx([5, 30], abs=4)


def test_apply_and_eval_know_subsampled_colour(model, tmp_path, capsys):
    for folder in ("in", "clean"):
        (tmp_path / folder).mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(jpeg(noisy(25), "4:2:0"))
    write_image(noisy(0), tmp_path / "clean" / "a.png")
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    assert main(["apply", source, "--model", model, "--lam", "auto", "--out", out, "--quiet"]) == 0
    words = ["eval", str(tmp_path / "clean"), "--input", source, "--model", model, "--lam", "auto", "--quiet"]
    assert main(words) == 0
    found = re.findall(r"noise estimated at ([0-9.]+) of 255", capsys.readouterr().err)
    assert len(found) == 2 and found[0] == found[1]
    assert float(found[0]) == pytest.approx(25, rel=0.1)


def test_apply_warns_where_the_knob_is_far_off(model, folder, tmp_path, capsys):
    words = ["apply", str(folder), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, "--lam", "sigma=30"]) == 0
    err = capsys.readouterr().err
    assert err.count("tunable-ops apply: warning: ") == err.count("tunable-ops") == 1
    assert "s5.png: sigma is 30 of 255, but the noise is estimated at" in err and "--lam sigma=auto" in err
    assert main([*words, "--sweep", "2"]) == 0
    assert "estimated" not in capsys.readouterr().err


def test_a_sweep_at_the_noise_of_each_picture(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["apply", str(folder), "--model", model, "--out", str(out), "--quiet"]
    assert main([*words, "--lam", "sigma=auto", "--sweep", "blur=3"]) == 0
    err = capsys.readouterr().err
    assert err.count("noise estimated at") == 2 and "warning" not in err
    for picture, sigma in (("s5", 5), ("s30", 30)):
        found = [path.stem.partition("_lam")[2].split("-") for path in sorted(out.glob(f"{picture}_lam*"))]
        assert [float(blur) for _, blur in found] == [0, 1, 2] and len({level for level, _ in found}) == 1
        assert float(found[0][0]) == pytest.approx(sigma, abs=4)
        assert (out / f"{picture}_sweep-blur.png").exists()


def test_a_sweep_at_one_level_compares_it_with_the_noise(model, folder, tmp_path, capsys):
    words = ["apply", str(folder), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, "--lam", "sigma=30", "--sweep", "2"]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1 and "s5.png: sigma is 30 of 255, but the noise is estimated at" in err


@pytest.mark.filterwarnings("default::UserWarning")
def test_out_of_range_is_said_once(model, folder, tmp_path, capsys):
    words = ["apply", str(folder / "s30.png"), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, "--lam", "sigma=60"]) == 0
    assert capsys.readouterr().err.count("sigma = 60 of 255 is outside the range 0..50 of the training") == 1


def test_eval_estimates_each_picture(model, folder, tmp_path, capsys):
    words = ["eval", str(folder), "--model", model, "--noise", "20", "--lam", "auto", "--lam", "20,1", "--quiet"]
    assert main([*words, "--json", str(tmp_path / "found.json")]) == 0
    said, err = capsys.readouterr()
    assert err.count("noise estimated at") == 2 and "sigma auto, blur 1.00 pixels" in said and "noise" not in said
    scores = json.loads((tmp_path / "found.json").read_text())["scores"]
    assert [score["lam"] for score in scores[:3]] == [None, ["auto", 1.0], [20.0, 1.0]]


def test_fold_takes_numbers_only(model, tmp_path, capsys):
    assert main(["fold", model, "--lam", "auto", "--out", str(tmp_path / "x.safetensors")]) == 2
    assert (
        "--lam must be numbers where there is no picture to estimate the noise of; got 'auto'"
        in capsys.readouterr().err
    )


def test_what_was_folded_keeps_its_unit(model, folder, tmp_path, capsys):
    plain = str(tmp_path / "plain.safetensors")
    assert main(["fold", model, "--lam", "sigma=25", "--out", plain]) == 0
    assert main(["apply", str(folder / "s5.png"), "--model", plain, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "sigma 25.00 of 255, blur 1.00 pixels" in capsys.readouterr().out


def test_eval_warns_where_the_knob_is_far_off(model, folder, capsys):
    words = ["eval", str(folder), "--model", model, "--noise", "0", "--quiet"]
    assert main([*words, "--lam", "sigma=2", "--lam", "auto"]) == 0
    err = capsys.readouterr().err
    assert f"tunable-ops eval: warning: {folder}: sigma is 2 of 255, but the noise of 1 of 2 pictures is" in err
    assert err.count("warning") == 1
    for words_of_a_sweep in (words, [*words, "--sweep", "2"]):
        assert main(words_of_a_sweep) == 0
        assert "estimated" not in capsys.readouterr().err


def test_a_picture_too_small_to_estimate_its_noise(model, tmp_path, capsys):
    """It was "estimated at 0.0", and warned about."""
    write_image(noisy(30)[:, :7, :20], tmp_path / "thin.png")
    words = ["apply", str(tmp_path / "thin.png"), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, "--lam", "auto"]) == 0
    said, err = capsys.readouterr()
    assert "thin.png: too small to estimate its noise (8x8 pixels at least): using the default, 25 of 255" in err
    assert "sigma 25.00 of 255" in said
    assert main(words) == 0 and "estimate" not in capsys.readouterr().err


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_level_inside_for_grey_is_not_warned_about(model, tmp_path, capsys):
    """It is sqrt(3) times what the knob says, and the knob is in its range."""
    write_image(noisy(30)[:1].expand(3, -1, -1), tmp_path / "grey.png")
    grey, out = str(tmp_path / "grey.png"), str(tmp_path / "out")
    for words in (
        ["apply", grey, "--model", model, "--sweep", "2", "--out", out, "--quiet"],
        ["apply", grey, "--model", model, "--lam", "50,1", "--out", out, "--quiet"],
        ["eval", grey, "--model", model, "--noise", "25", "--sweep", "2", "--quiet"],
        ["eval", grey, "--model", model, "--noise", "25", "--quiet"],
    ):
        assert main(words) == 0
        assert "outside" not in capsys.readouterr().err, words
