"""The programs of examples/pretrained, on networks and pictures small enough for a test."""

import csv
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tunable_ops import models, serialization
from tunable_ops.images import write_image
from tunable_ops.train import Config, train

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


@torch.no_grad()
def test_ffdnet_becomes_a_tunable_chain(tmp_path: Path) -> None:
    """Away from the border, where the published network's map ends, the two agree at every level."""
    torch.manual_seed(0)
    ffdnet = models.FFDNet().eval()
    save_file(ffdnet.state_dict(), tmp_path / "ffdnet.safetensors")
    program("ffdnet_start.py")["main"](
        [str(tmp_path / "ffdnet.safetensors"), "--out", str(tmp_path / "start.safetensors")]
    )
    net = serialization.load(tmp_path / "start.safetensors")
    x = torch.rand(1, 3, 80, 72)
    inside = (..., slice(26, -26), slice(26, -26))
    for sigma in (0.0, 20.0, 50.0):
        torch.testing.assert_close(net(x, sigma)[inside], ffdnet(x, sigma / 255)[inside], rtol=1e-4, atol=1e-5)
    save_file({k.replace("model", "net"): v for k, v in ffdnet.state_dict().items()}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"ffdnet: model.0.weight must be .*; got no such key"):
        program("ffdnet_start.py")["main"]([str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "x")])


@pytest.fixture(scope="module")
def packed(pictures: Path, tmp_path_factory) -> Path:
    """A run of four steps, packed."""
    folder = tmp_path_factory.mktemp("packed")
    config = Config.model_validate(
        {
            "model": {"arguments": {"features": 8, "depth": 3}},
            "tuning": {"domain": "box", "names": ["sigma"], "ranges": [[0, 50]], "units": ["of 255"]},
            "objectives": [{"name": "clean", "follows": False}],
            "data": {"source": str(pictures), "crop": 16, "batch": 2},
            "degradation": {"noise": {"levels": [50]}},
            "optim": {"steps": 4, "warmup": 1},
            "log": {"every": 1},
            "validation": {"every": 0},
            "compute": {"device": "cpu"},
        }
    )
    train(config, folder / "run", progress=False)
    words = [str(folder / "run"), "small", "--licence", "none", "--out", str(folder), "--log", str(folder / "logs")]
    program("pack.py")["main"](words)
    return folder


def test_pack(packed: Path) -> None:
    net, whole = (serialization.load(packed / name) for name in ("small.safetensors", "run/model.safetensors"))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name].half(), rtol=0, atol=0)
    assert net.notes["licence"] == "none" and "/" not in net.notes["config"]["data"]["source"]
    with open(packed / "logs" / "small.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["loss/total"]) > 0 for row in rows)


def test_measure_denoise(packed: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    words = ["denoise", "--sets", str(pictures), "--model", str(packed / "small.safetensors"), "--count", "1"]
    program("measure.py")["main"]([*words, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())[pictures.name]
    assert list(found) == ["noisy", "ours"]
    assert found["noisy"]["sigma 25"][0]["psnr"] == pytest.approx(20.3, abs=0.8)
    assert "| noisy |" in capsys.readouterr().out


def test_measure_super_resolution(pictures: Path, tmp_path: Path) -> None:
    """A network that enlarges; sizes that the factor does not divide are cut."""
    from tunable_ops import convert

    arguments = {"scale": 2, "features": 4, "num_blocks": 1}
    net = convert(models.build("edsr", **arguments), 2)
    serialization.save(net, tmp_path / "sr.safetensors", architecture="edsr", arguments=arguments)
    words = ["super_resolution_x2", "--sets", str(pictures), "--model", str(tmp_path / "sr.safetensors")]
    program("measure.py")["main"]([*words, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())[pictures.name]
    assert len(found["bicubic"][""]) == 2 and len(found) == 6


def test_show(tmp_path: Path) -> None:
    program("show.py")["main"](["--out", str(tmp_path)])
    assert len(list(tmp_path.glob("pretrained_*.png"))) == 3


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
