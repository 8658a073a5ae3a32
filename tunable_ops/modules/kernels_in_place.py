"""Kernels that a layer takes without looking for them: blended where it runs, or kept from an earlier call.

Without gradients on a CPU a blended kernel is needed for the time of one convolution. A `Workspace` has memory for the
kernels of one layer, the largest, and every layer blends into it when it runs: reading a stack is then all that main
memory sees of the blend, and the kernel is in the caches when it is used. What each layer needs for that is found once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops import functional
from tunable_ops.convolution import with_new_strides
from tunable_ops.modules.kernel_stacks import BlendedKernels, KernelStacks, is_plain

_FORMATS = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}
_LINE = 64  # bytes: kernel and bias begin on a cache line each


class Ready:
    """Kernel and bias of one layer, and how to see that they are still those of its stacks.

    Attributes:
        kernels: The kernel and, if the layer has one, the bias.
        kernel: The kernel.
        bias: The bias or None.
        by_torch: True if `functional.conv2d` leaves the kernel to PyTorch where the stride is 1.
    """

    __slots__ = (
        "addresses",
        "bias",
        "by_torch",
        "hooks",
        "kernel",
        "kernels",
        "own",
        "shift",
        "stacks",
        "starts",
        "versions",
        "weight",
    )

    def __init__(
        self,
        layer: nn.Module,
        stacks: list[Tensor],
        addresses: tuple[int, int],
        kernels: Sequence[Tensor],
        starts: list[int] | None,
        versions: tuple[int, int] | None,
    ) -> None:
        self.own: Mapping[str, Any] = layer._parameters
        self.hooks: Mapping[int, Any] = layer._forward_pre_hooks
        self.stacks, self.weight, self.shift = stacks, stacks[0], stacks[1] if len(stacks) > 1 else None
        self.addresses, self.starts, self.versions = addresses, starts, versions
        self.kernels = list(kernels)
        self.kernel, self.bias = kernels[0], kernels[1] if len(kernels) > 1 else None
        self.by_torch = functional.leaves_to_torch(kernels[0].shape)

    def is_current(self, alphas: Tensor, blend: Callable[..., Any] | None) -> bool:
        """Blend the kernels, unless they are kept; return False if that is no longer right for the layer.

        Args:
            alphas: [A].
            blend: The operator that blends into memory; not needed for kernels that are kept.
        """
        own, weight, shift = self.own, self.weight, self.shift
        if own.get("weight") is not weight or own.get("bias") is not shift or self.hooks:
            return False
        first, second = self.addresses
        if weight.data_ptr() != first or (shift is not None and shift.data_ptr() != second):
            return False
        if self.versions is not None:
            first, second = self.versions
            return weight._version == first and (shift is None or shift._version == second)
        try:
            blend(self.stacks, alphas, self.starts, self.kernels)  # type: ignore[misc]
        except RuntimeError:  # other shapes at the same address
            return False
        return True


class Shown:
    """The blend that a network's own attribute reads as, and how to see that it is still that of its stack.

    Attributes:
        layer: The tunable layer behind the attribute.
        place: The position of the blend among those of the call.
        shape: The shape of the attribute.
        stack: The stack [P, numel].
    """

    __slots__ = ("address", "layer", "modules", "own", "place", "shape", "stack", "start", "watchers")

    def __init__(self, stacks: KernelStacks, home: Any, shape: tuple[int, ...], place: int, start: int) -> None:
        self.own: Mapping[str, Any] = home._parameters
        self.modules: Mapping[str, Any] = home._modules
        self.layer = layer = stacks.layer
        self.watchers: tuple[Mapping[int, Any], ...] = (
            home._forward_hooks,
            home._forward_pre_hooks,
            layer._forward_hooks,
            layer._forward_pre_hooks,
        )
        self.place, self.shape, self.start = place, shape, start
        self.stack: Tensor = home._parameters["original"]
        self.address = self.stack.data_ptr()

    def is_current(self) -> bool:
        """Return False if the stack is another one, or if somebody watches or adds to what computes the blend."""
        hooks, before, inner, inner_before = self.watchers
        stack = self.stack
        if hooks or before or inner or inner_before or len(self.modules) != 1:
            return False
        return self.own.get("original") is stack and stack.data_ptr() == self.address


class ShownBlends:
    """The blends of a call that attributes of the network read as: in memory of their own, since code may keep them.

    Args:
        shown: What is blended.
        alphas: [A].
        blend: The operator that blends into memory.
    """

    def __init__(self, shown: Sequence[Shown], alphas: Tensor, blend: Callable[..., Any]) -> None:
        stacks = [each.stack for each in shown]
        sizes = [stack.shape[1] for stack in stacks]
        self.versions = [stack._version for stack in stacks]
        self.blends: list[Tensor | None] = list(stacks[0].new_empty(sum(sizes)).split(sizes))
        try:
            blend(stacks, alphas, [each.start for each in shown], self.blends)
        except RuntimeError:  # a stack was moved to another device
            self.blends = [None] * len(stacks)

    def take(self, shown: Shown) -> Tensor | None:
        """Return a blend the first time it is asked for, later None: the caller may write to it."""
        blends, place = self.blends, shown.place
        blend = blends[place]
        if blend is None or not shown.is_current() or shown.stack._version != self.versions[place]:
            return None
        blends[place] = None
        return blend.view(shown.shape)


class KeptBlends:
    """The same for blends that are kept for several calls."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, int, int]] = []  # the blend, its version and that of the stack

    def keep(self, stacks: Mapping[int, KernelStacks], found: Mapping[int, BlendedKernels]) -> dict[nn.Module, Shown]:
        """Return what is kept of the blends of layers, by slot: by the module that computes an attribute."""
        kept: dict[nn.Module, Shown] = {}
        for slot, (kernels, _, versions, addresses) in found.items():
            home, shape = stacks[slot].shows()
            if home is None or list(home._parameters) != ["original"] or kernels[0].is_inference():
                continue
            kept[home] = Shown(stacks[slot], home, shape, len(kept), 0)
            kept[home].address = addresses[0]
            blend = kernels[0].view(shape)
            self._kept.append((blend, blend._version, versions[0]))
        return kept

    def take(self, shown: Shown) -> Tensor | None:
        """Return a blend, or None if its stack or itself was written to."""
        blend, version, stack_version = self._kept[shown.place]
        if blend._version != version or shown.stack._version != stack_version or not shown.is_current():
            return None
        return blend


