"""Interleaved timing: candidates take turns, so that drift of the machine meets all of them alike.

A round calls every candidate once, in an order that rotates from round to round; a ratio is taken within its round,
and the median of the ratios is what is quoted. One call of a candidate is repeated until it takes `min_call` seconds.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call and the ratio to the yardstick (the first candidate), each as median and quartiles."""

    seconds: float
    seconds_q1: float
    seconds_q3: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """A JSON-able dict."""
        return asdict(self)


def compare(
    candidates: Mapping[str, Callable[[], Any]], *, rounds: int = 15, min_call: float = 2e-3, warmup: int = 2
) -> dict[str, Timing]:
    """Times the candidates against the first of them.

    Args:
        candidates: Names and functions without arguments; the first is the yardstick.
        rounds: How often every candidate is called, warm-up apart.
        min_call: Seconds that one turn of a candidate lasts at least (short ones are repeated).
        warmup: Untimed calls of each.

    Returns:
        A `Timing` per candidate, in their order.

    Raises:
        ValueError: No candidate, or fewer than 3 rounds.
    """
    if not candidates:
        raise ValueError("compare: candidates must hold at least one; got none")
    if rounds < 3:
        raise ValueError(f"compare: rounds must be at least 3; got {rounds}")
    names = list(candidates)
    repeats = {}
    for name, function in candidates.items():
        for _ in range(warmup):
            function()
        repeats[name] = max(1, round(min_call / max(_turn(function, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(_turn(candidates[name], repeats[name]) / repeats[name])
    yardstick = times[names[0]]
    return {name: _summary(times[name], yardstick) for name in names}


def _turn(function: Callable[[], Any], repeats: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summary(times: list[float], yardstick: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(times, yardstick, strict=True)]
    t1, t2, t3 = statistics.quantiles(times, n=4)
    r1, r2, r3 = statistics.quantiles(ratios, n=4)
    return Timing(t2, t1, t3, r2, r1, r3, len(times))
