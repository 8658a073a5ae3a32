"""Grey pictures through networks for colour: without tint, and at the lambda that their noise asks for.

x = images.read_image("scan.png")
if is_grey(x):
    lam = grey_lambda(net, [25])
    y = apply_tiled(on_grey(lambda part: net(part, lam)), as_grey(x)[None])     # [1, 1, H, W]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["PARAMETER", "as_grey", "grey_lambda", "has_knob", "is_grey", "on_grey", "set_knob", "stronger"]

PARAMETER = "grey"
"""Name of the tuning parameter that says that the picture is grey: 0 in colour, 1 in grey."""


class _Spec(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def domain(self) -> str: ...

    @property
    def units(self) -> tuple[str, ...]: ...

    @property
    def scales(self) -> tuple[float, ...]: ...


def is_grey(picture: Tensor) -> bool:
    """Return True if a picture [1 or 3, H, W] has one channel, or three that are equal in every pixel.

    Raises:
        ValueError: Another shape.
    """
    _check(picture)
    return picture.shape[0] == 1 or bool((picture[1:] == picture[:1]).all())


def as_grey(picture: Tensor) -> Tensor:
    """Return the one channel [1, H, W] of a picture for which `is_grey` holds.

    Raises:
        ValueError: Another shape, or a picture in colour.
    """
    if not is_grey(picture):
        raise ValueError("as_grey: picture must be grey; got three channels that differ")
    return picture[:1]


def on_grey(function: Callable[[Tensor], Tensor], channels: int = 3) -> Callable[[Tensor], Tensor]:
    """Return a function of grey pictures from a network's function.

    A network of three channels gets the grey picture on each of them, and its output becomes their mean:

        on_grey(f)(x) = mean_c f(x, x, x)_c

    so that the output has no tint. Noise that is made beforehand, on the one channel, is the same on all three. Works
    with `tiles.apply_tiled`.

    Args:
        function: [B, channels, H, W] -> [B, 1 or 3, s H, s W].
        channels: Channels that the function takes: 3, or 1, which it gets as they are.

    Returns:
        [B, 1, H, W] -> [B, 1, s H, s W].

    Raises:
        ValueError: `channels` is neither; or, once called, a picture or an output of a wrong number of channels.

    Example:
        >>> on_grey(lambda x: 2 * x)(torch.full((1, 1, 2, 2), 0.25)).shape
        torch.Size([1, 1, 2, 2])
    """
    if channels not in (1, 3):
        raise ValueError(f"on_grey: channels must be 1 or 3; got {channels!r}")

    def grey(picture: Tensor) -> Tensor:
        if picture.ndim != 4 or picture.shape[1] != 1:
            raise ValueError(f"on_grey: picture must be [B, 1, H, W]; got {list(picture.shape)}")
        output = function(picture.expand(-1, channels, -1, -1))
        if output.ndim != 4 or output.shape[1] not in (1, 3):
            raise ValueError(f"on_grey: function must return [B, 1 or 3, H, W]; got {list(output.shape)}")
        return output if output.shape[1] == 1 else output.mean(1, keepdim=True, dtype=torch.float32).to(output.dtype)

    return grey


def grey_lambda(net: Any, lam: Sequence[float]) -> tuple[float, ...]:
    """Return the lambda at which a tunable network for colour treats a grey picture as lambda says.

    Lambda of a picture in colour is what it is; for a grey one, on three equal channels (`on_grey`),

    - a network with the tuning parameter "grey" (`set_knob`) gets 1 for it;
    - a network without, whose lambda says how strong the noise is (`stronger`), gets about sqrt(3) times that strength.

    Any other network gets lambda as it is, and so does every network on the simplex.

    Args:
        net: `TunableModel`.
        lam: One number per parameter.
    """
    return stronger(net, set_knob(net.spec, lam))


def set_knob(spec: _Spec, lam: Sequence[float], grey: bool = True) -> tuple[float, ...]:
    """Return lambda with the parameter "grey", if there is one, at 1 where the picture is grey.

    Example:
        >>> from tunable_ops.modules import LambdaSpec
        >>> set_knob(LambdaSpec.create(2, "box", ("denoise", "grey")), (0.5, 0.0))
        (0.5, 1.0)
    """
    if not grey or not has_knob(spec):
        return tuple(lam)
    return tuple(1.0 if name == PARAMETER else value for name, value in zip(spec.names, lam, strict=True))


def has_knob(spec: _Spec) -> bool:
    """Return True if a network has the parameter for grey pictures."""
    return spec.domain == "box" and PARAMETER in spec.names


def stronger(net: Any, lam: Sequence[float]) -> tuple[float, ...]:
    """Return lambda for noise that is the same on all three channels, of a network that knows independent noise.

    The mean of three equal channels with independent noise of sqrt(3) sigma has noise of sigma: a grey picture with
    noise of sigma is worth as much as three such channels. So the noise level

        sigma = sum_i lambda_i / scale_i * levels_i + floor

    by which the network was trained (its notes, `degradation.noise`) is multiplied by sqrt(3), floor included; or by
    the factor that the notes give as `grey_noise`, where measurements found a better one. Without
    such notes the level is the parameter whose unit is "of 255". Lambda may then leave its range. It stays as it is for
    networks of one channel, those without a level, those that were trained on grey pictures too (`data.grey`), and on
    the simplex.

    Args:
        net: `TunableModel`.
        lam: One number per parameter.
    """
    spec, config = net.spec, (net.notes or {}).get("config") or {}
    noise = (config.get("degradation") or {}).get("noise") or {}
    levels, floor = noise.get("levels"), noise.get("floor") or 0.0
    if not levels:
        levels = [scale if unit == "of 255" else 0.0 for unit, scale in zip(spec.units, spec.scales, strict=True)]
    channels = getattr(net.network, "channels", 3)
    if channels != 3 or spec.domain != "box" or has_knob(spec) or len(levels) != len(spec.names):
        return tuple(lam)
    moving = sum(level > 0 for level in levels)
    if not moving or (config.get("data") or {}).get("grey"):
        return tuple(lam)
    factor = (net.notes or {}).get("grey_noise") or math.sqrt(3)
    return tuple(
        factor * value + scale * (factor - 1) * floor / (moving * level) if level > 0 else value
        for value, level, scale in zip(lam, levels, spec.scales, strict=True)
    )


def _check(picture: Tensor) -> None:
    if not isinstance(picture, Tensor) or picture.ndim != 3 or picture.shape[0] not in (1, 3):
        got = list(picture.shape) if isinstance(picture, Tensor) else type(picture).__name__
        raise ValueError(f"grey: picture must be [1 or 3, H, W]; got {got}")
