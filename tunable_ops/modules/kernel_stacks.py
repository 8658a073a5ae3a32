"""The stacks of a layer's kernels: which parameters hold them, and how those of several layers are blended at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tunable_ops import functional
from tunable_ops.modules.low_rank import BaseAndLowRank, join_kernels
from tunable_ops.modules.tuning import Tuning

# The parameters of each stack: one, base and new after `split_base`, or base and the two factors of low rank.
Parts = tuple[tuple[Tensor, ...], ...]


class BaseAndNew(nn.Module):
    """A parametrisation that keeps a stack [P, *] as two parameters, the base [1, *] and the new ones [P - 1, *]."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Return the stack."""
        return join_kernels(*parts)

    def right_inverse(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two parts."""
        return stack[:1].clone(), stack[1:].clone()


def stack_parts(owner: nn.Module, attribute: str) -> list[Tensor]:
    """Return the parameters that hold a stack: one, base and new after `split_base`, or base, U and V."""
    if parametrize.is_parametrized(owner, attribute):
        parametrisation: Any = owner.parametrizations[attribute]  # type: ignore[index]
        return list(parametrisation.parameters(recurse=False))
    # Not by getattr alone: in a model's forward a converted layer shows its blend.
    parameter = owner._parameters.get(attribute)
    return [getattr(owner, attribute) if parameter is None else parameter]


def whole_stack(owner: nn.Module, attribute: str) -> Tensor:
    """Return the stack in one tensor."""
    parts = stack_parts(owner, attribute)
    if len(parts) == 1:
        return parts[0]
    step = owner.parametrizations[attribute][0]  # type: ignore[index]
    whole: Tensor = step(*parts) if isinstance(step, BaseAndLowRank) else join_kernels(*parts)
    return whole


_FORMS = (BaseAndNew, BaseAndLowRank)


class BlendedKernels(NamedTuple):
    """The kernels of a layer at one lambda, and what they were blended from."""

    kernels: tuple[Tensor, ...]
    parts: list[Tensor]
    versions: list[int]
    addresses: list[int]


class KernelStacks:
    """The stacks of one layer, each [P, *kernel], as the blend of a whole network needs them.

    Args:
        layer: The layer.
        names: The attributes that hold its stacks, the kernels first.
        num_kernels: P.
        autocasts: True if autocast casts the kernels, as it does those of convolutions and linear layers. No one else
            sees these.
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
            if homes is None or name not in homes or [type(step) in _FORMS for step in homes[name]] != [True]:
                return None
            found.append(tuple(homes[name]._parameters.values()))
        return tuple(found)

    def join(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the stack that `parts` hold, one of the entries of several that the method of that name returns."""
        if len(parts) == 2:
            return join_kernels(*parts)
        homes: Any = self.layer._modules["parametrizations"]
        stack: Tensor = homes[self.names[0]][0](*parts)  # only kernels are of low rank
        return stack

    def shows(self) -> tuple[Any, tuple[int, ...]]:
        """Return the module that computes an attribute of the network from the stack, and its shape; None and ()."""
        return None, ()

    def blends_first(self, kernels: Tensor, dtype: torch.dtype) -> bool:
        """Return True if blending first beats the fused kernel; decided once per dtype, layout and device.

        Args:
            kernels: The first stack, or its base kernels.
            dtype: What the layer computes in.
        """
        if self.fused is None:
            return True
        precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        key = (dtype, kernels.stride(), kernels.device, precision)
        if key not in self._decisions:
            self._decisions[key] = functional.blends_first(kernels, self.num_kernels, dtype, *self.fused)
        return self._decisions[key]

    def are_unchanged(self, blended: BlendedKernels) -> bool:
        """Return False if a stack was written or replaced since it was blended, by a hook for example."""
        _, before, versions, addresses = blended
        layer = self.layer
        own = layer._parameters
        if len(before) == len(self.names) and all(name in own for name in self.names):  # no parts: most layers
            if layer._forward_pre_hooks:
                return False
            for name, part, version, address in zip(self.names, before, versions, addresses, strict=True):
                if own[name] is not part or part._version != version or part.data_ptr() != address:
                    return False
            return True
        parts = self.parts()
        if parts is None:
            return False
        place, count = 0, len(before)
        for stack in parts:
            for part in stack:
                if place == count or part is not before[place]:
                    return False
                if part._version != versions[place] or part.data_ptr() != addresses[place]:
                    return False
                place += 1
        return place == count


class _Call(NamedTuple):
    """One call of the operator: stacks, each in one tensor or in parts that a layer joins, and where alphas begin."""

    dtype: torch.dtype
    sources: list[tuple[KernelStacks, tuple[Tensor, ...]]]
    starts: list[int]


class _Member(NamedTuple):
    """A layer in a recipe: its parameters with dtypes and addresses, and where its kernels are among the results."""

    parts: list[Tensor]
    dtypes: list[torch.dtype]
    addresses: list[int]
    results: list[tuple[int, int]]  # (call, position)


class Recipe(NamedTuple):
    """How the stacks of several layers are blended together, found once for the parameters that they hold."""

    members: list[_Member | None]  # None: the layer has to blend by itself
    calls: list[_Call]
    layers: list[tuple[Tuning, int]]
    autocast: torch.dtype | None

    def fits(self, members: "Sequence[Group]", alphas: Tensor, autocast: torch.dtype | None) -> bool:
        """Return True if the layers hold the same parameters in the same memory."""
        if not alphas.is_cpu or autocast != self.autocast:
            return False
        for (stacks, *phi), (tuning, start), member in zip(members, self.layers, self.members, strict=True):
            parts = stacks.parts()
            if member is None or parts is None or phi[0] is not tuning or phi[1] != start:
                return False
            place, count = 0, len(member.parts)
            for stack in parts:
                for part in stack:
                    if place == count or part is not member.parts[place]:
                        return False
                    if part.dtype is not member.dtypes[place] or part.data_ptr() != member.addresses[place]:
                        return False
                    place += 1
            if place != count:
                return False
        return True


Group = tuple[KernelStacks, Tuning, int]


def find_recipe(members: Sequence[Group], alphas: Tensor, autocast: torch.dtype | None) -> Recipe:
    """Return how to blend the stacks of several layers, each stack once, even if layers share it.

    Args:
        members: Each layer's stacks, its phi, and where its alphas begin.
        alphas: [A], the alphas of all layers.
        autocast: The dtype of autocast, None without it.
    """
    calls: dict[torch.dtype, tuple[int, _Call]] = {}
    places: dict[tuple[torch.dtype, tuple[int, ...]], tuple[int, int]] = {}  # by phi and the stack's parts
    found: list[_Member | None] = []
    for stacks, tuning, start in members:
        parts = stacks.parts()
        flat = [part for stack in parts or () for part in stack]
        dtype = autocast if stacks.autocasts else None
        # On a CPU every layer of a model is blended beforehand.
        if (
            parts is None
            or not all(is_plain(part, alphas) for part in flat)
            or not (alphas.is_cpu or stacks.blends_first(parts[0][0], dtype or flat[0].dtype))
        ):
            found.append(None)
            continue
        results = []
        for stack in parts:
            result = stack[0].dtype if dtype is None or stack[0].dtype == torch.float64 else dtype
            number, call = calls.setdefault(result, (len(calls), _Call(result, [], [])))
            key = (result, (id(tuning), *map(id, stack)))
            if key not in places:
                places[key] = (number, len(call.starts))
                call.sources.append((stacks, stack))
                call.starts.append(start)
            results.append(places[key])
        found.append(_Member(flat, [p.dtype for p in flat], [p.data_ptr() for p in flat], results))
    layers = [(tuning, start) for _, tuning, start in members]
    return Recipe(found, [call for _, call in calls.values()], layers, autocast)


def blend_stacks(recipe: Recipe, alphas: Tensor) -> list[BlendedKernels | None]:
    """Blend the stacks of several layers, in one call for each dtype of results.

    Args:
        recipe: Of the layers.
        alphas: [A], the alphas of all layers.

    Returns:
        Each layer's kernels; None for a layer that has to blend by itself.
    """
    kernels = []
    for call in recipe.calls:
        tensors = [stack[0] if len(stack) == 1 else stacks.join(stack) for stacks, stack in call.sources]
        kernels.append(functional.tunable_parameters(tensors, alphas, call.starts, dtype=call.dtype))
    return [
        member
        and BlendedKernels(
            tuple([kernels[number][position] for number, position in member.results]),
            member.parts,
            [part._version for part in member.parts],
            [part.data_ptr() for part in member.parts],
        )
        for member in recipe.members
    ]


def is_plain(part: Tensor, alphas: Tensor) -> bool:
    """Return True for a tensor beside alpha whose changes show: no subclass, no inference tensor."""
    return type(part) in (Tensor, nn.Parameter) and part.device == alphas.device and not part.is_inference()
