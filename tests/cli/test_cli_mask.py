"""`tunable-ops apply --mask --inside`: a part of the picture with a lambda of its own."""

from pathlib import Path

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
    assert names(tmp_path / "out") == ["photo_lam0.30-0.70_mask1.00-0.00.png"]
    assert "denoise 0.30, keep 0.70  inside: denoise 1.00, keep 0.00" in out
    made = images.read_image(tmp_path / "out" / "photo_lam0.30-0.70_mask1.00-0.00.png")
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
    plain, black = tmp_path / "b" / "photo_lam0.30-0.70.png", tmp_path / "a" / "photo_lam0.30-0.70_mask1.00-0.00.png"
    assert plain.read_bytes() == black.read_bytes()


def test_transparent_is_black(run, model, photo, tmp_path):
    white = np.full((40, 50, 4), 255, np.uint8)
    white[:, :25, 3] = 0
    (tmp_path / "clear.png").write_bytes(encode_picture([Frame(white)], "png"))
    images.write_image(HALF, tmp_path / "half.png")
    for name in ("clear", "half"):
        assert masked(run, model, photo, tmp_path / f"{name}.png", tmp_path / name)[0] == 0
    files = [tmp_path / name / "photo_lam0.30-0.70_mask1.00-0.00.png" for name in ("clear", "half")]
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
        (("--mask", "gone.png", "--inside", "1,0"), "--mask must be an existing file; got 'gone.png'"),
        (("--mask", "text.png", "--inside", "1,0"), "--mask must be a picture that can be read; got 'text.png' ("),
        (
            ("--mask", "pages.tiff", "--inside", "1,0"),
            "--mask must be one picture; got 2 frames or pages in 'page",
        ),
    ],
)
def test_what_is_refused(run, model, photo, mask, monkeypatch, words, message):
    monkeypatch.chdir(mask.parent)
    Path("text.png").write_text("no picture")
    grey = np.zeros((40, 50, 1), np.uint8)
    Path("pages.tiff").write_bytes(encode_picture([Frame(grey), Frame(grey)], "tiff"))
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


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_the_mask_is_never_replaced(run, model, photo, mask, more):
    content = mask.read_bytes()
    code, _, err = masked(run, model, photo, mask, mask, *more)
    assert code == 2 and f"--out must not replace another picture; got {str(mask)!r}, which is an input" in err
    assert mask.read_bytes() == content


def test_another_inside_is_another_file(run, model, photo, mask, tmp_path):
    out = tmp_path / "out"
    assert masked(run, model, photo, mask, out)[0] == 0
    assert masked(run, model, photo, mask, out, "--inside", "0.5,0.5", "--resume")[0] == 0
    files = [out / f"photo_lam0.30-0.70_mask{inside}.png" for inside in ("0.50-0.50", "1.00-0.00")]
    assert names(out) == [file.name for file in files]
    assert files[0].read_bytes() != files[1].read_bytes()
    stamps = [file.stat().st_mtime_ns for file in files]
    assert masked(run, model, photo, mask, out, "--resume")[0] == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_a_mask_in_the_folder_of_the_pictures_is_none_of_them(run, model, photo, mask, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(photo.read_bytes())
    inner = folder / "half.png"
    inner.write_bytes(mask.read_bytes())
    for _ in range(2):  # nor are the outputs of the first run
        code, _, err = masked(run, model, folder, inner, folder)
        assert code == 0 and f"{inner}: ignored, for it is the mask" in err
    made = [f"{name}_lam0.30-0.70_mask1.00-0.00.png" for name in "ab"]
    assert names(folder) == sorted(["a.png", "b.png", "half.png", *made])
    code, _, err = masked(run, model, inner, inner, tmp_path / "named")  # named itself it is taken
    assert code == 0 and names(tmp_path / "named") == ["half_lam0.30-0.70_mask1.00-0.00.png"]


def test_a_mask_of_16_bits_holds_the_shares_in_between(run, model, photo, tmp_path):
    share = 0.37128
    mask = images.write_image(torch.full((1, 40, 50), share), tmp_path / "share.png", bits=16)
    assert masked(run, model, photo, mask, tmp_path / "a", "--bits", 16)[0] == 0
    made = images.read_image(tmp_path / "a" / "photo_lam0.30-0.70_mask1.00-0.00.png")
    lam = [share * end + (1 - share) * start for start, end in ((0.3, 1.0), (0.7, 0.0))]
    with torch.no_grad():
        expected = load(model)(images.read_image(photo)[None], lam)[0].clamp(0, 1)
    torch.testing.assert_close(made, expected, atol=4e-5, rtol=0)
    assert (made - images.read_image(photo)).abs().max() > 0.01


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_sum_other_than_one_is_that_of_inside(run, model, photo, mask, tmp_path):
    code, _, err = masked(run, model, photo, mask, tmp_path / "out", "--inside", "1,1")
    assert code == 0 and "warning: --inside must sum to 1; got '1,1', which sums to 2: using denoise 0.50" in err
