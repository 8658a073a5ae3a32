"""What every tunable layer has: phi, a place in its model, and how it comes by its alpha."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.checks import autocast_is_on
from tunable_ops.modules import frame as frames
from tunable_ops.modules.network_blend import Parts
from tunable_ops.modules.spec import read_lambda
from tunable_ops.modules.stacks import known_parts
from tunable_ops.modules.tuning import Tuning


class TunableLayer(nn.Module):
    """A layer with P kernels; subclasses hold `weight` [P, *].

    Where one lambda serves all samples of a model they take their kernel from `self.blended()`; else, and where that
    is None, they call the operator with `self.alpha(...)`.
    """

    casts = False  # whether autocast casts the kernels, as it does those of convolutions
    tuning: Tuning
    slot: int | None  # the layer's place in its TunableModel's list

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
        self.slot = None

    def alpha(self, lam: Tensor | Sequence[float] | None, batch: int | None, grid: Sequence[int]) -> Tensor:
        """The blend for a call: from `lam`, or from the TunableModel around it.

        Args:
            lam: [p], [B, p], a map [B, p, *size], or None inside a TunableModel.
            batch: The input's leading size, None where it is unbatched. n*B stands for n rows per sample (windows,
                heads), sample-major: alpha is repeated n times.
            grid: The output's spatial size; empty where the layer has no grid.

        Returns:
            [P], [batch, P] or [batch, P, *grid].

        Raises:
            RuntimeError: No lambda.
            ValueError: A lambda of the wrong length, or for another batch.
        """
        if lam is not None:
            name = type(self).__name__
            lam = read_lambda(name, lam, self.tuning.num_params, like=next(self.parameters()))
            alpha = frames.map_alpha(self, lam, grid, "raise") if lam.dim() > 2 else self.tuning(lam)
        else:
            frame = frames.current()
            if frame is None:
                raise RuntimeError(
                    f"{type(self).__name__}: lam must be given outside a TunableModel's forward; got None. In "
                    "activation checkpointing use tunable_ops.checkpoint, which carries lambda to the recomputation"
                )
            alpha = frame.alpha(self, grid)
        if alpha.dim() == 1:
            return alpha
        if alpha.shape[0] == 1 and alpha.dim() == 2:
            return alpha[0]
        if batch is None or alpha.shape[0] == batch:
            return alpha
        if alpha.shape[0] == 0 or batch % alpha.shape[0]:
            raise ValueError(
                f"{type(self).__name__}: lam must fit the input's leading size {batch}: [p], B = {batch}, or a "
                f"divisor B (windows of a sample side by side); got B = {alpha.shape[0]}"
            )
        if alpha.dim() > 2 and alpha.shape[0] > 1:
            raise ValueError(
                f"{type(self).__name__}: lam must not be a map for a layer that sees parts of a sample side by side; "
                f"got B = {alpha.shape[0]} and an input of leading size {batch}"
            )
        return alpha.repeat_interleave(batch // alpha.shape[0], 0)

    def blended(self) -> tuple[Tensor, ...] | None:
        """The blends of the layer's stacks, made together with those of the whole TunableModel; None: not made."""
        frame = frames.current()
        return None if frame is None or frame.blend is None else frame.blend.take(self)

    def blended_for(self, input: Tensor, dim: int, channels: int) -> tuple[Tensor, ...] | None:
        """As `blended`; None too for an input that the layer's operator refuses, in words of its own."""
        blended = self.blended()
        if blended is None or input.dim() < -dim or input.shape[dim] != channels:
            return None
        return blended if input.dtype == blended[0].dtype or autocast_is_on(input.device.type) else None

    def parts(self) -> Parts | None:
        """The parameters that hold each of the layer's stacks; None where something else may change or compute them."""
        return None

    def blends_first(self, dtype: torch.dtype) -> bool:
        """Whether blending beforehand, then torch's own layer, is the fastest way to compute in dtype."""
        return True

    def in_model(self) -> bool:
        """True while the TunableModel that the layer belongs to runs."""
        frame = frames.current()
        return frame is not None and frame.holds(self)


class StackedLayer(TunableLayer):
    """A layer whose `weight` [P, *kernel] is a stack of kernels of a plain layer's rank `kernel_dim`."""

    stack_names: tuple[str, ...] = ("weight", "bias")
    kernel_dim: int
    weight: nn.Parameter
    bias: nn.Parameter | None

    def parts(self) -> Parts | None:
        """The parameters behind `weight` and `bias`; None with a hook that runs before the layer."""
        if self._forward_pre_hooks:
            return None
        found = [known_parts(self, name) for name in self.stack_names]
        return None if None in found else tuple(each for each in found if each)

    def reset_parameters(self) -> None:
        """Initialises every kernel by itself, as torch's plain layer does (fan-in of one kernel, not of the stack)."""
        plain: Any = self.plain(meta=True)
        with torch.no_grad():
            for p in range(self.weight.shape[0]):
                plain.weight = nn.Parameter(self.weight[p])
                plain.bias = None if self.bias is None else nn.Parameter(self.bias[p])
                plain.reset_parameters()
        self.tuning.reset_parameters()

    def plain(self, meta: bool = False) -> nn.Module:
        """Torch's layer of the same arguments, uninitialised (`meta`: without memory)."""
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
