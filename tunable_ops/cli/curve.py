"""A lambda that changes over time, on the command line: `--lam texture=0:0.2,10:0.8`."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import lam as lambdas

if TYPE_CHECKING:
    from tunable_ops.modules import LambdaSpec

__all__ = ["CURVE_HELP", "Curve", "parse_curve"]

CURVE_HELP = (
    "for a video, SECONDS:VALUE in the place of a number moves it, linearly between the times and at rest before the "
    "first and after the last: texture=0:0.2,10:0.8 or, for a network of one parameter, 0:0.2,10:0.8"
)


@dataclass(frozen=True)
class Curve:
    """Lambda as a function of time.

    Args:
        times: Seconds, increasing; one for a lambda that rests.
        lams: Lambda at each; `lam.AUTO` in the place of a number that is still to be estimated.
    """

    times: tuple[float, ...]
    lams: tuple[tuple[Any, ...], ...]

    @property
    def moves(self) -> bool:
        """True if lambda changes."""
        return len(set(self.lams)) > 1

    def at(self, seconds: float) -> tuple[Any, ...]:
        """Return lambda at a time: lam_k + (t - t_k) / (t_{k+1} - t_k) (lam_{k+1} - lam_k)."""
        place = bisect.bisect_right(self.times, seconds)
        if place in (0, len(self.times)):
            return self.lams[max(0, place - 1)]
        before, after = self.times[place - 1 : place + 1]
        part = (seconds - before) / (after - before)
        old, new = self.lams[place - 1 : place + 1]
        return tuple(a if a == b else a + part * (b - a) for a, b in zip(old, new, strict=True))

    def settled(self, settle: Callable[[tuple[Any, ...]], tuple[float, ...]]) -> Curve:
        """Return the curve with a function applied to the lambda of each time."""
        return Curve(self.times, tuple(settle(lam) for lam in self.lams))

    def describe(self, spec: Any) -> str:
        """Return the curve for people: `sigma 25.00 of 255, texture 0.20 to 0.80`."""
        if not self.moves:
            return lambdas.describe(spec, self.lams[0])
        parts = []
        for place, name in enumerate(spec.names):
            values = [lam[place] for lam in self.lams]
            text = lambdas.describe(spec, self.lams[0], name)
            if len(set(values)) > 1:
                way = ", ".join(f"{value:.2f} at {time:g} s" for time, value in zip(self.times, values, strict=True))
                text = f"{name} {way}"
            parts.append(text)
        return ", ".join(parts)


def parse_curve(
    text: str,
    spec: LambdaSpec,
    warn: Callable[[str], object] = warnings.warn,
    replaced: Mapping[str, str] | None = None,
) -> Curve:
    """Parse `sigma=auto,texture=0:0.2,10:0.8`, or whatever `lam.parse` takes for a lambda that rests.

    Parameters may have times of their own. At every time that one of them names, lambda is completed and checked as one
    that rests; each warning is given once.

    Args:
        text: Argument of --lam.
        spec: Names, ranges, defaults and domain.
        warn: Called with each warning.
        replaced: As for `lam.parse`.

    Raises:
        ValueError: As `lam.parse`; or times that are negative, not finite or do not increase, a parameter that has both
            times and none, or one that moves without its name where there are several.
    """
    if ":" not in text:
        return Curve((0.0,), (lambdas.parse(text, spec, warn, auto=True, replaced=replaced),))
    points = {name: _points(parts, text) for name, parts in _parts(text, spec).items()}
    times = sorted({time for known in points.values() if isinstance(known, list) for time, _ in known})
    said: set[str] = set()

    def once(message: str) -> None:
        if message not in said:
            said.add(message)
            warn(message)

    lams = []
    for time in times:
        values = {name: _value(known, time) for name, known in points.items()}
        word = ",".join(f"{name}={value}" for name, value in values.items())
        lams.append(tuple(lambdas.parse(word, spec, once, auto=True, replaced=replaced)))
    return Curve(tuple(times), tuple(lams))


def _parts(text: str, spec: LambdaSpec) -> dict[str, list[str]]:
    """Return the values of each parameter, as texts."""
    found: dict[str, list[str]] = {}
    name = None
    for part in (piece.strip() for piece in text.split(",")):
        before, equals, value = (piece.strip() for piece in part.partition("="))
        if equals:
            name = before
            if name in found:
                raise ValueError(f"--lam must name each parameter once; got {text!r}")
        elif name is None:
            if spec.num_params > 1:
                known = lambdas.describe_spec(spec)
                raise ValueError(f"--lam must name what moves, as {spec.names[0]}=0:0.2,10:0.8 ({known}); got {text!r}")
            name, value = spec.names[0], part
        else:
            value = part
        found.setdefault(name, []).append(value)
    return found


def _points(parts: Sequence[str], text: str) -> str | list[tuple[float, float]]:
    """Return the one value of a parameter as it is, or (seconds, value) of one that moves."""
    if len(parts) == 1 and ":" not in parts[0]:
        return parts[0]
    points = []
    for part in parts:
        time, colon, value = part.partition(":")
        try:
            point = (float(time), float(value))
        except ValueError:
            point = (math.nan, math.nan)
        if not colon or not all(map(math.isfinite, point)) or point[0] < 0:
            raise ValueError(f"--lam must be SECONDS:VALUE where it moves, such as 10:0.8; got {part!r} in {text!r}")
        points.append(point)
    if any(after <= before for (before, _), (after, _) in pairwise(points)):
        raise ValueError(f"--lam must have times that increase; got {text!r}")
    return points


def _value(known: str | list[tuple[float, float]], time: float) -> str:
    if isinstance(known, str):
        return known
    curve = Curve(tuple(t for t, _ in known), tuple((value,) for _, value in known))
    return repr(curve.at(time)[0])
