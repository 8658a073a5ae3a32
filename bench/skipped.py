"""Check what a stage of bench/on_gpu.sh left out; count it, and exit with 1 if there is no accepted reason for it.

    python -m tunable_ops.bench.skipped [LOG.log ...] [RESULTS.json ...]

Every backend of the project must run here. In pytest's logs every skipped test must name an accepted reason; in result
files the providers that refused a case are counted.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tunable_ops import backends

BACKENDS = ("cpp", "triton", "cuda")
# What one GPU may lack.
ACCEPTED = ("needs two CUDA devices", "needs 24 GB", "is for compute capability 9.0")
_SKIPPED = re.compile(r"^SKIPPED \[(?P<count>\d+)\] (?P<place>\S+): (?P<reason>.+)$", re.MULTILINE)


def missing_backends() -> list[str]:
    """Return a line for each backend that cannot run here, with the reason."""
    reasons = {name: backends.unavailable_reason("tunable_conv2d", name) for name in BACKENDS}
    return [f"backend {name!r} must run here: {reason}" for name, reason in reasons.items() if reason is not None]


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


def main(paths: Sequence[str]) -> int:
    """Print the counts and what is not accepted; return the exit status."""
    tests: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    wrong = missing_backends()
    for path in map(Path, paths):
        if not path.exists():
            wrong.append(f"there is no {path.name}")
        elif path.suffix == ".json":
            cases += refused_cases(path.read_text())
        else:
            tests += skipped_tests(path.read_text(errors="replace"))
    for name, counts in (("case refused", cases), ("test skipped", tests)):
        for reason, count in counts.most_common():
            print(f"{count:5d} x {name}: {reason}")
    wrong += [f"no accepted reason to skip a test: {r}" for r in tests if not r.endswith(ACCEPTED)]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"skipped: {tests.total()} tests, {cases.total()} cases")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
