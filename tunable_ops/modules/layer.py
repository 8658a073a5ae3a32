"""What every tunable layer has: phi, and where its alpha or its blended kernels come from."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops import functional
from tunable_ops.modules import frame as frames
from tunable_ops.modules.kernel_stacks import KernelStacks
from tunable_ops.modules.read_lambda import read_lambda
from tunable_ops.modules.read_only import read_only
from tunable_ops.modules.tuning import Tuning

# They gather, shard and move the parameters of a network from hooks that run in its forward; torch.jit.trace reads
# every attribute of a module.
_MANAGERS = ("torch.distributed.", "accelerate.", "deepspeed.", "torch._jit_internal")


def is_read_by_a_manager(calls: int) -> bool:
    """Return True if the code that reads an attribute looks after parameters, and is not the network's.

    Args:
        calls: How many calls up that code is, from the caller of this function.
    """
    if torch.compiler.is_compiling():  # graphs are of the network's code alone
        return False
    return manages(sys._getframe(calls + 1))


def manages(code: FrameType) -> bool:
    """Return True for code that looks after parameters."""
    name: str = code.f_globals.get("__name__", "")
    return name.startswith(_MANAGERS)


class TunableLayer(nn.Module):
    """A layer with P kernels; subclasses hold `weight` [P, *].

    Where one lambda serves all samples of a model they take their kernel from `self.blended_for(...)`; else, and where
    that is None, they call the operator with `self.alpha(...)`.
    """

    tuning: Tuning
    place = ""  # the layer's name in the network of its TunableModel

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
        if lam is None:
            return frames.alpha(self, batch, grid)
        tuning = self.tuning
        like = next(self.parameters()) if tuning.weight is None else tuning.weight
        lam = read_lambda(type(self).__name__, lam, tuning.num_params, like)
        return frames.Frame(lam).alpha(self, batch, grid)

    @property
    def title(self) -> str:
        """What errors call the layer: its class and its place in the network."""
        # The classes that torch derives for parametrised and sharded modules are its own affair.
        kind = next(c.__name__ for c in type(self).__mro__ if not c.__module__.startswith("torch."))
        return f"{kind} {self.place}" if self.place else kind

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

    def check_input(self, input: Tensor, dim: int, argument: str) -> None:
        """Check what no blend of the whole model serves, before the layer blends by itself.

        Args:
            input: The layer's input.
            dim: The dimension of the channels, counted from the last.
            argument: The layer's attribute that says how many there must be: "in_channels" or "in_features".

        Raises:
            TypeError: It is not of a floating-point type.
            ValueError: It has another number of channels. Other ranks are left to the operator.
        """
        if not input.is_floating_point():
            raise TypeError(f"{self.title}: input must be of a floating-point type; got {input.dtype}")
        channels = getattr(self, argument)
        if input.dim() >= -dim and input.shape[dim] != channels:
            raise ValueError(
                f"{self.title}: input must have {channels} channels in dimension {dim}, the layer's {argument}; got "
                f"{input.shape[dim]}, in shape {list(input.shape)}"
            )

    def kernel_stacks(self) -> KernelStacks | None:
        """Return what the blend of a whole network needs to know; None for a layer that always blends by itself."""
        return None

    def in_model(self) -> bool:
        """Return True while the TunableModel that the layer belongs to runs."""
        frame = frames.current()
        return frame is not None and frame.holds(self.tuning)


class ComputedLayer(TunableLayer):
    """A layer that is a plain one at every lambda, though not by a blend of kernels; `fold` asks it for that layer."""

    def plain(self) -> nn.Module:
        """Return torch's layer whose parameters `write` sets, with memory of its own."""
        raise NotImplementedError

    def write(self, plain: Any, lam: Tensor) -> None:
        """Set the parameters of `plain`, in place, to what the layer computes at lambda [p], as phi gets it."""
        raise NotImplementedError


class StackedLayer(TunableLayer):
    """A layer whose `weight` [P, *kernel] is a stack of kernels of a plain layer's rank `kernel_dim`.

    Code of the layer's own takes the stacks from `stack(name)`: see `shows_blend`.
    """

    # True for the layers that `convert` makes, whose network was written for plain ones. While their TunableModel runs,
    # `layer.weight` and `layer.bias` read as the blend.
    shows_blend = False
    stack_names: tuple[str, ...] = ("weight", "bias")
    autocasts = False  # True if autocast casts the kernels
    kernel_dim: int
    weight: nn.Parameter
    bias: nn.Parameter | None

    def kernel_stacks(self) -> KernelStacks | None:
        """Return the stacks `weight` and `bias`."""
        return KernelStacks(self, self.stack_names, self.tuning.num_kernels, self.autocasts)

    def stack(self, name: str) -> Any:
        """Return the stack `name` itself, "weight" or "bias", also where the attribute shows its blend."""
        parameters = self._parameters
        if name in parameters:
            return parameters[name]
        homes: Any = self._modules.get("parametrizations")
        return homes[name]() if homes is not None and name in homes else getattr(self, name)

    def shown(self, name: str) -> Any:
        """Return what `layer.weight` or `layer.bias` reads as: the stack, or its blend while a model runs.

        The blend has the shape of a plain layer's kernel and that of the stack's dtype; it is no nn.Parameter.

        Raises:
            RuntimeError: Another model runs, whose lambda is not the layer's.
            ValueError: A lambda per sample or a map, for which there is no one kernel.
        """
        stack = self.stack(name)
        frame = frames.current() if self.shows_blend else None
        # Past `__getattr__` or the property of a parametrised layer is what asked.
        if stack is None or frame is None or is_read_by_a_manager(2):
            return stack
        if not frame.holds(self.tuning):
            raise RuntimeError(
                f"{self.title}: {name} must be read while the layer's own model runs, which gives it lambda; got "
                "another TunableModel's forward"
            )
        if frame.lam.dim() > 1:
            raise ValueError(
                f"{self.title}: lam must be [p], one for all samples, because the network reads the layer's {name}; "
                f"got shape {list(frame.lam.shape)}. convert(..., exclude=[{self.place!r}]) leaves the layer plain"
            )
        return read_only(functional.tunable_parameter(stack, self.alpha(None, None)), f"{self.title}: {name}")

    def __getattr__(self, name: str) -> Any:
        """Return a parameter, buffer or child, as nn.Module does; for the kernels what `shown` says."""
        if (name == "weight" or name == "bias") and name in self._parameters:
            return self.shown(name)
        return nn.Module.__getattr__(self, name)

    def reset_parameters(self) -> None:
        """Initialise every kernel by itself, as torch's plain layer does (fan-in of one kernel, not of the stack)."""
        plain: Any = self.plain(meta=True)
        weight, bias = self.stack("weight"), self.stack("bias")
        with torch.no_grad():
            for p in range(weight.shape[0]):
                plain.weight = nn.Parameter(weight[p])
                plain.bias = None if bias is None else nn.Parameter(bias[p])
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
