"""Lambda on the command line: parse it, sweep it, and name files and pictures after it."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tunable_ops.grey import PARAMETER, has_knob

if TYPE_CHECKING:
    from tunable_ops.modules import LambdaSpec

__all__ = ["HELP", "KNOB", "describe", "numbers", "parse", "sets", "sweep"]

HELP = (
    "slider position: numbers in order (0.3,0.7) or by name (denoise=0.3). Omitted parameters have their defaults or, "
    "if lambda sums to one, share the rest. Write --lam=-0.1,... if the first number is negative"
)
KNOB = (
    "file of a knob that was trained on the network, which may then be a file of published weights; repeat it for "
    "several knobs"
)
_SLACK = 1e-6  # tolerance of ranges and sums, for values typed with few digits


def parse(text: str, spec: LambdaSpec, warn: Callable[[str], object] = warnings.warn) -> tuple[float, ...]:
    """Parse `0.3,0.7` or `denoise=0.3,keep=0.7`.

    Values outside their range are used with a warning. On the simplex, values whose sum is positive but not 1 are
    divided by it, with a warning: otherwise the network would also scale its pictures.

    Args:
        text: Argument of --lam.
        spec: Names, ranges, defaults and domain.
        warn: Called with each warning.

    Returns:
        One value per parameter.

    Raises:
        ValueError: Values are not finite numbers, too few or too many, a name is unknown or repeated, or the sum on the
            simplex is not positive.
    """
    parts = [part.strip() for part in text.split(",")]
    named = ["=" in part for part in parts]
    if any(named) and not all(named):
        raise ValueError(f"--lam must be all numbers or all name=number; got {text!r}")
    if all(named):
        values = fill(spec, _named(text, parts, spec))
    else:
        if len(parts) != spec.num_params:
            raise ValueError(f"--lam must have {spec.num_params} values ({', '.join(spec.names)}); got {text!r}")
        values = tuple(_number(part, text) for part in parts)
    if spec.domain == "simplex" and abs(sum(values) - 1) > _SLACK:
        if sum(values) <= _SLACK:
            raise ValueError(f"--lam must sum to 1 ({', '.join(spec.names)}); got {text!r}")
        total = sum(values)
        values = tuple(value / total for value in values)
        warn(f"--lam must sum to 1; got {text!r}, which sums to {total:g}: using {describe(spec, values)}")
    for name, value, (low, high) in zip(spec.names, values, spec.ranges, strict=True):
        if not low - _SLACK <= value <= high + _SLACK:
            warn(f"{name} = {value:g} is outside the range {low:g}..{high:g} of the training")
    return values


def sets(text: str, name: str, spec: LambdaSpec) -> bool:
    """Return True if the argument of --lam gives a value to a parameter: by its name, or with one for each."""
    parts = text.split(",")
    if "=" in text:
        return name in (part.partition("=")[0].strip() for part in parts)
    return len(parts) == spec.num_params


def fill(spec: LambdaSpec, given: Mapping[str, float]) -> tuple[float, ...]:
    """Complete a lambda of which some values are given.

    On the box the others have their defaults; on the simplex they share the rest of 1 in proportion to their defaults
    (equally, if those are all 0).
    """
    if spec.domain != "simplex" or len(given) == spec.num_params:
        return tuple(given.get(name, default) for name, default in zip(spec.names, spec.defaults, strict=True))
    rest = {name: default for name, default in zip(spec.names, spec.defaults, strict=True) if name not in given}
    total, left = sum(rest.values()), 1 - sum(given.values())
    # rounded, so that 1 - 0.8 reads 0.2 in file names and notes
    share = {name: round(left * (value / total if total > 0 else 1 / len(rest)), 12) for name, value in rest.items()}
    return tuple(given[name] if name in given else share[name] for name in spec.names)


def sweep(spec: LambdaSpec, count: int) -> list[tuple[str, list[tuple[float, ...]]]]:
    """List the positions of a sweep as rows (name of the moving parameter, `count` lambdas).

    Two parameters that sum to one give one row, from (1, 0) to (0, 1). Otherwise there is one row per parameter, over
    its range, with the others completed by `fill`; a parameter "grey" has none, as the picture sets it.

    Raises:
        ValueError: `count` is below 2, or the slider cannot move.
    """
    if count < 2:
        raise ValueError(f"--sweep must be at least 2 positions; got {count}")
    if spec.domain == "simplex" and spec.num_params == 1:
        raise ValueError("--sweep must have a parameter to move; got a network whose only parameter is always 1")
    moving = spec.names[:1] if spec.domain == "simplex" and spec.num_params == 2 else spec.names
    rows = []
    for name in moving:
        low, high = spec.ranges[spec.names.index(name)]
        if len(moving) < spec.num_params:
            low, high = high, low
        steps = [round(low + (high - low) * k / (count - 1), 12) for k in range(count)]
        rows.append((name, [fill(spec, {name: step}) for step in steps]))
    return [row for row in rows if row[0] != PARAMETER or not has_knob(spec) or len(rows) == 1]


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


def describe(spec: LambdaSpec, lam: Sequence[float], only: str | None = None) -> str:
    """Format a lambda for people, as `denoise 0.30, keep 0.70`, or only the parameter `only`."""
    chosen = [(name, value) for name, value in zip(spec.names, lam, strict=True) if only in (None, name)]
    return ", ".join(f"{name} {value + 0.0:.2f}" for name, value in chosen)


def _named(text: str, parts: Sequence[str], spec: LambdaSpec) -> dict[str, float]:
    given: dict[str, float] = {}
    for part in parts:
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in spec.names:
            near = difflib.get_close_matches(name, spec.names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--lam must name parameters of the network ({', '.join(spec.names)}); got {name!r}{hint}")
        if name in given:
            raise ValueError(f"--lam must name each parameter once; got {text!r}")
        given[name] = _number(number, text)
    return given


def _number(part: str, text: str) -> float:
    try:
        value = float(part)
    except ValueError:
        raise ValueError(f"--lam must be numbers such as 0.3,0.7 or name=0.3; got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"--lam must be finite numbers; got {text!r}")
    return value
