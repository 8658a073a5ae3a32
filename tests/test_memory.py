"""Freed memory that is kept: no page is mapped anew."""

import subprocess
import sys

import pytest

from tunable_ops.cli import main

PROGRAM = """
import ctypes
import sys
if sys.platform != "linux":
    raise SystemExit(3)
PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # count pages of 4 KiB
import resource
import torch
from tunable_ops.memory import keep_freed_memory

if not keep_freed_memory():
    raise SystemExit(3)
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.zeros(megabytes << 18) for megabytes in (1, 7, 20, 31)]
    del tensors
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def test_tensors_of_megabytes_come_from_kept_memory() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("no glibc")
    assert done.returncode == 0, done.stderr
    first, *_, before, last = map(int, done.stdout.split())
    assert max(before, last) < 100 < first  # 59 MB are 15,000 pages; the pool may still grow in between


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_command_that_trains_keeps_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def train(*args: object, **options: object) -> None:
        calls.append("train")
        raise ValueError("far enough")

    monkeypatch.setattr("tunable_ops.memory.keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr("tunable_ops.train.train", train)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", "denoise", "--set", f"compute.device={device}"]) == 2
    assert calls == ["keep", "train"]
