"""One blend for a whole network: the kernels that its layers would blend one by one, in a few calls.

With one lambda for all samples a layer needs nothing but its blended kernel to be torch's own layer. A `NetworkBlend`
makes these kernels in groups of layers; the first layer that asks has its whole group made:

- On a CPU a group is what fits into the caches: the kernels are still there when the layers read them. Without
  gradients a blend is handed out once and then forgotten, so that its memory serves the next group.
- On a GPU everything is made at once, ahead of the network, on the caller's stream.
- In the backward pass each group gives its gradients as soon as it has them: they are not kept for the end, and
  DistributedDataParallel can send them meanwhile.

A layer that finds no blend, or a stale one, blends by itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tunable_ops import functional
from tunable_ops.checks import autocast_is_on

if TYPE_CHECKING:
    from tunable_ops.modules.layer import TunableLayer

# Bytes of blended kernels in a group. CPU: stacks and blends of a group stay in the caches of a few MB per core.
GROUP_BYTES = {"cpu": 4 << 20}
GPU_GROUP_BYTES = 64 << 20
Parts = tuple[tuple[Tensor, ...], ...]


class Modes(NamedTuple):
    """What a blend depends on beside tensors; it serves only calls under the same."""

    gradients: bool
    inference: bool
    autocast: torch.dtype | None


def modes(device_type: str) -> Modes | None:
    """The modes at this moment; None where layers blend by themselves.

    That is under torch.compile and torch.export, whose graphs keep one operator per layer: launches cost no Python
    there, Inductor plans the memory, and a program in C++ has the operators of the layers, not this one. And inside
    torch.func transforms and forward-mode AD, which the definition of each layer serves.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    autocast = torch.get_autocast_dtype(device_type) if autocast_is_on(device_type) else None
    return Modes(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)


class _Entry(NamedTuple):
    """The blends of a layer, and what they were made of."""

    blends: tuple[Tensor, ...]
    parts: Parts
    versions: tuple[int, ...]
    addresses: tuple[int, ...]


class NetworkBlend:
    """The blends of a model's layers for one lambda.

    Args:
        layers: The model's layers; layer i has `slot` i.
        groups: Slots, group by group (`make_groups`).
        alphas: [A], the alphas of all layers.
        starts: Where each layer's begins.
        modes: Those of the moment.
    """

    def __init__(
        self,
        layers: Sequence["TunableLayer"],
        groups: Sequence[Sequence[int]],
        alphas: Tensor,
        starts: Sequence[int],
        modes: Modes,
    ) -> None:
        self.layers, self.alphas, self.starts, self.modes = layers, alphas, starts, modes
        self.device_type = alphas.device.type
        self.entries: list[_Entry | None] = [None] * len(layers)
        self.pending = {slot: group for group in groups for slot in group}
        self.stream = None
        if self.device_type == "cuda":  # a layer may run on a stream of its own
            self.stream = torch.cuda.current_stream(alphas.device)
        if self.device_type != "cpu":
            self.finish()

    def finish(self) -> None:
        """Makes what nobody has asked for yet, where the modes are still those of the blend."""
        while self.pending and modes(self.device_type) == self.modes:
            self._blend(next(iter(self.pending.values())))

    def take(self, layer: "TunableLayer") -> tuple[Tensor, ...] | None:
        """The blends of the layer's stacks; None if it has to make them itself."""
        slot = layer.slot
        if slot is None or slot >= len(self.layers) or self.layers[slot] is not layer:
            return None
        if modes(self.device_type) != self.modes:
            return None
        if slot in self.pending:
            self._blend(self.pending[slot])
        entry = self.entries[slot]
        if entry is None or not _unchanged(entry, layer.parts()):
            return None
        if not self.modes.gradients:
            self.entries[slot] = None
        if self.stream is not None and (now := torch.cuda.current_stream(self.alphas.device)) != self.stream:
            for blend in entry.blends:
                blend.record_stream(now)  # its memory must not be given away while that stream reads it
        return entry.blends

    def _blend(self, group: Sequence[int]) -> None:
        """Makes the entries of a group: one call for each dtype of results."""
        sources: dict[int, Parts] = {}
        # Each stack once, even if layers share it: results by the parts of the stack and by phi.
        wanted: dict[torch.dtype, dict[tuple[int, ...], tuple[Tensor, int]]] = {}
        keys: dict[int, list[tuple[torch.dtype, tuple[int, ...]]]] = {}
        for slot in group:
            self.pending.pop(slot, None)
            layer = self.layers[slot]
            parts = layer.parts()
            dtype = self.modes.autocast if layer.casts else None
            if parts is None or not all(self._fits(part) for each in parts for part in each):
                continue
            # On a CPU every layer of a model is blended beforehand.
            if self.device_type != "cpu" and not layer.blends_first(dtype or parts[0][0].dtype):
                continue
            sources[slot], keys[slot] = parts, []
            for each in parts:
                result = each[0].dtype if dtype is None or each[0].dtype == torch.float64 else dtype
                key = (id(layer.tuning), *map(id, each))
                stacks = wanted.setdefault(result, {})
                if key not in stacks:
                    stacks[key] = (each[0] if len(each) == 1 else torch.cat(each), self.starts[slot])
                keys[slot].append((result, key))
        blends: dict[tuple[torch.dtype, tuple[int, ...]], Tensor] = {}
        for dtype, stacks in wanted.items():
            tensors, starts = zip(*stacks.values(), strict=True)
            made = functional.tunable_parameters(tensors, self.alphas, starts, dtype=dtype)
            blends.update(((dtype, key), blend) for key, blend in zip(stacks, made, strict=True))
        for slot, parts in sources.items():
            flat = [part for each in parts for part in each]
            versions, addresses = tuple(p._version for p in flat), tuple(p.data_ptr() for p in flat)
            self.entries[slot] = _Entry(tuple(blends[key] for key in keys[slot]), parts, versions, addresses)

    def _fits(self, part: Tensor) -> bool:
        """Plain tensors beside alpha, whose changes can be told: no subclasses, no inference tensors."""
        return type(part) in (Tensor, nn.Parameter) and part.device == self.alphas.device and not part.is_inference()


def _unchanged(entry: _Entry, parts: Parts | None) -> bool:
    """Whether the stacks are what they were when they were blended: a hook may have written or replaced one."""
    if parts is None:
        return False
    now = [part for each in parts for part in each]
    before = [part for each in entry.parts for part in each]
    if len(now) != len(before):
        return False
    if not all(a is b and a._version == v for a, b, v in zip(now, before, entry.versions, strict=True)):
        return False
    return all(a.data_ptr() == address for a, address in zip(now, entry.addresses, strict=True))


def make_groups(layers: Sequence["TunableLayer"], device_type: str) -> list[list[int]]:
    """Slots in groups of at most GROUP_BYTES of kernels, in the order of the layers; tied layers share a group."""
    limit = GROUP_BYTES.get(device_type, GPU_GROUP_BYTES)
    groups: list[list[int]] = []
    group_of: dict[int, list[int]] = {}  # by the id of a part
    size = 0
    for slot, layer in enumerate(layers):
        parts = [part for each in layer.parts() or () for part in each]
        bytes_ = sum(part.numel() * part.element_size() for part in parts) // layer.tuning.num_kernels
        group = next((group_of[id(part)] for part in parts if id(part) in group_of), None)
        if group is None:
            size += bytes_
            if size > limit or not groups:
                groups.append([])
                size = bytes_
            group = groups[-1]
        group.append(slot)
        group_of.update((id(part), group) for part in parts)
    return groups
