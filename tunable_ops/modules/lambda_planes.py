"""LambdaPlanes: tuning parameters as inputs of a network, beside its picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.checks import is_one
from tunable_ops.modules import frame as frames

_POOL: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class LambdaPlanes(nn.Module):
    """Append a plane of constants for each of some tuning parameters: ``y = cat(x, lam[entries] / divisors)``.

    For networks that take a parameter, such as the noise level, as an input: inside a `TunableModel` it becomes an
    entry of lambda like the others, per call, per sample or as a map. Kernels leave it alone: `convert` on the box
    gives new kernels to the other entries only, and a phi that starts without these. `fold` keeps the planes, as
    constants, which are then in the state dict under the name `values`.

    Args:
        entries: Positions in lambda, from 0; different ones.
        divisors: What lambda, in its units, is divided by: one positive number for each entry. Default 1.

    Attributes:
        values: [n], the planes' constants after `fold`; None while they follow lambda.

    Raises:
        TypeError: Entries that are not ints, or divisors that are not numbers.
        ValueError: No entries, negative or equal ones, another number of divisors, or one that is not positive.

    Example:
        >>> from tunable_ops.modules.model import TunableModel
        >>> net = TunableModel(LambdaPlanes([1], [0.1]), num_params=2, domain="box")
        >>> net(torch.zeros(1, 1, 1, 2), [0.5, 0.25])
        tensor([[[[0.0000, 0.0000]],
        <BLANKLINE>
                 [[2.5000, 2.5000]]]])
    """

    values: Tensor | None

    def __init__(self, entries: Sequence[int], divisors: Sequence[float] | None = None) -> None:
        super().__init__()
        entries = list(entries)
        divisors = [1.0] * len(entries) if divisors is None else list(divisors)
        if not all(type(entry) is int for entry in entries):
            raise TypeError(f"LambdaPlanes: entries must be ints; got {entries}")
        if not entries or min(entries) < 0 or len(set(entries)) < len(entries):
            raise ValueError(f"LambdaPlanes: entries must be different positions from 0; got {entries}")
        if not all(isinstance(divisor, int | float) for divisor in divisors):
            raise TypeError(f"LambdaPlanes: divisors must be numbers; got {divisors}")
        if len(divisors) != len(entries) or not all(divisor > 0 for divisor in divisors):
            raise ValueError(
                f"LambdaPlanes: divisors must hold one positive number per entry, {len(entries)}; got {divisors}"
            )
        self.entries, self.divisors = tuple(entries), tuple(divisors)
        self.register_buffer("values", None)

    def forward(self, x: Tensor) -> Tensor:
        """Append the planes.

        Args:
            x: [B, C, *grid] with one to three dimensions of the grid, floating point. A map of lambda is averaged down
                to the grid, as for tunable layers.

        Returns:
            [B, C + n, *grid].

        Raises:
            RuntimeError: Outside every TunableModel, unless folded.
            ValueError: A lambda that does not fit the leading size of x, or a map of another number of dimensions.
        """
        values = self._values()
        batch, grid = x.shape[0], tuple(x.shape[2:])
        is_map = values.dim() > 2
        if is_map:
            if values.dim() != x.dim():
                raise ValueError(
                    f"LambdaPlanes: lam must be a map of {len(grid)} dimensions for this input; got {values.dim() - 2}"
                )
            values = _POOL[len(grid)](values, tuple(max(n, 1) for n in grid))
        else:
            values = values.view(-1, len(self.entries), *(1 for _ in grid))
        if not is_one(values.shape[0]) and values.shape[0] != batch:
            if values.shape[0] == 0 or batch % values.shape[0]:
                raise ValueError(
                    f"LambdaPlanes: lam must fit the input's leading size {batch}: [p], B = {batch}, or a divisor B; "
                    f"got B = {values.shape[0]}"
                )
            if is_map:
                raise ValueError(
                    "LambdaPlanes: lam must not be a map for an input that holds parts of a sample side by side; got "
                    f"B = {values.shape[0]} and an input of leading size {batch}"
                )
            values = values.repeat_interleave(batch // values.shape[0], 0)
        return torch.cat((x, values.to(x).expand(batch, -1, *grid)), dim=1)

    def hold(self, lam: Tensor) -> None:
        """Stop following lambda: the planes become those of `lam` [p], in its units. Again: in place."""
        values = self._scaled(lam)
        if self.values is None:
            self.values = values
        else:
            self.values.copy_(values)

    def _values(self) -> Tensor:
        """Return the constants [n], [B, n] or a map [B, n, *grid]."""
        if self.values is not None:
            return self.values
        frame = frames.current()
        if frame is None:
            raise RuntimeError("LambdaPlanes: lam must come from the forward of a TunableModel around it; got none")
        return self._scaled(frame.natural)

    def _scaled(self, lam: Tensor) -> Tensor:
        axis = 0 if lam.dim() == 1 else 1
        chosen = [lam.select(axis, entry) / divisor for entry, divisor in zip(self.entries, self.divisors, strict=True)]
        return torch.stack(chosen, axis)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        expect_values(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"entries={list(self.entries)}, divisors={list(self.divisors)}"


def expect_values(network: nn.Module, state: Mapping[str, Any], prefix: str = "") -> None:
    """Prepare the planes of a plain network for the state dict of a folded one, which holds their constants."""
    for name, module in network.named_modules():
        key = f"{prefix}{name}.values" if name else f"{prefix}values"
        if isinstance(module, LambdaPlanes) and module.values is None and key in state:
            module.values = torch.zeros(len(module.entries))  # `forward` moves them to the input's device
