"""Samplers draw the lambda of every training step from the domain that the network should cover."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Ranges = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Sampler:
    """Draw lambda; made by `sampler`, which describes the arguments.

    Attributes:
        kind: "uniform" or "simplex".
        num_params: Number p of tuning parameters.
        corners: Probability that a sample is replaced by a corner of the domain.
        ranges: (lowest, highest) of every parameter.
        stratified: True if the samples of a batch cover the domain evenly.
    """

    kind: str
    num_params: int
    corners: float
    ranges: tuple[tuple[float, float], ...]
    stratified: bool = False

    def __call__(
        self,
        batch: int | None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw one lambda for every sample, or one for the whole batch.

        Args:
            batch: B, or None for one lambda for the whole batch.
            generator: The only source of randomness; None: torch's global generator. Numbers are drawn on the
                generator's device and then moved, so the same state gives the same lambda on every device.
            device: Device of the result; None: the generator's, or torch's default device.
            dtype: Floating point dtype of the result. Narrower types than float32 are rounded from a float32 draw;
                float64 draws other numbers.

        Returns:
            [B, p], or [p] for batch None: inside the ranges, and on the simplex with sum 1, up to rounding.

        Raises:
            TypeError: `batch` is not an integer, or `dtype` is not floating point.
            ValueError: `batch` is negative.
        """
        if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool)):
            raise TypeError(f"sampler: batch must be an integer or None; got {batch!r}")
        if batch is not None and batch < 0:
            raise ValueError(f"sampler: batch must be at least 0; got {batch}")
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"sampler: dtype must be a floating point type; got {dtype}")
        drawn_on = device if generator is None else generator.device
        wide = torch.promote_types(dtype, torch.float32)
        like = torch.empty(1 if batch is None else batch, self.num_params, device=drawn_on, dtype=wide)
        lam = _KINDS[self.kind](self, like, generator).to(dtype)
        if device is not None:
            lam = lam.to(device)
        return lam[0] if batch is None else lam


