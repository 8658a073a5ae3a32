"""Lambda on the command line: parse it, sweep it, and name files and pictures after it."""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunable_ops import positions
from tunable_ops.positions import AUTO, describe, numbers

if TYPE_CHECKING:
    from tunable_ops.modules import LambdaSpec

__all__ = [
    "AUTO",
    "AUTO_HELP",
    "HELP",
    "KNOB",
    "Once",
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
_SLACK = 1e-6  # tolerance of ranges and sums, for values typed with few digits


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
        return _fill(spec, {name: AUTO})
    if ":" in text:
        raise ValueError(f"--lam must be numbers: only a video has a lambda that moves (SECONDS:VALUE); got {text!r}")
    parts = [part.strip() for part in text.split(",")]
    for name in (part.partition("=")[0].strip() for part in parts if "=" in part):
        if replaced and name in replaced and name not in spec.names:
            raise ValueError(f"--lam must name {', '.join(spec.names)}; got {name!r}, which is now {replaced[name]}")
    named = ["=" in part for part in parts]
    if any(named) and not all(named):
        raise ValueError(f"--lam must be all numbers or all name=number; got {text!r}")
    if all(named):
        values = _fill(spec, _named(text, parts, spec, auto))
    else:
        if len(parts) != spec.num_params:
            raise ValueError(f"--lam must have {spec.num_params} values: {describe_spec(spec)}; got {text!r}")
        values = tuple(_number(part, text) for part in parts)
    if spec.domain == "simplex" and abs(sum(values) - 1) > _SLACK:
        if sum(values) <= _SLACK:
            raise ValueError(f"--lam must sum to 1 ({', '.join(spec.names)}); got {text!r}")
        total = sum(values)
        values = tuple(value / total for value in values)
        warn(f"--lam must sum to 1; got {text!r}, which sums to {total:g}: using {describe(spec, values)}")
    defaults = zip(values, spec.defaults, strict=True)
    for remark in spec.outside([default if value == AUTO else value for value, default in defaults]):
        warn(remark)
    return values


def sweep(spec: LambdaSpec, count: int) -> list[tuple[str, list[tuple[float, ...]]]]:
    """List the positions of --sweep, as `positions.sweep`.

    Raises:
        ValueError: `count` is below 2, or the slider cannot move.
    """
    if count < 2:
        raise ValueError(f"--sweep must be at least 2 positions; got {count}")
    if not positions.can_move(spec):
        raise ValueError("--sweep must have a parameter to move; got a network whose only parameter is always 1")
    return positions.sweep(spec, count)


def sets(text: str, name: str, spec: LambdaSpec) -> bool:
    """Return True if the argument of --lam gives a value to a parameter: by its name, or with one for each."""
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


def _fill(spec: LambdaSpec, given: dict[str, Any]) -> tuple[Any, ...]:
    """Complete a lambda as `LambdaSpec.fill`; `AUTO` stays."""
    numbers = {name: 0.0 if value == AUTO else value for name, value in given.items()}
    filled = zip(spec.names, spec.fill(numbers), strict=True)
    return tuple(AUTO if given.get(name) == AUTO else value for name, value in filled)


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
