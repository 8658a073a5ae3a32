"""What lambda is: names, units, ranges, defaults and the domain it lives in."""

import functools
import math
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from tunable_ops.modules.read_lambda import Lambda, read_values, refuse_infinite, to_device, to_tensor
from tunable_ops.nearest import hint

DOMAINS = ("simplex", "box")
_RANGE_SLACK = 1e-6  # of the scale, for values that were typed with few digits
_SUM_SLACK = 1e-4


class LambdaWarning(UserWarning):
    """A lambda outside the domain that the network was trained on."""


class _Silence(threading.local):
    on = False


_SILENCE = _Silence()


@contextmanager
def lambda_warnings_off() -> Iterator[None]:
    """Give no `LambdaWarning` inside, in this thread alone: for callers that have looked at lambda themselves."""
    before, _SILENCE.on = _SILENCE.on, True
    try:
        yield
    finally:
        _SILENCE.on = before


@dataclass(frozen=True)
class LambdaSpec:
    """Names, units, ranges and defaults of the tuning parameters.

    Ranges, defaults and every lambda that a caller gives are in the units; phi gets ``lambda / scales``.

    Args:
        names: One name per tuning parameter.
        ranges: One (low, high) per tuning parameter; values outside are allowed and extrapolate.
        defaults: The values to start a slider at.
        domain: "simplex" (the parameters sum to 1) or "box" (each moves by itself).
        units: What a value is counted in, such as "of 255" or "pixels"; default "", none.
        scales: What lambda is divided by before phi; default 1 on the simplex (nothing else fits a sum of 1), on the
            box the largest absolute end of the range.
    """

    names: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    defaults: tuple[float, ...]
    domain: str = "simplex"
    units: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    _bounds: ClassVar[tuple[tuple[float, float], ...]]
    _all_one: ClassVar[bool]

    def __post_init__(self) -> None:
        count = len(self.names)
        if count < 1:
            raise ValueError("LambdaSpec: names must hold at least one name; got ()")
        if len(set(self.names)) != count:
            raise ValueError(f"LambdaSpec: names must differ from each other; got {self.names}")
        if self.domain not in DOMAINS:
            raise ValueError(f"LambdaSpec: domain must be one of {DOMAINS}; got {self.domain!r}")
        if not self.units:
            object.__setattr__(self, "units", ("",) * count)
        if not self.scales and len(self.ranges) == count:
            box = self.domain == "box"
            object.__setattr__(self, "scales", tuple(max(map(abs, ends)) if box else 1.0 for ends in self.ranges))
        for name in ("ranges", "defaults", "units", "scales"):
            value = getattr(self, name)
            if len(value) != count:
                raise ValueError(f"LambdaSpec: {name} must hold one entry per name, {count}; got {value}")
        for low, high in self.ranges:
            if not (low < high and math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"LambdaSpec: ranges must be finite (low, high) with low < high; got {(low, high)}")
        if not all(map(math.isfinite, self.defaults)):
            raise ValueError(f"LambdaSpec: defaults must be finite; got {self.defaults}")
        if not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"LambdaSpec: scales must be positive and finite; got {self.scales}")
        if self.domain == "simplex" and set(self.scales) != {1.0}:
            raise ValueError(f"LambdaSpec: scales must be 1 on the simplex; got {self.scales}")
        # Kept for every call; not functools.cached_property, which torch.compile does not trace.
        slacks = [_RANGE_SLACK * scale for scale in self.scales]
        bounds = tuple((low - slack, high + slack) for (low, high), slack in zip(self.ranges, slacks, strict=True))
        object.__setattr__(self, "_bounds", bounds)
        object.__setattr__(self, "_all_one", set(self.scales) == {1.0})

    @classmethod
    def create(
        cls,
        num_params: int,
        domain: str = "simplex",
        names: Sequence[str] | None = None,
        ranges: Sequence[Sequence[float]] | None = None,
        defaults: Sequence[float] | None = None,
        units: Sequence[str] | None = None,
        scales: Sequence[float] | None = None,
    ) -> "LambdaSpec":
        """Fill in what is not given.

        Names default to lambda0, lambda1, ...; ranges to [0, 1]; defaults to the centre of the simplex, on the box to
        0 or the value of the range that is nearest to it; units and scales as the class says.

        Raises:
            TypeError: Names or units that are not strings, ranges that are not pairs of numbers, defaults or scales
                that are not numbers.
            ValueError: Numbers of entries that differ from `num_params`, or entries that do not fit.
        """
        if type(num_params) is not int or num_params < 1:
            raise ValueError(f"LambdaSpec: num_params must be a positive int; got {num_params!r}")
        if names is None:
            names = [f"lambda{i}" for i in range(num_params)]
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"LambdaSpec: names must be a sequence of strings; got {names!r}")
        if len(names) != num_params:
            raise ValueError(f"LambdaSpec: names must hold one name per parameter, {num_params}; got {tuple(names)}")
        pairs = ((0.0, 1.0),) * num_params if ranges is None else _pairs(ranges)
        if defaults is not None:
            starts = _numbers("defaults", defaults)
        elif domain == "simplex":
            starts = (1 / num_params,) * num_params
        else:
            starts = tuple(min(max(0.0, low), high) for low, high in pairs)
        if units is not None and (isinstance(units, str) or not all(isinstance(unit, str) for unit in units)):
            raise TypeError(f"LambdaSpec: units must be a sequence of strings; got {units!r}")
        if units is not None and len(units) != num_params:
            raise ValueError(f"LambdaSpec: units must hold one unit per parameter, {num_params}; got {tuple(units)}")
        divisors = () if scales is None else _numbers("scales", scales)
        return cls(tuple(names), pairs, starts, domain, tuple(units or ()), divisors)

    @property
    def num_params(self) -> int:
        """The number p of tuning parameters."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, which `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LambdaSpec":
        """Read what `to_dict` wrote (lists in place of tuples are fine); before there were scales they were 1."""
        missing = {"names", "ranges", "defaults", "domain"} - set(values)
        if missing:
            raise ValueError(f"LambdaSpec: values must hold {sorted(missing)}; got only {sorted(values)}")
        count = len(values["names"])
        return cls.create(
            count,
            values["domain"],
            values["names"],
            values["ranges"],
            values["defaults"],
            values.get("units"),
            values.get("scales", (1.0,) * count),
        )

    def check(
        self, lam: Lambda | None = None, like: Tensor | None = None, *, op: str = "lambda", warn: bool = False
    ) -> Tensor:
        """Return lambda as a tensor [p], [B, p] or a map [B, p, *grid], in its units, or raise.

        Args:
            lam: A tensor [p], [B, p] or a map; numbers in that form; one number (or a tensor []) where p = 1; names
                with numbers, tensors [B] or maps [B, *grid], completed as `fill` says; None: the defaults.
            like: A parameter of the network: lambda goes to its device, and from fp64 to fp32 unless it is fp64.
            op: Who asks, for errors.
            warn: Give a `LambdaWarning` for values outside their range and for a sum that is not 1 on the simplex.

        Values are looked at only where that is free: numbers and tensors on the CPU, outside compilation, tracing and
        transforms; tensors that require a gradient are never warned about.

        Raises:
            TypeError: Neither numbers nor floating-point tensors.
            ValueError: A wrong length, an unknown name, or a value that is not finite.
        """
        if lam is None:
            lam = self.defaults
        elif isinstance(lam, Mapping):
            lam = self._complete(op, lam)
        read = to_tensor(op, lam, self.num_params, like)
        values = read_values(read)
        if values is not None and not self._all_inside(values):
            if not all(map(math.isfinite, values)):
                refuse_infinite(op, read)
            if warn and not read.requires_grad and not _SILENCE.on:
                self._warn(read, values)
        return to_device(read, like)

    def normalise(self, lam: Tensor) -> Tensor:
        """Return what phi gets, ``lambda / scales``, for lambda [p], [B, p] or a map [B, p, *grid]."""
        if self._all_one:
            return lam
        divisor = _divisor(self.scales, lam)
        return lam / (divisor if lam.dim() < 3 else divisor.view(-1, *(1,) * (lam.dim() - 2)))

    def denormalise(self, lam: Tensor) -> Tensor:
        """Return lambda [p] or [B, p] in its units from what phi gets."""
        return lam * lam.new_tensor(self.scales)

    def fill(self, given: Mapping[str, Any], op: str = "lambda") -> tuple[Any, ...]:
        """Complete a lambda of which some values are given by name: numbers, or tensors.

        On the box the others have their defaults; on the simplex they share the rest of 1 in proportion to their
        defaults (equally, if those are all 0).

        Raises:
            TypeError: A value that is neither a number nor a tensor.
            ValueError: An unknown name.
        """
        for name, value in given.items():
            if name not in self.names:
                raise ValueError(f"{op}: lam must name {self.unknown(name)}")
            if not isinstance(value, (Real, Tensor, torch.SymInt, torch.SymFloat)):
                raise TypeError(f"{op}: lam must hold numbers or tensors; got {value!r} for {name!r}")
        if self.domain != "simplex" or len(given) == self.num_params:
            return tuple(given.get(name, default) for name, default in zip(self.names, self.defaults, strict=True))
        rest = {name: default for name, default in zip(self.names, self.defaults, strict=True) if name not in given}
        total, left = sum(rest.values()), 1 - sum(given.values())
        share = {name: _tidy(left * (value / total if total > 0 else 1 / len(rest))) for name, value in rest.items()}
        return tuple(given[name] if name in given else share[name] for name in self.names)

    def unknown(self, name: str) -> str:
        """Return the end of an error about a name that there is not, with the nearest that there is."""
        return f"parameters of the network ({', '.join(self.names)}); got {name!r}{hint(str(name), self.names, 0.5)}"

    def outside(self, values: Sequence[float], slack: float = _RANGE_SLACK) -> list[str]:
        """Return a remark for each parameter of a lambda whose value is outside its range."""
        return [
            f"{name} = {value:g}{unit and f' {unit}'} is outside the range {low:g}..{high:g} of the training"
            for name, value, unit, scale, (low, high) in zip(
                self.names, values, self.units, self.scales, self.ranges, strict=True
            )
            if not low - slack * scale <= value <= high + slack * scale
        ]

    def contains(self, lam: Lambda) -> bool:
        """Return True if every value is in its range and, on the simplex, they sum to 1 (to 1e-4)."""
        checked = self.check(lam)
        rows = (checked if checked.dim() == 1 else checked.movedim(1, -1)).reshape(-1, self.num_params).tolist()
        return self._all_inside([value for row in rows for value in row])

    def _all_inside(self, values: list[float]) -> bool:
        """Return True if every lambda of a flat list is in the domain; False where there is a NaN."""
        count, bounds = len(self.names), self._bounds
        for start in range(0, len(values), count):
            row = values if len(values) == count else values[start : start + count]
            for value, (low, high) in zip(row, bounds, strict=True):
                if not low <= value <= high:
                    return False
            if self.domain == "simplex" and not 1 - _SUM_SLACK <= sum(row) <= 1 + _SUM_SLACK:
                return False
        return True

    def _complete(self, op: str, given: Mapping[str, Any]) -> Any:
        """Return numbers, or a tensor [p], [B, p] or [B, p, *grid], from named parts."""
        parts = self.fill(given, op)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not tensors:
            return parts
        for part in tensors:
            if not part.is_floating_point():
                raise TypeError(f"{op}: lam must be floating point; got {part.dtype}")
        rank = max(part.dim() for part in tensors)
        whole = [part if isinstance(part, Tensor) else tensors[0].new_full((), part) for part in parts]
        whole = [part.view(-1, *(1,) * (rank - 1)) if part.dim() == 1 else part for part in whole]
        try:
            return torch.stack(torch.broadcast_tensors(*whole), min(rank, 1))
        except RuntimeError:
            shapes = ", ".join(str(list(part.shape)) for part in tensors)
            raise ValueError(f"{op}: lam must hold numbers, tensors [B] or maps of one size; got {shapes}") from None

    def _warn(self, lam: Tensor, values: list[float]) -> None:
        count, eps = self.num_params, torch.finfo(lam.dtype).eps
        rows = [values[start : start + count] for start in range(0, len(values), count)]
        remarks = [remark for row in rows for remark in self.outside(row, max(_RANGE_SLACK, eps))]
        if self.domain == "simplex":
            slack = max(_SUM_SLACK, count * eps)
            remarks += [
                f"lambda must sum to 1 ({', '.join(self.names)}); got a sum of {total:g}, which scales the output, too"
                for total in _sums(lam, rows)
                if abs(total - 1) > slack
            ]
        for remark in dict.fromkeys(remarks):
            warnings.warn(remark, LambdaWarning, stacklevel=_callers_level())


def _sums(lam: Tensor, rows: list[list[float]]) -> list[float]:
    """Return the sums of the rows, or the smallest and the largest where the rows are extremes of many."""
    if lam.dim() > 1 and lam.numel() > sum(map(len, rows)):
        return torch.stack(lam.detach().sum(1).aminmax()).tolist()
    return [sum(row) for row in rows]


def _callers_level() -> int:
    """Return the `stacklevel` of the first caller outside this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in ("tunable_ops", "torch") and frame.f_back:
        frame, level = frame.f_back, level + 1
    return level


def _tidy(value: Any) -> Any:
    """Round a number so that 1 - 0.8 reads 0.2 in file names and notes."""
    return round(value, 12) if isinstance(value, float) and not torch.compiler.is_compiling() else value


def _divisor(scales: tuple[float, ...], lam: Tensor) -> Tensor:
    """Return the scales as a tensor [p] like lambda."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(lam) is not Tensor:
        return lam.new_tensor(scales)
    return _kept_divisor(scales, lam.dtype, lam.device)


@functools.lru_cache(maxsize=64)
def _kept_divisor(scales: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor that autograd may save
        return torch.tensor(scales, dtype=dtype, device=device)


def _numbers(argument: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"LambdaSpec: {argument} must be numbers; got {values!r}") from error


def _pairs(ranges: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    try:
        return tuple((float(low), float(high)) for low, high in ranges)
    except (TypeError, ValueError) as error:
        raise TypeError(f"LambdaSpec: ranges must be pairs (low, high) of numbers; got {ranges!r}") from error
