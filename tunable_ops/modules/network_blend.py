"""One blend for a whole network: the kernels that its layers would blend one by one, in a few calls.

With one lambda for all samples a layer needs nothing but its blended kernel to be torch's own layer. A `NetworkBlend`
makes these kernels in groups of layers; the first layer that asks has its whole group blended:

- On a CPU a group is what fits into the caches: the kernels are still there when the layers read them. Without
  gradients a blend is handed out once and then forgotten, so that its memory serves the next group.
- On a GPU everything is blended at once, ahead of the network, on the caller's stream.
- In the backward pass each group returns its gradients as soon as it has them: they are not kept until the end, and
  DistributedDataParallel can send them meanwhile.

A layer that finds no blend, or a stale one, blends by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tunable_ops import checks, functional
from tunable_ops.modules.kernel_stacks import KernelStacks

# Bytes of blended kernels in a group. CPU: stacks and blends of a group stay in the caches of a few MB per core.
GROUP_BYTES = {"cpu": 4 << 20}
GPU_GROUP_BYTES = 64 << 20


class Modes(NamedTuple):
    """What a blend depends on beside tensors; it serves only calls under the same modes."""

    gradients: bool
    inference: bool
    autocast: torch.dtype | None


def modes(device_type: str) -> Modes | None:
    """Return the current modes; None where layers blend by themselves.

    That is under torch.compile and torch.export, whose graphs keep one operator per layer: launches cost no Python
    there, Inductor plans the memory, and a program in C++ has the operators of the layers, not this one. And inside
    torch.func transforms and forward-mode AD, which the definition of each layer serves.
    """
    if not checks.is_plain_eager():
        return None
    autocast = torch.get_autocast_dtype(device_type) if checks.autocast_is_on(device_type) else None
    return Modes(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)


class BlendPlan:
    """What does not change from call to call: which layers' stacks are blended together.

    Args:
        stacks: The stacks of each of a model's layers; None for a layer that has none. The position in this sequence
            is the layer's slot.
        device_type: Where the layers are.

    Attributes:
        slots: The slot of each layer.
        groups: Slots in groups of at most GROUP_BYTES of blended kernels, in the order of the layers; layers that
            share a stack share a group.
    """

    def __init__(self, stacks: Sequence[KernelStacks | None], device_type: str) -> None:
        self.stacks = {slot: each for slot, each in enumerate(stacks) if each is not None}
        self.slots = {each.layer: slot for slot, each in self.stacks.items()}
        self.groups: list[list[int]] = []
        limit = GROUP_BYTES.get(device_type, GPU_GROUP_BYTES)
        group_of: dict[int, list[int]] = {}  # by the id of a part
        size = 0
        for slot, each in self.stacks.items():
            parts = each.parts() or ()
            flat = [part for stack in parts for part in stack]
            group = next((group_of[id(part)] for part in flat if id(part) in group_of), None)
            if group is None:
                added = sum(part.nbytes for part in flat) // each.num_kernels
                size += added
                if size > limit or not self.groups:
                    self.groups.append([])
                    size = added
                group = self.groups[-1]
            group.append(slot)
            group_of.update((id(part), group) for part in flat)


class _Blends(NamedTuple):
    """The blended kernels of a layer, and what they were made of."""

    kernels: tuple[Tensor, ...]
    parts: list[Tensor]
    versions: list[int]
    addresses: list[int]

    def are_current(self, stacks: KernelStacks) -> bool:
        """Return False if a stack was written or replaced since it was blended, by a hook for example."""
        parts = stacks.parts()
        if parts is None:
            return False
        now = [part for stack in parts for part in stack]
        if len(now) != len(self.parts):
            return False
        for part, before, version, address in zip(now, self.parts, self.versions, self.addresses, strict=True):
            if part is not before or part._version != version or part.data_ptr() != address:
                return False
        return True


class NetworkBlend:
    """The blended kernels of a model's layers for one lambda.

    Args:
        plan: The model's.
        alphas: [A], the alphas of all layers.
        starts: Where each layer's alphas begin, by slot.
        modes: Those of the moment.
    """

    def __init__(self, plan: BlendPlan, alphas: Tensor, starts: Sequence[int], modes: Modes) -> None:
        self.plan, self.alphas, self.starts, self.modes = plan, alphas, starts, modes
        self.blends: dict[int, _Blends] = {}
        self.pending = {slot: group for group in plan.groups for slot in group}
        self.device_type = alphas.device.type
        self.stream = None
        if self.device_type == "cuda":  # a layer may run on a stream of its own
            self.stream = torch.cuda.current_stream(alphas.device)
        if self.device_type != "cpu":
            self.finish()

    def finish(self) -> None:
        """Blend what no layer has asked for yet, unless the modes have changed."""
        while self.pending and modes(self.device_type) == self.modes:
            self._blend(next(iter(self.pending.values())))

    def take(self, layer: nn.Module, dtype: torch.dtype | None = None) -> tuple[Tensor, ...] | None:
        """Return the blends of a layer's stacks, or None if the layer has to blend by itself.

        Args:
            layer: One of the model's layers, or any other.
            dtype: The dtype of the layer's input, if it has to have that of the kernels.
        """
        slot = self.plan.slots.get(layer)
        if slot is None or modes(self.device_type) != self.modes:
            return None
        if slot in self.pending:
            self._blend(self.pending[slot])
        blends = self.blends.get(slot)
        if blends is None or not blends.are_current(self.plan.stacks[slot]):
            return None
        kernels = blends.kernels
        if dtype is not None and self.modes.autocast is None and kernels[0].dtype != dtype:
            return None
        if not self.modes.gradients:
            del self.blends[slot]
        if self.stream is not None and (now := torch.cuda.current_stream(self.alphas.device)) != self.stream:
            for kernel in kernels:
                kernel.record_stream(now)  # its memory must not be given away while that stream reads it
        return kernels

    def _blend(self, slots: Sequence[int]) -> None:
        """Blend the stacks of a group, in one call for each dtype of results."""
        # Each stack once, even if layers share it: by its start in alpha and its parts.
        wanted: dict[torch.dtype, dict[tuple[int, ...], Tensor]] = {}
        keys: dict[int, list[tuple[torch.dtype, tuple[int, ...]]]] = {}
        parts_of: dict[int, list[Tensor]] = {}
        for slot in slots:
            del self.pending[slot]
            stacks, start = self.plan.stacks[slot], self.starts[slot]
            parts = stacks.parts()
            if parts is None:
                continue
            flat = [part for stack in parts for part in stack]
            if not all(map(self._fits, flat)):
                continue
            autocast = self.modes.autocast if stacks.autocasts else None
            # On a CPU every layer of a model is blended beforehand.
            if self.device_type != "cpu" and not stacks.blends_first(parts[0][-1], autocast or flat[0].dtype):
                continue
            parts_of[slot], keys[slot] = flat, []
            for stack in parts:
                dtype = stack[0].dtype
                if autocast is not None and dtype != torch.float64:
                    dtype = autocast
                key = (start, *map(id, stack))
                same = wanted.setdefault(dtype, {})
                if key not in same:
                    same[key] = stack[0] if len(stack) == 1 else torch.cat(stack)
                keys[slot].append((dtype, key))
        blended: dict[tuple[torch.dtype, tuple[int, ...]], Tensor] = {}
        for dtype, by_key in wanted.items():
            starts = [key[0] for key in by_key]
            results = functional.tunable_parameters(list(by_key.values()), self.alphas, starts, dtype=dtype)
            blended.update(zip([(dtype, key) for key in by_key], results, strict=True))
        for slot, flat in parts_of.items():
            kernels = tuple(blended[key] for key in keys[slot])
            versions, addresses = [part._version for part in flat], [part.data_ptr() for part in flat]
            self.blends[slot] = _Blends(kernels, flat, versions, addresses)

    def _fits(self, part: Tensor) -> bool:
        """Return True for plain tensors beside alpha whose changes show: no subclasses, no inference tensors."""
        return type(part) in (Tensor, nn.Parameter) and part.device == self.alphas.device and not part.is_inference()
