"""What a call costs besides its arithmetic: one layer and a network of 100 on 4x4 pictures, in eager mode.

``python -m bench --suite host`` times them beside the plain layer and network. To compare two versions of the package,
``python bench/host.py OTHER/bin/python`` runs this file in turn in this environment and in the other one's; it needs
nothing of the package but its public names.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS, LAYERS = 8, 100
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Step = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class HostCase:
    """A layer or a network, one lambda for the batch or one per sample, a pass, and a memory format."""

    network: str
    alpha: str
    direction: str
    layout: str
    dtype: str = "fp32"

    @property
    def id(self) -> str:
        """Return the name that filters match and results carry."""
        return f"{self.network}-{self.alpha}-{self.direction}-{self.layout}"

    @property
    def batch(self) -> int:
        """Return the number of samples."""
        return 1 if self.alpha == "shared" else 2

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return asdict(self)


CASES = [
    HostCase(*fields)
    for fields in product(("layer", "network"), ("shared", "per_sample"), ("forward", "both"), FORMATS)
]


def steps(case: HostCase, device: str = "cpu") -> dict[str, Step]:
    """Return the step of the plain module and of the tunable one."""
    import tunable_ops

    torch.manual_seed(0)
    plain: nn.Module = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    tunable: nn.Module = tunable_ops.TunableConv2d(CHANNELS, CHANNELS, 3, padding=1, num_params=2)
    if case.network == "network":
        plain = nn.Sequential(*[nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(LAYERS)])
        tunable = tunable_ops.convert(plain, num_params=2)
    plain, tunable = (m.to(device).to(memory_format=FORMATS[case.layout]) for m in (plain, tunable))
    x = torch.randn(case.batch, CHANNELS, 4, 4, device=device).to(memory_format=FORMATS[case.layout])
    lam = torch.tensor([0.3, 0.7] if case.alpha == "shared" else [[0.3, 0.7], [0.6, 0.4]], device=device)
    return {
        "plain": _step(plain, lambda: plain(x), case.direction),
        "tunable": _step(tunable, lambda: tunable(x, lam), case.direction),
    }


def _step(module: nn.Module, call: Callable[[], Tensor], direction: str) -> Step:
    parameters = list(module.parameters())

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [call()]

    def both() -> list[Tensor]:
        loss = call().sum()
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    return forward if direction == "forward" else both


def measure(case: HostCase, device: str, settings: Any) -> dict[str, Any]:
    """Return the results of a case, in the form of `bench.measure.measure`."""
    from tunable_ops.bench.networks import timed

    network = {"size": 4, "batch": case.batch, "direction": case.direction, "dtype": case.dtype}
    network |= {"network": f"host-{case.network}", "autocast": None, "kernels": 2, "mode": "eager"}
    return {"id": case.id, "network": network, "providers": timed(steps(case, device), "eager", device, settings)}


def _microseconds(repeats: int = 45) -> dict[str, float]:
    """Return the time of each tunable step, the least of many: what else runs on the machine only adds to it."""
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        step = steps(case)["tunable"]
        count = 8 if case.network == "layer" else 1
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(count):
                step()
            times.append((time.perf_counter() - start) / count * 1e6)
        found[case.id] = min(times[repeats // 4 :])
    return found


def _worker(python: str) -> dict[str, float]:
    # -I: without this folder's modules, and without a PYTHONPATH that would give both the same package
    command = [python, "-I", str(Path(__file__).resolve()), "--worker"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"bench: {python} must be a Python that has tunable_ops; got {result.stderr.strip()}")
    found: dict[str, float] = json.loads(result.stdout)
    return found


def main(other: str, rounds: int = 7) -> None:
    """Compare this environment's version with another's, in turn; print medians and the median of the ratios."""
    pairs = [(_worker(sys.executable), _worker(other)) for _ in range(rounds)]
    print(f"{'case':40s}{'this, us':>10s}{'other, us':>11s}{'this / other':>14s}")
    for case in CASES:
        here, there = zip(*((a[case.id], b[case.id]) for a, b in pairs), strict=True)
        ratio = statistics.median(a / b for a, b in zip(here, there, strict=True))
        print(f"{case.id:40s}{statistics.median(here):10.1f}{statistics.median(there):11.1f}{ratio:14.2f}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        print(json.dumps(_microseconds()))
    elif not 1 <= len(sys.argv) - 1 <= 2 or not all(word.isdigit() for word in sys.argv[2:]):
        print("usage: python bench/host.py OTHER/bin/python [ROUNDS]", file=sys.stderr)
        sys.exit(2)
    else:
        main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
