"""The benchmark as a command: what it writes, what it refuses, what it survives."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tunable_ops.bench import cli, machine, measure, networks, plots, report, results_file, step, suites
from tunable_ops.bench.cases import Case
from tunable_ops.bench.providers import PROVIDERS, Provider

ROOT = Path(__file__).parent.parent.parent
CASE = Case("3x3", 3, 8, 2, alpha="per_sample")
FAST = measure.Settings(rounds=3, min_call=0, budget=0.1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands without their minutes: four small cases, no peaks of a large machine."""
    few = [Case("3x3", 3, 8, 2, alpha=a, direction=d) for a in ("shared", "per_sample") for d in ("forward", "both")]
    suite = dataclasses.replace(suites.SUITES["operators"], cases=lambda device: few)
    monkeypatch.setitem(suites.SUITES, "operators", suite)
    monkeypatch.setattr(machine, "peaks", lambda device, dtypes: {"copy_gbps": 10.0, "matmul_tflops_fp32": 0.1})


def run(case: Case, *names: str) -> dict[str, Any]:
    return measure.measure(case, [PROVIDERS[n] for n in ("plain", *names)], "cpu", FAST, {})


def broken(error: Exception) -> Provider:
    def make(problem: Any) -> Any:
        def function(*tensors: torch.Tensor) -> torch.Tensor:
            raise error

        return function

    return Provider("broken", "raises", make, lambda problem: None)


def test_a_wrong_provider_prints_no_time() -> None:
    wrong = Provider("wrong", "", lambda p: lambda x, w, b, a: 1.01 * reference(p)(x, w, b, a), lambda p: None)

    def reference(p: Any) -> Any:
        return PROVIDERS["reference"].make(p)

    row = measure.measure(CASE, [PROVIDERS["plain"], wrong, PROVIDERS["tunable"]], "cpu", FAST, {})
    assert row["providers"]["wrong"]["status"] == "wrong"
    assert set(row["providers"]["wrong"]) == {"status", "reason"}
    assert row["providers"]["tunable"]["status"] == "ok"
    assert "rms error" in report.line(row) and " ms" not in report.line(row).split("wrong")[1].split("\n")[0]


@pytest.mark.parametrize(
    "error, status",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "out_of_memory"),
        (RuntimeError("no such kernel"), "failed"),
    ],
)
def test_what_cannot_run_is_recorded_and_the_rest_is_timed(error: Exception, status: str) -> None:
    row = measure.measure(CASE, [PROVIDERS["plain"], broken(error), PROVIDERS["tunable"]], "cpu", FAST, {})
    assert row["providers"]["broken"]["status"] == status
    assert str(error).split(":")[0] in row["providers"]["broken"]["reason"]
    assert row["providers"]["tunable"]["status"] == "ok"


def test_a_case_larger_than_memory_is_recorded() -> None:
    row = run(Case("3x3", 2**20, 2**14, 64), "tunable")
    assert {r["status"] for r in row["providers"].values()} == {"out_of_memory"}


