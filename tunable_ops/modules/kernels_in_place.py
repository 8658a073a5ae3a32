"""Kernels that a layer takes without looking for them: blended where it runs, or kept from an earlier call.

Without gradients on a CPU a blended kernel is needed for the time of one convolution. A `Workspace` has memory for the
kernels of one layer, the largest, and every layer blends into it when it runs: reading a stack is then all that main
memory sees of the blend, and the kernel is in the caches when it is used. What each layer needs for that is found once.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops import functional
from tunable_ops.convolution import with_new_strides
from tunable_ops.modules.kernel_stacks import BlendedKernels, KernelStacks, is_plain

_FORMATS = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}
_LINE = 64  # bytes: kernel and bias begin on a cache line each
_version: Callable[[Tensor], int] = attrgetter("_version")


class Ready:
    """Kernel and bias of one layer, and how to see that they are still those of its stacks.

    Attributes:
        kernels: The kernel and, if the layer has one, the bias.
        kernel: The kernel.
        bias: The bias or None.
        dtype: That of the kernel.
        by_torch: True if `functional.conv2d` leaves the kernel to PyTorch where the stride is 1.
        attributes: Those of the layer, past its `__getattr__`.
    """

    __slots__ = (
        "addresses",
        "attributes",
        "bias",
        "by_torch",
        "dtype",
        "hooks",
        "kernel",
        "kernels",
        "own",
        "shift",
        "stacks",
        "starts",
        "weight",
    )

    def __init__(
        self, layer: nn.Module, stacks: list[Tensor], kernels: Sequence[Tensor], starts: list[int] | None = None
    ) -> None:
        self.own: Mapping[str, Any] = layer._parameters
        self.hooks: Mapping[int, Any] = layer._forward_pre_hooks
        self.stacks, self.weight, self.shift = stacks, stacks[0], stacks[1] if len(stacks) > 1 else None
        self.addresses = [stack.data_ptr() for stack in stacks]
        self.starts = starts  # None: the kernels are kept
        self.kernels = list(kernels)
        self.kernel, self.bias = kernels[0], kernels[1] if len(kernels) > 1 else None
        self.dtype = self.kernel.dtype
        self.by_torch = functional.leaves_to_torch(self.kernel.shape)
        self.attributes = vars(layer)

    def is_used(self) -> bool:
        """Return False if the layer has other stacks by now, or a hook that may change them."""
        own = self.own
        return own.get("weight") is self.weight and own.get("bias") is self.shift and not self.hooks

    def blend(self, alphas: Tensor, operator: Callable[..., Any]) -> bool:
        """Blend the kernels; return False if the stacks are no longer those that they were.

        Args:
            alphas: [A].
            operator: The operator that blends into memory.
        """
        if list(map(Tensor.data_ptr, self.stacks)) != self.addresses:
            return False
        try:
            operator(self.stacks, alphas, self.starts, self.kernels)
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

    def is_watched(self) -> bool:
        """Return True if somebody watches or adds to what computes the blend."""
        return any(self.watchers) or len(self.modules) != 1

    def is_current(self) -> bool:
        """Return False if somebody watches it, or the stack is another one or elsewhere."""
        stack = self.stack
        return not self.is_watched() and self.own.get("original") is stack and stack.data_ptr() == self.address


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


class Kept:
    """Kernels and blends that are kept for several calls.

    Whether the stacks were written to is looked at once for all, when a call starts: one by one, between two layers, it
    would cost several times as much, since the convolutions empty the caches. That the layers hold these stacks is
    looked at when they run.

    Args:
        stacks: Those of the model's layers, by slot.
        found: What was blended of them, by slot.

    Attributes:
        ready: What the layers take, by layer. Not for kernels that others see, and for stacks in parts.
        shown: The same for attributes of the network, by the module that computes them.
    """

    def __init__(self, stacks: Mapping[int, KernelStacks], found: Mapping[int, BlendedKernels]) -> None:
        self.ready: dict[nn.Module, Ready] = {}
        self.shown: dict[nn.Module, Shown] = {}
        self._blends: list[tuple[Tensor, int]] = []  # with their versions
        self._parts: list[Tensor] = []
        self._versions: list[int] = []
        self._addresses: list[int] = []
        for slot, blended in found.items():
            if self._make_ready(stacks[slot], blended) or self._show(stacks[slot], blended):
                self._parts += blended.parts
                self._versions += blended.versions
                self._addresses += blended.addresses

    def _make_ready(self, stacks: KernelStacks, blended: BlendedKernels) -> bool:
        parts = stacks.parts() if stacks.autocasts else None
        if not parts or any(len(stack) > 1 for stack in parts):
            return False
        kernels = [with_new_strides(kernel) for kernel in blended.kernels]
        self.ready[stacks.layer] = Ready(stacks.layer, blended.parts, kernels)
        return True

    def _show(self, stacks: KernelStacks, blended: BlendedKernels) -> bool:
        home, shape = stacks.shows()
        kernel = blended.kernels[0]
        if home is None or list(home._parameters) != ["original"] or kernel.is_inference():
            return False
        shown = Shown(stacks, home, shape, len(self._blends), 0)
        if shown.is_watched():
            return False
        self.shown[home] = shown
        blend = kernel.view(shape)
        self._blends.append((blend, blend._version))
        return True

    def are_current(self) -> bool:
        """Return False if a stack was written to or moved since it was blended, or an attribute is watched."""
        if any(map(Shown.is_watched, self.shown.values())):
            return False
        parts = self._parts
        return list(map(Tensor.data_ptr, parts)) == self._addresses and list(map(_version, parts)) == self._versions

    def take(self, shown: Shown) -> Tensor | None:
        """Return a blend, or None if its stack was replaced or itself written to."""
        blend, version = self._blends[shown.place]
        return blend if blend._version == version and shown.own.get("original") is shown.stack else None


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
    return Ready(layer, stacks, kernels, [start] * len(stacks))
