"""What every tunable layer has: phi, and where its alpha or its blended kernels come from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.modules import frame as frames
from tunable_ops.modules.kernel_stacks import KernelStacks
from tunable_ops.modules.read_lambda import read_lambda
from tunable_ops.modules.tuning import Tuning


class TunableLayer(nn.Module):
    """A layer with P kernels; subclasses hold `weight` [P, *].

    Where one lambda serves all samples of a model they take their kernel from `self.blended_for(...)`; else, and where
    that is None, they call the operator with `self.alpha(...)`.
    """

    tuning: Tuning

    def __init__(
        self,
        num_params: int,
        num_kernels: int | None,
        tuning: str,
        domain: str,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.tuning = Tuning(num_params, num_kernels, tuning, domain, device, dtype)

    def alpha(self, lam: Tensor | Sequence[float] | None, batch: int | None, grid: frames.Grid = ()) -> Tensor:
        """Return the blend for a call: from `lam`, or from the TunableModel around the layer.

        Args:
            lam: [p], [B, p], a map [B, p, *size], or None inside a TunableModel. A layer knows no units: these are the
                numbers that phi gets, a model's lambda divided by the scales of its `LambdaSpec`.
            batch: The input's leading size, None where it is unbatched. n*B stands for n rows per sample (windows,
                heads), sample-major: alpha is repeated n times.
            grid: The output's spatial size, or a function that returns it; empty where the layer has no grid.

        Returns:
            [P], [batch, P] or [batch, P, *grid].

        Raises:
            RuntimeError: No lambda.
            ValueError: A lambda of the wrong length, or for another batch.
        """
        name, tuning = type(self).__name__, self.tuning
        if lam is None:
            return frames.alpha(name, tuning, batch, grid)
        like = next(self.parameters()) if tuning.weight is None else tuning.weight
        lam = read_lambda(name, lam, tuning.num_params, like)
        return frames.Frame(lam).alpha(name, tuning, batch, grid)

    def blended_for(self, input: Tensor, dim: int, channels: int) -> tuple[Tensor, ...] | None:
        """Return the layer's kernels from the blend of the whole TunableModel; None if there are none for this input.

        Args:
            input: The layer's input.
            dim: The dimension of the channels, counted from the last.
            channels: How many there must be; the operator raises its own error for other inputs.
        """
        if input.dim() < -dim or input.shape[dim] != channels:
            return None
        return frames.blended(self, input.dtype)

    def kernel_stacks(self) -> KernelStacks | None:
        """Return what the blend of a whole network needs to know; None for a layer that always blends by itself."""
        return None

    def in_model(self) -> bool:
        """Return True while the TunableModel that the layer belongs to runs."""
        frame = frames.current()
        return frame is not None and frame.holds(self.tuning)


class StackedLayer(TunableLayer):
    """A layer whose `weight` [P, *kernel] is a stack of kernels of a plain layer's rank `kernel_dim`."""

    stack_names: tuple[str, ...] = ("weight", "bias")
    autocasts = False  # True if autocast casts the kernels
    kernel_dim: int
    weight: nn.Parameter
    bias: nn.Parameter | None

    def kernel_stacks(self) -> KernelStacks | None:
        """Return the stacks `weight` and `bias`."""
        return KernelStacks(self, self.stack_names, self.tuning.num_kernels, self.autocasts)

    def reset_parameters(self) -> None:
        """Initialise every kernel by itself, as torch's plain layer does (fan-in of one kernel, not of the stack)."""
        plain: Any = self.plain(meta=True)
        with torch.no_grad():
            for p in range(self.weight.shape[0]):
                plain.weight = nn.Parameter(self.weight[p])
                plain.bias = None if self.bias is None else nn.Parameter(self.bias[p])
                plain.reset_parameters()
        self.tuning.reset_parameters()

    def plain(self, meta: bool = False) -> nn.Module:
        """Return torch's layer of the same arguments, uninitialised (`meta`: without memory)."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # torch refuses channels_last for a 5-D weight: `fn` sees the kernels side by side, [P*O, C, kh, kw], and
        # gives each that format (physical [P, O, kh, kw, C]).
        stack_dim = self.kernel_dim + 1

        def per_kernel(tensor: Tensor) -> Tensor:
            if tensor.dim() != stack_dim or stack_dim < 4:
                return fn(tensor)
            return fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2])

        return super()._apply(per_kernel, recurse)
