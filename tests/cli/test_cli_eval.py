"""`tunable-ops eval`: figures against their formulas, pairs from folders, wrong input."""

import json
import math
from pathlib import Path

import pytest
import torch

from tunable_ops import convert, serialization
from tunable_ops.cli import main
from tunable_ops.images import read_image, write_image
from tunable_ops.models import DnCNN
from tunable_ops.train.evaluate import View


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, and their twins that are darker by 8 of 255."""
    for name in ("clean", "dark"):
        (tmp_path / name).mkdir()
    for index, size in enumerate(((24, 20), (17, 26))):
        picture = 0.2 + 0.6 * torch.rand(3, *size, generator=torch.Generator().manual_seed(index))
        picture = (picture * 255).round() / 255
        write_image(picture, tmp_path / "clean" / f"{index}.png")
        write_image(picture - 8 / 255, tmp_path / "dark" / f"{index}.png")
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """(1, 0) adds 8 of 255 to a picture, (0, 1) nothing."""
    arguments = {"channels": 3, "features": 4, "depth": 2, "residual": True}
    net = convert(DnCNN(**arguments), num_params=2, tuning="identity", names=["lighten", "keep"])
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    net.network.model[2].bias.data[0] = -8 / 255
    path = tmp_path / "m.safetensors"
    notes = {"config": {"degradation": {"noise": {"sigma": [10, 10]}}}}
    serialization.save(net, path, architecture="dncnn", arguments=arguments, notes=notes)
    return path


def test_pairs(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(model), "--on", str(folder / "clean"), "--input", str(folder / "dark"), "--sweep", "3"]
    assert main([*words, "--json", str(folder / "out.json"), "--border", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder / 'clean'}: 2 pictures, RGB, border 2"
    rows = {line[:20].strip(): line[20:].split() for line in lines[2:]}
    assert list(rows) == ["input", "1.00, 0.00", "0.50, 0.50", "0.00, 1.00"]
    shift = {"input": 8, "0.50, 0.50": 4, "0.00, 1.00": 8}  # 255ths; at (1, 0) the pictures are equal
    for label, value in shift.items():
        assert float(rows[label][0]) == pytest.approx(-20 * math.log10(value / 255), abs=0.006)
    assert float(rows["1.00, 0.00"][0]) > 60
    document = json.loads((folder / "out.json").read_text())
    scores = document["scores"][str(folder / "clean")]
    assert len(scores) == 2 * 4
    assert {score["picture"] for score in scores} == {"0", "1"}


def test_noise_of_the_checkpoint_and_of_the_command(folder: Path, model: Path, capsys) -> None:
    for more, sigma in (([], 10), (["--set", "noise.sigma=[20,20]"], 20)):
        assert main(["eval", str(model), "--on", str(folder / "clean"), "--lam", "keep=1", *more]) == 0
        psnr = float(capsys.readouterr().out.splitlines()[-1][20:].split()[0])
        # noise that reaches beyond [0, 1] is cut, by little here
        assert psnr == pytest.approx(-20 * math.log10(sigma / 255), abs=0.4)


def test_view(folder: Path) -> None:
    picture = read_image(folder / "clean" / "0.png")
    luma = View(luma=True, border=3).of(picture)
    assert luma.shape == (1, 18, 14)
    r, g, b = (picture[:, 3:-3, 3:-3] * 255).double()
    expected = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    torch.testing.assert_close(luma[0].double() * 255, expected, atol=1e-3, rtol=0)
    assert View(eight_bits=True).of(torch.full((1, 1, 1), 0.5009)).item() == pytest.approx(128 / 255)
    assert View().of(torch.full((1, 1, 1), 1.5)).item() == 1
    with pytest.raises(ValueError, match="pictures must be larger than twice the border, 12; got 24 x 20"):
        View(border=12).of(picture)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--border", "-1"], "--border must be at least 0; got -1"),
        (["--set", "noize.sigma=3"], "did you mean noise?"),
        (["--lam", "1"], "--lam must have 2 values"),
        (["--input", "{}/dark", "--crop", "8"], "--input must stand alone"),
        (["--input", "{}/other"], "--input must hold a picture of every name; got none for 1"),
    ],
)
def test_wrong_input(folder: Path, model: Path, capsys, words: list[str], text: str) -> None:
    (folder / "other").mkdir()
    write_image(torch.zeros(3, 24, 20), folder / "other" / "0.png")
    words = [word.format(folder) for word in words]
    assert main(["eval", str(model), "--on", str(folder / "clean"), *words]) == 2
    assert text in capsys.readouterr().err
