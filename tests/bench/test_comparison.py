"""The comparison of knobs: what is trained, what its statistics say, and a small one from end to end."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from tunable_ops.bench import cli, results_file
from tunable_ops.bench.comparison import evaluation, plan, report, run
from tunable_ops.bench.comparison.collect import collect
from tunable_ops.bench.comparison.report import Interval

from tunable_ops.images import write_image
from tunable_ops.losses import VGG16Features
from tunable_ops.train.build import build_network, build_sampler
from tunable_ops.train.data import Batches, Photographs, find_training_files
from tunable_ops.train.phases import Schedule

ROOT = Path(__file__).parent.parent.parent
LAYERS = ("relu1_1", "relu2_1")
TINY = plan.Setting(
    "tiny",
    4,
    4,
    16,
    2,
    4,
    seeds=2,
    test_crop=24,
    warmup=1,
    blocks=3,
    tasks=("strength", "level"),
    methods=("film", "dni", "dni_2x", "cfsnet", "mix"),
    perceptual="vgg16",
    layers=LAYERS,
    lpips=False,
)
UNITS = 2 * 2 * (5 + 5)


def make_pictures(folder: Path) -> plan.Data:
    """Smooth pictures, two to train on and three for tests."""
    draws = torch.Generator().manual_seed(0)
    for part, count in (("train", 2), ("test", 3)):
        (folder / part).mkdir()
        for number in range(count):
            coarse = torch.rand(1, 3, 5, 6, generator=draws)
            picture = nn.functional.interpolate(coarse, size=(40, 48), mode="bicubic").clamp(0, 1)[0]
            write_image(picture, folder / part / f"{number}.png")
    features = VGG16Features(list(LAYERS), weights="random")
    save_file({name: value.contiguous() for name, value in features.state_dict().items()}, folder / "vgg.safetensors")
    return plan.Data(str(folder / "train"), str(folder / "test"), every=2, weights=str(folder / "vgg.safetensors"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> plan.Data:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def done(data: plan.Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that is finished."""
    out = tmp_path_factory.mktemp("comparison")
    assert run.run_all(TINY, data, out, progress=False)
    return out


@pytest.fixture(scope="module")
def collected(done: Path) -> dict[str, Any]:
    return collect(done, size=16, rounds=3)


@pytest.mark.parametrize("name, seeds", [("cpu", 3), ("gpu", 3), ("quick", 2), ("long", 8)])
@pytest.mark.parametrize("backbone", plan.BACKBONES)
def test_the_plan_is_complete(name: str, seeds: int, backbone: str) -> None:
    """13 knobs and 5 separate networks; CFSNet's two rows have no ends on the box. Twice the steps where it says so."""
    setting = plan.setting_named(name, backbone=backbone)
    found = plan.units(setting)
    assert len(found) == seeds * (18 + 18 + 16) == len({unit.id for unit in found})
    for unit in found:
        config = plan.config_of(unit, setting, plan.Data())
        method = plan.METHOD[unit.method]
        assert config.optim.steps == setting.steps * (2 if unit.method.endswith("_2x") else 1)
        assert config.seed == unit.seed and config.model.name == backbone
        assert config.tuning.phased == method.phased
        phases = (3 if unit.task == "box" else 2) if method.phased else 1
        assert Schedule(config).count == phases
        shares = plan.steps_of(unit.method, unit.task, setting)
        if unit.t is None:
            assert eval(shares["each"]) == config.optim.steps == shares["total"]
            assert len(shares["each"].split("+")) == phases
    assert len(plan.mixes(setting)) == 3 * seeds


@pytest.mark.parametrize("task", plan.TASK)
def test_lambda_of_every_method(task: str) -> None:
    for t in plan.FINE:
        lam = plan.lam_of(task, t)
        assert all(0 <= value <= 1 for value in lam)
        assert plan.lam_for("film", task, t) == lam
        assert plan.lam_for("mix", task, t) == [1 - t, t]
        phased = plan.lam_for("dni_2x", task, t)
        assert sum(phased) == 1 and phased[-2:] == (lam if task == "box" else [1 - t, t])
    if task == "box":
        assert [plan.lam_of(task, t) for t in plan.GRID] == [[1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1]]
        assert plan.lam_for("dni", task, 0.5) == [-1, 1, 1]


