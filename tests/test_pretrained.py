"""The networks that ship: published ones bit for bit at 0, complete, small, and free."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tunable_ops import LiveFold, fold, knob_files, losses, models, pretrained, serialization
from tunable_ops.cli import main
from tunable_ops.images import read_image, write_image
from tunable_ops.train.config import packaged_configs
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import bicubic_downsample, gaussian_blur
from tunable_ops.train.measure import Measure

NAMES = ["denoise", "denoise_deblur", "super_resolution_x2", "super_resolution_x4"]
FOLDER = Path(pretrained.__file__).parent


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """The middle of the cat, [3, 128, 128]; no training saw it."""
    return dict(held_out("skimage", 128))["chelsea"]


def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    return Measure(ssim=False)(x[0], y).psnr


def test_what_ships() -> None:
    assert pretrained.names() == NAMES
    assert set(NAMES) <= set(packaged_configs()), "every one has the configuration that made it"
    files = {path for name in NAMES for path in (pretrained.find(name).file, *pretrained.find(name).knobs)}
    assert files == set(FOLDER.glob("*.safetensors")), "no file too many"


def test_bases_and_knobs_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 8e6


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_at_zero_each_is_the_published_network_bit_for_bit(name: str, photo) -> None:
    """Whatever was trained. The published network is built and filled here, from its bare weights."""
    base = pretrained.BASES[pretrained.NETWORKS[name].base]
    weights, metadata = serialization.read_weights(FOLDER / f"{pretrained.NETWORKS[name].base}.safetensors")
    assert metadata == {} and all(value.dtype == torch.float32 for value in weights.values())
    plain = models.build(base.architecture, **base.arguments).eval()
    plain.load_state_dict(weights)
    net = pretrained.load(name)
    x = photo[None, :, :60, :52] + 0.1 * torch.randn(1, 3, 60, 52)
    for sigma in (0.0, 20.0, 50.0) if base.architecture == "ffdnet" else (None,):
        rest = {} if sigma is None else {"sigma": sigma}
        own = set(base.spec.get("names", ()))
        knobs = [each for each in net.spec.names if each not in own]
        lam = net.spec.fill({**rest, **dict.fromkeys(knobs, 0.0)})
        wanted = plain(x) if sigma is None else plain(x, sigma / 255)
        live = LiveFold(net)
        live.set(lam)
        assert torch.equal(net(x, lam), wanted) and torch.equal(live(x), wanted)
        assert torch.equal(fold(net, lam)(x), wanted)
        for knob in knobs:
            assert not torch.equal(net(x, net.spec.fill({**rest, knob: 1.0})), wanted), "the knob does something"
    assert torch.equal(pretrained.load_base(name).state_dict()[next(iter(weights))], next(iter(weights.values())))


@pytest.mark.parametrize("name", NAMES)
def test_each_says_where_it_comes_from(name: str) -> None:
    net, found = pretrained.load(name), pretrained.find(name)
    assert not net.training and all(p.dtype == torch.float32 for p in net.parameters())
    assert len(net.notes["knobs"]) == len(found.knobs)
    for entry in net.notes["knobs"]:
        assert entry["licence"] and entry["notes"]["step"] > 0
        assert '"/' not in json.dumps(entry["notes"]), "no path of the machine that trained it"
    for path in found.knobs:
        with safe_open(path, framework="pt") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert {kind for key, kind in kinds.items() if not key.startswith("phi.")} == {"F16"}


@pytest.mark.parametrize("name", NAMES)
def test_knobs_were_trained_on_free_pictures_and_their_authors_are_named(name: str) -> None:
    for path in pretrained.find(name).knobs:
        about = knob_files.read_knob_metadata(path)
        assert about["licence"].startswith("Apache-2.0")
        pictures = about["notes"]["pictures"]
        assert sum(pictures["licences"].values()) == pictures["count"] == 93
        assert all(licence.startswith(("CC0", "CC-BY-", "public domain")) for licence in pictures["licences"])
        assert "-NC" not in json.dumps(pictures) and len(pictures["authors"]) == 16
        first = (about["notes"].get("earlier") or [about["notes"]])[0]
        assert first["config"]["model"]["weights"] == pretrained.NETWORKS[name].base


def test_the_notices_of_the_published_networks_ship() -> None:
    text = (FOLDER / "LICENSES.txt").read_text()
    for name, base in pretrained.BASES.items():
        licence, _, owner = base.licence.partition(", copyright ")
        year, who = owner.split(" ", 1)
        assert licence == "MIT" and f"{name}.safetensors" in text
        assert f"Copyright (c) {year} {who}" in " ".join(text.split())
    assert "The above copyright notice and this permission notice shall be included" in text
    assert "WITHOUT WARRANTY OF ANY KIND" in text


@torch.no_grad()
def test_the_denoiser_is_best_where_its_knob_says_how_noisy_it_is(photo) -> None:
    net = pretrained.load("denoise")
    noisy = photo + 25 / 255 * torch.randn(photo.shape)
    found = [psnr(net(noisy[None], {"sigma": sigma}), photo) for sigma in (5, 25, 50)]
    assert found[1] > found[0] + 1 and found[1] > found[2] + 1 and found[1] > 29, found
    assert psnr(net(photo[None], {"sigma": 0}), photo) > 40


@torch.no_grad()
def test_texture_costs_psnr_and_looks_more_alike(photo) -> None:
    """By AlexNet's features where their weights are at hand; the sharpness of edges anywhere."""
    net = pretrained.load("denoise")
    noisy = photo + 25 / 255 * torch.randn(photo.shape)
    found = [net(noisy[None], {"sigma": 25, "texture": t}).clamp(0, 1) for t in (0, 0.5, 1)]
    errors = [psnr(each, photo) for each in found]
    assert errors[0] > errors[1] > errors[2] > errors[0] - 2
    busy = [float(losses.tv(each)) for each in [*found, photo[None]]]
    assert busy[0] < busy[1] < busy[2], busy
    assert abs(busy[2] - busy[3]) < abs(busy[0] - busy[3]), busy


