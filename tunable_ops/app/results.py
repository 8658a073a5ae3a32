"""What a session makes: windows, whole pictures, strips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Preview", "Strip", "Whole"]


class Preview(NamedTuple):
    """A window before and after.

    Args:
        before: [3, h, w], or [1, h, w] in grey.
        after: The same, s times as large.
        alpha: [1, h, w], or None where all is opaque.
        seconds: Time that it took.
        tag: The same for windows whose `before` is the same.
    """

    before: Tensor
    after: Tensor
    alpha: Tensor | None
    seconds: float
    tag: str


@dataclass(frozen=True)
class Whole:
    """A whole picture, restored.

    Args:
        output: [3, s H, s W], or [1, s H, s W] in grey.
        seconds: Time that it took.
        position: What it was made of, to know whether it is still current.
    """

    output: Tensor
    seconds: float
    position: tuple[Any, ...]


class Strip(NamedTuple):
    """A picture at several positions.

    Args:
        pictures: [3, h, w] or [1, h, w] each, as they are shown; the first one is the input.
        labels: One for each.
    """

    pictures: list[Tensor]
    labels: list[str]
