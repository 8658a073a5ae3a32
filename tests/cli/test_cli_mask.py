"""`tunable-ops apply --mask --inside`: a part of the picture with a lambda of its own."""

import numpy as np
import pytest
import torch

from tests.cli.test_cli_apply import names
from tunable_ops import images
from tunable_ops.images import Frame, encode_picture
from tunable_ops.serialization import load

HALF = torch.cat([torch.zeros(1, 40, 25), torch.ones(1, 40, 25)], 2)


@pytest.fixture
def mask(tmp_path):
    """White on the right half of the photo."""
    return images.write_image(HALF, tmp_path / "half.png")


def masked(run, model, photo, mask, out, *more):
    words = ("apply", photo, "--model", model, "--lam", "0.3,0.7", "--mask", mask, "--inside", "1,0", "--out", out)
    return run(*words, *more)


@pytest.mark.parametrize("tile", [0, 32])
def test_each_half_is_the_network_at_its_own_lambda(run, model, photo, mask, tmp_path, tile):
    code, out, err = masked(run, model, photo, mask, tmp_path / "out", "--tile", tile, "--overlap", 16, "--bits", 16)
    assert code == 0, err
    assert names(tmp_path / "out") == ["photo_lam0.30-0.70_mask.png"]
    assert "denoise 0.30, keep 0.70  inside: denoise 1.00, keep 0.00" in out
    made = images.read_image(tmp_path / "out" / "photo_lam0.30-0.70_mask.png")
    net, x = load(model), images.read_image(photo)[None]
    ends = [torch.tensor(lam).view(1, 2, 1, 1) for lam in ((0.3, 0.7), (1.0, 0.0))]
    with torch.no_grad():
        lams = ((0.3, 0.7), (1.0, 0.0), ends[0] * (1 - HALF) + ends[1] * HALF)
        outside, inside, field = (net(x, lam)[0].clamp(0, 1) for lam in lams)
    reach = 3  # of three 3x3 convolutions
    torch.testing.assert_close(made[..., : 25 - reach], outside[..., : 25 - reach], atol=2e-5, rtol=0)
    torch.testing.assert_close(made[..., 25 + reach :], inside[..., 25 + reach :], atol=2e-5, rtol=0)
    assert (outside - inside).abs().max() > 0.02
    if tile == 0:
        torch.testing.assert_close(made, field, atol=2e-5, rtol=0)


def test_a_black_mask_is_the_picture_without_one(run, model, photo, tmp_path):
    mask = images.write_image(torch.zeros(1, 40, 50), tmp_path / "black.png")
    assert masked(run, model, photo, mask, tmp_path / "a")[0] == 0
    assert run("apply", photo, "--model", model, "--lam", "0.3,0.7", "--out", tmp_path / "b")[0] == 0
    plain, black = tmp_path / "b" / "photo_lam0.30-0.70.png", tmp_path / "a" / "photo_lam0.30-0.70_mask.png"
    assert plain.read_bytes() == black.read_bytes()


def test_transparent_is_black(run, model, photo, tmp_path):
    white = np.full((40, 50, 4), 255, np.uint8)
    white[:, :25, 3] = 0
    (tmp_path / "clear.png").write_bytes(encode_picture([Frame(white)], "png"))
    images.write_image(HALF, tmp_path / "half.png")
    for name in ("clear", "half"):
        assert masked(run, model, photo, tmp_path / f"{name}.png", tmp_path / name)[0] == 0
    files = [tmp_path / name / "photo_lam0.30-0.70_mask.png" for name in ("clear", "half")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "words, message",
    [
        (("--mask", "half.png"), "--mask must come with --inside; got 'half.png' alone"),
        (("--inside", "1,0"), "--inside must come with --mask; got '1,0' alone"),
        (
            ("--mask", "half.png", "--inside", "1,0", "--sweep", 3),
            "--mask must be left out with --sweep; got 'half.png'",
        ),
        (("--mask", "half.png", "--inside", "1,0,0"), "--inside must have 2 values: denoise 0 to 1 (default 0.5)"),
        (("--mask", "half.png", "--inside", "colour=1"), "--inside must name "),
        (("--mask", "gone.png", "--inside", "1,0"), "gone.png"),
    ],
)
def test_what_is_refused(run, model, photo, mask, monkeypatch, words, message):
    monkeypatch.chdir(mask.parent)
    code, _, err = run("apply", photo, "--model", model, *words)
    assert code == 2 and message in err


def test_a_mask_of_another_size_skips_the_picture(run, model, photo, tmp_path):
    mask = images.write_image(torch.ones(1, 40, 51), tmp_path / "wide.png")
    code, _, err = masked(run, model, photo, mask, tmp_path / "out")
    assert code == 2 and "mask must have the size of the picture, 50x40 pixels; got 51x40" in err


def test_a_plain_network_has_no_mask(run, model, photo, mask, tmp_path):
    plain = tmp_path / "plain.safetensors"
    assert run("fold", model, "--lam", "0.3,0.7", "--out", plain)[0] == 0
    code, _, err = run("apply", photo, "--model", plain, "--mask", mask, "--inside", "1,0")
    assert code == 2 and "--mask must be left out for a plain network" in err