@torch.no_grad()
def test_sigma_means_the_same_everywhere(photo) -> None:
    noisy = photo + 15 / 255 * torch.randn(photo.shape)
    for name in ("denoise", "denoise_deblur"):
        net = pretrained.load(name)
        assert (net.spec.names[0], net.spec.units[0]) == ("sigma", "of 255")
        found = [psnr(net(noisy[None], {"sigma": sigma}), photo) for sigma in (4, 15, 30)]
        assert found[1] == max(found) > psnr(noisy[None], photo) + 4, found


@torch.no_grad()
def test_strengths_of_denoising_and_deblurring(photo) -> None:
    """Each corner comes closest to its own target, and keep=1 gives the input back."""
    net, noise = pretrained.load("denoise_deblur"), 15 / 255 * torch.randn(1, *photo.shape)
    blurred = gaussian_blur(photo[None], torch.tensor([1.2]))
    damaged = blurred + noise
    out = {(k, d): net(damaged, {"sigma": 15, "keep": k, "deblur": d}) for k in (0, 1) for d in (0, 1)}
    assert psnr(out[1, 0], damaged[0]) > 45
    assert psnr(out[0, 0], blurred[0]) > psnr(out[0, 1], blurred[0]) + 2
    assert psnr(out[0, 1], photo) > psnr(out[0, 0], photo) + 0.3
    assert psnr(out[1, 1], photo + noise[0]) > psnr(damaged, photo + noise[0]) + 0.3
    kept = [float((net(damaged, {"sigma": 15, "keep": k}) - damaged).square().mean()) for k in (0, 0.25, 0.5, 0.75, 1)]
    assert kept == sorted(kept, reverse=True), kept


@pytest.mark.parametrize("scale", [2, 4])
@torch.no_grad()
def test_super_resolution_beats_bicubic_and_perceptual_costs_psnr(scale: int, photo) -> None:
    net = pretrained.load(f"super_resolution_x{scale}")
    small = bicubic_downsample(photo[None], scale)
    bicubic = torch.nn.functional.interpolate(small, scale_factor=scale, mode="bicubic")
    measure = Measure(ssim=False, y=True, border=scale)
    accurate, middle, perceptual = (measure(net(small, [t])[0], photo).psnr for t in (0.0, 0.5, 1.0))
    assert accurate > measure(bicubic[0], photo).psnr + 0.5
    assert accurate > middle > perceptual