@pytest.mark.parametrize("depth, backbone", [(4, "dncnn"), (5, "dncnn"), (6, "dncnn"), (12, "dncnn"), (3, "edsr")])
@pytest.mark.parametrize("task", ["level", "perception", "box"])
def test_blocks_have_places_in_every_network(task: str, depth: int, backbone: str, data: plan.Data) -> None:
    setting = dataclasses.replace(TINY, depth=depth, blocks=depth, backbone=backbone)
    everything = dataclasses.replace(setting, methods=tuple(plan.METHOD))
    x = torch.rand(1, 3, 8, 8)
    plain = build_network(plan.config_of(plan.Unit(task, "separate", 0, 0.0), setting, data))
    for method in plan.methods_of(task, everything):
        if method.key in ("mix", "separate"):
            continue
        net = build_network(plan.config_of(plan.Unit(task, method.key, 0), setting, data))
        lam = [1.0, 0.0, 0.0] if method.phased and task == "box" else [1.0, 0.0]
        torch.testing.assert_close(net(x, lam), plain(x), atol=1e-6, rtol=1e-5)  # the same start
    if backbone == "dncnn":
        assert len(plan.placement("cfsnet", setting)["after"]) == depth - 2
        assert plan.placement("dynamic_net", setting)["after"][-1] == f"model.{2 * (depth - 2)}"


@pytest.mark.parametrize("method, t", [("separate", 0.25), ("separate", 1.0), ("affine", None), ("dni", None)])
def test_noise_follows_lambda_for_every_method(data: plan.Data, method: str, t: float | None) -> None:
    setting = dataclasses.replace(TINY, batch=8)
    config = plan.config_of(plan.Unit("level", method, 0, t), setting, data)
    batches = Batches(Photographs(find_training_files(data.train)), config, build_sampler(config))
    first, last = batches[0], batches[setting.steps - 1]
    for batch in (first, last):
        sigma = 255 * (batch.input - batch.targets["clean"]).flatten(1).std(1)
        lam = batch.lam.expand(8, 2)
        torch.testing.assert_close(sigma, lam @ torch.tensor([50.0, 15.0]), rtol=0.1, atol=0)
    if t is not None:
        assert first.lam.tolist() == [1 - t, t]
    if method == "dni":
        assert (first.lam.tolist(), last.lam.tolist()) == ([1, 0], [0, 1])


def test_intervals_are_students() -> None:
    found = report.interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert report.interval([0.5, 0.5]) == Interval(0.5, 0.0)
    assert report.interval([7.0]) == Interval(7.0, math.inf)
    assert Interval(7.0, math.inf).text() == "7.00 ± ?" and found.text(1, "+") == "+2.0 ± 2.5"
    for bad in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="values must be finite numbers, one per seed; got"):
            report.interval(bad)


@pytest.mark.parametrize(
    "b, outcome, where",
    [
        (Interval(0.3, 0.29), "holds", "b"),
        (Interval(-0.3, 0.1), "fails", "b"),
        (Interval(0.3, 0.31), "not resolved", "b"),
        (Interval(-0.3, 0.31), "not resolved", "b"),
        (Interval(0.3, math.inf), "not resolved", "b"),
        (Interval(9.0, 0.1), "holds", "a"),
    ],
)
def test_claims_are_judged_by_their_intervals(b: Interval, outcome: str, where: str) -> None:
    verdict = report.judge("better", {"a": Interval(0.5, 0.1), "b": b}, 0.0)
    assert (verdict.outcome, verdict.evidence[0]) == (outcome, where)


