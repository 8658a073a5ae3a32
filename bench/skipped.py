"""What a stage of bench/on_gpu.sh left out: tests, each of which must name an accepted reason, and refused cases."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# What one GPU may lack.
ACCEPTED = ("needs two CUDA devices", "needs 24 GB", "it needs compute capability 9.0")
# Several processes share a log: "[3] SKIPPED ...".
_SKIPPED = re.compile(r"^(?:\[\w+\] )?SKIPPED \[(?P<count>\d+)\] (?P<place>\S+): (?P<reason>.+)$", re.MULTILINE)


def skipped_tests(log: str) -> Counter[str]:
    """Return how many tests a log of pytest reports as skipped, by reason."""
    counts: Counter[str] = Counter()
    for match in _SKIPPED.finditer(log):
        counts[match["reason"]] += int(match["count"])
    return counts


def refused_cases(results: str) -> Counter[str]:
    """Return how many cases were refused in a file of results, by provider and reason."""
    rows = json.loads(results)["rows"]
    refused = ((name, r) for row in rows for name, r in row["providers"].items() if r["status"] == "unsupported")
    return Counter(f"{name}: {result['reason']}" for name, result in refused)


def counted(
    paths: Sequence[Path], accepted: tuple[str, ...] = ACCEPTED
) -> tuple[Counter[str], Counter[str], list[str]]:
    """Return the skipped tests and refused cases of logs and results by reason, and a line for what is not accepted."""
    tests: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    wrong = []
    for path in paths:
        if not path.exists():
            wrong.append(f"there is no {path.name}")
        elif path.suffix == ".json":
            cases += refused_cases(path.read_text())
        else:
            tests += skipped_tests(path.read_text(errors="replace"))
    return tests, cases, wrong + [f"no accepted reason to skip a test: {r}" for r in tests if not r.endswith(accepted)]
