"""The comparison of knobs: what is trained, what its statistics say, and a small one from end to end."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tunable_ops.bench import cli, results_file
from tunable_ops.bench.comparison import evaluation, plan, report, run
from tunable_ops.bench.comparison.collect import collect
from tunable_ops.bench.comparison.report import Interval

from tunable_ops.images import write_image
from tunable_ops.train.build import build_network, build_sampler
from tunable_ops.train.data import Batches, Photographs, find_training_files
from tunable_ops.train.phases import Schedule

ROOT = Path(__file__).parent.parent.parent
TINY = plan.Setting("tiny", 4, 4, 16, 2, 4, seeds=2, test_crop=24, warmup=1)


def make_pictures(folder: Path) -> plan.Data:
    """Smooth pictures, two to train on and three for tests."""
    draws = torch.Generator().manual_seed(0)
    for part, count in (("train", 2), ("test", 3)):
        (folder / part).mkdir()
        for number in range(count):
            coarse = torch.rand(1, 3, 5, 6, generator=draws)
            picture = nn.functional.interpolate(coarse, size=(40, 48), mode="bicubic").clamp(0, 1)[0]
            write_image(picture, folder / part / f"{number}.png")
    return plan.Data(str(folder / "train"), str(folder / "test"), every=2)


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


@pytest.mark.parametrize("name, seeds", [("cpu", 3), ("gpu", 3), ("quick", 2)])
def test_the_plan_is_complete(name: str, seeds: int) -> None:
    setting = plan.SETTINGS[name]
    found = plan.units(setting)
    assert len(found) == 2 * seeds * (5 + 5) == len({unit.id for unit in found})
    for unit in found:
        config = plan.config_of(unit, setting, plan.Data())
        assert config.optim.steps == setting.steps
        assert config.seed == unit.seed
        assert Schedule(config).share == setting.steps // (2 if config.tuning.phased else 1)
    assert len(plan.mixes(setting)) == 2 * seeds


@pytest.mark.parametrize("depth", [4, 5, 6, 12])
def test_blocks_have_places_in_every_chain(depth: int) -> None:
    setting = dataclasses.replace(TINY, depth=depth)
    x = torch.rand(1, 3, 8, 8)
    plain = build_network(plan.config_of(plan.Unit("level", "separate", 0, 0.0), setting, plan.Data()))
    for key in plan.KNOBS:
        net = build_network(plan.config_of(plan.Unit("level", key, 0), setting, plan.Data()))
        torch.testing.assert_close(net(x, [1.0, 0.0]), plain(x), atol=1e-6, rtol=1e-5)  # the same start
    assert len(plan.placement("cfsnet", depth)["after"]) == depth - 2
    assert plan.placement("dynamic_net", depth)["after"][-1] == f"model.{2 * (depth - 2)}"


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
    kept = evaluation.evaluate(Constant(1.0), plan.Unit("strength", "separate", 0, 1.0), TINY, pictures)
    assert kept["ts"] == [1.0] and kept["db"][0] == pytest.approx([evaluation.decibels(0)] * 2)
    # half way between the clean picture and the input, the input is half the noise off
    half = evaluation.evaluate(Constant(1.0), plan.Unit("strength", "separate", 0, 0.5), TINY, pictures)
    assert half["db"][0] == pytest.approx([-20 * math.log10(12.5 / 255)] * 2, abs=0.3)
    level = evaluation.evaluate(Constant(1.0), plan.Unit("level", "separate", 0, 1.0), TINY, pictures)
    assert level["db"][0] == pytest.approx([-20 * math.log10(15 / 255)] * 2, abs=0.6)
    assert level["travel"] == [[0.0, 0.0]]
    # mixed with a network that removes everything, the energy removed falls along t as (1 - t)^2
    mix = evaluation.Mix([Constant(0.0), Constant(1.0)])
    found = evaluation.evaluate(mix, plan.Unit("level", "mix", 0), TINY, pictures)
    assert found["travel_ts"] == list(plan.FINE) and len(found["db"]) == 5
    whole = found["travel"][0][0]
    assert [row[0] / whole for row in found["travel"]] == pytest.approx([(1 - t) ** 2 for t in plan.FINE], abs=1e-5)
    with pytest.raises(RuntimeError, match=r"db of level-mix-s0 must be finite"):
        evaluation.evaluate(evaluation.Mix([Constant(math.nan)] * 2), plan.Unit("level", "mix", 0), TINY, pictures)


def test_a_comparison_from_end_to_end(collected: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    results_file.write(collected, tmp_path / "r.json")
    assert cli.main(["--from", str(tmp_path / "r.json"), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(report.markdown(collected) + "\n")
    assert printed.count("| tunable convolutions | 4 |") == 2 and printed.count("| DNI | 2 + 2 |") == 2
    assert {f.name for f in (tmp_path / "plots").iterdir()} == {
        "comparison_strength_tiny.png",
        "comparison_level_tiny.png",
    }
    sizes = collected["methods"]
    assert sizes["affine"]["folded_parameters"] == sizes["separate"]["parameters"] == sizes["mix"]["parameters"] // 2
    assert sizes["cfsnet"]["folded_parameters"] is None and sizes["adafm"]["folded_seconds"]["median"] > 0
    rows = collected["tasks"]["strength"]
    assert rows["separate"]["seeds"]["0"]["monotone"] is None and 0 <= rows["dni"]["seeds"]["1"]["monotone"] <= 1
    # two networks mixed are the separate ones at the corners
    for gap in [report.differences(collected, task.key, "mix", "separate") for task in plan.TASKS]:
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
    assert "0 of 40 units to train" in capsys.readouterr().out
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
    assert "0 of 40 units to train" in capsys.readouterr().out


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


def test_results_from_before_there_were_tasks_count(done: Path, data: plan.Data, tmp_path: Path) -> None:
    """Configurations had no `task` then; their folders were refused as of another configuration."""
    unit = plan.Unit("level", "dni", 0)
    result = results_file.read_json(run.result_file(done, unit))
    assert result["config"].pop("task") == "restoration"
    results_file.write_json(result, run.result_file(tmp_path, unit))
    assert run.finished(unit, TINY, data, tmp_path)


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
        (["--runs", "OUT", "--setting", "huge"], "--setting must be one of quick, cpu, gpu; got 'huge'"),
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


@pytest.mark.slow
def test_workers_give_the_same_numbers(done: Path, data: plan.Data, tmp_path: Path) -> None:
    assert run.run_all(TINY, data, tmp_path, jobs=2)
    for file in (done / "units").iterdir():
        one, other = results_file.read_json(file), results_file.read_json(tmp_path / "units" / file.name)
        assert (one["db"], one["travel"]) == (other["db"], other["travel"]), file.name


@pytest.mark.slow
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