def test_apply_by_name(photo, tmp_path: Path, capsys) -> None:
    """As the README says it, right after an installation."""
    write_image(photo[:, :64, :80], tmp_path / "photo.png")
    words = ["apply", str(tmp_path / "photo.png"), "--out", str(tmp_path), "--model"]
    assert main([*words, "denoise", "--lam", "sigma=40"]) == 0
    assert read_image(tmp_path / "photo_lam40.00-0.00.png").shape == (3, 64, 80)
    assert main([*words, "super_resolution_x2", "--lam", "0.5"]) == 0
    assert read_image(tmp_path / "photo_lam0.50.png").shape == (3, 128, 160)
    capsys.readouterr()
    assert main([*words, "denoiser"]) == 2
    assert "model must be an existing file or folder, or one of denoise, denoise_deblur," in (
        err := capsys.readouterr().err
    )
    assert err.endswith("got 'denoiser'; did you mean 'denoise'?\n")


def test_a_base_is_taken_by_name_with_a_knob_and_not_without(photo, tmp_path: Path, capsys) -> None:
    write_image(photo[:, :64, :80], tmp_path / "photo.png")
    words = ["apply", str(tmp_path / "photo.png"), "--out", str(tmp_path), "--model", "rlfn_x4"]
    (knob,) = pretrained.find("super_resolution_x4").knobs
    assert main([*words, "--knob", str(knob), "--lam", "1"]) == 0
    by_hand = read_image(tmp_path / "photo_lam1.00.png")
    assert main([*words[:-1], "super_resolution_x4", "--lam", "1"]) == 0
    assert torch.equal(read_image(tmp_path / "photo_lam1.00.png"), by_hand)
    capsys.readouterr()
    assert main(words) == 2
    assert "got the base 'rlfn_x4', which has no knob" in capsys.readouterr().err


def test_a_base_that_reads_a_parameter_needs_no_knob() -> None:
    spec = pretrained.load("ffdnet_color").spec
    assert (spec.names, spec.units, spec.ranges) == (("sigma",), ("of 255",), ((0.0, 50.0),))


def test_a_knob_beside_those_that_ship(tmp_path: Path) -> None:
    (perceptual,) = pretrained.find("super_resolution_x4").knobs
    with pytest.raises(ValueError, match="different names; got 'perceptual' twice"):
        pretrained.load("super_resolution_x4", [perceptual])
    (other,) = pretrained.find("super_resolution_x2").knobs
    with pytest.raises(ValueError, match=r"load_knob: network must be the base of '.*', carn\(scale=2\) with"):
        pretrained.load("denoise", [other])


@torch.no_grad()
def test_knobs_of_one_base_together(photo) -> None:
    """Texture and deblurring in one network: their kernels add, and each alone is what it was."""
    (strengths,) = pretrained.find("denoise_deblur").knobs
    both, x = pretrained.load("denoise", [strengths]), photo[None, :, :40, :40]
    assert both.spec.names == ("sigma", "texture", "keep", "deblur")
    for name, lam in (("denoise", {"texture": 0.7}), ("denoise_deblur", {"deblur": 0.7, "keep": 0.2})):
        alone = pretrained.load(name)
        torch.testing.assert_close(both(x, both.spec.fill(lam)), alone(x, alone.spec.fill(lam)), atol=1e-5, rtol=1e-5)


def test_eval_and_fold_by_name(photo, tmp_path: Path, capsys) -> None:
    write_image(photo[:, :64, :80], tmp_path / "photo.png")
    words = ["eval", str(tmp_path / "photo.png"), "--model", "denoise", "--noise", "25", "--quiet"]
    assert main([*words, "--lam", "sigma=25"]) == 0
    assert "mean over 1 picture" in capsys.readouterr().out
    out = tmp_path / "folded.safetensors"
    assert main(["fold", "denoise", "--lam", "sigma=30", "--out", str(out)]) == 0
    plain, net = serialization.load_folded(out).float(), pretrained.load("denoise")
    x = photo[None, :, :40, :44]
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net(x, [30.0, 0.0]), rtol=1e-5, atol=1e-5)
    notes = serialization.read_metadata(out)["notes"]
    assert notes["folded_from"] == "denoise" and notes["lambda"] == {"sigma": 30.0, "texture": 0.0}


