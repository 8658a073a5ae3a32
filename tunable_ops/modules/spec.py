"""What lambda is: names, ranges, defaults and the domain it lives in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tunable_ops import checks

DOMAINS = ("simplex", "box")


@dataclass(frozen=True)
class LambdaSpec:
    """Names, ranges and defaults of the tuning parameters.

    Args:
        names: One name per tuning parameter.
        ranges: One (low, high) per tuning parameter; values outside are allowed and extrapolate.
        defaults: The values to start a slider at.
        domain: "simplex" (the parameters sum to 1) or "box" (each moves by itself).
    """

    names: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    defaults: tuple[float, ...]
    domain: str = "simplex"

    def __post_init__(self) -> None:
        count = len(self.names)
        if count < 1:
            raise ValueError("LambdaSpec: names must hold at least one name; got ()")
        if len(set(self.names)) != count:
            raise ValueError(f"LambdaSpec: names must differ from each other; got {self.names}")
        if self.domain not in DOMAINS:
            raise ValueError(f"LambdaSpec: domain must be one of {DOMAINS}; got {self.domain!r}")
        for name, value in (("ranges", self.ranges), ("defaults", self.defaults)):
            if len(value) != count:
                raise ValueError(f"LambdaSpec: {name} must hold one entry per name, {count}; got {value}")
        for low, high in self.ranges:
            if not (low < high and math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"LambdaSpec: ranges must be finite (low, high) with low < high; got {(low, high)}")
        if not all(map(math.isfinite, self.defaults)):
            raise ValueError(f"LambdaSpec: defaults must be finite; got {self.defaults}")

    @classmethod
    def create(
        cls,
        num_params: int,
        domain: str = "simplex",
        names: Sequence[str] | None = None,
        ranges: Sequence[Sequence[float]] | None = None,
        defaults: Sequence[float] | None = None,
    ) -> "LambdaSpec":
        """Fill in what is not given.

        Names default to lambda0, lambda1, ...; ranges to [0, 1]; defaults to the centre of the simplex, on the box to
        0 or the value of the range that is nearest to it.

        Raises:
            TypeError: Names that are not strings, ranges that are not pairs of numbers, defaults that are not numbers.
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
        return cls(tuple(names), pairs, starts, domain)

    @property
    def num_params(self) -> int:
        """The number p of tuning parameters."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, which `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LambdaSpec":
        """Read what `to_dict` wrote (lists in place of tuples are fine)."""
        missing = {"names", "ranges", "defaults", "domain"} - set(values)
        if missing:
            raise ValueError(f"LambdaSpec: values must hold {sorted(missing)}; got only {sorted(values)}")
        return cls.create(len(values["names"]), values["domain"], values["names"], values["ranges"], values["defaults"])

    def check(self, lam: Tensor | Sequence[float], like: Tensor | None = None) -> Tensor:
        """Return lambda as a tensor [p], [B, p] or a map [B, p, *grid], or raise, as `read_lambda` does."""
        return read_lambda("lambda", lam, self.num_params, like)

    def contains(self, lam: Tensor | Sequence[float]) -> bool:
        """Return True if every value is in its range and, on the simplex, they sum to 1 (to 1e-4)."""
        checked = self.check(lam)
        values = (checked if checked.dim() == 1 else checked.movedim(1, -1)).reshape(-1, self.num_params).tolist()
        return all(
            all(low - 1e-6 <= v <= high + 1e-6 for v, (low, high) in zip(row, self.ranges, strict=True))
            and (self.domain == "box" or math.isclose(sum(row), 1.0, abs_tol=1e-4))
            for row in values
        )


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


def read_lambda(op: str, lam: Any, num_params: int, like: Tensor | None = None) -> Tensor:
    """Read lambda from numbers or a tensor: [p], [B, p] or a map [B, p, *grid].

    It goes to the device of `like`, a parameter of the network, and from fp64 to fp32 unless `like` is fp64 itself.

    Values are checked only where that is free: numbers and tensors on the CPU, outside compilation and transforms.
    (On a GPU reading a value would stop the stream and break graph capture.)

    Raises:
        TypeError: Neither numbers nor a floating-point tensor.
        ValueError: A wrong length, or a value that is not finite.
    """
    double = like is not None and like.dtype == torch.float64
    if not isinstance(lam, Tensor):
        try:
            lam = torch.as_tensor(lam, dtype=torch.float64 if double else torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{op}: lam must be numbers or a Tensor; got {lam!r}") from error
    elif not lam.is_floating_point():
        raise TypeError(f"{op}: lam must be floating point; got {lam.dtype}")
    length = lam.shape[0] if lam.dim() == 1 else lam.shape[1] if lam.dim() > 1 else 0
    if length != num_params:
        raise ValueError(
            f"{op}: lam must hold p = {num_params} values, [p], [B, p] or a map [B, p, H, W]; got shape "
            f"{list(lam.shape)}"
        )
    if checks.can_read(lam) and not _is_finite(lam):
        raise ValueError(f"{op}: lam must be finite; got {lam.tolist()}")
    if like is None:
        return lam
    narrow = lam.dtype == torch.float64 and not double
    if not narrow and lam.device == like.device:
        return lam
    return lam.to(like.device, torch.float32 if narrow else lam.dtype)


def _is_finite(lam: Tensor) -> bool:
    if lam.numel() <= 64:  # a tenth of the time of the operators' launches
        return all(map(math.isfinite, lam.flatten().tolist()))
    return bool(torch.isfinite(lam).all())
