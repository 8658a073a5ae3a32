"""The programs of examples/pretrained, on networks and pictures small enough for a test."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from tunable_ops import pretrained, serialization
from tunable_ops.images import write_image
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.losses.pgn import PGN
from tunable_ops.train import load_config, train

FOLDER = Path(__file__).parents[2] / "examples" / "pretrained"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the examples")


def program(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / name))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        write_image(torch.rand(3, 38, 44 + index), folder / f"{index}.png")
    return folder


SOURCES = """file\tauthor\tlicence
free/a.jpg\tA. Person\tCC-BY-4.0
free/b.jpg\t\tCC0-1.0
free/c.jpg\t\tpublic domain (Unlicense)
other/d.jpg\tB. Person\tUnsplash License
bare/e.jpg\t\tCC-BY-2.0
"""


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory) -> Path:
    """The first two steps of the shipped configuration, without the features' weights."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [f"data.source={pictures}", "data.crop=16", "optim.steps=2", "log.tensorboard=false"]
    overrides += ["objectives.1.loss=mse", "objectives.1.arguments={}", "optim.lr=0.001", "ema.decay=0"]
    train(load_config("denoise", overrides), folder / "run", progress=False)
    return folder / "run"


@torch.no_grad()
def test_pack(run: Path, tmp_path: Path) -> None:
    """The file gives the trained network on the shipped base; at low rank something near it."""
    (tmp_path / "sources.tsv").write_text(SOURCES)
    words = [str(run), "denoise.texture", "--sources", str(tmp_path / "sources.tsv"), "--out", str(tmp_path)]
    main = program("pack.py")["main"]
    main(words)
    file = tmp_path / "denoise.texture.safetensors"
    trained = serialization.load(run / "model.safetensors")
    net = pretrained.load("ffdnet_color", [file])
    x = torch.rand(1, 3, 24, 20)
    torch.testing.assert_close(net(x, [25.0, 1.0]), trained(x, [25.0, 1.0]), rtol=1e-3, atol=1e-3)
    assert not torch.equal(net(x, [25.0, 1.0]), net(x, [25.0, 0.0]))
    about = read_knob_metadata(file)
    notes = about["notes"]
    assert notes["trained_on"] == "2 steps, 8 crops of 16x16 from 3 photographs under free licences"
    assert notes["pictures"]["authors"] == ["A. Person (CC-BY-4.0)"]
    assert notes["pictures"]["licences"] == {"CC-BY-4.0": 1, "CC0-1.0": 1, "public domain": 1}
    assert "/" not in notes["config"]["data"]["source"] and notes["config"]["model"]["weights"] == "ffdnet_color"
    full = file.stat().st_size
    main([*words, "--rank", "2"])
    assert file.stat().st_size < full / 5 and read_knob_metadata(file)["conversion"]["rank"] == 2
    assert torch.equal(pretrained.load("ffdnet_color", [file])(x, [25.0, 0.0]), net(x, [25.0, 0.0]))


