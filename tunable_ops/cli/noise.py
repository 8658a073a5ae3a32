"""The knob that says how noisy a picture is: set it to an estimate, or compare it with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunable_ops.cli.lam import AUTO, noise_knob

if TYPE_CHECKING:
    from torch import Tensor

    from tunable_ops.modules import LambdaSpec

__all__ = ["advice", "estimate", "finding", "settle"]

# Texture reads as noise: of 111 clean photographs (kodak24, cbsd68, set5, set14) the median estimate was 2.3, 95 % were
# below 8.0, and the largest was 12.6. With these limits none of them is warned about at 0, nor with noise of sigma 5 to
# 50 at the true level; at 25, 109 of the clean ones are (examples/pretrained/noise_estimates.py).
_FACTOR, _APART = 2.0, 13.0
_SMALLEST = 8  # pixels of a side, as of `images.estimate_noise`


def estimate(picture: Tensor, subsampled: bool = False) -> float | None:
    """Return the estimated deviation of the noise in [C, H, W], of 255; None for pictures that are too small.

    `subsampled` is as in `images.estimate_noise`.
    """
    from tunable_ops.images import estimate_noise

    return estimate_noise(picture, subsampled) if min(picture.shape[1:]) >= _SMALLEST else None


def finding(sigma: float | None, spec: LambdaSpec) -> str:
    """Return what was found of the noise, as text."""
    if sigma is None:
        default = f"{spec.defaults[noise_knob(spec)]:g} of 255"
        return (
            f"too small to estimate its noise ({_SMALLEST}x{_SMALLEST} pixels at least): using the default, {default}"
        )
    return f"noise estimated at {sigma:.1f} of 255"


def settle(lam: Sequence[Any], spec: LambdaSpec, sigma: float | None) -> tuple[float, ...]:
    """Return a lambda with an estimate, limited to the range, in the place of `AUTO`; without one, the default."""
    return tuple(
        value if value != AUTO else default if sigma is None else round(min(max(sigma, low), high), 2)
        for value, default, (low, high) in zip(lam, spec.defaults, spec.ranges, strict=True)
    )


def advice(lam: Sequence[Any], spec: Any, estimates: Sequence[float | None]) -> str | None:
    """Return a warning if the knob is far from what the noise of some pictures is estimated at.

    Args:
        lam: One number per parameter; there is no advice where the knob is `AUTO`.
        spec: Of the network; there is no advice for one without a knob for noise.
        estimates: For each picture, None where there is none. Far is a factor of 2 and 13 of 255.
    """
    try:
        place = noise_knob(spec)
    except (AttributeError, ValueError):
        return None
    value = lam[place]
    if value == AUTO:
        return None
    far = [sigma for sigma in estimates if sigma is not None and _far(value, sigma, spec.ranges[place])]
    if not far:
        return None
    name, whose = spec.names[place], f" of {len(far)} of {len(estimates)} pictures" if len(estimates) > 1 else ""
    least, most = f"{min(far):.1f}", f"{max(far):.1f}"
    found = least if least == most else f"{least} to {most}"
    return f"{name} is {value:g} of 255, but the noise{whose} is estimated at {found}: consider --lam {name}={AUTO}"


def _far(value: float, sigma: float, limits: tuple[float, float]) -> bool:
    low, high = limits
    small, large = sorted((value, min(max(sigma, low), high)))
    return large - small > _APART and large >= _FACTOR * small
