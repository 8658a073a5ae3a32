"""tunable_ops.bench.timing: ratios of interleaved rounds."""

import time

import pytest
from tunable_ops.bench import timing


def test_ratio_of_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of its own: B takes three times as long as A while the machine slows down fivefold."""
    now = [0.0]
    slowdown = [1.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds * slowdown[0]
        slowdown[0] *= 1.02

    result = timing.compare({"a": lambda: spend(1e-2), "b": lambda: spend(3e-2)}, rounds=21, min_call=1e-3)
    assert list(result) == ["a", "b"]
    assert result["a"].ratio == 1.0
    assert result["b"].ratio == pytest.approx(3.0, rel=0.03)
    assert result["b"].seconds > result["a"].seconds
    assert result["b"].ratio_q1 <= result["b"].ratio <= result["b"].ratio_q3
    assert result["b"].rounds == 21


def test_candidates_take_turns_in_a_rotating_order() -> None:
    calls: list[str] = []
    timing.compare({n: (lambda n=n: calls.append(n)) for n in "abc"}, rounds=3, min_call=0, warmup=0)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


def test_short_calls_are_repeated() -> None:
    count = [0]
    timing.compare({"a": lambda: count.__setitem__(0, count[0] + 1)}, rounds=3, min_call=1e-3, warmup=0)
    assert count[0] > 100


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="compare: candidates must hold at least one; got none"):
        timing.compare({})
    with pytest.raises(ValueError, match="compare: rounds must be at least 3; got 2"):
        timing.compare({"a": lambda: None}, rounds=2)