def sampler(
    kind: str, num_params: int, corners: float = 0.0, ranges: Ranges | None = None, *, stratified: bool = False
) -> Sampler:
    """Return a callable ``draw(batch, generator=None, device=None, dtype=torch.float32) -> lambda`` over a domain.

    Random points inside a domain are almost never at its corners, where one objective has all the weight (simplex) or
    every slider is at an end (box). So a share ``corners`` of the samples is replaced by corners, all equally likely.

    Independent points also leave gaps: of 4, some quarter of the range is empty in 91 % of the batches, and a step then
    says nothing about it. With ``stratified`` the B samples of a call are a Latin hypercube (McKay et al., 1979): the
    range of every parameter falls into B equal parts, each of which holds exactly one sample, and the parameters are
    shuffled independently. A sample taken by itself is distributed as without. On the simplex the same is done for
    the p - 1 independent numbers of the stick-breaking construction,
    ``lambda_k = (1 - sum_{j<k} lambda_j) * (1 - u_k**(1 / (p - k)))`` for k = 1, ..., p - 1 and the rest for lambda_p:
    with p = 2 every part of the slider holds one sample; with more, every part of lambda_1's distribution. A sample
    that ``corners`` replaces leaves its part empty.

    Args:
        kind: "uniform": every parameter independently, uniform over its range; the corners are the 2**p vertices.
            "simplex": uniform on lambda >= 0, sum lambda = 1, that is Dirichlet(1, ..., 1); the corners are the p unit
            vectors.
        num_params: Number p >= 1 of tuning parameters.
        corners: Probability in [0, 1].
        ranges: The p pairs (lowest, highest) for "uniform"; None: [0, 1] for all, the only choice for "simplex".
        stratified: Cover the domain evenly with the samples of every call.

    Returns:
        The `Sampler`.

    Raises:
        TypeError: `num_params` is not an integer, `corners` is not a number, `ranges` are not pairs of numbers, or
            `stratified` is not a bool.
        ValueError: An unknown kind, a value out of range, or ranges that do not match kind or num_params.

    Example:
        >>> draw = sampler("simplex", 3, corners=0.1)
        >>> lam = draw(8, generator=torch.Generator().manual_seed(0))
        >>> lam.shape, bool((lam.sum(1) == 1).all())
        (torch.Size([8, 3]), True)
        >>> draw(None).shape
        torch.Size([3])
        >>> even = sampler("uniform", 2, stratified=True)(4, generator=torch.Generator().manual_seed(0))
        >>> (4 * even).int().sort(0).values.T.tolist()  # which quarter of its range each one is in
        [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"sampler: kind must be one of {', '.join(sorted(_KINDS))}; got {kind!r}")
    if not isinstance(num_params, int) or isinstance(num_params, bool):
        raise TypeError(f"sampler: num_params must be an integer; got {num_params!r}")
    if num_params < 1:
        raise ValueError(f"sampler: num_params must be at least 1; got {num_params}")
    if not isinstance(corners, (int, float)) or isinstance(corners, bool):
        raise TypeError(f"sampler: corners must be a number; got {corners!r}")
    if not 0 <= corners <= 1:
        raise ValueError(f"sampler: corners must be a probability in [0, 1]; got {corners}")
    if not isinstance(stratified, bool):
        raise TypeError(f"sampler: stratified must be a bool; got {stratified!r}")
    checked = _check_ranges(kind, num_params, ranges)
    return Sampler(kind, num_params, float(corners), checked, stratified)


def _check_ranges(kind: str, num_params: int, ranges: Ranges | None) -> tuple[tuple[float, float], ...]:
    if ranges is None:
        return ((0.0, 1.0),) * num_params
    try:
        checked = tuple((float(low), float(high)) for low, high in ranges)
    except (TypeError, ValueError):
        raise TypeError(f"sampler: ranges must be {num_params} pairs of numbers (low, high); got {ranges!r}") from None
    if len(checked) != num_params:
        raise ValueError(
            f"sampler: ranges must have a pair for each of the {num_params} parameters; got {len(checked)}"
        )
    for low, high in checked:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"sampler: ranges must be finite with low < high; got ({low}, {high})")
    if kind == "simplex" and set(checked) != {(0.0, 1.0)}:
        raise ValueError(f"sampler: ranges must be (0, 1) for the simplex; got {ranges!r}; omit them")
    return checked


def _draw_uniform(spec: Sampler, like: Tensor, generator: torch.Generator | None) -> Tensor:
    low, high = torch.tensor(spec.ranges, device=like.device, dtype=like.dtype).unbind(1)  # [p] each
    # cannot round past high: the largest uniform number is one unit below 1, which offsets the rounding of high - low
    inside = low + (high - low) * (_strata(like, generator) if spec.stratified else _rand(like, generator))
    return _mix_corners(spec, inside, torch.where(_rand(like, generator) < 0.5, low, high), generator)


def _draw_simplex(spec: Sampler, like: Tensor, generator: torch.Generator | None) -> Tensor:
    inside = _sticks(like, generator) if spec.stratified else _gaps(like, generator)
    index = torch.randint(spec.num_params, like.shape[:1], generator=generator, device=like.device)
    return _mix_corners(spec, inside, F.one_hot(index, spec.num_params).to(like.dtype), generator)


def _gaps(like: Tensor, generator: torch.Generator | None) -> Tensor:
    # The gaps between p - 1 sorted uniform numbers are Dirichlet(1, ..., 1). Without a division, p = 1 and a draw of 0
    # are safe; on CPUs, where the numbers are multiples of 2**-24, the gaps are exact and sum to exactly 1.
    cuts = _rand(like[:, 1:], generator).sort(dim=1).values
    return F.pad(cuts, (0, 1), value=1.0) - F.pad(cuts, (1, 0), value=0.0)


def _sticks(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a Latin hypercube of the simplex: lambda_k takes a Beta(1, p - k) part of what is left."""
    p = like.shape[1]
    kept = _strata(like[:, 1:], generator) ** (1 / torch.arange(p - 1, 0, -1, device=like.device, dtype=like.dtype))
    left = F.pad(kept.cumprod(dim=1), (1, 0), value=1.0)  # [B, p]: what remains before each
    return torch.cat((left[:, :-1] - left[:, 1:], left[:, -1:]), dim=1)


def _strata(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return numbers in [0, 1): in every column one in each of B equal parts, in random order."""
    place = _rand(like, generator).argsort(dim=0)
    inside = (place + _rand(like, generator)) / max(1, like.shape[0])
    return inside.clamp(max=1 - torch.finfo(like.dtype).eps / 2)  # the sum may round up to the next part


def _mix_corners(spec: Sampler, inside: Tensor, corner: Tensor, generator: torch.Generator | None) -> Tensor:
    # the numbers are in [0, 1): probability 0 replaces none, probability 1 all
    chosen = _rand(inside[:, :1], generator) < spec.corners
    return torch.where(chosen, corner, inside)


def _rand(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)


_KINDS: dict[str, Callable[[Sampler, Tensor, torch.Generator | None], Tensor]] = {
    "uniform": _draw_uniform,
    "simplex": _draw_simplex,
}
