"""bench/on_gpu.sh without a GPU: its refusal, how stages run and end, what counts as skipped, and a rehearsal."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tunable_ops.bench import machine, results_file, skipped
from tunable_ops.bench.gpu import plan as plans
from tunable_ops.bench.gpu.plan import Process, Stage
from tunable_ops.bench.gpu.run import Log, Runner
from tunable_ops.triton_kernels import unavailable_reason
from tunable_ops.triton_kernels.choose_algorithm import load_table

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "on_gpu.sh"


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """A process that was started in the background of a script ignores SIGINT, and so would those that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(out: Path, *words: str, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(["bash", script, out, *words], env=env, capture_output=True, text=True, timeout=6000)


def program(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path: Path) -> None:
    result = run(tmp_path / "o", "first", PYTHON=sys.executable)
    assert result.returncode == 2
    assert "has no GPU" in result.stderr
    assert run(tmp_path / "o").returncode == 2


@pytest.mark.parametrize(
    "words, said",
    [
        (("third", "--stand-in"), "on_gpu: plan must be one of first, second; got 'third'"),
        (("first", "bechmark", "--stand-in"), "on_gpu: stage must be one of environment, smoke, targets, networks, "),
    ],
)
def test_unknown_plans_and_stages_list_the_known_ones(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    result = run(tmp_path / "o", *words, PYTHON=sys.executable)
    assert result.returncode == 2
    assert said in result.stderr


def shell(script: str, **options: object) -> Process:
    """A process that is a shell: the runner's command is bash."""
    return Process(("-c", script), **options)  # type: ignore[arg-type]


def runner(out: Path, **options: object) -> Runner:
    out.mkdir(exist_ok=True)
    return Runner(out, 4, start=("bash",), **options)  # type: ignore[arg-type]


def summary(out: Path) -> list[str]:
    lines = [line for line in (out / "summary.txt").read_text().splitlines() if " s  " in line]
    return [f"{line.split()[0]}: {line.split(' s  ')[1].partition('; compiled')[0]}" for line in lines]


def test_a_stage_that_fails_leaves_the_others(tmp_path: Path) -> None:
    stages = [
        Stage("one", 60, ((shell("echo a; exit 3"), shell("echo b", label="x")),)),
        Stage(
            "two", 60, ((shell("echo first", log="two.txt"),), (shell("echo second", log="two.txt"),)), shares=(0.5,)
        ),
        Stage("none", 60, ((shell("", tool=("no-such-tool",)),),)),
    ]
    assert runner(tmp_path).run(stages) == ["one", "none"]
    assert summary(tmp_path) == [
        "one: 1 of 2 processes failed with status [3]",
        "two: ok",
        "none: 1 of 1 processes failed with status [127]",
    ]
    assert sorted((tmp_path / "log.txt").read_text().splitlines())[1:] == ["[x] b", "a"]
    assert (tmp_path / "two.txt").read_text() == "first\nsecond\n"


def test_a_stage_at_its_limit_is_interrupted_before_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reports on SIGINT has the time for it, what ignores it is killed, and nothing outlasts the limit."""
    monkeypatch.setattr("tunable_ops.bench.gpu.run.GRACE", 4.0)
    polite = "trap 'echo FAILED tests/test_x.py; exit 2' INT; echo began; sleep 60 & wait"
    stubborn = "trap '' INT; echo stubborn; sleep 60 & wait"
    stages = [Stage("slow", 8, ((shell(polite), shell(stubborn)),)), Stage("next", 20, ((shell("echo next"),),))]
    began = time.monotonic()
    assert runner(tmp_path).run(stages) == ["slow"]
    assert time.monotonic() - began < 20
    assert summary(tmp_path) == ["slow: 2 of 2 processes stopped at the limit of 8 s", "next: ok"]
    said = set((tmp_path / "log.txt").read_text().splitlines())
    assert {"began", "stubborn", "FAILED tests/test_x.py", "next"} <= said


def test_output_is_kept_as_it_comes(tmp_path: Path) -> None:
    """A run that is killed as a whole leaves what was printed until then."""
    made = runner(tmp_path)
    stages = [Stage("slow", 60, ((shell("echo early; sleep 30"),),)), Stage("later", 60, ((shell("echo later"),),))]
    thread = threading.Thread(target=made.run, args=(stages,))
    thread.start()
    log = tmp_path / "log.txt"
    for _ in range(200):
        if log.exists() and log.read_text() == "early\n":
            break
        time.sleep(0.05)
    assert log.read_text() == "early\n" and thread.is_alive()
    made.stopped.set()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert summary(tmp_path) == ["slow: stopped", "later: left out: stopped"]


def test_logs_do_not_grow_past_their_size(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt", most=200)
    for number in range(100):
        log.write(f"line {number}\n")
    text = (tmp_path / "log.txt").read_text()
    assert len(text) <= 200 and text.startswith("line 0\nline 1\n") and "this file" in text.splitlines()[-1]
    assert Log(tmp_path / "other.txt").most < plans.MOST_BYTES


def test_skips_without_an_accepted_reason_fail_a_stage(tmp_path: Path) -> None:
    log = "SKIPPED [2] tests/gpu/test_triton.py:1: needs two CUDA devices"
    bad = "SKIPPED [7] tests/gpu/test_cuda.py:1: the CUDA operators are left out"
    program(tmp_path / "pytest", f"echo '{log}'; echo \"$PWD\"")
    made = Runner(tmp_path, 2, start=(str(tmp_path / "pytest"),))
    (tmp_path / "r.json").write_text(
        json.dumps({"rows": [{"providers": {"a": {"status": "unsupported", "reason": "b"}}}]})
    )
    stage = Stage("tests", 20, ((Process(("pytest",), "tests.txt", "3"),),), results=("r.json",))
    assert made.run([stage]) == []
    assert (tmp_path / "tests.txt").read_text().startswith(f"[3] {log}")
    assert (tmp_path / "summary.txt").read_text().endswith("ok; compiled 0; skipped: 2 tests, 1 cases\n")
    program(tmp_path / "pytest", f"echo '{bad}'")
    assert made.run([stage]) == ["tests"]
    assert "no accepted reason to skip a test: the CUDA operators are left out" in summary(tmp_path)[-1]


def test_results_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    """A benchmark that wrote nothing once passed with the file of the run before; other files are left alone."""
    for name in ("counters.txt", "summary.txt", "targets.json", "notes.md"):
        (tmp_path / name).write_text("of an earlier run")
    result = run(tmp_path, "first", "counters", "--stand-in", PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    assert "of an earlier run" not in (tmp_path / "counters.txt").read_text() + (tmp_path / "summary.txt").read_text()
    assert (tmp_path / "targets.json").exists() and (tmp_path / "notes.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_script_keeps_what_was_done(tmp_path: Path, number: int) -> None:
    """The signal reaches the stage that runs, the next ones are left out, and the files stay."""
    command = ["bash", SCRIPT, tmp_path, "first", "environment", "counters", "tests", "--stand-in"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHON": sys.executable}, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "counters.txt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert summary(tmp_path) == ["environment: ok", "counters: stopped", "tests: left out: stopped"]
    assert "on_gpu: not all stages ended well: counters tests" in said
    assert "copy_gbps" in (tmp_path / "summary.txt").read_text()


@pytest.mark.slow
@pytest.mark.skipif(unavailable_reason() is not None, reason="the rehearsal interprets Triton kernels")
def test_rehearsal(tmp_path: Path) -> None:
    """Both plans from end to end on a clean copy of the tracked files, and their results read."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).exists():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    script = tmp_path / "copy" / "bench" / "on_gpu.sh"
    for plan in plans.PLANS:
        out = tmp_path / plan
        result = run(out, plan, "--stand-in", script=script, PYTHON=sys.executable, PYTHONPATH="")
        assert result.returncode == 0, result.stdout + result.stderr
        made = sorted(file.name for file in out.rglob("*"))
        assert len(made) <= plans.MOST_FILES
        assert made == plans.files(plans.plan(plan, 2, str(out), library=True, wgmma=True, stand_in=True))
        names = [name for name in made if name.endswith(".json") and name != "table.json"]
        assert names
        for name in names:
            assert results_file.read(out / name)["interrupted"] is False
            command = [sys.executable, "-m", "tunable_ops.bench", "--from", str(out / name)]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "| case | plain, ms |" in shown
        assert all(file.stat().st_size < plans.MOST_BYTES for file in out.iterdir())
    assert load_table(out / "table.json")


def test_pytest_reports_failures_when_it_is_terminated(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pathlib, time\n"
        "def test_fails(): assert False, 'for a reason'\n"
        "def test_hangs(): pathlib.Path('reached').touch(); time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "reached").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "FAILED test_it.py::test_fails - AssertionError: for a reason" in output
    assert "KeyboardInterrupt" in output


def test_a_missing_package_stops_the_tests_of_its_file_alone(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "test_b.py").write_text("def test_runs(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", *plans.TEST_OPTIONS, "--rootdir", tmp_path, tmp_path]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout
    assert "1 passed, 1 error" in result.stdout and "a_package_that_is_not_there" in result.stdout


@pytest.mark.parametrize("option, filled", [([], True), (["--leave-uninitialized"], False)])
def test_memory_is_filled_unless_it_is_left_uninitialized(tmp_path: Path, option: list[str], filled: bool) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        f"import torch\ndef test(): assert torch.utils.deterministic.fill_uninitialized_memory is {filled}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, *option, tmp_path]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("git", ["missing", "no repository"])
def test_results_name_the_commit_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: str) -> None:
    if git == "missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    monkeypatch.setenv("TUNABLE_OPS_COMMIT", "abc1234")
    assert machine.commit() == "abc1234"
    monkeypatch.setenv("TUNABLE_OPS_COMMIT", "")
    assert machine.commit() == "unknown"


LOG = """
=========================== short test summary info ============================
SKIPPED [2] tests/gpu/test_triton.py:238: needs two CUDA devices
[7] SKIPPED [1] tests/gpu/test_triton.py:279: needs 24 GB
{more}
1 failed, 20 passed, 3 skipped in 9.87s
"""


@pytest.mark.parametrize(
    "more",
    [
        "",
        "SKIPPED [684] tests/gpu/test_cuda_operator.py:71: the CUDA operators are left out: this build has none",
        "[12] SKIPPED [1] tests/gpu/test_triton.py:17: could not import 'triton': No module named 'triton'",
    ],
)
def test_skipped_tests_need_an_accepted_reason(tmp_path: Path, more: str) -> None:
    log = tmp_path / "1.log"
    log.write_text(LOG.format(more=more))
    tests, _, wrong = skipped.counted([log])
    assert tests["needs two CUDA devices"] == 2 and tests["needs 24 GB"] == 1
    assert wrong == ([f"no accepted reason to skip a test: {more.split(': ', 1)[1]}"] if more else [])


def test_refused_cases_are_counted(tmp_path: Path) -> None:
    refused = {"status": "unsupported", "reason": "serves 1x1 alone"}
    rows = [{"id": str(i), "providers": {"plain": {"status": "ok"}, "bmm": refused}} for i in range(3)]
    (tmp_path / "o.json").write_text(json.dumps({"rows": rows}))
    assert skipped.counted([tmp_path / "o.json"]) == ({}, {"bmm: serves 1x1 alone": 3}, [])


def test_a_stage_without_results_fails(tmp_path: Path) -> None:
    assert skipped.counted([tmp_path / "operators.json"])[2] == ["there is no operators.json"]
