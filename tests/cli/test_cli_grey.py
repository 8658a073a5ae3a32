"""`tunable-ops apply` and `eval` on grey pictures: noise, output and figures are grey."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from tunable_ops import images
from tunable_ops.serialization import load

MODES = ["1", "L", "LA", "I;16", "RGB"]


def picture(path, mode="L", height=40, width=48):
    """A grey picture in some mode, stored as it is."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    made = {
        "L": lambda: Image.fromarray(pixels),
        "1": lambda: Image.fromarray(pixels).convert("1"),
        "LA": lambda: Image.merge(
            "LA", [Image.fromarray(pixels), Image.fromarray(pixels.T.copy().reshape(pixels.shape))]
        ),
        "I;16": lambda: Image.fromarray(pixels.astype(np.uint16) * 257),
        "RGB": lambda: Image.fromarray(np.stack([pixels] * 3, 2)),
    }[mode]()
    made.save(path)
    return path


@pytest.fixture
def box(tmp_path, save_network):
    """Path of a network in colour with a knob for grey pictures; it tints what it gets."""
    path = tmp_path / "box.safetensors"
    save_network(path, domain="box", names=("denoise", "grey"))
    return path


def expected(model, file, lam, noise=0.0):
    """Return what comes out: the mean of the channels, of noise on one."""
    clean = images.open_picture(file)
    colour = next(clean.frames()).colour[:1]
    given = colour + noise / 255 * torch.randn(colour.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load(model)(given.expand(1, 3, -1, -1), lam)[0].mean(0, keepdim=True), colour


@pytest.mark.parametrize("noise", [0, 25])
@pytest.mark.parametrize("mode", MODES)
def test_grey_in_grey_out_with_the_files_channels(run, box, tmp_path, mode, noise):
    file = picture(tmp_path / "scan.png", mode)
    words = ["--noise", noise] if noise else []
    code, out, err = run("apply", file, "--model", box, "--lam", "denoise=0.5", "--out", tmp_path / "out", *words)
    assert code == 0, err
    want, clean = expected(box, file, (0.5, 1.0), noise)
    written = next(images.open_picture(tmp_path / "out" / "scan_lam0.50-1.00.png").frames())
    assert written.colours == (3 if mode == "RGB" else 1) and written.is_grey
    assert written.bits == (16 if mode == "I;16" else 8) and written.has_alpha == (mode == "LA")
    step = 1 / 65535 if mode == "I;16" else 1 / 255
    torch.testing.assert_close(written.colour[:1], want.clamp(0, 1), atol=step, rtol=0)
    if noise:
        psnr = -10 * math.log10(float((want.clamp(0, 1) - clean).double().square().mean()))
        assert f"{psnr:.2f} dB" in out


def test_colour_keeps_the_default_and_grey_pictures_what_lam_sets(run, box, photo, tmp_path):
    scan = picture(tmp_path / "scan.png")
    for lam, of_photo, of_scan in (
        ("denoise=0.5", "0.50-0.00", "0.50-1.00"),
        ("0.5,0", "0.50-0.00", "0.50-0.00"),
        ("grey=0.25", "0.00-0.25", "0.00-0.25"),
    ):
        out = tmp_path / lam
        assert run("apply", photo, scan, "--model", box, "--lam", lam, "--out", out)[0] == 0
        assert sorted(path.name for path in out.iterdir()) == [f"photo_lam{of_photo}.png", f"scan_lam{of_scan}.png"]
    assert run("apply", photo, scan, "--model", box, "--out", tmp_path / "d")[0] == 0
    assert (tmp_path / "d" / "scan_lam0.00-1.00.png").exists() and (tmp_path / "d" / "photo_lam0.00-0.00.png").exists()


def test_a_sweep_moves_what_the_picture_does_not_set(run, box, tmp_path):
    scan = picture(tmp_path / "scan.png")
    code, _, err = run("apply", scan, "--model", box, "--sweep", 2, "--noise", 25, "--out", tmp_path / "out")
    assert code == 0, err
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["scan_lam0.00-1.00.png", "scan_lam1.00-1.00.png", "scan_sweep.png"]
    # by its name it is the sweep's
    assert run("apply", scan, "--model", box, "--sweep", "grey=2", "--out", tmp_path / "grey")[0] == 0
    found = sorted(path.name for path in (tmp_path / "grey").iterdir())
    assert found == ["scan_lam0.00-0.00.png", "scan_lam0.00-1.00.png", "scan_sweep-grey.png"]


def test_a_single_pixel_of_colour_is_colour(run, box, tmp_path):
    pixels = np.full((20, 24, 3), 90, np.uint8)
    pixels[3, 4, 2] += 1
    Image.fromarray(pixels).save(tmp_path / "tinted.png")
    assert run("apply", tmp_path / "tinted.png", "--model", box, "--out", tmp_path / "out")[0] == 0
    written = next(images.open_picture(tmp_path / "out" / "tinted_lam0.00-0.00.png").frames())
    assert written.colours == 3 and not written.is_grey


def test_an_animation_is_grey_if_all_its_frames_are(run, box, tmp_path):
    first = Image.fromarray(np.full((20, 24, 3), 90, np.uint8))
    for name, second in (("grey", (50, 50, 50)), ("colour", (50, 51, 50))):
        frame = Image.fromarray(np.broadcast_to(np.array(second, np.uint8), (20, 24, 3)).copy())
        first.save(tmp_path / f"{name}.png", save_all=True, append_images=[frame], duration=100)
    code, _, err = run("apply", tmp_path / "grey.png", tmp_path / "colour.png", "--model", box, "--out", tmp_path / "o")
    assert code == 0, err
    found = {path.name: images.open_picture(path) for path in (tmp_path / "o").iterdir()}
    assert sorted(found) == ["colour_lam0.00-0.00.png", "grey_lam0.00-1.00.png"]
    assert all(frame.is_grey for frame in found["grey_lam0.00-1.00.png"].frames())
    assert not any(frame.is_grey for frame in found["colour_lam0.00-0.00.png"].frames())


def test_in_colour_if_asked_for(run, box, tmp_path):
    scan = picture(tmp_path / "scan.png")
    assert run("apply", scan, "--model", box, "--as-colour", "--out", tmp_path / "out")[0] == 0
    written = next(images.open_picture(tmp_path / "out" / "scan_lam0.00-0.00.png").frames())
    assert written.colours == 3 and not written.is_grey


def test_a_profile_for_grey_stays(run, box, tmp_path):
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    icc[16:20] = b"GRAY"
    Image.open(picture(tmp_path / "scan.png")).save(tmp_path / "scan.png", icc_profile=bytes(icc))
    code, _, err = run("apply", tmp_path / "scan.png", "--model", box, "--out", tmp_path / "out")
    assert code == 0 and "ICC" not in err
    assert images.open_picture(tmp_path / "out" / "scan_lam0.00-1.00.png").metadata.icc == bytes(icc)
    code, _, err = run("apply", tmp_path / "scan.png", "--model", box, "--as-colour", "--out", tmp_path / "b")
    assert code == 0 and "the ICC profile is one for grey" in err


def test_a_network_of_one_channel_takes_grey_as_it_is(run, save_network, photo, tmp_path):
    path = tmp_path / "one.safetensors"
    net = save_network(path, channels=1, domain="box", names=("denoise", "grey"))
    scan = picture(tmp_path / "scan.png")
    assert run("apply", scan, photo, "--model", path, "--out", tmp_path / "out")[0] == 0
    written = next(images.open_picture(tmp_path / "out" / "scan_lam0.00-1.00.png").frames())
    with torch.no_grad():
        want = net(next(images.open_picture(scan).frames()).colour[None], (0.0, 1.0))[0]
    assert written.colours == 1
    torch.testing.assert_close(written.colour, want.clamp(0, 1), atol=1 / 255, rtol=0)
    assert next(images.open_picture(tmp_path / "out" / "photo_lam0.00-0.00.png").frames()).colours == 3


def test_a_plain_network_gives_grey_too(run, box, tmp_path):
    plain = tmp_path / "plain.safetensors"
    assert run("fold", box, "--lam", "0.5,0", "--out", plain)[0] == 0
    scan = picture(tmp_path / "scan.png")
    code, _, err = run("apply", scan, "--model", plain, "--out", tmp_path / "out")
    assert code == 0, err
    (written,) = (tmp_path / "out").iterdir()
    assert next(images.open_picture(written).frames()).colours == 1


def test_the_shipped_denoiser_gains_most_of_what_grey_noise_cost(run, tmp_path):
    """Before: 23.9 dB from 20.5 at sigma 25 for a photograph; grey noise was taken for structure."""
    ramp = np.tile(np.linspace(40, 210, 96), (96, 1))
    stripes = np.where((np.arange(96) // 12 % 2 == 0)[:, None], ramp, 255 - ramp).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "scan.png")
    code, out, _ = run(
        "apply",
        tmp_path / "scan.png",
        "--model",
        "ffdnet_color",
        "--lam",
        "25",
        "--noise",
        25,
        "--out",
        tmp_path / "out",
    )
    assert code == 0 and (tmp_path / "out" / "scan_lam25.00.png").exists()  # the level of the noise, not sqrt(3) of it
    assert float(out.split()[-2]) > 29


# -- eval -------------------------------------------------------------------------------------------------------------


def test_eval_makes_and_judges_noise_as_grey(run, box, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, mode in (("a", "L"), ("b", "RGB")):
        picture(folder / f"{name}.png", mode)
    words = ["eval", folder, "--model", box, "--noise", 25, "--json", tmp_path / "found.json", "--quiet"]
    assert run(*words, "--lam", "denoise=0.5", "--lam", "0.25,0")[0] == 0
    scores = json.loads((tmp_path / "found.json").read_text())["scores"]
    net = load(box)
    clean = next(images.open_picture(folder / "a.png").frames()).colour
    from tunable_ops.train.degradations import Degradation, Noise
    from tunable_ops.train.evaluate import degraded_pictures

    ((_, judged, noisy),) = degraded_pictures([("a", clean)], Degradation(noise=Noise(sigma=(25, 25))), 0)
    assert judged.shape == noisy.shape == clean.shape
    for lam, inner in (((0.5, 0.0), (0.5, 1.0)), ((0.25, 0.0), (0.25, 0.0))):
        with torch.no_grad():
            output = net(noisy.expand(1, 3, -1, -1), inner)[0].mean(0, keepdim=True).clamp(0, 1)
        psnr = -10 * math.log10(float(((output * 255).round() / 255 - clean).double().square().mean()))
        (found,) = [s["psnr"] for s in scores if s["picture"] == "a" and s["lam"] == list(lam)]
        assert found == pytest.approx(psnr, abs=1e-3)
    by_default = run(*words)[1]
    assert "grey 1.00" not in by_default and by_default.count("grey 0.00") == 5


def test_eval_takes_grey_pairs_and_mixed_ones(run, box, tmp_path):
    for name in ("clean", "noisy"):
        (tmp_path / name).mkdir()
    picture(tmp_path / "clean" / "a.png", "L")
    picture(tmp_path / "clean" / "b.png", "L")
    picture(tmp_path / "noisy" / "a.png", "RGB")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)).save(tmp_path / "noisy" / "b.png")
    words = ["eval", tmp_path / "clean", "--input", tmp_path / "noisy", "--model", box, "--json", tmp_path / "j.json"]
    code, _, err = run(*words, "--y", "--quiet")
    assert code == 0, err
    first = [s for s in json.loads((tmp_path / "j.json").read_text())["scores"] if s["lam"] is None]
    assert first[0]["psnr"] is None and 5 < first[1]["psnr"] < 20  # equal pictures: infinite


def test_lpips_of_a_grey_picture(tmp_path):
    from tunable_ops.train.measure import Measure

    class Distance(torch.nn.Module):
        def forward(self, x, y):
            assert x.shape == y.shape == (1, 3, 20, 24)
            return (x - y).abs().mean().view(1)

    x, y = torch.rand(1, 20, 24), torch.rand(1, 20, 24)
    found = Measure(lpips=Distance())(x, y)
    three = Measure(lpips=Distance())(x.repeat(3, 1, 1), y.repeat(3, 1, 1))
    assert found == pytest.approx(three)
    luma = Measure(y=True)(x, y).psnr
    assert luma == pytest.approx(found.psnr + 20 * math.log10(255 / 219), abs=1e-4)


def test_a_network_that_was_folded_for_colour_says_so_for_a_grey_picture(run, tmp_path):
    """It ran at the level for colour, without a word, and left most of the noise."""
    plain, scan = tmp_path / "plain.safetensors", picture(tmp_path / "scan.png")
    assert run("fold", "denoise", "--lam", "sigma=25", "--out", plain)[0] == 0
    code, _, err = run("apply", scan, "--model", plain, "--out", tmp_path / "out")
    assert code == 0 and "scan.png: a grey picture, but the network was folded for noise in colour" in err
    assert "folded for" not in run("apply", scan, "--model", "denoise", "--out", tmp_path / "other")[2]
