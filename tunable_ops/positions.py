"""Positions of sliders: those of a sweep, and how they read in file names and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunable_ops.grey import PARAMETER, has_knob

if TYPE_CHECKING:
    from tunable_ops.modules import LambdaSpec

__all__ = ["AUTO", "SLACK", "can_move", "describe", "fill", "moving", "numbers", "sweep"]

AUTO = "auto"  # in the place of a number: what the noise of each picture is estimated at
SLACK = 1e-6  # tolerance of ranges and sums, for values typed with few digits


def sweep(
    spec: LambdaSpec, count: int, name: str | None = None, held: Mapping[str, Any] | None = None
) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """List the positions of a sweep as rows (name of the moving parameter, `count` lambdas).

    Two parameters that sum to one give one row, from (1, 0) to (0, 1). Otherwise there is one row per parameter, over
    its range, with the others completed by `LambdaSpec.fill`; a parameter "grey" has none, as the picture sets it.

    Args:
        spec: Names, ranges, defaults and domain.
        count: Positions in a row, 2 or more.
        name: The one parameter that moves, from the low end of its range to the high one; None: each that can.
        held: Values of parameters that do not move, by name, or `AUTO`. On the simplex the others share the rest of 1.

    Raises:
        ValueError: `count` is below 2, or nothing can move.
    """
    if count < 2:
        raise ValueError(f"sweep: count must be at least 2; got {count}")
    if not can_move(spec):
        raise ValueError("sweep: spec must have a parameter that moves; got one parameter, which is always 1")
    held = held or {}
    names = moving(spec, name, held)
    if not names:
        raise ValueError(f"sweep: held must leave a parameter that can move; got {dict(held)} and name {name!r}")
    rows = []
    for each in names:
        low, high = spec.ranges[spec.names.index(each)]
        if spec.domain == "simplex":
            high = min(high, 1 - sum(held.values()))
            if name is None and spec.num_params - len(held) == 2:
                low, high = high, low
        steps = [round(low + (high - low) * k / (count - 1), 12) for k in range(count)]
        rows.append((each, [fill(spec, {**held, each: step}) for step in steps]))
    return rows


def moving(spec: LambdaSpec, name: str | None = None, held: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Return the parameters that a sweep moves, one after the other, with arguments as `sweep`; none if none can."""
    held = held or {}
    free = tuple(each for each in spec.names if each not in held)
    if spec.domain == "simplex" and (len(free) < 2 or 1 - sum(held.values()) <= SLACK):
        return ()
    if name is not None:
        return (name,) if name in free else ()
    if spec.domain == "simplex" and len(free) == 2:
        return free[:1]
    return tuple(each for each in free if each != PARAMETER or not has_knob(spec) or spec.num_params == 1)


def fill(spec: LambdaSpec, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Complete a lambda as `LambdaSpec.fill`; `AUTO` stays."""
    numbers = {name: 0.0 if value == AUTO else value for name, value in given.items()}
    filled = zip(spec.names, spec.fill(numbers), strict=True)
    return tuple(AUTO if given.get(name) == AUTO else value for name, value in filled)


def can_move(spec: LambdaSpec) -> bool:
    """Return False if the only parameter is always 1."""
    return spec.domain != "simplex" or spec.num_params > 1


def numbers(lams: Sequence[Sequence[float]]) -> list[str]:
    """Format lambdas for file names, as `0.30-0.70`, with two to six decimals.

    A single lambda is exact; several are as short as possible while different.
    """
    for decimals in range(2, 7):
        texts = ["-".join(f"{value + 0.0:.{decimals}f}" for value in lam) for lam in lams]
        exact = all(abs(round(value, decimals) - value) < 1e-9 for lam in lams for value in lam)
        if len(set(texts)) == len(lams) if len(lams) > 1 else exact:
            break
    return texts


def describe(spec: Any, lam: Sequence[Any], only: str | None = None) -> str:
    """Format a lambda for people, as `sigma 25.00 of 255, keep 0.70`, or only the parameter `only`."""
    units = getattr(spec, "units", None) or ("",) * len(spec.names)
    chosen = [part for part in zip(spec.names, lam, units, strict=True) if only in (None, part[0])]
    return ", ".join(
        f"{name} {AUTO}" if value == AUTO else f"{name} {value + 0.0:.2f}{unit and f' {unit}'}"
        for name, value, unit in chosen
    )
