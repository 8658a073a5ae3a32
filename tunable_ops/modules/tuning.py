"""phi: from the tuning parameters lambda to the blend alpha."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.checks import autocast_is_on
from tunable_ops.modules.spec import DOMAINS

MODES = ("affine", "identity")


class Tuning(nn.Module):
    """alpha = phi(lambda): one affine map or the identity, no activation.

    Formula: ``alpha = weight @ lam + bias``; on the box the first kernel's alpha is the constant 1, and `weight` and
    `bias` hold the other rows only. Starts as the identity where that fits, else with columns that sum to 1 (so that
    the alphas of a point of the simplex sum to 1), and bias 0.

    Args:
        num_params: p.
        num_kernels: P; default p on the simplex, p + 1 on the box.
        tuning: "affine" or "identity" (P = p, on the simplex only: it has no constant).
        domain: "simplex" or "box".
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    slot: int | None = None  # the place of a layer that uses it among those of a TunableModel

    def __init__(
        self,
        num_params: int,
        num_kernels: int | None = None,
        tuning: str = "affine",
        domain: str = "simplex",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if type(num_params) is not int or num_params < 1:
            raise ValueError(f"tuning: num_params must be a positive int; got {num_params!r}")
        if tuning not in MODES:
            raise ValueError(f"tuning: tuning must be one of {MODES}; got {tuning!r}")
        if domain not in DOMAINS:
            raise ValueError(f"tuning: domain must be one of {DOMAINS}; got {domain!r}")
        if tuning == "identity" and domain == "box":
            raise ValueError("tuning: tuning must be 'affine' on the box, which has a constant; got 'identity'")
        self.constant = domain == "box"
        kernels = num_params + self.constant if num_kernels is None else num_kernels
        if type(kernels) is not int or kernels < 1 + self.constant:
            raise ValueError(f"tuning: num_kernels must be an int >= {1 + self.constant}; got {kernels!r}")
        if tuning == "identity" and kernels != num_params:
            raise ValueError(f"tuning: num_kernels must equal num_params with tuning='identity'; got {kernels}")
        self.num_params, self.num_kernels, self.tuning, self.domain = num_params, kernels, tuning, domain
        if tuning == "identity":
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        else:
            rows = kernels - self.constant
            self.weight = nn.Parameter(torch.empty(rows, num_params, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(rows, device=device, dtype=dtype))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the identity where there are as many rows as parameters, else random columns that sum to 1."""
        if self.weight is None or self.bias is None:
            return
        with torch.no_grad():
            rows = self.weight.shape[0]
            if rows == self.num_params:
                self.weight.copy_(torch.eye(rows))
            else:
                # Random, not equal shares: kernels that start alike must not stay alike.
                self.weight.copy_(torch.rand(rows, self.num_params).add_(0.1))
                self.weight.div_(self.weight.sum(0, keepdim=True))
            self.bias.zero_()

    def follow(self, entries: Sequence[int]) -> None:
        """Let the i-th kernel after a constant one have ``alpha = lam[entries[i]]``: one entry for each, bias 0."""
        assert self.weight is not None and self.bias is not None
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.num_params)[list(entries)])
            self.bias.zero_()

    def forward(self, lam: Tensor) -> Tensor:
        """Map [*, p] to [*, P], in fp32 (fp64 for fp64) whatever autocast says."""
        return blend_weights([self], lam)[0]

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.num_params}, {self.num_kernels}, tuning={self.tuning!r}, domain={self.domain!r}"


def blend_weights(tunings: Iterable[Tuning], lam: Tensor) -> tuple[Tensor, list[int]]:
    """Return the alphas of many layers from lambda [*, p] side by side, [*, A], and where each layer's begin.

    They come from one matrix product.
    """
    dtype = torch.promote_types(lam.dtype, torch.float32)
    weights, biases, starts = [], [], []
    one = zero = None
    length = 0
    for tuning in tunings:
        own = tuning._parameters  # past `__getattr__`, which takes ten times as long: there may be hundreds
        if "weight" in own and "bias" in own:
            weight, bias = own["weight"], own["bias"]
        else:
            weight, bias = tuning.weight, tuning.bias
        if weight is None or bias is None:
            starts.append(-1)
            continue
        if tuning.constant:
            # One constant row for all layers: a fill per layer would cost more launches than the product saves.
            if zero is None or one is None:
                zero, one = weight.new_zeros(1, weight.shape[1]), weight.new_ones(1)
            weights.append(zero)
            biases.append(one)
        weights.append(weight)
        biases.append(bias)
        starts.append(length)
        length += tuning.num_kernels
    if not weights:
        return lam.to(dtype), [0] * len(starts)
    if len(weights) > 1:
        alphas = _product(lam, torch.cat(weights), torch.cat(biases))
    else:
        alphas = _product(lam, weights[0], biases[0])
    if -1 in starts:  # these take lambda itself, after the others
        alphas = torch.cat([alphas, lam.to(alphas.dtype)], -1)
        starts = [length if start < 0 else start for start in starts]
    return alphas, starts


class PhiLayout:
    """`blend_weights` of the same phis at every call: which parameters are side by side is found once."""

    def __init__(self) -> None:
        # Phis, their parameters, where alphas begin, and True for a constant alpha before each phi's others (None: phis
        # are not alike). In one attribute: another thread may set it between any two lines.
        self._found: tuple[list[Tuning], list[Any], list[int], bool | None] = ([], [], [], None)

    def blend_weights(self, tunings: Sequence[Tuning], lam: Tensor) -> tuple[Tensor, list[int]]:
        """Return what `blend_weights` returns."""
        known, owners, starts, constant = self._found
        if known != tunings:
            known, owners, starts, constant = self._found = _lay_out(list(tunings))
        if constant is None:
            return blend_weights(tunings, lam)
        try:
            weights, biases = [own["weight"] for own in owners], [own["bias"] for own in owners]
        except KeyError:  # somebody computes them
            return blend_weights(tunings, lam)
        if constant:
            zero, one = weights[0].new_zeros(1, weights[0].shape[1]), weights[0].new_ones(1)
            weights, biases = _after_each(zero, weights), _after_each(one, biases)
        return _product(lam, torch.cat(weights), torch.cat(biases)), starts


def _lay_out(tunings: list[Tuning]) -> tuple[list[Tuning], list[Any], list[int], bool | None]:
    owners = [tuning._parameters for tuning in tunings]
    affine = all(own.get(name) is not None for own in owners for name in ("weight", "bias"))
    alike = affine and len(tunings) > 1 and len({tuning.constant for tuning in tunings}) == 1
    starts = list(accumulate((tuning.num_kernels for tuning in tunings), initial=0))[:-1]
    return tunings, owners, starts, tunings[0].constant if alike else None


def _after_each(first: Tensor, others: list[Tensor]) -> list[Tensor]:
    both = [first] * (2 * len(others))
    both[1::2] = others
    return both


def split_weights(alphas: Tensor, tunings: Sequence[Tuning]) -> list[Tensor]:
    """Return each layer's part of what `blend_weights` returned, from one split: a slice each costs more."""
    sizes = [tuning.num_kernels for tuning in tunings if tuning.weight is not None]
    rest = alphas.shape[-1] - sum(sizes)  # lambda itself, for those without an affine map
    pieces = iter(alphas.split([*sizes, rest], -1))
    parts: list[Tensor | None] = [None if tuning.weight is None else next(pieces) for tuning in tunings]
    last = next(pieces)
    return [last if part is None else part for part in parts]


def _product(lam: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if autocast_is_on(lam.device.type):
        with torch.autocast(lam.device.type, enabled=False):
            return F.linear(lam.to(dtype), weight.to(dtype), bias.to(dtype))
    return F.linear(lam.to(dtype), weight.to(dtype), bias.to(dtype))
