"""Where sliders go: together on the simplex, to the other end for a mask, from end to end for a strip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunable_ops.app.engine import Lambda
from tunable_ops.positions import sweep

__all__ = ["far", "moved", "positions"]


def moved(spec: Any, values: Sequence[float], place: int, value: float) -> Lambda:
    """Return lambda after one slider has moved; on the simplex the others share the rest as they did before.

    Args:
        spec: Of the network.
        values: Lambda before.
        place: Which slider.
        value: Where it is now.

    Example:
        >>> from tunable_ops.modules import LambdaSpec
        >>> moved(LambdaSpec.create(3), (0.5, 0.25, 0.25), 0, 0.0)
        (0.0, 0.5, 0.5)
    """
    if spec.domain != "simplex":
        return tuple(value if i == place else old for i, old in enumerate(values))
    rest = sum(old for i, old in enumerate(values) if i != place)
    others = len(values) - 1
    return tuple(
        (value if others else 1.0)
        if i == place
        else round((1 - value) * (old / rest if rest > 1e-9 else 1 / others), 12)
        for i, old in enumerate(values)
    )


def far(spec: Any) -> Lambda:
    """Return the lambda that a mask begins with: the defaults, with the first parameter at its other end."""
    (low, high), default = spec.ranges[0], spec.defaults[0]
    return moved(spec, spec.defaults, 0, high if default - low < high - default else low)


def positions(spec: Any, values: Lambda, name: str, count: int) -> list[Lambda]:
    """Return `count` positions of one parameter from end to end, the others where they are.

    On the simplex the others share the rest.

    Args:
        spec: Of the network.
        values: Where the sliders are.
        name: Of the parameter that moves.
        count: 2 at least.
    """
    if spec.domain == "box":
        place = spec.names.index(name)
        low, high = spec.ranges[place]
        steps = [low + (high - low) * k / (count - 1) for k in range(count)]
        return [tuple(step if i == place else old for i, old in enumerate(values)) for step in steps]
    lams = next((lams for moving, lams in sweep(spec, count) if moving == name), None)
    return lams or [spec.fill({name: k / (count - 1)}) for k in range(count)]