def test_differences_are_paired() -> None:
    def rows(*firsts: float) -> dict[str, Any]:
        return {"seeds": {str(k): {"db": [first, 1.0, 2.0, 3.0, 4.0]} for k, first in enumerate(firsts)}}

    made = {"tasks": {"level": {"dni": rows(10.0, 20.0, 30.0), "separate": rows(11.0, 21.5, 30.5)}}}
    found = report.differences(made, "level", "dni", "separate")
    assert found[0].mean == pytest.approx(-1.0) and found[0].half == pytest.approx(4.302653 * 0.5 / math.sqrt(3))
    assert found[1] == Interval(0.0, 0.0)
    del made["tasks"]["level"]["dni"]["seeds"]["2"]
    with pytest.raises(ValueError, match="methods must have the same seeds"):
        report.differences(made, "level", "dni", "separate")


def test_travel_numbers() -> None:
    assert evaluation.falling([[3.0, 3.0], [2.0, 3.0], [1.0, 2.0]]) == 0.75  # standing still is no way down
    assert evaluation.unevenness([4.0, 3.0, 2.0]) == 1.0
    assert evaluation.unevenness([0.0, 3.0, 2.0, 2.0]) == pytest.approx(9 / 4)
    with pytest.raises(ValueError, match="values must move along t"):
        evaluation.unevenness([1.0, 1.0])
    assert evaluation.decibels(0.0) == pytest.approx(58.92, abs=0.01)
    assert evaluation.decibels(0.01) == pytest.approx(20.0, abs=1e-3)


