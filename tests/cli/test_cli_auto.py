"""--lam auto: the noise of each picture is estimated; and a warning where the knob is far from the estimate."""

import json

import pytest
import torch

from tests.cli.test_cli_lam import silent, spec
from tunable_ops import LambdaSpec, serialization
from tunable_ops.cli import lam as lambdas
from tunable_ops.cli import main
from tunable_ops.cli.noise import advice, settle
from tunable_ops.images import estimate_noise, write_image
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


def test_parse_auto():
    assert lambdas.parse("auto", SIGMA, silent, auto=True) == ("auto", 1.0)
    assert lambdas.parse("blur=0.5,sigma=auto", SIGMA, silent, auto=True) == ("auto", 0.5)
    assert settle(("auto", 0.5), SIGMA, 12.346) == (12.35, 0.5)
    assert settle(("auto", 0.5), SIGMA, 70.0) == (50.0, 0.5)
    assert lambdas.describe(SIGMA, ("auto", 0.5)) == "sigma auto, blur 0.50 pixels"
    assert lambdas.describe(SIGMA, (25, 0.5)) == "sigma 25.00 of 255, blur 0.50 pixels"
    with pytest.raises(ValueError, match=r"--lam must be numbers .* for noise \(of 255\); got denoise \("):
        lambdas.parse("auto", spec(), silent, auto=True)
    with pytest.raises(ValueError, match=r"--lam must be numbers such as 0.3,0.7 or name=0.3; got 'sigma=auto'"):
        lambdas.parse("sigma=auto", SIGMA, silent)
    with pytest.raises(ValueError, match="--lam must be numbers such as"):
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
    assert (advice((value, 1.0), SIGMA, sigma) is not None) == warned


def test_no_advice_for_other_networks():
    assert advice((0.5, 0.5), spec(), 50.0) is None


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
    assert said.count("noise estimated at") == 2 and "warning" not in err
    levels = sorted(float(path.stem.partition("_lam")[2].split("-")[0]) for path in out.iterdir())
    assert levels == pytest.approx([5, 30], abs=4)


def test_apply_warns_where_the_knob_is_far_off(model, folder, tmp_path, capsys):
    words = ["apply", str(folder), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, "--lam", "sigma=30"]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert "s5.png: sigma is 30 of 255, but the noise is estimated at" in err and "--lam sigma=auto" in err
    assert main([*words, "--sweep", "2"]) == 0
    assert "estimated" not in capsys.readouterr().err


@pytest.mark.filterwarnings("default::UserWarning")
def test_out_of_range_is_said_once(model, folder, tmp_path, capsys):
    words = ["apply", str(folder / "s30.png"), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, "--lam", "sigma=60"]) == 0
    assert capsys.readouterr().err.count("sigma = 60 of 255 is outside the range 0..50 of the training") == 1


def test_eval_estimates_each_picture(model, folder, tmp_path, capsys):
    words = ["eval", str(folder), "--model", model, "--noise", "20", "--lam", "auto", "--lam", "20,1", "--quiet"]
    assert main([*words, "--json", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    assert said.count("noise estimated at") == 2 and "sigma auto, blur 1.00 pixels" in said
    scores = json.loads((tmp_path / "found.json").read_text())["scores"]
    assert [score["lam"] for score in scores[:3]] == [None, ["auto", 1.0], [20.0, 1.0]]


def test_fold_takes_numbers_only(model, tmp_path, capsys):
    assert main(["fold", model, "--lam", "auto", "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "--lam must have 2 values: sigma 0 to 50 of 255 (default 25), blur 0 to 2 pixels" in capsys.readouterr().err


def test_what_was_folded_keeps_its_unit(model, folder, tmp_path, capsys):
    plain = str(tmp_path / "plain.safetensors")
    assert main(["fold", model, "--lam", "sigma=25", "--out", plain]) == 0
    assert main(["apply", str(folder / "s5.png"), "--model", plain, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "sigma 25.00 of 255, blur 1.00 pixels" in capsys.readouterr().out
