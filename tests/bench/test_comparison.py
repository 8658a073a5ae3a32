"""A small comparison of knobs from end to end."""

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
from tunable_ops.bench import cli, results_file
from tunable_ops.bench.comparison import evaluation, plan, report, run
from tunable_ops.bench.comparison.collect import collect

from tests.bench.small_comparison import TINY, UNITS

ROOT = Path(__file__).parent.parent.parent


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


def test_a_part_of_a_folder_is_shown(done: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--from", str(done), "--rounds", "3", "--tasks", "level", "--seeds"]
    assert cli.main([*words, "1", "--methods", "dni", "--out", str(tmp_path / "part.json")]) == 0
    part = results_file.read(tmp_path / "part.json")
    (task,) = part["tasks"].values()
    assert set(task) == {"affine", "dni", "separate"} and set(task["dni"]["seeds"]) == {"0"}
    assert "FiLM" not in capsys.readouterr().out
    assert cli.main([*words, "3"]) == 2
    assert "must name a folder with all" in capsys.readouterr().err
    assert cli.main([*words, "0"]) == 2
    assert "--seeds must be at least 1; got 0" in capsys.readouterr().err


def test_another_comparison_is_refused(done: Path, data: plan.Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--runs must hold this comparison; got plan.json with"):
        run.run_all(dataclasses.replace(TINY, steps=5), data, done)
    unit = plan.Unit("level", "dni", 0)
    path = run.result_file(tmp_path, unit)
    results_file.write_json({**results_file.read_json(run.result_file(done, unit)), "config": {}}, path)
    with pytest.raises(ValueError, match=r"units of this comparison; got level-dni-s0 with another configuration"):
        run.run_all(TINY, data, tmp_path)


def test_results_of_before_a_key_was_there_count(done: Path, data: plan.Data, tmp_path: Path) -> None:
    """A key that came later has its default there; one that is no more is another configuration.

    The memory format does not say what is trained.
    """
    unit = plan.Unit("level", "dni", 0)
    result = results_file.read_json(run.result_file(done, unit))
    assert result["config"].pop("task") == "restoration"
    for objective in result["config"]["objectives"]:
        assert objective.pop("follows") is True
    result["config"]["compute"]["channels_last"] = False
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
        (["--from", "EMPTY", "--steps", "3"], "--steps must be left out with --from .*empty; got 3"),
        (["--from", __file__, "--seeds", "2"], "--seeds must be left out with --from .*py; got 2"),
    ],
)
def test_bad_input_is_refused(words: list[str], message: str, data: plan.Data, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    places = {"OUT": str(tmp_path / "out"), "TEST": data.test, "EMPTY": str(tmp_path / "empty")}
    assert cli.main(["--suite", "comparison", *(places.get(word, word) for word in words)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


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


def test_results_alone_can_be_added_to(done: Path, data: plan.Data, tmp_path: Path) -> None:
    """A copy whose files are of other times, the mixtures' older than their networks' results, is complete."""
    shutil.copy(done / "plan.json", tmp_path)
    shutil.copytree(done / "units", tmp_path / "units")
    before = {path.name: path.read_text() for path in (tmp_path / "units").iterdir()}
    for path in (tmp_path / "units").glob("*-mix-*"):
        os.utime(path, (0, 0))
    assert run.run_all(TINY, data, tmp_path, progress=False)
    assert {path.name: path.read_text() for path in (tmp_path / "units").iterdir()} == before
