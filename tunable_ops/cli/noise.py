"""The knob that says how noisy a picture is: set it to an estimate, or compare it with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunable_ops.cli.lam import AUTO, noise_knob

if TYPE_CHECKING:
    from torch import Tensor

    from tunable_ops.modules import LambdaSpec

__all__ = ["advice", "estimate", "settle"]

# Texture reads as noise: of 99 clean photographs (kodak24, half of cbsd68, set5, set14, ...) the median estimate was
# 2.2, 95 % were below 8.0, and the largest was 12.6. With these limits none of them is warned about at 0, nor with
# noise of sigma 5 to 50 at the true level; at 25, 98 of the clean ones are.
_FACTOR, _APART = 2.0, 13.0


def estimate(picture: Tensor) -> float:
    """Return the estimated deviation of the noise in [C, H, W], of 255; 0 for pictures below 8x8 pixels."""
    from tunable_ops.images import estimate_noise

    return estimate_noise(picture) if min(picture.shape[1:]) >= 8 else 0.0


def settle(lam: Sequence[Any], spec: LambdaSpec, sigma: float) -> tuple[float, ...]:
    """Return a lambda with an estimate, limited to the range, in the place of `AUTO`."""
    return tuple(
        round(min(max(sigma, low), high), 2) if value == AUTO else value
        for value, (low, high) in zip(lam, spec.ranges, strict=True)
    )


def advice(lam: Sequence[float], spec: Any, sigma: float) -> str | None:
    """Return a warning if the knob and the estimate are a factor of 2 and 13 of 255 apart; None for other networks."""
    try:
        place = noise_knob(spec)
    except (AttributeError, ValueError):
        return None
    value, (low, high) = lam[place], spec.ranges[place]
    expected = min(max(sigma, low), high)
    small, large = sorted((value, expected))
    if large - small <= _APART or large < _FACTOR * small:
        return None
    name = spec.names[place]
    return f"{name} is {value:g} of 255, but the noise is estimated at {sigma:.1f}: consider --lam {name}={AUTO}"
