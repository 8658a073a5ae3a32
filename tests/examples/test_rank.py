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
from tunable_ops.train.degradations import Degradation, Downsample, Noise
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
    words = [base, "--knob", *knobs, "--sets", pictures, "--sigma", 25, "--out", tmp_path / "out"]
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
    assert "Pictures: pictures, sigma 25: 2; whole." in table
    assert table.startswith(f"| rank | KB | {case}: PSNR dB |\n") and table in capsys.readouterr().out
    assert (tmp_path / "out" / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_knob_is_cut(files, tmp_path):
    """The cut files are those of `save_knob`, nearer to the full one with every rank; labels are kept."""
    base, knobs, pictures = files
    out = tmp_path / "out"
    words = [base, "--knob", f"mine={knobs[1]}", knobs[0], "--cut", 3, 1, "--sets", pictures, "--sigma", 25]
    runpy.run_path(str(FILE))["main"]([str(word) for word in [*words, "--most", 1, "--out", out]])
    rows = json.loads((out / "ranks.json").read_text())
    assert {row["rank"]: row.get("cut") for row in rows} == {
        "base": None,
        "full, cut to 1": True,
        "mine": False,
        "full, cut to 3": True,
        "full": False,
    }
    x, outputs = torch.rand(1, 3, 24, 20), {}
    for row in rows[1:]:
        file = next(file for file in (*knobs, *out.glob("*.safetensors")) if file.name == row["file"])
        assert file.stat().st_size == row["bytes"]
        with torch.no_grad():
            outputs[row["rank"]] = tunable_ops.pretrained.load(base, [file])(x, [0.5, 1.0])
    distances = [float((outputs[rank] - outputs["full"]).norm()) for rank in ("full, cut to 1", "full, cut to 3")]
    assert 0 < distances[1] < distances[0]
    assert rows[0]["scores"].keys() == {"pictures, sigma 25"}
    with pytest.raises(ValueError, match="rank: --cut must come with a knob of full rank; got"):
        low = [base, "--knob", knobs[1], "--cut", 1, "--sets", pictures, "--out", out]
        runpy.run_path(str(FILE))["main"]([str(word) for word in low])


def test_a_knob_of_an_enlarging_network(tmp_path):
    """Pictures are made smaller instead of noisy, and cut to a multiple of the enlargement."""
    (tmp_path / "pictures").mkdir()
    write_image(torch.rand(3, 27, 31), tmp_path / "pictures" / "0.png")
    (knob,) = tunable_ops.pretrained.find("super_resolution_x2").knobs
    words = ["carn_m", "--knob", knob, "--parameter", "perceptual", "--sets", tmp_path / "pictures"]
    runpy.run_path(str(FILE))["main"]([str(word) for word in [*words, "--out", tmp_path / "out"]])
    base, row = json.loads((tmp_path / "out" / "ranks.json").read_text())
    clean = held_out(str(tmp_path / "pictures"))[0][1][:, :26, :30]
    small = degraded_pictures([("0", clean)], Degradation(downsample=Downsample(enlarge=False)), seed=0)[0][2]
    net, measure = tunable_ops.pretrained.load("super_resolution_x2"), Measure(ssim=False, rounded=True)
    for found, share in ((base, 0.0), (row, 1.0)):
        with torch.no_grad():
            expected = measure(net(small[None], [share])[0], clean).psnr
        assert found["scores"]["pictures"]["psnr"] == pytest.approx(expected, abs=0.01)


def test_an_unknown_parameter(files, tmp_path):
    base, knobs, pictures = files
    words = [base, "--knob", knobs[0], "--parameter", "blur", "--sets", pictures, "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match="--parameter must be one of sigma, texture; got 'blur'"):
        runpy.run_path(str(FILE))["main"]([str(word) for word in words])
