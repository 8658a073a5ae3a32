"""bench/on_gpu.sh without a GPU: its refusal, its stages with a stand-in for Python, and what counts as skipped."""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from tunable_ops.bench import cli, machine, providers, skipped

from tunable_ops import backends

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "on_gpu.sh"


def run(out: Path, *stages: str, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(["bash", script, out, *stages], env=env, capture_output=True, text=True, timeout=120)


def program(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return str(path)


def verdicts(out: Path) -> list[str]:
    return [line.split(" s  ")[1] for line in (out / "summary.txt").read_text().splitlines()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path: Path) -> None:
    result = run(tmp_path / "o", PYTHON=sys.executable)
    assert result.returncode == 2
    assert "has no GPU" in result.stderr


def test_an_unknown_stage_lists_the_known_ones(tmp_path: Path) -> None:
    result = run(tmp_path / "o", "bechmark")
    assert result.returncode == 2
    assert "stage must be one of environment build tests tune operators" in result.stderr


def test_a_stage_that_fails_or_hangs_leaves_the_others(tmp_path: Path) -> None:
    stand_in = program(
        tmp_path / "python",
        """
case "$*" in
    *"run.py pytest"*) echo testing; sleep 60 ;;
    *setup.py*) echo no compiler; exit 3 ;;
    *skipped*) ;;
    *networks*) echo '{"kept": 1}' >"$6" ;;
esac
""",
    )
    out = tmp_path / "o"
    result = run(out, "build", "tests", "networks", PYTHON=stand_in, LIMIT_tests="2")
    assert result.returncode == 1, result.stderr
    assert "not all stages ended well: build tests" in result.stderr
    assert verdicts(out) == ["failed with status 3", "stopped at its limit of 2 s", "ok"]
    assert (out / "networks.json").read_text() == '{"kept": 1}\n'
    assert (out / "build.log").read_text() == "no compiler\n"
    with tarfile.open(out / "on_gpu.tar.gz") as archive:
        assert {"./networks.json", "./tests.log", "./summary.txt"} <= set(archive.getnames())


def test_results_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    """A benchmark that wrote nothing once passed with the file of the run before, and so did the tests' logs."""
    out = tmp_path / "o"
    stale = [out / name for name in ("networks.json", "networks_ratios.png", "tests/16.log", "hopper.log")]
    (out / "tests").mkdir(parents=True)
    for path in stale:
        path.write_text("skipped: 1 tests, 0 cases")
    (out / "operators.json").write_text("of a stage that does not run now")
    stand_in = program(tmp_path / "python", "")
    run(out, "networks", "tests", "hopper", PYTHON=stand_in)
    assert verdicts(out) == ["ok"] * 3
    assert not any(path.exists() for path in stale[:3]) and stale[3].read_text() == ""
    assert (out / "operators.json").exists()


def test_the_working_directory_is_not_searched_for_modules(tmp_path: Path) -> None:
    """The package lacks the benchmark there; `python -P`, which would do, is new in Python 3.11."""
    copy = tmp_path / "copy" / "bench" / "on_gpu.sh"
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    package = tmp_path / "copy" / "tunable_ops"
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli" / "__main__.py").write_text("import sys; print(sys.path, sys.argv)")
    stand_in = program(tmp_path / "python", f'[ "$1" = -c ] || exec {sys.executable} "$@"')
    run(tmp_path / "o", "tune", script=copy, PYTHON=stand_in, PYTHONPATH="")
    said = (tmp_path / "o" / "tune.log").read_text()
    assert f"'{tmp_path / 'copy'}'" not in said and "['" in said and "'autotune', '--out'" in said, said


def test_a_stage_with_unaccepted_skips_fails_and_every_stage_counts_them(tmp_path: Path) -> None:
    """A build without CUDA operators once counted as "ok", and so did the tests that it skipped."""
    stand_in = program(
        tmp_path / "python",
        """
case "$*" in
    *skipped\\ */tests/*) echo "no accepted reason to skip a test: x"; echo "skipped: 7 tests, 0 cases"; exit 1 ;;
    *skipped\\ */operators.json) echo "skipped: 0 tests, 5 cases" ;;
    *skipped) echo "backend 'cuda' must run here"; echo "skipped: 0 tests, 0 cases"; exit 1 ;;
esac
""",
    )
    out = tmp_path / "o"
    result = run(out, "build", "tests", "operators", PYTHON=stand_in)
    assert result.returncode == 1
    assert verdicts(out) == [
        "failed with status 1; skipped: 0 tests, 0 cases",
        "failed with status 1; skipped: 7 tests, 0 cases",
        "ok; skipped: 0 tests, 5 cases",
    ]
    assert "backend 'cuda' must run here" in result.stdout
    assert "no accepted reason to skip a test: x" in result.stdout


def test_a_stage_stopped_at_its_limit_shows_what_failed(tmp_path: Path) -> None:
    """The stage outlives pytest, which reports its failures on TERM."""
    stand_in = program(
        tmp_path / "python",
        """
case "$*" in
    *"run.py pytest"*) trap 'sleep 0.5; echo "FAILED tests/gpu/test_x.py::test_y"; exit 2' TERM; sleep 60 & wait ;;
    *skipped*) echo "skipped: 1 tests, 0 cases" ;;
esac
""",
    )
    result = run(tmp_path / "o", "tests", PYTHON=stand_in, LIMIT_tests="2")
    assert result.returncode == 1
    assert verdicts(tmp_path / "o") == ["stopped at its limit of 2 s; skipped: 1 tests, 0 cases"]
    assert "FAILED tests/gpu/test_x.py::test_y" in result.stdout


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


def test_initcheck_alone_leaves_memory_uninitialized(tmp_path: Path) -> None:
    """NaN in every torch.empty would hide reads of memory that no kernel has written."""
    program(tmp_path / "bin" / "compute-sanitizer", 'echo "$@"')
    stand_in = program(tmp_path / "python", "")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert run(tmp_path / "o", "sanitizer", PYTHON=stand_in, PATH=path).returncode == 0
    logs = {log.stem: log.read_text() for log in (tmp_path / "o" / "sanitizer").iterdir()}
    assert sorted(logs) == ["initcheck", "memcheck", "racecheck"]
    for tool, text in logs.items():
        assert f"--tool {tool} " in text
        assert ("--leave-uninitialized" in text) == (tool == "initcheck")


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
def test_the_commit_comes_from_the_environment_without_git_or_a_repository(tmp_path: Path, git: str) -> None:
    copy = tmp_path / "copy" / "bench" / "on_gpu.sh"
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    if git == "missing":
        program(tmp_path / "bin" / "git", "exit 127")
    stand_in = program(tmp_path / "python", 'echo "commit $TUNABLE_OPS_COMMIT"')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    out = tmp_path / "o"
    run(out, "tune", script=copy, PYTHON=stand_in, PATH=path, TUNABLE_OPS_COMMIT="abc1234")
    assert (out / "tune.log").read_text() == "commit abc1234\n"
    run(out, "tune", script=copy, PYTHON=stand_in, PATH=path, TUNABLE_OPS_COMMIT="")
    assert (out / "tune.log").read_text() == "commit unknown\n"


@pytest.mark.parametrize("git", ["missing", "no repository"])
def test_results_name_the_commit_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: str) -> None:
    if git == "missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    monkeypatch.setenv("TUNABLE_OPS_COMMIT", "abc1234")
    assert machine.commit() == "abc1234"
    monkeypatch.setenv("TUNABLE_OPS_COMMIT", "")
    assert machine.commit() == "unknown"


def test_the_arguments_of_every_stage_are_known(tmp_path: Path) -> None:
    stand_in = program(tmp_path / "python", f"printf '%q ' \"$@\" >>{tmp_path}/said; echo >>{tmp_path}/said")
    stages = ("tune", "operators", "networks", "perceptual", "hopper", "scaling")
    assert run(tmp_path / "o", *stages, PYTHON=stand_in).returncode == 0
    said = [shlex.split(line) for line in (tmp_path / "said").read_text().splitlines()]
    tune, *benchmarks = [
        words[1:] for words in said if words[0].endswith("/run.py") and "bench.skipped" not in words[1]
    ]
    command = [sys.executable, "-m", *tune, "--help"]  # after the arguments that it is called with
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert len(benchmarks) == 5
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    for words in benchmarks:
        assert words[0] == "tunable_ops.bench"
        args = parser.parse_args(words[1:])
        assert (args.suite or "operators") in cli.SUITES
        providers.check_names(args.providers)


LOG = """
=========================== short test summary info ============================
SKIPPED [2] tests/gpu/test_triton.py:238: needs two CUDA devices
SKIPPED [1] tests/gpu/test_triton.py:279: needs 24 GB
{more}
1 failed, 20 passed, 3 skipped in 9.87s
"""


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend runs here."""
    monkeypatch.setattr(backends, "unavailable_reason", lambda op, name: None)


@pytest.mark.parametrize(
    "more, code",
    [
        ("", 0),
        ("SKIPPED [684] tests/gpu/test_cuda_operator.py:71: the CUDA operators are left out: this build has none", 1),
        ("SKIPPED [1] tests/gpu/test_triton.py:17: could not import 'triton': No module named 'triton'", 1),
    ],
)
def test_skipped_tests_need_an_accepted_reason(
    complete: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, code: int
) -> None:
    log = tmp_path / "1.log"
    log.write_text(LOG.format(more=more))
    assert skipped.main([str(log)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert "    2 x test skipped: needs two CUDA devices" in lines
    assert [line for line in lines if "no accepted reason" in line] == (
        [f"no accepted reason to skip a test: {more.split(': ', 1)[1]}"] if more else []
    )
    assert lines[-1].startswith("skipped: ")


def test_refused_cases_are_counted(complete: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"status": "unsupported", "reason": "serves 1x1 alone"}
    rows = [{"id": str(i), "providers": {"plain": {"status": "ok"}, "bmm": refused}} for i in range(3)]
    (tmp_path / "o.json").write_text(json.dumps({"rows": rows}))
    assert skipped.main([str(tmp_path / "o.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "    3 x case refused: bmm: serves 1x1 alone",
        "skipped: 0 tests, 3 cases",
    ]


def test_a_stage_without_results_fails(complete: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert skipped.main([str(tmp_path / "operators.json")]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "there is no operators.json"


def test_every_backend_must_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(backends, "unavailable_reason", lambda op, name: "none built" if name == "cuda" else None)
    assert skipped.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "backend 'cuda' must run here: none built",
        "skipped: 0 tests, 0 cases",
    ]