def test_info_by_name(capsys) -> None:
    assert main(["info", "denoise"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "sigma    0 to 50 of 255, default 25",
        "texture  0 to 1, default 0",
        "base          ffdnet_color, ",
        "architecture  ffdnet(knob=0, skip=True)",
        "licence       MIT, copyright 2019 Kai Zhang",
    ):
        assert text in shown, text
    assert main(["info", "denoise", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["base"]["name"] == "ffdnet_color" and [knob["unit"] for knob in facts["lambda"]] == ["of 255", ""]
    assert main(["info", "super_resolution_x4"]) == 0
    shown = capsys.readouterr().out
    for text in ("licence       Apache-2.0", "photographs under free licences", "Tony Webster (CC-BY-2.0)"):
        assert text in shown, text
    assert main(["info", "super_resolution_x4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "base with knobs" and len(facts["knobs"]) == 1
    assert main(["info", "rlfn_x4"]) == 0
    assert "RLFN of Kong et al." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["apply", "eval", "fold"])
def test_a_parameter_that_is_gone_says_what_replaced_it(command: str, photo, tmp_path: Path, capsys) -> None:
    """Once the two ends of super_resolution_x2 were weights that sum to 1."""
    write_image(photo[:, :32, :32], tmp_path / "photo.png")
    model = ["super_resolution_x2"] if command == "fold" else [str(tmp_path / "photo.png"), "--model"]
    model += [] if command == "fold" else ["super_resolution_x2", *(["--downsample", "2"] if command == "eval" else [])]
    assert main([command, *model, "--lam", "accurate=1"]) == 2
    assert "--lam must name perceptual; got 'accurate', which is now 1 - perceptual" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_refused_in_words(name: str) -> None:
    net = pretrained.load(name)
    kind = type(net.network).__name__
    with pytest.raises(TypeError, match=f"^{kind}: x must be of a floating-point type; got torch.uint8$"):
        net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), net.spec.defaults)


def test_a_file_is_taken_too(tmp_path: Path) -> None:
    file = pretrained.find("denoise_deblur").file
    assert pretrained.find(file).file == file and pretrained.find(file).base is None
    assert pretrained.replaced(file) == {}
    with pytest.raises(
        FileNotFoundError, match=r"pretrained: model must be an existing file or folder, or one of denoise, "
    ):
        pretrained.load(tmp_path / "none.safetensors")
    with pytest.raises(
        ValueError,
        match=r"name must be one of carn_m, .*; got 'denoise_blur'; did you mean 'denoise_deblur'\?$",
    ):
        pretrained.load_base("denoise_blur")
    for wrong, near in (
        ("denois", "; did you mean 'denoise'?"),
        ("ffdnet", "; did you mean 'ffdnet_color'?"),
        ("qq", ""),
    ):
        with pytest.raises(FileNotFoundError, match=re.escape(f"got {wrong!r}{near}") + "$"):
            pretrained.load(wrong)


def test_a_network_that_ships_is_no_checkpoint_to_make_a_knob_of(tmp_path: Path, capsys) -> None:
    assert main(["knob", "denoise", "--out", str(tmp_path / "k.safetensors")]) == 2
    assert "got 'denoise', which is made of ffdnet_color and knob files already" in capsys.readouterr().err


def test_weights_to_start_from_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained.weights_file("carn_m") == FOLDER / "carn_m.safetensors"
    assert pretrained.weights_file("runs/x.safetensors") == Path("runs/x.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "carn_m").touch()  # a file of one's own comes first
    assert pretrained.weights_file("carn_m") == Path("carn_m")


def test_fold_replaces_no_knob(capsys) -> None:
    (knob,) = pretrained.find("super_resolution_x4").knobs
    before = knob.read_bytes()
    assert main(["fold", "super_resolution_x4", "--lam", "0", "--out", str(knob)]) == 2
    assert "--out must not be the checkpoint itself or one of its knobs" in capsys.readouterr().err
    assert knob.read_bytes() == before
