"""The stacks of a layer's kernels: which parameters hold them, and whether to blend them ahead of the layer's call."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tunable_ops import functional

# The parameters of each stack: one, or base and new after `split_base`.
Parts = tuple[tuple[Tensor, ...], ...]


class BaseAndNew(nn.Module):
    """A parametrisation that keeps a stack [P, *] as two parameters, the base [1, *] and the new ones [P - 1, *]."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Return the stack."""
        return torch.cat(parts)

    def right_inverse(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two parts."""
        return stack[:1].clone(), stack[1:].clone()


def stack_parts(owner: nn.Module, attribute: str) -> list[Tensor]:
    """Return the parameters that hold a stack: one, or base and new after `split_base`."""
    if parametrize.is_parametrized(owner, attribute):
        parametrisation: Any = owner.parametrizations[attribute]  # type: ignore[index]
        return list(parametrisation.parameters(recurse=False))
    return [getattr(owner, attribute)]


def whole_stack(owner: nn.Module, attribute: str) -> Tensor:
    """Return the stack in one tensor."""
    parts = stack_parts(owner, attribute)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class KernelStacks:
    """The stacks of one layer, each [P, *kernel], as the blend of a whole network needs them.

    Args:
        layer: The layer.
        names: The attributes that hold its stacks, the kernels first.
        num_kernels: P.
        autocasts: True if autocast casts the kernels, as it does those of convolutions.
        fused: Stride and groups of a convolution for which a fused kernel may be faster than blending first.
    """

    def __init__(
        self,
        layer: nn.Module,
        names: tuple[str, ...],
        num_kernels: int,
        autocasts: bool = False,
        fused: tuple[tuple[int, int], int] | None = None,
    ) -> None:
        self.layer, self.names, self.num_kernels = layer, names, num_kernels
        self.autocasts, self.fused = autocasts, fused
        self._decisions: dict[tuple[Any, ...], bool] = {}

    def parts(self) -> Parts | None:
        """Return the parameters that hold each stack now; None if anything else may change or compute them."""
        layer = self.layer
        if layer._forward_pre_hooks:
            return None
        found = []
        for name in self.names:
            if name in layer._parameters:
                parameter = layer._parameters[name]
                if parameter is not None:
                    found.append((parameter,))
                continue
            homes: Any = layer._modules.get("parametrizations")
            if homes is None or name not in homes or [type(step) for step in homes[name]] != [BaseAndNew]:
                return None
            found.append(tuple(homes[name]._parameters.values()))
        return tuple(found)

    def blends_first(self, kernels: Tensor, dtype: torch.dtype) -> bool:
        """Return True if blending first beats the fused kernel; decided once per dtype, layout and device.

        Args:
            kernels: The first stack, or its new kernels.
            dtype: What the layer computes in.
        """
        if self.fused is None:
            return True
        key = (dtype, kernels.stride(), kernels.device)
        if key not in self._decisions:
            self._decisions[key] = functional.blends_first(kernels, self.num_kernels, dtype, *self.fused)
        return self._decisions[key]
