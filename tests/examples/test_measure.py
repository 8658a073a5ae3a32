"""examples/pretrained/measure.py and its parts: cases, scores that survive an interruption, tables, order."""

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import tunable_ops
from tunable_ops import pretrained
from tunable_ops.images import write_image
from tunable_ops.modules import LambdaSpec
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Degradation, Noise
from tunable_ops.train.evaluate import degraded_pictures, restore
from tunable_ops.train.measure import Measure

FOLDER = Path(__file__).parents[2] / "examples" / "pretrained"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the examples")
GRID = ["keep 0, deblur 0", "keep 1, deblur 0", "keep 0, deblur 1", "keep 1, deblur 1", "keep 0.5, deblur 0.5"]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def part(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        write_image(torch.rand(3, 38, 44 + index), folder / f"{index}.png")
    return folder


def knob(folder: Path, *names: str, bias: float = 0.0) -> Path:
    """A knob file on FFDNet with small random kernels; with a bias of phi it is not the base at 0."""
    base = pretrained.BASES["ffdnet_color"]
    spec = {"names": ["sigma", *names], "ranges": [(0, 50), *[(0, 1)] * len(names)]}
    net = tunable_ops.convert(pretrained.load_base("ffdnet_color"), 1 + len(names), domain="box", **spec)
    with torch.no_grad():
        for layer in net.layers:
            for new in (layer.weight[1:], layer.bias[1:]):
                new.add_(0.002 * torch.randn_like(new))
            layer.tuning.bias.add_(bias)
    file = folder / f"{'-'.join(names)}.safetensors"
    tunable_ops.save_knob(net, file, architecture=base.architecture, arguments=base.arguments)
    return file


def measure(out: Path, *words: object) -> dict:
    part("measure").main([*map(str, words), "--measures", "psnr", "--out", str(out)])
    (file,) = out.glob("*.json")
    return json.loads(file.read_text())


def test_denoise(pictures: Path, tmp_path: Path, capsys) -> None:
    """A denoiser with no knob of its own; PSNR as counted by hand, on the same noise as `eval` draws."""
    docs = tmp_path / "page.md"
    docs.write_text("before\n<!-- ffdnet_color -->\nold\n<!-- /ffdnet_color -->\nafter\n")
    words = ("--networks", "ffdnet_color", "--sets", pictures, "--sigmas", 25, "--docs", docs)
    found = measure(tmp_path / "out", *words)
    assert found["at_zero_equals_base"] is True and found["order"] == {}
    case = f"{pictures.name}, sigma 25"
    assert list(found["means"][case]) == ["clean", "input", "output"]
    net, psnr = pretrained.load("ffdnet_color"), Measure(ssim=False, rounded=True)
    noise = Degradation(noise=Noise(sigma=(25, 25)))
    triples = degraded_pictures(held_out(str(pictures)), noise, seed=0)
    expected = [psnr(restore(net, x, [25.0]), clean).psnr for _, clean, x in triples]
    assert found["means"][case]["output"]["psnr"] == pytest.approx(sum(expected) / 3, abs=1e-4)
    assert [found["cases"][case][str(k)]["output"]["psnr"] for k in range(3)] == pytest.approx(expected, abs=1e-4)
    text = docs.read_text()
    assert text.startswith("before\n<!-- ffdnet_color -->\n| PSNR dB") and text.endswith(
        "<!-- /ffdnet_color -->\nafter\n"
    )
    assert "old" not in text and "| 3, whole |" in text
    assert "| input | output |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="measure: --docs must have the marks <!-- denoise_deblur -->"):
        part("report").insert(docs, "denoise_deblur", "")


def test_a_knob_of_the_denoiser(pictures: Path, tmp_path: Path) -> None:
    words = ("--networks", "ffdnet_color", "--knob", knob(tmp_path, "texture"), "--sets", pictures, "--most", 1)
    found = measure(tmp_path / "out", *words, "--set12", pictures, "--sigmas", 15, 25)
    shares = [f"texture {k / 8:g}" for k in range(9)]
    rows = found["means"]
    assert list(rows[f"{pictures.name}, sigma 25"]) == ["clean", "input", *shares]
    assert list(rows[f"{pictures.name}, sigma 15"]) == ["clean", "input", *shares[::2]]
    assert list(rows["set12 (grey), sigma 25"]) == ["clean", "input", *shares[::2]]
    assert set(found["order"]) == {"psnr"}
    table = (tmp_path / "out" / "ffdnet_color.md").read_text()
    assert "| input | texture 0 | texture 0.25 | texture 0.5 | texture 0.75 | texture 1 |" in table


def test_an_interrupted_run_goes_on(pictures: Path, tmp_path: Path, monkeypatch) -> None:
    """The scores there are kept, and the result is that of a run that nobody stopped."""
    program, asked = part("measure"), []
    scores_of = program.scores_of

    def stop(net, case, picture, judge):
        asked.append(picture.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return scores_of(net, case, picture, judge)

    words = ("--networks", "ffdnet_color", "--sets", pictures, "--sigmas", 25)
    monkeypatch.setattr(program, "scores_of", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "out", *words)
    resumed = measure(tmp_path / "out", *words)
    assert asked == ["0", "1", "1", "2"]
    assert resumed == measure(tmp_path / "whole", *words)
    with pytest.raises(
        ValueError, match=r"measure: --out must be empty or hold scores of the same .*'crops': \[0, 512"
    ):
        measure(tmp_path / "out", *words, "--crop", 32)


def test_super_resolution(pictures: Path, tmp_path: Path) -> None:
    """Sizes that the factor does not divide are cut."""
    words = ("--networks", "super_resolution_x2", "--sets", pictures, "--others", pictures, "--others-crop", 32)
    found = measure(tmp_path / "out", *words, "--most", 2)
    assert [list(case) for case in found["cases"].values()] == [["0", "2"], ["0", "2"]]
    assert "other photographs" in found["cases"] and set(found["order"]) == {"psnr"}
    assert "| other photographs | 2, middle 32x32 |" in (tmp_path / "out" / "super_resolution_x2.md").read_text()


@torch.no_grad()
def test_keep_and_deblur(pictures: Path, tmp_path: Path) -> None:
    file = knob(tmp_path, "keep", "deblur")
    words = ("--networks", "ffdnet_color", "--knob", file, "--sets", pictures, "--most", 1, "--blurs", 0, 1)
    found = measure(tmp_path / "out", *words, "--noises", 15)
    plain, edges = found["means"].values()
    assert list(plain) == ["clean", "input", *GRID]
    assert set(GRID) < set(edges) and len(edges) == 2 + len(GRID) + 4 * 7
    assert found["order"]["ends"]["case"] == f"{pictures.name}, blur 1, sigma 15"
    cases = part("cases")
    (picture,) = cases.pictures_of(pictures, 1)
    sample = cases.damaged(1.0, 15.0)(picture)
    net, psnr = pretrained.load("ffdnet_color", [file]), Measure(ssim=False, rounded=True)
    output = restore(net, sample.input, [15.0, 1.0, 0.25])
    row = edges["keep 1, deblur 0.25"]
    mixed = sample.noiseless + 0.25 * (sample.clean - sample.noiseless) + (sample.input - sample.noiseless)
    assert row["psnr"] == pytest.approx(psnr(output, mixed.clamp(0, 1)).psnr, abs=1e-4)
    assert row["to 1, 0"] == pytest.approx(psnr(output, sample.input.clamp(0, 1)).psnr, abs=1e-4)
    assert row["to 0, 1"] == pytest.approx(psnr(output, sample.clean).psnr, abs=1e-4)
    lines = (tmp_path / "out" / "ffdnet_color.md").read_text().splitlines()
    assert f"| PSNR dB | pictures | input | {' | '.join(GRID)} |" == lines[0]
    gain = plain["keep 0, deblur 1"]["to 0, 1"] - plain["keep 0, deblur 0"]["to 0, 1"]
    assert lines[-2].startswith(f"| {pictures.name}, blur 0, sigma 15 |") and lines[-2].endswith(f"| {gain:+.2f} |")


def test_a_knob_that_is_not_its_base_at_zero(pictures: Path, tmp_path: Path) -> None:
    file = knob(tmp_path, "texture", bias=0.1)
    with pytest.raises(RuntimeError, match="ffdnet_color with texture at 0 must be its base bit for bit"):
        measure(tmp_path / "out", "--networks", "ffdnet_color", "--knob", file, "--sets", pictures, "--sigmas", 25)


def test_targets_of_the_corners() -> None:
    clean, noiseless, noisy = torch.rand(3, 3, 8, 8).unbind()
    sample = part("cases").Sample(clean, noiseless, noisy)
    torch.testing.assert_close(sample.target(0, 0), noiseless)
    torch.testing.assert_close(sample.target(1, 0), noisy)
    assert sample.target(0, 1) is not clean and torch.equal(sample.target(0, 1), clean)
    torch.testing.assert_close(sample.target(1, 1), (clean + noisy - noiseless).clamp(0, 1))


def test_pictures_are_evenly_spread(pictures: Path) -> None:
    pictures_of = part("cases").pictures_of
    assert [picture.place for picture in pictures_of(pictures, 1)] == [1]
    assert [picture.place for picture in pictures_of(pictures, 2)] == [0, 2]
    assert len(pictures_of(pictures)) == len(pictures_of(pictures, 9)) == 3
    with pytest.raises(ValueError, match="measure: --most must be at least 1; got 0"):
        pictures_of(pictures, 0)


def test_order_finds_the_worst_step() -> None:
    cases, report = part("cases"), part("report")
    positions, orders = cases.along(LambdaSpec.create(1, "box", ["texture"], [(0, 1)]), cases.NINE)
    rows = {each.label: {"psnr": 30 - k / 8, "lpips": 0.2 - k / 100} for k, each in enumerate(positions)}
    case = cases.Case("a", [], None, {}, positions, orders)
    found = report.order([case], {"a": rows})
    assert all(each["passed"] and each["step"] < 0 for each in found.values()) and set(found) == {"psnr", "lpips"}
    rows["texture 0.5"] = {"psnr": 29.7, "lpips": 0.18}
    worst = report.order([case], {"a": rows})
    assert worst["psnr"]["step"] == pytest.approx(0.075) and worst["psnr"]["passed"] is False
    assert worst["lpips"]["step"] == pytest.approx(0.01) and worst["lpips"]["passed"] is False
    rising = [cases.Order("to 0, 1", tuple(rows), 1)]
    ends = {label: {"to 0, 1": 20 + k - 2 * (k == 5)} for k, label in enumerate(rows)}
    worst = report.order([case, cases.Case("b", [], None, {}, positions, rising)], {"a": rows, "b": ends})
    assert worst["ends"] == {"step": 1, "case": "b", "path": "texture 0 to texture 1", "limit": 0.02, "passed": False}


def test_features_of_the_target_are_computed_once() -> None:
    class Counting:
        def __init__(self) -> None:
            self.asked: list[float] = []

        def extract(self, x: Tensor) -> dict[str, Tensor]:
            self.asked.append(float(x))
            return {"x": x * 2}

    features = Counting()
    part("judge").remember(features)
    for value in (1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 1.0):
        assert features.extract(torch.tensor(value))["x"] == 2 * value
    assert features.asked == [1, 9, 2, 3, 1]


def test_judge() -> None:
    """All measures, where the published weights are at hand."""
    data = os.environ.get("TUNABLE_OPS_DATA")
    if not data:
        pytest.skip("TUNABLE_OPS_DATA is not set: no published weights at hand")
    judge, clean = part("judge").Judge(("lpips", "dists")), torch.rand(3, 64, 64)
    noisy = clean + 0.1 * torch.randn(3, 64, 64)
    for output in (noisy, (clean + noisy) / 2):
        values = judge(output, clean)
        shown = ((output.clamp(0, 1) * 255).round() / 255)[None]
        assert values["dists"] == pytest.approx(float(tunable_ops.losses.DISTS()(shown, clean[None])), abs=1e-5)
        assert values["lpips"] == pytest.approx(float(tunable_ops.losses.LPIPS()(shown, clean[None])), abs=1e-5)
    assert judge(noisy, clean, full=False).keys() == {"psnr", "lpips"}
    assert judge(noisy, clean, luma=True).keys() == {"psnr"} and judge.psnr(shown[0], shown[0]) == 100
