"""bench/on_gpu.sh without a GPU: its refusal, and its stages with a stand-in for Python."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent.parent / "bench" / "on_gpu.sh"


def run(out: Path, *stages: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(["bash", SCRIPT, out, *stages], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path: Path) -> None:
    import sys

    result = run(tmp_path / "o", PYTHON=sys.executable)
    assert result.returncode == 2
    assert "has no GPU" in result.stderr


def test_an_unknown_stage_lists_the_known_ones(tmp_path: Path) -> None:
    result = run(tmp_path / "o", "bechmark")
    assert result.returncode == 2
    assert "stage must be one of environment build tests tune operators" in result.stderr


def test_a_stage_that_fails_or_hangs_leaves_the_others(tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        """#!/usr/bin/env bash
case "$*" in
    *"-m pytest"*) echo testing; sleep 60 ;;
    *setup.py*) echo no compiler; exit 3 ;;
    *networks*) echo '{"kept": 1}' >"${@: -1}" ;;
esac
"""
    )
    stand_in.chmod(0o755)
    out = tmp_path / "o"
    result = run(out, "build", "tests", "networks", PYTHON=str(stand_in), LIMIT_tests="2")
    assert result.returncode == 1, result.stderr
    assert "not all stages ended well: build tests" in result.stderr
    summary = (out / "summary.txt").read_text()
    assert [line.split(" s  ")[1] for line in summary.splitlines()] == [
        "failed with status 3",
        "stopped at its limit of 2 s",
        "ok",
    ]
    assert (out / "networks.json").read_text() == '{"kept": 1}\n'
    assert (out / "build.log").read_text() == "no compiler\n"
    with tarfile.open(out / "on_gpu.tar.gz") as archive:
        assert {"./networks.json", "./tests.log", "./summary.txt"} <= set(archive.getnames())
