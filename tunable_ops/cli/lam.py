"""Lambda on the command line: parse it, sweep it, and name files and pictures after it."""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunable_ops import positions
from tunable_ops.positions import AUTO, SLACK, describe, fill, numbers

if TYPE_CHECKING:
    from tunable_ops.modules import LambdaSpec

__all__ = [
    "AUTO",
    "AUTO_HELP",
    "HELP",
    "KNOB",
    "Once",
    "Sweep",
    "already_warned",
    "describe",
    "describe_spec",
    "noise_knob",
    "numbers",
    "parse",
    "sets",
    "sweep",
]

HELP = (
    "slider position: numbers in order (0.3,0.7) or by name (sigma=25), in the units that `tunable-ops info MODEL` "
    "lists. Omitted parameters have their defaults or, if lambda sums to one, share the rest. Write --lam=-0.1,... if "
    "the first number is negative"
)
AUTO_HELP = "`auto`, or `sigma=auto`, estimates the noise of each picture, for networks with such a parameter"
KNOB = (
    "file of a knob that was trained on the network, or its folder of `save_pretrained`; the network may then be a "
    "file of published weights; repeat it for several knobs"
)


class Once(argparse.Action):
    """--lam of a command that takes one position: giving it twice is an error, and not the last one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Take the value.

        Raises:
            SystemExit: There is one already.
        """
        before = getattr(namespace, self.dest)
        if before is not None:
            several = "; several positions: --sweep" if hasattr(namespace, "sweep") else ""
            parser.error(f"--lam must be given once; got {before!r} and {values!r}{several}")
        setattr(namespace, self.dest, values)


@dataclass(frozen=True)
class Sweep:
    """Argument of --sweep.

    Args:
        count: Number of positions.
        name: The parameter that moves; None where it is not said.
    """

    count: int
    name: str | None = None

    @classmethod
    def read(cls, text: str) -> Sweep:
        """Read `5` or `texture=5`.

        Raises:
            argparse.ArgumentTypeError: It is neither.
        """
        name, equals, count = (part.strip() for part in text.rpartition("="))
        if not re.fullmatch(r"[+-]?\d+", count) or (equals and not name):
            raise argparse.ArgumentTypeError(f"must be a number of positions such as 5, or name=5; got {text!r}")
        return cls(int(count), name or None)

    def __str__(self) -> str:
        """Return it as it is written."""
        return str(self.count) if self.name is None else f"{self.name}={self.count}"


