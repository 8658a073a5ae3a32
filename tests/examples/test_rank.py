"""examples/knob/rank.py: the table and the plot of size and quality over the rank, of made-up knobs."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tunable_ops
from tunable_ops import models
from tunable_ops.images import write_image
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Degradation, Noise
from tunable_ops.train.evaluate import degraded_pictures
from tunable_ops.train.measure import Measure

FILE = Path(__file__).parents[2] / "examples" / "knob" / "rank.py"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs the examples")
ARGUMENTS = {"features": 8, "depth": 3, "knob": 0}


@pytest.fixture
def files(tmp_path):
    """Bare weights, knobs of two ranks, and a set of two pictures."""
    torch.manual_seed(0)
    plain = models.build("ffdnet", **ARGUMENTS).eval()
    base = tmp_path / "base.safetensors"
    save_file(plain.state_dict(), base)
    knobs = []
    for rank in (None, 2):
        net = tunable_ops.convert(plain, 2, domain="box", names=["sigma", "texture"], rank=rank)
        tunable_ops.freeze_all_but_new(net)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        knobs.append(tmp_path / f"rank-{rank}.safetensors")
        tunable_ops.save_knob(net, knobs[-1], architecture="ffdnet", arguments=ARGUMENTS)
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        write_image(torch.rand(3, 24, 20), tmp_path / "pictures" / f"{index}.png")
    return base, knobs, tmp_path / "pictures"


def test_table_and_plot(files, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    base, knobs, pictures = files
    words = [base, *knobs, "--sets", pictures, "--sigma", 25, "--out", tmp_path / "out"]
    runpy.run_path(str(FILE))["main"]([str(word) for word in words])
    rows = json.loads((tmp_path / "out" / "ranks.json").read_text())
    assert [row["rank"] for row in rows] == ["base", "2", "full"]
    assert [row["bytes"] for row in rows] == [0, knobs[1].stat().st_size, knobs[0].stat().st_size]
    case = "pictures, sigma 25"
    noisy = degraded_pictures(held_out(str(pictures)), Degradation(noise=Noise(sigma=(25, 25))), seed=0)
    for row, file, value in zip(rows, [knobs[0], knobs[1], knobs[0]], [0.0, 1.0, 1.0], strict=True):
        net = tunable_ops.pretrained.load(base, [file])
        with torch.no_grad():
            outputs = [net(x.unsqueeze(0), [0.5, value])[0] for _, _, x in noisy]
        measure = Measure(ssim=False, rounded=True)
        expected = sum(measure(y, clean).psnr for y, (_, clean, _) in zip(outputs, noisy, strict=True)) / 2
        assert row["scores"][case]["psnr"] == pytest.approx(expected, abs=0.01)
    table = (tmp_path / "out" / "ranks.md").read_text()
    assert table.startswith(f"| rank | KB | {case}: PSNR dB |\n") and table in capsys.readouterr().out
    assert (tmp_path / "out" / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_parameter(files, tmp_path):
    base, knobs, pictures = files
    words = [base, knobs[0], "--parameter", "blur", "--sets", pictures, "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match="--parameter must be one of sigma, texture; got 'blur'"):
        runpy.run_path(str(FILE))["main"]([str(word) for word in words])
