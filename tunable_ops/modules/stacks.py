"""Where a layer's stacks are kept: in one parameter each, or as base and new ones (`split_base`)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class BaseAndNew(nn.Module):
    """A parametrisation that keeps a stack [P, *] as two parameters, the base [1, *] and the new ones [P - 1, *]."""

    def forward(self, *parts: Tensor) -> Tensor:
        """The stack."""
        return torch.cat(parts)

    def right_inverse(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts."""
        return stack[:1].clone(), stack[1:].clone()


def stack_parts(owner: nn.Module, attribute: str) -> list[Tensor]:
    """The parameters that hold a stack: one, or base and new after `split_base`."""
    if parametrize.is_parametrized(owner, attribute):
        parametrisation: Any = owner.parametrizations[attribute]  # type: ignore[index]
        return list(parametrisation.parameters(recurse=False))
    return [getattr(owner, attribute)]


def whole_stack(owner: nn.Module, attribute: str) -> Tensor:
    """The stack, in one tensor."""
    parts = stack_parts(owner, attribute)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def known_parts(owner: nn.Module, attribute: str) -> tuple[Tensor, ...] | None:
    """As `stack_parts`, quickly; None where the stack is computed by anything but `split_base`."""
    if attribute in owner._parameters:
        parameter = owner._parameters[attribute]
        return () if parameter is None else (parameter,)
    homes: Any = owner._modules.get("parametrizations")
    if homes is None or attribute not in homes or [type(step) for step in homes[attribute]] != [BaseAndNew]:
        return None
    return tuple(homes[attribute]._parameters.values())