def test_a_provider_that_fails_while_timed_leaves_the_others() -> None:
    calls = [0]

    def make(problem: Any) -> Any:
        right = PROVIDERS["reference"].make(problem)

        def function(*tensors: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            if calls[0] > 4:  # the gate and the memory profile have passed
                raise torch.OutOfMemoryError("later")
            return right(*tensors)

        return function

    late = Provider("late", "", make, lambda problem: None)
    row = measure.measure(CASE, [PROVIDERS["plain"], late, PROVIDERS["tunable"]], "cpu", FAST, {})
    assert row["providers"]["late"] == {"status": "out_of_memory", "reason": "later"}
    assert row["providers"]["tunable"]["status"] == "ok"


def test_memory_of_a_step_counts_what_it_holds() -> None:
    row = run(Case("1x1", 64, 32, 4), "tunable", "one-convolution")
    output = 4 * 4 * 64 * 32 * 32
    plain, ours, merged = (row["providers"][n]["peak_bytes"] for n in ("plain", "tunable", "one-convolution"))
    assert output <= plain <= 1.2 * output
    assert output <= ours <= 1.3 * output
    assert merged >= 3 * output  # P*O channels, and their sum


def test_graph_replay_needs_a_gpu() -> None:
    row = run(Case("3x3", 3, 8, 2, mode="graph"), "tunable")
    assert row["providers"]["tunable"] == {"status": "unsupported", "reason": "graph replay needs a GPU"}


def test_results_fit_their_schema_and_come_back(small: None, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "r.json"
    words = ["--device", "cpu", "--rounds", "3", "--out", str(out), "--providers", "tunable", "broadcast", "condconv"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    results = results_file.read(out)
    assert results["schema"] == results_file.TIMINGS.version and not results["interrupted"]
    assert len(results["rows"]) == 4
    row = results["rows"][0]
    assert row["id"] in printed and "shared alpha, inference: tunable / plain" not in printed  # 8x8 is no target row
    figures = row["providers"]["tunable"]
    assert figures["ratio_q1"] <= figures["ratio"] <= figures["ratio_q3"]
    assert figures["share"] == pytest.approx(max(figures["tflops"] / 0.1, figures["gbps"] / 10), rel=1e-3)
    assert figures["tflops"] == pytest.approx(row["flops"] / figures["seconds"] / 1e12, rel=1e-3)
    assert row["providers"]["condconv"]["status"] == "unsupported"
    assert results["machine"]["versions"]["torch"] == torch.__version__
    assert results["machine"]["commit"] != "unknown"


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text('{"schema": 1}')
    with pytest.raises(ValueError, match=r"old.json must have schema 2; got 1 \(suite None\). Measure again"):
        results_file.read(old)
    old.write_text("[")
    with pytest.raises(ValueError, match="must hold JSON"):
        results_file.read(old)
    stored = json.loads((ROOT / "bench" / "results" / "operators_cpu.json").read_text())
    stored["rows"][0]["providers"]["plain"]["ratio"] = -1
    old.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"must fit schema.json; got at rows/0/providers/plain"):
        results_file.read(old)


RESULTS = sorted((ROOT / "bench" / "results").glob("*_*.json"))


@pytest.mark.parametrize("file", RESULTS, ids=lambda f: f.name)
def test_stored_results_fit_their_schema_and_are_shown(file: Path, capsys: Any) -> None:
    results = results_file.read(file)
    assert "dirty" not in json.dumps(results), "measured on a commit"
    assert cli.main(["--from", str(file)]) == 0
    assert "| --- |" in capsys.readouterr().out
    if "rows" not in results:
        return
    assert not results["interrupted"]
    assert not [r for row in results["rows"] for r in row["providers"].values() if r["status"] in ("wrong", "failed")]


def test_the_page_shows_the_stored_results() -> None:
    stored = results_file.read(ROOT / "bench" / "results" / "operators_cpu.json")
    assert report.headline(stored) in (ROOT / "docs" / "performance.md").read_text()


def results_with(ratio: float, spread: float, status: str = "ok") -> dict[str, Any]:
    quartiles = {"ratio": ratio, "ratio_q1": ratio - spread, "ratio_q3": ratio + spread}
    result = {"status": "ok", **quartiles} if status == "ok" else {"status": status, "reason": "why"}
    return {"rows": [{"id": "a", "providers": {"plain": {"status": "ok", "ratio": 1.0}, "tunable": result}}]}


def test_regressions_are_those_beyond_noise() -> None:
    old = results_with(1.0, 0.1)
    assert results_file.regressions(results_with(1.5, 0.1), old) == (["a tunable: was 1.00, is 1.50"], 1)
    assert results_file.regressions(results_with(1.5, 0.45), old) == ([], 1)  # the quartiles overlap
    assert results_file.regressions(results_with(1.04, 0.01), results_with(1.0, 0.01)) == ([], 1)  # within 5 %
    assert results_file.regressions(results_with(0.5, 0.1), old) == ([], 1)
    assert results_file.regressions(results_with(0, 0, "wrong"), old) == (["a tunable: was 1.00, is wrong: why"], 1)


def test_compare_exits_with_1_and_names_the_case(small: None, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "r.json"
    words = ["--device", "cpu", "--rounds", "3", "--providers", "tunable"]
    assert cli.main([*words, "--out", str(out)]) == 0
    old = results_file.read(out)
    for row in old["rows"]:
        for name in ("ratio", "ratio_q1", "ratio_q3"):
            row["providers"]["tunable"][name] /= 1000
    faster = tmp_path / "faster.json"
    results_file.write(old, faster)
    capsys.readouterr()
    assert cli.main([*words, "--compare", str(faster)]) == 1
    printed = capsys.readouterr().out
    assert "4 pairs, 4 regressions" in printed and f"regression: {old['rows'][0]['id']} tunable: was" in printed


@pytest.mark.parametrize(
    "words, message",
    [
        (["--device", "tpu"], "--device must be one of cpu, cuda; got 'tpu'"),
        (["--providers", "cudnn"], "--providers must be among plain, tunable, .*; got 'cudnn'"),
        (["--cases", "kind=9x9"], "kind must be one of 3x3, .*; got '9x9'"),
        (
            ["--suite", "nets"],
            "perceptual, host, comparison, all; got 'nets'",
        ),
        (["--rounds", "2"], "--rounds must be at least 3; got 2"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--jobs", "0"], "--jobs must be left out for 'operators' results; got 0"),
        (["--compare", "/nowhere.json"], "No such file"),
        (
            ["--compare", str(ROOT / "bench" / "results" / "comparison_cpu.json")],
            "--compare must name a file of timings; got .* of suite 'comparison'",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(words: list[str], message: str, capsys: Any) -> None:
    import re

    words = words if "--device" in words else ["--device", "cpu", *words]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and captured.out == ""


def test_no_gpu_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match="torch finds no GPU"):
        machine.check_device("cuda")


def test_stopping_keeps_what_was_measured(tmp_path: Path) -> None:
    """SIGTERM to the real command once its first rows are printed."""
    out = tmp_path / "r.json"
    words = ["--device", "cpu", "--rounds", "3", "--budget", "0.01", "--threads", "1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words, "--providers", "tunable"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    seen = 0
    deadline = time.monotonic() + 100
    for text in process.stdout:
        seen += text.startswith("    tunable")
        if seen >= 2 or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "what was measured is kept" in errors
    results = results_file.read(out)
    assert results["interrupted"] and len(results["rows"]) >= 2


def test_readme_section_is_replaced_between_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_readme(readme, "new")
    assert readme.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="must hold the markers"):
        report.write_readme(readme, "new")


def test_plots_are_drawn_from_stored_results(tmp_path: Path) -> None:
    from PIL import Image

    files = []
    for stem in ("operators_cpu", "scaling_cpu"):
        stored = results_file.read(ROOT / "bench" / "results" / f"{stem}.json")
        files += plots.save(plots.figures(stored, stem), tmp_path)
    assert {f.stem for f in files} == {"operators_cpu_ratios", "operators_cpu_roofline", "scaling_cpu_scaling",
                                       "scaling_cpu_roofline"}  # fmt: skip
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(2**24) or []) > 20


def test_the_longest_kernels_of_a_step_are_kept_and_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launches = [("fill", 1.0), *(("conv", 5.0) for _ in range(3)), ("add", 2.0), ("x" * 500, 0.5)]
    found = step.summed(launches)
    assert [(k.name[:4], k.microseconds, k.count) for k in found] == [
        ("conv", 15.0, 3),
        ("add", 2.0, 1),
        ("fill", 1.0, 1),
        ("xxxx", 0.5, 1),
    ]
    monkeypatch.setattr(step, "kernels", lambda *_: step.summed([*launches, *((f"k{i}", 0.1) for i in range(30))]))
    resources = step.resources(lambda: [], "cpu")
    assert resources["launches"] == 36 and len(resources["kernels"]) == step.LISTED
    assert resources["kernels"][0] == ["conv", 15.0, 3] and len(resources["kernels"][3][0]) == step.LONGEST_NAME
    results = results_file.read(ROOT / "bench" / "results" / "networks_cpu.json")
    row = next(row for row in results["rows"] if row["providers"]["tunable"]["status"] == "ok")
    row["providers"]["tunable"]["kernels"] = resources["kernels"]
    results_file.write(results, tmp_path / "r.json")
    shown = report.markdown(results_file.read(tmp_path / "r.json"))
    assert f"Longest kernels of {row['id']}:" in shown and "| tunable | conv | 15.0 | 3 |" in shown


def test_networks_have_rows_of_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunable_ops import models

    monkeypatch.setitem(networks.BUILDERS, "dncnn", lambda: models.DnCNN(features=4, depth=3))
    row = networks.measure(networks.NetworkCase("dncnn", 8, 2), "cpu", FAST)
    assert [r["status"] for r in row["providers"].values()] == ["ok"] * 7 + ["unsupported", "ok"]
    row = networks.measure(networks.NetworkCase("dncnn", 8, 2, "both", autocast="bf16"), "cpu", FAST)
    statuses = {name: r["status"] for name, r in row["providers"].items()}
    assert statuses["cast-kernels"] == statuses["tunable-per-sample"] == "ok"
    assert statuses["folded"] == "unsupported"  # it has no lambda to train


def test_a_network_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunable_ops import models

    monkeypatch.setitem(networks.BUILDERS, "dncnn", lambda: models.DnCNN(features=4, depth=3))
    convert = networks.tunable_ops.convert

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        net = convert(*args, **kwargs)
        with torch.no_grad():
            next(net.parameters()).mul_(1.5)
        return net

    monkeypatch.setattr(networks.tunable_ops, "convert", spoiled)
    row = networks.measure(networks.NetworkCase("dncnn", 8, 2), "cpu", FAST)
    assert {r["status"] for r in row["providers"].values()} == {"wrong"}
