"""The suite of what a call costs: rows of the results' form, and a comparison of two environments."""

import subprocess
import sys
from pathlib import Path

import pytest
from tunable_ops.bench import host
from tunable_ops.bench.measure import Settings

FAST = Settings(rounds=3, min_call=0, budget=0.1)


def test_ids_differ_and_say_what_is_measured() -> None:
    ids = [case.id for case in host.CASES]
    assert len(set(ids)) == len(ids) == 16
    assert "network-per_sample-both-channels_last" in ids


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_row_has_times_of_the_plain_and_the_tunable_module(direction: str) -> None:
    row = host.measure(host.HostCase("layer", "per_sample", direction, "channels_last"), "cpu", FAST)
    assert row["network"]["network"] == "host-layer" and row["network"]["batch"] == 2
    assert {name: result["status"] for name, result in row["providers"].items()} == {"plain": "ok", "tunable": "ok"}


def test_two_environments_in_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The other one is this one, half as fast."""
    asked = []

    def worker(python: str) -> dict[str, float]:
        asked.append(python)
        return {case.id: 2.0 if python == "other" else 1.0 for case in host.CASES}

    monkeypatch.setattr(host, "_worker", worker)
    host.main("other", rounds=2)
    assert asked == [sys.executable, "other"] * 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(host.CASES)
    assert all(line.split()[1:] == ["1.0", "2.0", "0.50"] for line in lines[1:])


@pytest.mark.parametrize("words", [[], ["python", "many"], ["python", "3", "4"]])
def test_wrong_arguments_print_the_usage(words: list[str]) -> None:
    result = subprocess.run([sys.executable, str(host.__file__), *words], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "usage: python bench/host.py OTHER/bin/python [ROUNDS]\n"


def test_a_worker_needs_nothing_newer_than_python_3_10(tmp_path: Path) -> None:
    """`-P`, new in 3.11, once ended it on 3.10; what it is for is that this folder's modules are not found."""
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\n[ "$1" = -I ] && echo "{\\"a\\": 1.0}"\n')
    other.chmod(0o755)
    assert host._worker(str(other)) == {"a": 1.0}


def test_an_environment_without_the_package_is_named(tmp_path: object) -> None:
    with pytest.raises(SystemExit, match="must be a Python that has tunable_ops"):
        host._worker("/bin/false")