@pytest.mark.parametrize(
    "name, folder, message",
    [
        ("denoise.sharp", "free", "pack: name must end with the knobs of the training, 'texture'; got 'denoise.sharp'"),
        ("deblur.texture", "free", "pack: name must begin with one of denoise, .*; got 'deblur.texture'"),
        ("denoise.texture", "other", "pack: pictures must be free; got 'Unsplash License' for other/d.jpg"),
        ("denoise.texture", "bare", "pack: pictures under CC-BY must have an author; got none for bare/e.jpg"),
        ("denoise.texture", "none", "pack: --pictures must be a folder that --sources names; got 'none'"),
    ],
)
def test_pack_refuses(run: Path, tmp_path: Path, name: str, folder: str, message: str) -> None:
    (tmp_path / "sources.tsv").write_text(SOURCES)
    words = [str(run), name, "--sources", str(tmp_path / "sources.tsv"), "--pictures", folder, "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        program("pack.py")["main"](words)


def test_pack_a_perceptual_gradient_network(tmp_path: Path) -> None:
    (tmp_path / "sources.tsv").write_text(SOURCES)
    net = PGN("unet")
    config = {"data.source": "/somewhere/free", "data.crop": 64, "loss.network": "vgg16"}
    net.save(tmp_path / "run" / "model.safetensors", {"step": 12, "config": config})
    PGN("unet").save(tmp_path / "first" / "model.safetensors", {"step": 5, "config": config})
    second = {"step": 4, "config": config, "earlier": [{"step": 3, "config": config}]}
    PGN("unet").save(tmp_path / "packed.safetensors", second)
    words = [str(tmp_path / "run"), "pgn", "--sources", str(tmp_path / "sources.tsv"), "--out", str(tmp_path)]
    words += ["--earlier", str(tmp_path / "first"), str(tmp_path / "packed.safetensors")]
    program("pack.py")["main"](words)
    packed = PGN.load(tmp_path / "unet_vgg16.safetensors")
    assert packed.notes["trained_on"] == "24 steps, crops of 64x64 from 3 photographs under free licences"
    assert packed.notes["licence"].startswith("Apache-2.0") and packed.notes["config"]["data.source"] == "free"
    assert packed.notes["pictures"]["authors"] == ["A. Person (CC-BY-4.0)"]
    assert packed.notes["step"] == 12 and [training["step"] for training in packed.notes["earlier"]] == [5, 3, 4]
    for name, value in packed.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-3, atol=1e-4)
    other = PGN("unet")
    other.save(tmp_path / "other" / "model.safetensors", {"step": 7, "config": config})
    program("pack.py")["main"]([*words, "--average", str(tmp_path / "other")])
    packed = PGN.load(tmp_path / "unet_vgg16.safetensors")
    assert packed.notes["trained_on"].startswith("31 steps") and packed.notes["step"] == 12
    assert [each["step"] for each in packed.notes["earlier"]] == [5, 3, 4]
    assert [each["step"] for each in packed.notes["averaged_with"]] == [7]
    for name, value in packed.state_dict().items():
        mean = (net.state_dict()[name] + other.state_dict()[name]) / 2
        torch.testing.assert_close(value, mean, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"pack: --average must be left out for a knob"):
        program("pack.py")["main"]([words[0], "denoise.texture", *words[2:], "--average", str(tmp_path / "other")])


def test_estimates_of_noise(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["noise_estimates.py", str(pictures), str(pictures)])
    estimates = program("noise_estimates.py")
    estimates["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 photographs" and lines[-1].endswith("of 4 clean ones are warned about at 25")
    assert [line.split("|")[1].strip() for line in lines[4:9]] == ["0", "5", "15", "25", "50"]
    flat = [torch.full((3, 64, 64), 0.5)]
    assert estimates["estimates"](flat, 25) == pytest.approx([25], rel=0.05)
    assert estimates["estimates"](flat, 0) == pytest.approx([0], abs=1e-3)


@torch.no_grad()
def test_pack_moves_the_end_of_the_knob_and_adds_up_the_runs(run: Path, tmp_path: Path) -> None:
    (tmp_path / "sources.tsv").write_text(SOURCES)
    words = [str(run), "denoise.texture", "--sources", str(tmp_path / "sources.tsv"), "--out", str(tmp_path)]
    program("pack.py")["main"]([*words, "--end", "0.5", "--earlier", str(run)])
    file, trained = tmp_path / "denoise.texture.safetensors", serialization.load(run / "model.safetensors")
    net, x = pretrained.load("ffdnet_color", [file]), torch.rand(1, 3, 24, 20)
    torch.testing.assert_close(net(x, [25.0, 1.0]), trained(x, [25.0, 0.5]), rtol=1e-3, atol=1e-3)
    notes = read_knob_metadata(file)["notes"]
    assert notes["step"] == 4 and notes["end"] == 0.5 and [each["step"] for each in notes["earlier"]] == [2]
    copy = (tmp_path / "denoise.texture.safetensors").rename(tmp_path / "before.safetensors")
    program("pack.py")["main"]([*words, "--earlier", str(copy)])
    notes = read_knob_metadata(tmp_path / "denoise.texture.safetensors")["notes"]
    assert notes["step"] == 6 and [(each["step"], each.get("end")) for each in notes["earlier"]] == [
        (2, None),
        (2, 0.5),
    ]
    with pytest.raises(ValueError, match="pack: --end must be positive; got 0"):
        program("pack.py")["main"]([*words, "--end", "0"])
