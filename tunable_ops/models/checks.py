"""Checks of the arguments and inputs of the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_int(model: str, name: str, value: Any, least: int = 1) -> None:
    """Check that an argument is an int of at least `least`.

    Raises:
        TypeError: It is not an int.
        ValueError: It is too small.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{model}: {name} must be an int; got {value!r}")
    if value < least:
        raise ValueError(f"{model}: {name} must be at least {least}; got {value}")


def check_ints(model: str, name: str, values: Sequence[Any], least: int = 1) -> None:
    """Check that an argument is a list or tuple of ints of at least `least`; errors as for `check_int`."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{model}: {name} must be a list or tuple of ints; got {values!r}")
    for i, value in enumerate(values):
        check_int(model, f"{name}[{i}]", value, least)


def check_number(model: str, name: str, value: Any) -> None:
    """Check that an argument is a number.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{model}: {name} must be a number; got {value!r}")


def check_input(model: str, x: Tensor, channels: int) -> None:
    """Check that x is a batch of pictures with `channels` channels.

    Raises:
        TypeError: x is not of a floating-point type.
        ValueError: x is not [B, channels, H, W].
    """
    if not x.is_floating_point():
        raise TypeError(f"{model}: x must be of a floating-point type; got {x.dtype}")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{model}: x must be [B, {channels}, H, W]; got {list(x.shape)}")
