"""Interleaved timing: candidates take turns, so that drift of the machine meets all of them alike.

A round calls every candidate once, in an order that rotates from round to round; a ratio is taken within its round,
and the median of the ratios is what is quoted.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call and the ratio to the baseline (the first candidate), each as median and quartiles."""

    seconds: float
    seconds_q1: float
    seconds_q3: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """Return a JSON-able dict."""
        return asdict(self)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use a number of CPU threads, for the duration of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Clock(Protocol):
    """How one turn of a candidate is timed."""

    def turn(self, function: Callable[[], Any], repeats: int) -> float:
        """Return the seconds that `repeats` calls take in all."""
        ...


class WallClock:
    """Back-to-back calls on the CPU."""

    def turn(self, function: Callable[[], Any], repeats: int) -> float:
        """Return the seconds that `repeats` calls take in all."""
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        return time.perf_counter() - start


class ProcessClock:
    """Back-to-back calls on the CPU, in the time that the process had of it."""

    def turn(self, function: Callable[[], Any], repeats: int) -> float:
        """Return the seconds that `repeats` calls take in all."""
        start = time.process_time()
        for _ in range(repeats):
            function()
        return time.process_time() - start


class CudaClock:
    """Events around each call, after a write to a buffer larger than the L2 cache.

    With `host`, the device is idle when a call begins, so that launching counts: the latency of an eager call. Without
    it the calls queue behind the writes, and only the device's time counts: what a replayed graph takes.
    """

    def __init__(self, host: bool) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = 2 * max(properties.L2_cache_size, 32 << 20)
        self._flush = torch.empty(size, dtype=torch.int8, device="cuda")
        self._host = host

    def turn(self, function: Callable[[], Any], repeats: int) -> float:
        """Return the seconds that `repeats` calls take in all."""
        pairs = []
        for _ in range(repeats):
            pairs.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._flush.zero_()
            if self._host:
                torch.cuda.synchronize()
            pairs[-1][0].record()
            function()
            pairs[-1][1].record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3


def compare(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    min_call: float = 2e-3,
    warmup: int = 2,
    budget: float | None = None,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time the candidates against the first of them.

    Args:
        candidates: Names and functions without arguments; the first is the baseline.
        rounds: How often every candidate is called, warm-up apart.
        min_call: Seconds that one turn of a candidate lasts at least (short ones are repeated).
        warmup: Untimed calls of each.
        budget: Seconds that all rounds together may take; rounds are left out, down to 5 (or `rounds`).
        clock: Default `WallClock`.

    Returns:
        A `Timing` per candidate, in their order.

    Raises:
        ValueError: No candidate, or fewer than 3 rounds.
    """
    if not candidates:
        raise ValueError("compare: candidates must hold at least one; got none")
    if rounds < 3:
        raise ValueError(f"compare: rounds must be at least 3; got {rounds}")
    clock = clock or WallClock()
    names = list(candidates)
    repeats, round_cost = {}, 0.0
    for name, function in candidates.items():
        for _ in range(warmup):
            function()
        once = max(clock.turn(function, 1), 1e-7)
        repeats[name] = max(1, round(min_call / once))
        round_cost += repeats[name] * once
    if budget is not None:
        rounds = min(rounds, max(5, int(budget / round_cost)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(clock.turn(candidates[name], repeats[name]) / repeats[name])
    baseline = times[names[0]]
    return {name: summary(times[name], baseline) for name in names}


def summary(times: Sequence[float], baseline: Sequence[float]) -> Timing:
    """Return median and quartiles of times, and of their ratios to those of the baseline in the same rounds."""
    ratios = [a / b for a, b in zip(times, baseline, strict=True)]
    t1, t2, t3 = statistics.quantiles(times, n=4)
    r1, r2, r3 = statistics.quantiles(ratios, n=4)
    return Timing(t2, t1, t3, r2, r1, r3, len(times))
