"""The networks that ship: complete, small, and better than what they are given."""

import json
from pathlib import Path

import pytest
import torch

from tunable_ops import pretrained, serialization
from tunable_ops.cli import main
from tunable_ops.images import read_image, write_image
from tunable_ops.train.config import packaged_configs
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import bicubic_downsample, gaussian_blur
from tunable_ops.train.measure import Measure

NAMES = ["denoise", "denoise_deblur", "super_resolution_x2"]


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """The middle of the cat, [3, 128, 128]; no training saw it."""
    return dict(held_out("skimage", 128))["chelsea"]


def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    return Measure(ssim=False)(x[0], y).psnr


def test_what_ships() -> None:
    assert pretrained.names() == NAMES
    assert sum(pretrained.find(name).stat().st_size for name in NAMES) < 8e6
    assert set(NAMES) <= set(packaged_configs()), "every one has the configuration that made it"


@pytest.mark.parametrize("name", NAMES)
def test_each_says_where_it_comes_from(name: str) -> None:
    net = pretrained.load(name)
    assert not net.training and all(p.dtype == torch.float32 for p in net.parameters())
    assert "licence" in net.notes and net.notes["step"] > 0
    assert '"/' not in json.dumps(net.notes["config"]), "no path of the machine that trained it"
    stored = serialization.read_file(pretrained.find(name), kind=serialization.FORMAT, version=serialization.VERSION)
    assert all(value.dtype == torch.float16 for value in stored[0].values())


@torch.no_grad()
def test_the_denoiser_is_best_where_its_knob_says_how_noisy_it_is(photo) -> None:
    net = pretrained.load("denoise")
    noisy = photo + 25 / 255 * torch.randn(photo.shape)
    found = [psnr(net(noisy[None], [lam]), photo) for lam in (5, 25, 50)]
    assert found[1] > found[0] + 1 and found[1] > found[2] + 1 and found[1] > 29, found
    assert psnr(net(photo[None], [0.0]), photo) > 40


@torch.no_grad()
def test_sigma_means_the_same_everywhere(photo) -> None:
    """It was sigma / 50 in one network and sigma / 25 in the other."""
    noisy = photo + 15 / 255 * torch.randn(photo.shape)
    one, two = pretrained.load("denoise"), pretrained.load("denoise_deblur")
    assert (one.spec.units[0], two.spec.units) == ("of 255", ("of 255", "pixels"))
    for net, rest in ((one, {}), (two, {"deblur": 0})):
        found = [psnr(net(noisy[None], {"sigma": sigma, **rest}), photo) for sigma in (4, 15, 25)]
        assert found[1] == max(found) > psnr(noisy[None], photo) + 4, found


@torch.no_grad()
def test_the_two_knobs_are_independent(photo) -> None:
    """Each undoes its own damage; neither harms a picture that has none."""
    net = pretrained.load("denoise_deblur")
    blurred = gaussian_blur(photo[None], torch.tensor([1.5])) + 1 / 255 * torch.randn(1, *photo.shape)
    noisy = photo[None] + 15 / 255 * torch.randn(1, *photo.shape)
    both = gaussian_blur(photo[None], torch.tensor([1.0])) + 12.5 / 255 * torch.randn(1, *photo.shape)
    assert psnr(net(blurred, [0.0, 1.5]), photo) > psnr(blurred, photo) + 2
    assert psnr(net(noisy, {"sigma": 15, "deblur": 0}), photo) > psnr(noisy, photo) + 4
    right = psnr(net(both, [12.5, 1.0]), photo)
    assert right > max(psnr(net(both, lam), photo) for lam in ([12.5, 0.0], [0.0, 1.0], [0.0, 0.0])) + 0.3
    assert psnr(net(photo[None], [0.0, 0.0]), photo) > 36


@torch.no_grad()
def test_super_resolution_beats_bicubic(photo) -> None:
    net = pretrained.load("super_resolution_x2")
    small = bicubic_downsample(photo[None], 2)
    bicubic = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic")
    measure = Measure(ssim=False, y=True, border=2)
    accurate = measure(net(small, [1.0, 0.0])[0], photo).psnr
    assert accurate > measure(bicubic[0], photo).psnr + 0.5
    assert accurate > measure(net(small, [0.0, 1.0])[0], photo).psnr


def test_apply_by_name(photo, tmp_path: Path, capsys) -> None:
    """As the README says it, right after an installation."""
    write_image(photo[:, :64, :80], tmp_path / "photo.png")
    words = ["apply", str(tmp_path / "photo.png"), "--model", "denoise", "--lam", "sigma=40", "--out", str(tmp_path)]
    assert main(words) == 0
    assert read_image(tmp_path / "photo_lam40.00.png").shape == (3, 64, 80)
    assert main(["info", "denoise"]) == 0
    shown = capsys.readouterr().out
    assert "licence" in shown and "sigma  0 to 50 of 255, default 25" in shown
    assert main(["apply", str(tmp_path / "photo.png"), "--model", "denoiser"]) == 2
    assert "model must be an existing file or one of denoise, denoise_deblur," in capsys.readouterr().err


def test_a_file_is_taken_too(tmp_path: Path) -> None:
    assert pretrained.find(pretrained.find("denoise")) == pretrained.find("denoise")
    with pytest.raises(FileNotFoundError, match=r"pretrained: model must be an existing file or one of denoise, "):
        pretrained.load(tmp_path / "none.safetensors")
