"""A network that is served: its lambda as text, and its calls with one lambda for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tunable_ops.deploy.runner import Runner
from tunable_ops.grey import PARAMETER, set_knob, stronger
from tunable_ops.images import estimate_noise
from tunable_ops.serve.problems import Problem

__all__ = ["AUTO", "Lambda", "Served"]

AUTO = "auto"  # in the place of the number that says how noisy the picture is
_NOISE = "of 255"  # the unit of such a parameter
_SMALLEST = 8  # pixels of a side, as of `images.estimate_noise`


class Lambda(NamedTuple):
    """Lambda of a request.

    Args:
        values: One for each parameter; `AUTO` where the noise of the picture is to be estimated.
        given: Names that the request gives.
    """

    values: tuple[float | str, ...] = ()
    given: frozenset[str] = frozenset()


class Served:
    """A network under its name.

    Args:
        name: What requests call it.
        net: A `TunableModel`, or a plain network, which has no lambda. It is put in evaluation mode and in
            channels_last.
        purpose: What it is for, for the list of models.
        device: Where it runs.
        engine: What computes, as for `deploy.Runner`; only "eager" takes several lambdas in one call.

    Attributes:
        runner: What runs it.
        net: The network.
        spec: Names, units, ranges and defaults of lambda; None for a plain network.
        scale: How many times as large the output is.
        channels: Channels that it takes, 1 or 3.
        per_sample: True if one call takes a lambda for each sample; found by a call.

    Raises:
        ValueError: It takes neither 1 nor 3 channels; or as `deploy.Runner`.
    """

    def __init__(
        self, name: str, net: nn.Module, purpose: str | None = None, device: Any = "cpu", engine: str = "eager"
    ) -> None:
        self.name, self.purpose = name, purpose
        self.runner = Runner(net, engine, device=device, precision="float32", copy=False)
        self.net, self.spec = self.runner.network, self.runner.spec
        self.scale, self.channels = int(self.runner.description.scale), self.runner.description.channels
        if self.channels not in (1, 3):
            raise ValueError(f"serve: a model must be for pictures of 1 or 3 channels; got {self.channels} in {name!r}")
        self.per_sample = self.runner.per_sample

    def call(self, batch: Tensor, lams: Sequence[Sequence[float]]) -> Tensor:
        """Run the network.

        Args:
            batch: [B, channels, h, w], float32 in [0, 1].
            lams: B lambdas in their units; equal ones are blended once.

        Returns:
            [B, O, scale * h, scale * w] on the CPU.
        """
        return self.runner.call(batch, lams)

    def parse(self, text: str | None) -> Lambda:
        """Return the lambda of a request: `name=number` or `name=auto`, separated by commas.

        Parameters that are left out have their defaults or, on the simplex, share the rest of 1.

        Raises:
            Problem: It cannot be read, has an unknown name, or is outside the ranges.
        """
        if self.spec is None:
            if text:
                raise Problem("unknown_parameter", f"{self.name} is a plain network without lambda: leave lam out")
            return Lambda()
        given: dict[str, float | str] = {}
        for part in filter(None, (part.strip() for part in (text or "").split(","))):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise Problem("bad_lambda", f"lam must be name=number, separated by commas; got {_short(part)}")
            if name not in self.spec.names:
                known = ", ".join(self.spec.names)
                raise Problem("unknown_parameter", f"the parameters of {self.name} are {known}; got {_short(name)}")
            if name in given:
                raise Problem("bad_lambda", f"lam must name each parameter once; got {name} twice")
            given[name] = self._number(name, number)
        return self._filled(given)

    def _number(self, name: str, text: str) -> float | str:
        assert self.spec is not None
        place = self.spec.names.index(name)
        if text == AUTO:
            if self.spec.domain != "box" or self.spec.units[place] != _NOISE:
                raise Problem("bad_lambda", f"lam must have a number for {name}: {AUTO} is for noise ({_NOISE}) alone")
            return AUTO
        try:
            value = float(text)
        except ValueError:
            raise Problem("bad_lambda", f"lam must have a number for {name}; got {_short(text)}") from None
        low, high = self.spec.ranges[place]
        if not low <= value <= high:  # NaN too
            raise Problem("outside_range", f"{name} must lie in {low:g}..{high:g}; got {value:g}")
        return value

    def _filled(self, given: dict[str, float | str]) -> Lambda:
        spec = self.spec
        assert spec is not None
        numbers = {name: 0.0 if isinstance(value, str) else value for name, value in given.items()}
        filled = spec.fill(numbers)
        total = sum(filled)
        if spec.domain == "simplex" and not (abs(total - 1) < 1e-6 and min(filled) > -1e-9):
            raise Problem("outside_range", f"the values of {', '.join(spec.names)} must sum to 1; got {total:g}")
        pairs = zip(spec.names, filled, strict=True)
        return Lambda(tuple(AUTO if given.get(name) == AUTO else value for name, value in pairs), frozenset(given))

    def settle(self, wanted: Lambda, image: Tensor, subsampled: bool = False) -> tuple[float, ...]:
        """Put the estimated noise of a picture [C, H, W] in the place of `AUTO`, within the range of the parameter.

        `subsampled` is as in `images.estimate_noise`.
        """
        values = wanted.values
        if self.spec is None or AUTO not in values:
            return tuple(float(value) for value in values)
        sigma = estimate_noise(image, subsampled) if min(image.shape[1:]) >= _SMALLEST else math.nan
        settled = []
        for value, default, (low, high) in zip(values, self.spec.defaults, self.spec.ranges, strict=True):
            estimate = default if math.isnan(sigma) else round(min(max(sigma, low), high), 2)
            settled.append(estimate if isinstance(value, str) else value)
        return tuple(settled)

    def inside(self, lam: tuple[float, ...], grey: bool, wanted: Lambda) -> tuple[float, ...]:
        """Return the lambda that the network is called with for a picture in colour or grey (`tunable_ops.grey`)."""
        if self.spec is None or not grey:
            return lam
        return tuple(stronger(self.net, set_knob(self.spec, lam, PARAMETER not in wanted.given)))

    def describe(self) -> dict[str, Any]:
        """Return what GET /v1/models says of the network, as JSON values."""
        parameters = []
        if self.spec is not None:
            spec = self.spec
            for name, unit, (low, high), default in zip(
                spec.names, spec.units, spec.ranges, spec.defaults, strict=True
            ):
                parameters.append({"name": name, "unit": unit, "low": low, "high": high, "default": default})
        return {
            "name": self.name,
            "purpose": self.purpose,
            "scale": self.scale,
            "domain": None if self.spec is None else self.spec.domain,
            "parameters": parameters,
            "batched": self.per_sample,
        }


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
