"""Freed memory that is kept: no page is mapped anew."""

import subprocess
import sys

import pytest

PROGRAM = """
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
