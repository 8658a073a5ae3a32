"""Engines of `deploy.Runner`: the latency of a call, with a lambda that moves at every call and one that rests.

Every engine takes the same picture and gives a tensor; its output is compared with that of the network first, and what
differs gets no time. Rows have the form of `bench.networks`, with percentiles.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tunable_ops.bench import networks
from tunable_ops.bench import step as steps
from tunable_ops.bench.measure import Settings, failure
from tunable_ops.bench.timing import cpu_threads, summary

import tunable_ops
from tunable_ops import pretrained
from tunable_ops.deploy import Runner, export_onnx
from tunable_ops.deploy.engine import ENGINES, SESSIONS, Options, unavailable_reason

BOUND = 1e-3  # rms of the error over that of the output
NAMES = {
    "plain": "the folded network, eager, channels_last",
    **{
        f"{engine}-{how}": f"Runner with engine {engine!r}, {text}"
        for engine in ENGINES["network"]
        for how, text in (("moving", "another lambda at every call"), ("resting", "lambda at rest"))
    },
}
_SETTLE = 4  # calls after which a lambda rests
_NETWORKS = {
    "denoise": (256, [{"sigma": sigma, "texture": 0.5} for sigma in (25.0, 20.0, 15.0)]),
    "super_resolution_x4": (128, [{"perceptual": value} for value in (0.5, 0.25, 0.75)]),
}


@dataclass(frozen=True)
class DeployCase(networks.NetworkCase):
    """A network that ships, and the number of threads of every engine."""

    threads: int = 1

    @property
    def id(self) -> str:
        """Return the name that filters match and results carry."""
        return f"{self.network}-{self.size}x{self.size}-B{self.batch}-{self.dtype}-T{self.threads}"


class Call(NamedTuple):
    """A step, and what is called before it, outside of its time: a lambda rests where the call before had it too."""

    step: steps.Step
    before: steps.Step = lambda: []


def deploy_suite(device: str) -> list[DeployCase]:
    """Return the denoiser and the network that enlarges four times, on one and two threads; nothing on a GPU."""
    if device != "cpu":
        return []
    return [DeployCase(name, size, 1, threads=n) for n in (1, 2) for name, (size, _) in _NETWORKS.items()]


def measure(case: DeployCase, device: str, settings: Settings, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the results of a network, in the form of `bench.measure.measure`.

    Args:
        case: The network.
        device: "cpu".
        settings: How long to measure; up to 100 rounds as far as the budget allows, which is taken 20 times.
        names: Who is timed beside "plain"; by default all of `NAMES`.
    """
    row: dict[str, Any] = {"id": case.id, "network": case.to_dict()}
    wanted = [name for name in NAMES if name == "plain" or not names or name in names]
    with cpu_threads(case.threads):
        try:
            ready, results = prepare(case, wanted)
        except Exception as error:
            return {**row, "providers": dict.fromkeys(wanted, failure(error))}
        results.update(timed(ready, settings, device))
    return {**row, "providers": {name: results[name] for name in wanted}}


def prepare(case: DeployCase, wanted: Sequence[str]) -> tuple[dict[str, Call], dict[str, dict[str, Any]]]:
    """Return the calls by name, each with its output checked, and the results of those that have none."""
    net, lams = network(case.network)
    x = torch.rand(case.batch, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [net(x, lam) for lam in lams]
        folded = tunable_ops.fold(net, lams[0]).to(memory_format=torch.channels_last)
    ready: dict[str, Call] = {"plain": Call(_plain(folded, x.contiguous(memory_format=torch.channels_last)))}
    results: dict[str, dict[str, Any]] = {}
    for engine in ENGINES["network"]:
        mine = [name for name in wanted if name.rpartition("-")[0] == engine]
        reason = unavailable_reason(engine, "network", Options()) if mine else None
        if reason is not None:
            results.update({name: {"status": "unsupported", "reason": reason} for name in mine})
        if reason is not None or not mine:
            continue
        try:
            source = exported(case.network) if engine in SESSIONS else net
            runner = Runner(source, engine, sizes=[(case.size, case.size)])
            moving, resting = _moving(runner, x, lams[1:]), _resting(runner, x, lams[0])
            for place in range(_SETTLE):
                check(f"{engine}-resting", resting()[0], expected[0])
                check(f"{engine}-moving", moving()[0], expected[1 + place % 2])
            for _ in range(_SETTLE):
                check(f"{engine}-resting", resting()[0], expected[0])
            made = {f"{engine}-moving": Call(moving), f"{engine}-resting": Call(resting, resting)}
            ready.update({name: made[name] for name in mine})
        except Exception as error:
            results.update({name: failure(error) for name in mine})
    return ready, results


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # removed when the process ends


@functools.lru_cache
def exported(name: str) -> Path:
    """Return the ONNX file of a network, which is what a Runner makes of it."""
    path = Path(_folder().name) / f"{name}.onnx"
    export_onnx(network(name)[0], path)
    return path


def network(name: str) -> tuple[nn.Module, list[dict[str, float]]]:
    """Return a tunable network, a lambda that rests, and two that take turns."""
    return pretrained.load(name).eval(), _NETWORKS[name][1]


def check(name: str, got: Tensor, expected: Tensor) -> None:
    """Raise for an output that differs from that of the network by more than `BOUND`."""
    error = ((got.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()
    if not error <= BOUND:
        raise ArithmeticError(f"{name}: rms error of the output must be at most {BOUND}; got {error:.2g}")


def timed(ready: dict[str, Call], settings: Settings, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Return times with percentiles by name; the calls take turns, in an order that rotates from round to round."""
    names = list(ready)
    once = 0.0
    for _ in range(2):  # the first round warms up
        start = time.perf_counter()
        for call in ready.values():
            call.before()
            call.step()
        once = time.perf_counter() - start
    rounds = max(5, min(max(100, settings.rounds), int(20 * settings.budget / once)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            ready[name].before()
            start = time.perf_counter()
            ready[name].step()
            times[name].append(time.perf_counter() - start)
    results = {}
    for name, each in times.items():
        extra = {"peak_bytes": steps.peak_bytes(ready[name].step, device), "launches": None}
        results[name] = {"status": "ok", **summary(each, times[names[0]]).to_dict(), **percentiles(each), **extra}
    return results


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile; of few times, the last ones are near the longest."""
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {f"p{place}": cuts[place - 1] for place in (50, 95, 99)}


def _plain(net: nn.Module, x: Tensor) -> steps.Step:
    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [net(x)]

    return forward


def _resting(runner: Runner, x: Tensor, lam: dict[str, float]) -> steps.Step:
    return lambda: [runner(x, lam)]


def _moving(runner: Runner, x: Tensor, lams: Sequence[dict[str, float]]) -> steps.Step:
    count = 0

    def forward() -> list[Tensor]:
        nonlocal count
        count += 1
        return [runner(x, lams[(count - 1) % 2])]

    return forward
