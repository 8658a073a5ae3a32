"""Plain networks through the C++ operator: their 3x3 and 5x5 layers by Winograd's filtering."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops import functional


class FilteredConv2d(nn.Conv2d):
    """An nn.Conv2d that takes the C++ operator where that is faster (`functional.conv2d`): what `accelerate` makes.

    Arguments, parameters and state dict are those of nn.Conv2d.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            compiled: Tensor = super()._conv_forward(input, weight, bias)
            return compiled
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            padding = 0
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        geometry: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        kept = vars(self).get("_kept") or vars(self).setdefault("_kept", functional.KeptKernel())
        return functional.conv2d(input, weight, bias, padding=padding, kept=kept, **geometry)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        vars(self).pop("_kept", None)
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # What is found again at the next call belongs to this object alone.
        return {key: value for key, value in vars(self).items() if key != "_kept"}


def accelerate(net: nn.Module) -> nn.Module:
    """Run the 3x3 and 5x5 convolutions of a plain network on a CPU by Winograd's filtering where it is faster.

    Changes the class of the network's layers of exactly torch's type nn.Conv2d, in place, where a call may profit: 3x3
    or 5x5, stride 1, dilation 1, 16 or more channels per group. Those calls are served in float32 and channels_last
    (``net.to(memory_format=torch.channels_last)``, and the input likewise), outside autocast and torch.compile; all
    others are torch's. Results differ from torch's within the rounding that docs/winograd.md shows, gradients too;
    inside ``tunable_ops.exact()`` they are torch's. Layers inside a TunableModel profit without this; for a `LiveFold`
    and what `fold` returns call it once. The trainer does, on a CPU, and so do the feature networks of the losses.
    Saving and loading state dicts, deepcopy, pickle and `convert` work as before.

    Args:
        net: A network, or one layer.

    Returns:
        `net`.

    Raises:
        TypeError: Not a module.

    Example:
        >>> accelerate(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()))[0].__class__.__name__
        'FilteredConv2d'
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"accelerate: net must be a module; got {type(net).__name__}")
    for module in net.modules():
        if type(module) is nn.Conv2d and _may_profit(module):
            module.__class__ = FilteredConv2d
    return net


def _may_profit(layer: nn.Conv2d) -> bool:
    taps, *rest = layer.kernel_size[0], layer.kernel_size[1] - layer.kernel_size[0], *layer.stride, *layer.dilation
    return (
        taps in functional.TAPS
        and rest == [0, 1, 1, 1, 1]
        and layer.in_channels // layer.groups >= functional.LEAST_CHANNELS
    )