def parse(
    text: str,
    spec: LambdaSpec,
    warn: Callable[[str], object] = warnings.warn,
    auto: bool = False,
    replaced: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Parse `0.3,0.7` or `denoise=0.3,keep=0.7`.

    Values outside their range are used with a warning. On the simplex, values whose sum is positive but not 1 are
    divided by it, with a warning: otherwise the network would also scale its pictures.

    Args:
        text: Argument of --lam.
        spec: Names, ranges, defaults and domain.
        warn: Called with each warning.
        auto: Take `auto` and `sigma=auto`.
        replaced: Names that parameters had before, with what they are now, for the error about such a name.

    Returns:
        One value per parameter, `AUTO` where it is to be estimated.

    Raises:
        ValueError: Values are not finite numbers, too few or too many, a name is unknown or repeated, or the sum on the
            simplex is not positive.
    """
    if text.strip() == AUTO:
        name = spec.names[noise_knob(spec)]
        _check_auto(name, spec, auto, text)
        return fill(spec, {name: AUTO})
    if ":" in text:
        raise ValueError(f"--lam must be numbers: only a video has a lambda that moves (SECONDS:VALUE); got {text!r}")
    parts = [part.strip() for part in text.split(",")]
    for name in (part.partition("=")[0].strip() for part in parts if "=" in part):
        _check_replaced("--lam", name, spec, replaced)
    named = ["=" in part for part in parts]
    if any(named) and not all(named):
        raise ValueError(f"--lam must be all numbers or all name=number; got {text!r}")
    if all(named):
        values = fill(spec, _named(text, parts, spec, auto))
    else:
        if len(parts) != spec.num_params:
            raise ValueError(
                f"--lam must have {spec.num_params} values: {describe_spec(spec)}; got {text!r}{_by_name(parts, spec)}"
            )
        values = tuple(_number(part, text) for part in parts)
    if spec.domain == "simplex" and abs(sum(values) - 1) > SLACK:
        if sum(values) <= SLACK:
            raise ValueError(f"--lam must sum to 1 ({', '.join(spec.names)}); got {text!r}")
        total = sum(values)
        values = tuple(value / total for value in values)
        warn(f"--lam must sum to 1; got {text!r}, which sums to {total:g}: using {describe(spec, values)}")
    defaults = zip(values, spec.defaults, strict=True)
    for remark in spec.outside([default if value == AUTO else value for value, default in defaults]):
        warn(remark)
    return values


def sweep(
    spec: LambdaSpec,
    count: int,
    name: str | None = None,
    lam: str | None = None,
    replaced: Mapping[str, str] | None = None,
) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """List the positions of --sweep, as `positions.sweep`.

    Args:
        spec: Names, ranges, defaults and domain.
        count: Number of positions.
        name: The one parameter that moves.
        lam: Argument of --lam, with the parameters that do not move.
        replaced: As for `parse`.

    Raises:
        ValueError: `count` is below 2, the slider cannot move, `name` is unknown or set by `lam`, `lam` leaves nothing
            to move, or as `parse`.
    """
    if count < 2:
        raise ValueError(f"--sweep must be at least 2 positions; got {count}")
    if not positions.can_move(spec):
        raise ValueError("--sweep must have a parameter to move; got a network whose only parameter is always 1")
    if name is not None and name not in spec.names:
        _check_replaced("--sweep", name, spec, replaced)
        raise ValueError(f"--sweep must name {spec.unknown(name)}")
    if lam is None:
        return positions.sweep(spec, count, name)
    values = zip(spec.names, parse(lam, spec, auto=True, replaced=replaced), strict=True)
    held = {each: value for each, value in values if sets(lam, each, spec)}
    if name in held:
        raise ValueError(f"--lam must leave out {name!r}, which --sweep moves; got {lam!r}")
    if not positions.moving(spec, name, held):
        raise ValueError(_nothing_moves(spec, held, lam))
    return positions.sweep(spec, count, name, held)


def sets(text: str, name: str, spec: LambdaSpec) -> bool:
    """Return True if the argument of --lam gives a value to a parameter: by its name, or with one for each."""
    if text.strip() == AUTO:
        return name == spec.names[noise_knob(spec)]
    parts = text.split(",")
    if "=" in text:
        return name in (part.partition("=")[0].strip() for part in parts)
    return len(parts) == spec.num_params


def already_warned() -> None:
    """Ignore the warnings that the network gives for a lambda about which `parse` has warned."""
    from tunable_ops.modules import LambdaWarning

    warnings.simplefilter("ignore", LambdaWarning)


def noise_knob(spec: LambdaSpec) -> int:
    """Return the place of the parameter that says how strong the noise is: the only one in units "of 255".

    Raises:
        ValueError: There is none, or more than one.
    """
    places = [place for place, unit in enumerate(spec.units) if unit == "of 255"]
    if len(places) != 1 or spec.domain != "box":
        units = ", ".join(f"{name} ({unit or 'no unit'})" for name, unit in zip(spec.names, spec.units, strict=True))
        raise ValueError(f"--lam must be numbers for a network without one parameter for noise (of 255); got {units}")
    return places[0]


def describe_spec(spec: LambdaSpec) -> str:
    """Format the parameters for people: name, range, unit and default of each."""
    return ", ".join(
        f"{name} {low:g} to {high:g}{unit and f' {unit}'} (default {default:g})"
        for name, (low, high), unit, default in zip(spec.names, spec.ranges, spec.units, spec.defaults, strict=True)
    )


def _check_replaced(option: str, name: str, spec: LambdaSpec, replaced: Mapping[str, str] | None) -> None:
    """Refuse a name that a parameter had before."""
    if replaced and name in replaced and name not in spec.names:
        raise ValueError(f"{option} must name {', '.join(spec.names)}; got {name!r}, which is now {replaced[name]}")


def _nothing_moves(spec: LambdaSpec, held: Mapping[str, Any], lam: str) -> str:
    """Return the error about values of --lam that leave --sweep nothing to move, with what to do instead."""
    simplex = spec.domain == "simplex"
    names = spec.names if simplex else positions.moving(spec)
    one = " (they sum to 1)" if simplex else ""
    free = [each for each in spec.names if each not in names and each not in held]  # moves only by its name: grey
    if free:
        advice = f": --sweep {free[0]}=N moves {free[0]}"
    else:
        advice = ": name the others alone" if spec.num_params > 1 else ""
    return f"--lam must leave --sweep a parameter to move, of {', '.join(names)}{one}; got {lam!r}{advice}"


def _named(text: str, parts: Sequence[str], spec: LambdaSpec, auto: bool) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for part in parts:
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in spec.names:
            raise ValueError(f"--lam must name {spec.unknown(name)}")
        if name in given:
            raise ValueError(f"--lam must name each parameter once; got {text!r}")
        if number == AUTO:
            _check_auto(name, spec, auto, text)
        given[name] = AUTO if number == AUTO else _number(number, text)
    return given


def _by_name(parts: Sequence[str], spec: LambdaSpec) -> str:
    """Return the end of an error about too few numbers: how to give them by name."""
    try:
        named = [f"{name}={float(part):g}" for name, part in zip(spec.names, parts, strict=False)]
    except ValueError:
        return ""
    return f": some can be given by name, such as {','.join(named)}" if len(parts) < spec.num_params else ""


def _check_auto(name: str, spec: LambdaSpec, auto: bool, text: str) -> None:
    """Refuse `auto` where nothing is estimated."""
    if not auto:
        raise ValueError(f"--lam must be numbers where there is no picture to estimate the noise of; got {text!r}")
    known = spec.names[noise_knob(spec)]
    if name != known:
        raise ValueError(f"--lam must be a number for {name!r}, {AUTO!r} is for {known!r} alone; got {text!r}")


def _number(part: str, text: str) -> float:
    try:
        value = float(part)
    except ValueError:
        raise ValueError(f"--lam must be numbers such as 0.3,0.7 or name=0.3; got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"--lam must be finite numbers; got {text!r}")
    return value