class Workspace:
    """Memory for the kernels of one layer at a time. It serves one call of a model at a time.

    Args:
        stacks: Those of the model's layers, by slot.
        starts: Where the alphas of each slot begin.
        alphas: [A].
        blend: The operator that blends into memory (`functional.blend_in_place`).

    Attributes:
        ready: What the layers take, by layer. It holds layers whose kernels nobody keeps, with stacks of their own.
        shown: The same for attributes of the network, by the module that computes them.
        slots: The slots of these layers and attributes.
        is_stale: True once a layer's stacks were replaced.
    """

    def __init__(
        self, stacks: Mapping[int, KernelStacks], starts: Sequence[int], alphas: Tensor, blend: Callable[..., Any]
    ) -> None:
        self.starts, self.dtype, self.blend = list(starts), alphas.dtype, blend
        self.is_stale = False
        found: dict[int, list[Tensor]] = {}
        found_shown: list[int] = []
        for slot, each in stacks.items():
            parts = each.parts() if each.autocasts else None  # convolutions and linear layers: no one keeps a kernel
            if parts and all(len(stack) == 1 and _may_blend(stack[0], alphas, parts[0][0].dtype) for stack in parts):
                found[slot] = [stack[0] for stack in parts]
        self.shown: dict[nn.Module, Shown] = {}
        for slot, each in stacks.items():
            home, shape = each.shows()
            if home is None or len(home._modules) != 1 or list(home._parameters) != ["original"]:
                continue
            stack = home._parameters["original"]
            dtype = next(iter(self.shown.values())).stack.dtype if self.shown else stack.dtype
            if stack.dim() == 2 and stack.shape[1] > 0 and _may_blend(stack, alphas, dtype):
                self.shown[home] = Shown(each, home, shape, len(self.shown), starts[slot])
                found_shown.append(slot)
        size = max((sum(map(_bytes, own)) for own in found.values()), default=0)
        self.slots = frozenset([*found, *found_shown])
        with torch.inference_mode(False):
            memory = torch.empty(size, dtype=torch.uint8)
            self.ready = {
                stacks[s].layer: _in_memory(stacks[s].layer, own, memory, starts[s]) for s, own in found.items()
            }

    def serves(self, starts: Sequence[int], alphas: Tensor) -> bool:
        """Return True for alphas that lie as those did for which the workspace was made."""
        return not self.is_stale and self.dtype is alphas.dtype and self.starts == starts


def keep(layer: nn.Module, stacks: KernelStacks, blended: BlendedKernels) -> Ready | None:
    """Return kernels that were blended before; None if others see them, or if a stack is in parts."""
    kernels, parts, versions, addresses = blended
    now = stacks.parts() if stacks.autocasts else None
    if not now or any(len(stack) > 1 for stack in now):
        return None
    kept = [with_new_strides(kernel) for kernel in kernels]
    return Ready(layer, parts, _pair(addresses), kept, None, _pair(versions))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1] if len(values) > 1 else 0


def _may_blend(stack: Tensor, alphas: Tensor, dtype: torch.dtype) -> bool:
    return is_plain(stack, alphas) and stack.dtype == dtype and alphas.dtype in (torch.float32, dtype)


def _bytes(stack: Tensor) -> int:
    """Return the memory of a kernel of a stack, in whole cache lines."""
    return -(-stack[0].nbytes // _LINE) * _LINE


def _in_memory(layer: nn.Module, stacks: list[Tensor], memory: Tensor, start: int) -> Ready:
    """Return what a layer takes that blends its stacks into `memory`."""
    kernels, offset = [], 0
    for stack in stacks:
        kernel = stack.detach()[0]
        formats = _FORMATS.get(kernel.dim(), ())
        given = (
            None
            if kernel.is_contiguous()
            else next((f for f in formats if kernel.is_contiguous(memory_format=f)), None)
        )
        like = torch.empty(kernel.shape, device="meta", memory_format=given or torch.contiguous_format)
        typed = memory[offset : offset + kernel.nbytes].view(kernel.dtype)
        kernels.append(typed.as_strided(kernel.shape, like.stride()))
        offset += _bytes(stack)
    return Ready(layer, stacks, _pair([stack.data_ptr() for stack in stacks]), kernels, [start] * len(stacks), None)
