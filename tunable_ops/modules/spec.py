"""What lambda is: names, ranges, defaults and the domain it lives in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

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
            if not low < high:
                raise ValueError(f"LambdaSpec: ranges must be (low, high) with low < high; got {(low, high)}")

    @classmethod
    def create(
        cls,
        num_params: int,
        domain: str = "simplex",
        names: Sequence[str] | None = None,
        ranges: Sequence[Sequence[float]] | None = None,
        defaults: Sequence[float] | None = None,
    ) -> "LambdaSpec":
        """Fills in what is not given: lambda0, lambda1, ...; [0, 1]; the centre of the domain."""
        if type(num_params) is not int or num_params < 1:
            raise ValueError(f"LambdaSpec: num_params must be a positive int; got {num_params!r}")
        centre = 1 / num_params if domain == "simplex" else 0.0
        spec = cls(
            tuple(names) if names is not None else tuple(f"lambda{i}" for i in range(num_params)),
            tuple((float(low), float(high)) for low, high in ranges)
            if ranges is not None
            else ((0.0, 1.0),) * num_params,
            tuple(map(float, defaults)) if defaults is not None else (centre,) * num_params,
            domain,
        )
        if spec.num_params != num_params:
            raise ValueError(f"LambdaSpec: names must hold one name per parameter, {num_params}; got {spec.names}")
        return spec

    @property
    def num_params(self) -> int:
        """The number p of tuning parameters."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LambdaSpec":
        """Reads what `to_dict` wrote (lists in place of tuples are fine)."""
        return cls.create(len(values["names"]), values["domain"], values["names"], values["ranges"], values["defaults"])

    def check(self, lam: Tensor | Sequence[float], device: torch.device | None = None) -> Tensor:
        """Returns lambda as a tensor [p], [B, p] or a map [B, p, *grid], or raises a ValueError."""
        return read_lambda("lambda", lam, self.num_params, device)

    def contains(self, lam: Tensor | Sequence[float]) -> bool:
        """True where every value is in its range and, on the simplex, they sum to 1 (to 1e-4)."""
        values = self.check(lam).reshape(-1, self.num_params).tolist()
        return all(
            all(low - 1e-6 <= v <= high + 1e-6 for v, (low, high) in zip(row, self.ranges, strict=True))
            and (self.domain == "box" or math.isclose(sum(row), 1.0, abs_tol=1e-4))
            for row in values
        )


def read_lambda(op: str, lam: Any, num_params: int, device: torch.device | None = None) -> Tensor:
    """Reads lambda from numbers or a tensor: [p], [B, p] or a map [B, p, *grid].

    Values are looked at only where that is free: numbers and tensors on the CPU, outside compilation and transforms.
    (On a GPU a look would stop the stream and break graph capture.)

    Raises:
        TypeError: Neither numbers nor a floating-point tensor.
        ValueError: A wrong length, or a value that is not finite.
    """
    if not isinstance(lam, Tensor):
        try:
            lam = torch.as_tensor(lam, dtype=torch.float32)
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
    if _can_look_at(lam) and not bool(torch.isfinite(lam).all()):
        raise ValueError(f"{op}: lam must be finite; got {lam.tolist()}")
    return lam if device is None else lam.to(device)


def _can_look_at(lam: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return type(lam) in (Tensor, torch.nn.Parameter) and lam.device.type == "cpu"
