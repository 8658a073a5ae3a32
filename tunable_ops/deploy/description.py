"""What an exported file says of itself: how it takes lambda, and which pictures it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.modules import LambdaSpec, TunableModel

__all__ = ["Description", "describe"]

_PREFIX = "tunable_ops."
_MOST = 256  # pixels: a network whose smallest picture is larger says so itself


@dataclass(frozen=True)
class Description:
    """The metadata of an exported file.

    Args:
        form: How lambda is given: "shared", "per_sample", "map", or "folded", not at all.
        channels: Channels C of the pictures.
        smallest: The smallest height and width.
        scale: How many times as large the result is.
        dtype: "float32" or "float16", of pictures and results.
        spec: Names, units, ranges, defaults and domain of lambda; None for a plain network.
        lam: Where a tunable network was folded, by name; None else.
        operators: Operators of this package that the file calls; empty where it needs nothing of it.
    """

    form: str
    channels: int
    smallest: int
    scale: float
    dtype: str = "float32"
    spec: LambdaSpec | None = None
    lam: Mapping[str, float] | None = None
    operators: tuple[str, ...] = ()

    def to_strings(self) -> dict[str, str]:
        """Return names with texts, as all formats keep them: mostly JSON."""
        values: dict[str, Any] = {"channels": self.channels, "smallest": self.smallest, "scale": self.scale}
        if self.spec is not None:
            values["lambda"] = self.spec.to_dict()
        if self.lam:
            values["folded_at"] = dict(self.lam)
        if self.operators:
            values["operators"] = self.operators
        texts = {"form": self.form, "dtype": self.dtype, **{key: json.dumps(value) for key, value in values.items()}}
        if self.spec is not None:
            texts |= {"domain": self.spec.domain, "parameters": _table(self.spec)}
        return {_PREFIX + key: text for key, text in texts.items()}

    @classmethod
    def from_strings(cls, texts: Mapping[str, str]) -> Description:
        """Read what `to_strings` returned, among other entries.

        Raises:
            ValueError: Entries are missing: the file was not exported by this package.
        """
        found = {key[len(_PREFIX) :]: text for key, text in texts.items() if key.startswith(_PREFIX)}
        missing = {"form", "dtype", "channels", "smallest", "scale"} - set(found)
        if missing:
            raise ValueError(
                f"deploy: file must be one that this package exported; got one without {', '.join(sorted(missing))}"
            )
        spec = LambdaSpec.from_dict(json.loads(found["lambda"])) if "lambda" in found else None
        numbers: dict[str, Any] = {key: json.loads(found[key]) for key in ("channels", "smallest", "scale")}
        lam, operators = json.loads(found.get("folded_at", "null")), json.loads(found.get("operators", "[]"))
        return cls(found["form"], dtype=found["dtype"], spec=spec, lam=lam, operators=tuple(operators), **numbers)

    def halved(self) -> Description:
        """Return the same for a network in half precision."""
        return replace(self, dtype="float16")


def describe(net: nn.Module, form: str, op: str, example: Tensor | None = None) -> Description:
    """Find out what pictures a network takes, by running it on small ones.

    Args:
        net: In evaluation mode, float32, on the CPU: a TunableModel, or a plain network.
        form: As `Description` has it.
        op: Who asks, for errors.
        example: A picture [B, C, H, W], for networks that do not say how many channels they take (`channels`).

    Raises:
        ValueError: The network does not run on pictures of that many channels.
    """
    network = net.network if isinstance(net, TunableModel) else net
    channels = getattr(network, "channels", 3) if example is None else example.shape[1]
    smallest, scale = _find_smallest(net, op, channels, example)
    spec = net.spec if isinstance(net, TunableModel) else None
    return Description(form, channels, smallest, scale, spec=spec)


def _find_smallest(net: nn.Module, op: str, channels: int, example: Tensor | None) -> tuple[int, float]:
    """Return the smallest square picture that the network takes, up to powers of two and then exactly; the scale."""

    def run(size: int) -> Any:
        x = torch.zeros(1, channels, size, size)
        try:
            with torch.no_grad():
                return net(x)
        except (ValueError, RuntimeError) as error:
            return error

    high = 1
    while isinstance(result := run(high), Exception):
        if high >= _MOST:
            advice = "" if example is not None else " (give example=, a picture of as many channels as it takes)"
            raise ValueError(
                f"{op}: net must run on a picture [1, {channels}, {high}, {high}]; got {type(result).__name__}: "
                f"{str(result).splitlines()[0]}{advice}"
            )
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        found = run(middle)
        if isinstance(found, Exception):
            low = middle
        else:
            high, result = middle, found
    if not isinstance(result, Tensor) or result.dim() != 4:
        raise ValueError(f"{op}: net must return one tensor [B, C, H, W]; got {_kind(result)}")
    return high, result.shape[-1] / high


def _table(spec: LambdaSpec) -> str:
    """Return a line for each parameter, for readers without JSON: name, default, low, high, unit, between tabs."""
    rows = zip(spec.names, spec.defaults, spec.ranges, spec.units, strict=True)
    return "\n".join(f"{name}\t{start:g}\t{low:g}\t{high:g}\t{unit}" for name, start, (low, high), unit in rows)


def _kind(result: Any) -> str:
    return f"shape {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