class Constant(nn.Module):
    """``y = scale * x``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_what_is_measured_of_known_networks(data: plan.Data) -> None:
    pictures = evaluation.test_pictures(data, TINY)
    assert [name for name, _ in pictures] == ["0", "2"] and pictures[0][1].shape == (3, 24, 24)
    kept = evaluation.evaluate(Constant(1.0), plan.Unit("strength", "separate", 0, 1.0), TINY, data, pictures)
    assert kept["ts"] == [1.0] and kept["db"][0] == pytest.approx([evaluation.decibels(0)] * 2)
    # half way between the clean picture and the input, the input is half the noise off
    assert kept["lpips"] is None and kept["loss"][0] == pytest.approx([0.0] * 2)
    half = evaluation.evaluate(Constant(1.0), plan.Unit("strength", "separate", 0, 0.5), TINY, data, pictures)
    assert half["db"][0] == pytest.approx([-20 * math.log10(12.5 / 255)] * 2, abs=0.3)
    level = evaluation.evaluate(Constant(1.0), plan.Unit("level", "separate", 0, 1.0), TINY, data, pictures)
    assert level["db"][0] == pytest.approx([-20 * math.log10(15 / 255)] * 2, abs=0.6)
    assert level["travel"] == [[0.0, 0.0]]
    # mixed with a network that removes everything, the energy removed falls along t as (1 - t)^2
    mix = evaluation.Mix([Constant(0.0), Constant(1.0)])
    found = evaluation.evaluate(mix, plan.Unit("level", "mix", 0), TINY, data, pictures)
    assert found["travel_ts"] == list(plan.FINE) and len(found["db"]) == 5
    whole = found["travel"][0][0]
    assert [row[0] / whole for row in found["travel"]] == pytest.approx([(1 - t) ** 2 for t in plan.FINE], abs=1e-5)
    with pytest.raises(RuntimeError, match=r"(travel|db) of level-mix-s0 must be finite"):
        evaluation.evaluate(
            evaluation.Mix([Constant(math.nan)] * 2), plan.Unit("level", "mix", 0), TINY, data, pictures
        )


def test_a_comparison_from_end_to_end(collected: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    results_file.write(collected, tmp_path / "r.json")
    assert cli.main(["--from", str(tmp_path / "r.json"), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(report.markdown(collected) + "\n")
    assert printed.count("| tunable convolutions | 4 |") == 2 and printed.count("| DNI | 2 + 2 |") == 2
    assert printed.count("| DNI, twice the steps | 4 + 4 |") == 2
    assert printed.count("at most 0.1 dB behind FiLM at every lambda") == 2
    assert {f.name for f in (tmp_path / "plots").iterdir()} == {
        "comparison_strength_tiny.png",
        "comparison_level_tiny.png",
    }
    sizes = collected["methods"]
    assert sizes["affine"]["folded_parameters"] == sizes["separate"]["parameters"] == sizes["mix"]["parameters"] // 2
    assert sizes["cfsnet"]["folded_parameters"] is None and sizes["film"]["folded_seconds"]["median"] > 0
    assert sizes["film"]["folded_parameters"] == sizes["separate"]["parameters"] < sizes["film"]["parameters"]
    assert sizes["dni_2x"] == {**sizes["dni"], "label": "DNI, twice the steps"}
    assert sizes["affine"]["step_bytes"] > 0 and sizes["mix"]["step_bytes"] is None
    rows = collected["tasks"]["strength"]
    assert rows["separate"]["seeds"]["0"]["monotone"] is None and 0 <= rows["dni"]["seeds"]["1"]["monotone"] <= 1
    # two networks mixed are the separate ones at the corners
    for gap in [report.differences(collected, task.key, "mix", "separate") for task in report.tasks(collected)]:
        assert abs(gap[0].mean) < 1e-3 and abs(gap[4].mean) < 1e-3
    assert collected["data"] == {"train": "train", "test": "test", "every": 2}
    assert str(ROOT) not in json.dumps(collected) and "/tmp" not in json.dumps(collected)


def test_the_command_trains_and_writes_results(
    done: Path, data: plan.Data, monkeypatch: Any, tmp_path: Path, capsys: Any
) -> None:
    """One command from the plan to the file; here with all trainings done before."""
    monkeypatch.setitem(plan.SETTINGS, "cpu", TINY)
    words = ["--suite", "comparison", "--runs", str(done), "--data", data.train, "--test", data.test, "--every", "2"]
    assert cli.main([*words, "--rounds", "3", "--out", str(tmp_path / "r.json")]) == 0
    assert f"0 of {UNITS} units to train" in capsys.readouterr().out
    assert results_file.read(tmp_path / "r.json")["timing"]["rounds"] == 3


def test_numbers_of_units_arrive_in_the_results(done: Path, collected: dict[str, Any]) -> None:
    unit = results_file.read_json(run.result_file(done, plan.Unit("level", "separate", 1, 0.75)))
    value = sum(unit["db"][0]) / len(unit["db"][0])
    assert collected["tasks"]["level"]["separate"]["seeds"]["1"]["db"][3] == pytest.approx(value, rel=1e-5)


def test_what_is_finished_is_skipped(done: Path, data: plan.Data, monkeypatch: Any, capsys: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a finished unit was trained or evaluated")

    monkeypatch.setattr(run, "train", refuse)
    monkeypatch.setattr(run, "evaluate", refuse)
    assert run.run_all(TINY, data, done)
    assert f"0 of {UNITS} units to train" in capsys.readouterr().out


def test_a_stopped_unit_goes_on_to_the_same_numbers(
    done: Path, data: plan.Data, tmp_path: Path, monkeypatch: Any
) -> None:
    """And its seconds are those of both calls."""
    unit, train, seconds = plan.Unit("level", "cfsnet", 0), run.train, []
    pictures = evaluation.test_pictures(data, TINY)

    def stopped(config: Any, folder: Any, **options: Any) -> Any:
        outcome = train(config, folder, stop_at=None if seconds else 3, **options)
        seconds.append(outcome.seconds)
        return outcome

    monkeypatch.setattr(run, "train", stopped)
    assert run.run_unit(unit, TINY, data, tmp_path, pictures) is None
    found = run.run_unit(unit, TINY, data, tmp_path, pictures)
    assert found is not None and found["train_seconds"] == pytest.approx(sum(seconds)) and len(seconds) == 2
    whole = results_file.read_json(run.result_file(done, unit))
    assert (found["db"], found["travel"]) == (whole["db"], whole["travel"])


def test_a_signal_stops_and_what_is_there_is_kept(data: plan.Data, tmp_path: Path, monkeypatch: Any) -> None:
    train, calls = run.train, []

    def stopped(config: Any, folder: Any, **options: Any) -> Any:
        calls.append(folder)
        return train(config, folder, stop_at=2 if len(calls) == 2 else None, **options)

    monkeypatch.setattr(run, "train", stopped)
    assert not run.run_all(TINY, data, tmp_path, progress=False)
    assert len(list((tmp_path / "units").iterdir())) == 1 and len(calls) == 2
    assert cli.main(["--from", str(tmp_path)]) == 2


def test_another_comparison_is_refused(done: Path, data: plan.Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--runs must hold this comparison; got plan.json with"):
        run.run_all(dataclasses.replace(TINY, steps=5), data, done)
    unit = plan.Unit("level", "dni", 0)
    path = run.result_file(tmp_path, unit)
    results_file.write_json({**results_file.read_json(run.result_file(done, unit)), "config": {}}, path)
    with pytest.raises(ValueError, match=r"units of this comparison; got level-dni-s0 with another configuration"):
        run.run_all(TINY, data, tmp_path)


def test_results_of_before_a_key_was_there_count(done: Path, data: plan.Data, tmp_path: Path) -> None:
    """A key that came later has its default there; one that is no more is another configuration."""
    unit = plan.Unit("level", "dni", 0)
    result = results_file.read_json(run.result_file(done, unit))
    assert result["config"].pop("task") == "restoration"
    for objective in result["config"]["objectives"]:
        assert objective.pop("follows") is True
    results_file.write_json(result, run.result_file(tmp_path, unit))
    assert run.finished(unit, TINY, data, tmp_path)
    result["config"]["optim"]["gone"] = 1
    results_file.write_json(result, run.result_file(tmp_path, unit))
    with pytest.raises(ValueError, match="another configuration"):
        run.finished(unit, TINY, data, tmp_path)


def test_the_former_command_names_the_new_one() -> None:
    result = subprocess.run([sys.executable, "-m", "bench.comparison"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "python -m bench --suite comparison --runs DIR" in result.stderr and "Traceback" not in result.stderr


def test_incomplete_or_inconsistent_results_are_refused(done: Path, collected: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text((done / "plan.json").read_text())
    (tmp_path / "units").mkdir()
    with pytest.raises(ValueError, match=r"all 44 results; got 44 missing: strength-affine-s0, .*, \.\.\.: run it"):
        collect(tmp_path)
    for file in (done / "units").iterdir():
        (tmp_path / "units" / file.name).write_text(file.read_text())
    other = results_file.read_json(run.result_file(tmp_path, plan.Unit("level", "dni", 0)))
    results_file.write_json({**other, "pictures": ["x", "y"]}, run.result_file(tmp_path, plan.Unit("level", "dni", 0)))
    with pytest.raises(ValueError, match="must be evaluated on the same pictures; got 2 sets"):
        collect(tmp_path)
    broken = json.loads(json.dumps(collected))
    broken["tasks"]["level"]["dni"]["seeds"]["0"]["db"].pop()
    with pytest.raises(ValueError, match=r"must fit schema.json; got at tasks/level/dni/seeds/0/db"):
        results_file.validate(broken, tmp_path)
    with pytest.raises(ValueError, match=r"must have schema 1; got 2 \(suite 'comparison'\)"):
        results_file.validate({"schema": 2, "suite": "comparison"}, tmp_path)
    with pytest.raises(ValueError):  # NaN is no JSON
        results_file.write_json({"a": math.nan}, tmp_path / "nan.json")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--runs must name a folder for the trainings"),
        (["--runs", "OUT", "--setting", "huge"], "--setting must be one of quick, cpu, long, gpu; got 'huge'"),
        (["--runs", "OUT", "--tasks", "level", "noise"], "--tasks must name strength, .*, each once; got level, noise"),
        (["--runs", "OUT", "--backbone", "unet"], "--backbone must name dncnn, edsr, each once; got unet"),
        (["--runs", "OUT", "--methods", "dni", "dni"], "--methods must name affine, .*, each once; got dni, dni"),
        (["--runs", "OUT", "--seeds", "0"], "--seeds must be at least 1; got 0"),
        (["--runs", "OUT", "--jobs", "0"], "--jobs must be at least 1; got 0"),
        (["--runs", "OUT", "--threads", "-1"], "--threads must be at least 1; got -1"),
        (["--runs", "OUT", "--test", "/nowhere"], "/nowhere"),
        (["--runs", "OUT", "--test", "TEST", "--every", "0"], "--every must be at least 1; got 0"),
        (["--runs", "OUT", "--compare", "x.json"], "--compare must be left out for 'comparison' results; got x.json"),
        (["--from", "EMPTY"], "--from must name a results file or a folder with plan.json"),
        (["--from", __file__], "must hold JSON"),
    ],
)
def test_bad_input_is_refused(words: list[str], message: str, data: plan.Data, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    places = {"OUT": str(tmp_path / "out"), "TEST": data.test, "EMPTY": str(tmp_path / "empty")}
    assert cli.main(["--suite", "comparison", *(places.get(word, word) for word in words)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_chain_without_room_is_refused(data: plan.Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"depth must be at least 4, .*; got 3"):
        run.run_all(dataclasses.replace(TINY, depth=3), data, tmp_path)
    with pytest.raises(ValueError, match=r"blocks must be at least 3, .*; got 2"):
        run.run_all(dataclasses.replace(TINY, backbone="edsr", blocks=2), data, tmp_path)


def test_hypervolume() -> None:
    """By hand: unions of rectangles below the reference."""
    assert evaluation.hypervolume([[0.5, 0.5]], [1, 1]) == 0.25
    assert evaluation.hypervolume([[1.0, 4.0], [4.0, 1.0]], [8, 8]) == pytest.approx((7 * 4 + 4 * 7 - 4 * 4) / 64)
    assert evaluation.hypervolume([[0.5, 0.5], [0.6, 0.7], [0.2, 1.5], [1.5, 0.1]], [1, 1]) == 0.25
    assert evaluation.hypervolume([[2.0, 2.0]], [1, 1]) == 0
    assert evaluation.front_of("level", [[0.5, 0.5]], [1, 1]) is None
    assert evaluation.front_of("strength", [[0.5, 0.5]], [1, 0]) == 0.25  # the input is one of the targets


def test_measures_of_the_box_and_of_perception(data: plan.Data) -> None:
    """The input is what (0, 0) asks for; the targets of an edge mix; the multi-loss is what training computes."""
    pictures = evaluation.test_pictures(data, TINY)
    kept = evaluation.evaluate(Constant(1.0), plan.Unit("box", "film", 0), TINY, data, pictures)
    noise, blur = kept["reference"]
    assert kept["terms"] == [kept["reference"]] * 9 and noise == pytest.approx((15 / 255) ** 2, rel=0.1)
    # at (1, 0) the input is the noise off the target, at (0, 1) the blur
    assert [sum(row) / 2 for row in kept["loss"]][::4] == pytest.approx([noise, blur], rel=1e-4)
    assert kept["travel"][0] == kept["travel"][8] and kept["travel"][0][0] > 0
    mixed = kept["db"][1][0]  # half way between the blurred and the sharp picture
    judge = evaluation._judge("box", TINY, data)
    shot = judge.shots(pictures, None)[0]
    wanted = (shot.x - (shot.targets["noiseless"] + shot.targets["clean"]) / 2).square().mean()
    assert mixed == pytest.approx(evaluation.decibels(wanted), abs=1e-3)

    found = evaluation.evaluate(Constant(1.0), plan.Unit("perception", "film", 0), TINY, data, pictures)
    l1, perceptual = found["reference"]
    assert [sum(row) / 2 for row in found["loss"]][::4] == pytest.approx([l1, 0.01 * perceptual], rel=1e-4)
    assert found["db"][2] == pytest.approx([-10 * math.log10(value) for value in found["loss"][2]], abs=1e-4)
    small = dataclasses.replace(TINY, backbone="edsr")
    shot = evaluation._judge("perception", small, data).shots(pictures, None)[0]
    assert shot.x.shape[-1] == 12 and shot.enlarged.shape == shot.targets["clean"].shape


@pytest.mark.slow
@pytest.mark.parametrize("backbone", plan.BACKBONES)
def test_every_row_from_end_to_end(data: plan.Data, tmp_path: Path, backbone: str) -> None:
    """All methods on the three tasks, on both backbones; later a seed more in the same folder."""
    everything = dataclasses.replace(
        TINY, backbone=backbone, tasks=("level", "perception", "box"), methods=tuple(plan.METHOD), seeds=1
    )
    assert run.run_all(everything, data, tmp_path, progress=False)
    found = collect(tmp_path, size=16, rounds=3)
    results_file.validate(found, tmp_path)
    assert [len(found["tasks"][task]) for task in everything.tasks] == [15, 15, 13]
    for task in ("perception", "box"):
        for row in found["tasks"][task].values():
            assert 0 <= row["seeds"]["0"]["hypervolume"] <= 1
    text = report.markdown(found)
    assert "hypervolume" in text and text.count("| CResMD | 4 |") == 3
    assert text.count("| Dynamic-Net, twice the steps | 4 + 4 |") == 2  # and three phases on the box
    assert "| Dynamic-Net, twice the steps | 2 + 2 + 4 |" in text
    one = dataclasses.replace(everything, seeds=2, tasks=("box",), methods=("film",))
    assert run.run_all(one, data, tmp_path, progress=False)
    assert len(collect(tmp_path, size=16, rounds=3)["tasks"]["box"]["film"]["seeds"]) == 2


@pytest.mark.slow
def test_workers_give_the_same_numbers(done: Path, data: plan.Data, tmp_path: Path) -> None:
    assert run.run_all(TINY, data, tmp_path, jobs=2)
    for file in (done / "units").iterdir():
        one, other = results_file.read_json(file), results_file.read_json(tmp_path / "units" / file.name)
        assert (one["db"], one["travel"]) == (other["db"], other["travel"]), file.name


@pytest.mark.slow
@pytest.mark.usefixtures("published_weights")
@pytest.mark.parametrize("jobs", [1, 2])
def test_sigterm_stops_the_command(data: plan.Data, tmp_path: Path, jobs: int) -> None:
    words = [
        "--suite",
        "comparison",
        "--setting",
        "quick",
        "--runs",
        str(tmp_path / "out"),
        "--data",
        data.train,
        "--test",
        data.test,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words, "--jobs", str(jobs)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    deadline = time.monotonic() + 100
    for text in process.stdout:
        if ": trained" in text or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGINT if jobs == 1 else signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again to continue" in errors
    assert 1 <= len(list((tmp_path / "out" / "units").glob("*.json"))) < 40


def test_results_without_trainings_are_enough(done: Path, collected: dict[str, Any], tmp_path: Path) -> None:
    """`plan.json` and `units`, carried elsewhere: the tables are the same, and nothing is trained again."""
    shutil.copy(done / "plan.json", tmp_path)
    shutil.copytree(done / "units", tmp_path / "units")
    found = collect(tmp_path, size=16, rounds=3)
    assert found["tasks"] == collected["tasks"]
    sizes = {name: row["parameters"] for name, row in collected["methods"].items()}
    assert {name: row["parameters"] for name, row in found["methods"].items()} == sizes
