"""One blend for a whole network: the kernels that its layers would blend one by one, in a few calls.

With one lambda for all samples a layer needs nothing but its blended kernel to be torch's own layer. A `NetworkBlend`
makes these kernels in groups of layers; the first layer that asks has its whole group blended:

- On a CPU a group is what fits into the caches: the kernels are still there when the layers read them. Without
  gradients most layers are a group of their own: each blends when it runs, into memory that the next one overwrites
  (`Workspace`); other blends are handed out once and then forgotten. Where the model is to remember, a lambda that
  comes a second time is different: from then on all kernels are kept until another one comes (`BlendPlan.remembered`).
- On a GPU everything is blended at once, ahead of the network, on the caller's stream.
- In the backward pass each group returns its gradients as soon as it has them: they are not kept until the end, and
  DistributedDataParallel can send them meanwhile.

A layer that finds no blend, or a stale one, blends by itself.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, is_grad_enabled, nn

from tunable_ops import checks, functional
from tunable_ops.modules.kernel_stacks import BlendedKernels, Group, KernelStacks, Recipe, blend_stacks, find_recipe
from tunable_ops.modules.kernels_in_place import Kept, Ready, Shown, ShownBlends, Workspace
from tunable_ops.modules.tuning import PhiLayout, Tuning

_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_are_functorch_transforms_active = torch._C._are_functorch_transforms_active

# Bytes of blended kernels in a group. CPU: stacks and blends of a group stay in the caches of a few MB per core.
GROUP_BYTES = {"cpu": 2 << 20}
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
        phis: The weights and biases behind the alphas.
        remember: True: the kernels of a repeated lambda are kept.
    """

    remember = False

    def __init__(self, stacks: Sequence[KernelStacks | None], device_type: str) -> None:
        # Alphas and modes of the last call that could have been remembered, and their kernels from the second call on.
        # In one attribute: another thread may set it between any two lines.
        self._last: tuple[Tensor, Modes, NetworkBlend | None] | None = None
        self._recipes: dict[int, Recipe] = {}
        self._idle: list[Workspace] = []  # as many as there were calls at one time
        self.stacks = {slot: each for slot, each in enumerate(stacks) if each is not None}
        self.phis = PhiLayout()
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
                added = sum(stack[0][0].nbytes for stack in parts)
                size += added
                if size > limit or not self.groups:
                    self.groups.append([])
                    size = added
                group = self.groups[-1]
            group.append(slot)
            group_of.update((id(part), group) for part in flat)

    def recipe(self, first: int, members: Sequence[Group], alphas: Tensor, autocast: torch.dtype | None) -> Recipe:
        """Return how to blend the group whose first slot is `first`: that of the last call, if it fits."""
        recipe = self._recipes.get(first)
        if recipe is None or not recipe.fits(members, alphas, autocast):
            recipe = self._recipes[first] = find_recipe(members, alphas, autocast)
        return recipe

    def workspace(self, starts: Sequence[int], alphas: Tensor, now: Modes) -> Workspace | None:
        """Return a workspace for a call, which gives it back with `put_back`; None if its layers cannot use one."""
        blend = functional.blend_in_place()
        if blend is None or now.gradients or now.autocast is not None or not checks.can_read(alphas):
            return None
        if torch._C._len_torch_dispatch_stack():  # a mode may keep what it sees
            return None
        while self._idle:
            try:
                found = self._idle.pop()
            except IndexError:  # another thread took the last one
                break
            if found.serves(starts, alphas):
                found.blend = blend
                return found
        return Workspace(self.stacks, starts, alphas, blend)

    def put_back(self, workspace: Workspace) -> None:
        """Keep a workspace for the next call."""
        self._idle.append(workspace)

    def remembered(
        self, tunings: Sequence[Tuning], alphas: Tensor, starts: Sequence[int], now: Modes
    ) -> "NetworkBlend | None":
        """Return the blend of the last calls if alphas and stacks are theirs; None if there is none.

        The second call with the same alphas makes it, so that a lambda that moves at every call costs nothing. It is
        complete before other threads can see it, and does not change.
        """
        if not self.remember or now.gradients or not checks.can_read(alphas):
            self.forget()
            return None
        last = self._last
        if last is None or last[1] != now or not torch.equal(last[0], alphas):
            self._last = alphas, now, None
            return None
        kept = last[2]
        if kept is not None and not kept.is_current():
            self._last = alphas, now, None
            return None
        if kept is None:
            kept = NetworkBlend(self, tunings, alphas, starts, now, keep=True)
            kept.finish()
            kept.make_ready()
            self._last = alphas, now, kept
        return kept

    def forget(self) -> None:
        """Release the kernels that are kept."""
        self._last = None


class NetworkBlend:
    """The blended kernels of a model's layers for one lambda.

    Args:
        plan: The model's.
        tunings: The phi of each layer, by slot.
        alphas: [A], the alphas of all layers.
        starts: Where each layer's alphas begin, by slot.
        modes: Those of the moment.
        keep: Keep blends that have been handed out, although there are no gradients.
        workspace: Where layers blend when they run.
    """

    def __init__(
        self,
        plan: BlendPlan,
        tunings: Sequence[Tuning],
        alphas: Tensor,
        starts: Sequence[int],
        modes: Modes,
        keep: bool = False,
        workspace: Workspace | None = None,
    ) -> None:
        self.keep = keep or modes.gradients
        self._transformed: dict[int, functional.KeptKernel] | None = {} if keep else None
        self._unblended: bool | None = None
        self.plan, self.tunings, self.alphas, self.starts, self.modes = plan, tunings, alphas, starts, modes
        self.blended: dict[int, BlendedKernels | None] = {}
        self.workspace = workspace
        self._ready: Mapping[nn.Module, Ready] = {} if workspace is None else workspace.ready
        self._shown: Mapping[nn.Module, Shown] = {} if workspace is None else workspace.shown
        self._blends: ShownBlends | Kept | None = None
        own: Collection[int] = () if workspace is None else workspace.slots
        groups = [[slot for slot in group if slot not in own] for group in plan.groups] if own else plan.groups
        self.pending = {slot: group for group in groups for slot in group}
        self.device_type = alphas.device.type
        self.stream = None
        if self.device_type == "cuda":  # a layer may run on a stream of its own
            self.stream = torch.cuda.current_stream(alphas.device)
        if self.device_type != "cpu":
            self.finish()

    @classmethod
    def start(
        cls, plan: BlendPlan, tunings: Sequence[Tuning], alphas: Tensor, starts: Sequence[int]
    ) -> "NetworkBlend | None":
        """Return a blend for the current modes; None where layers blend by themselves."""
        now = modes(alphas.device.type)
        if now is None:
            return None
        kept = plan.remembered(tunings, alphas, starts, now)
        if kept is not None:
            return kept
        return cls(plan, tunings, alphas, starts, now, workspace=plan.workspace(starts, alphas, now))

    @property
    def is_unblended(self) -> bool:
        """True where every layer has one of its kernels as it is, all other weights being 0; False if unknown.

        So it is on the box where all new kernels have weight 0: the network is then the one that was converted.
        """
        if self._unblended is None:
            if not checks.can_read(self.alphas):
                return False
            alphas = self.alphas.detach()
            self._unblended = bool(torch.equal(alphas * alphas, alphas) and alphas.sum() == len(self.starts))
        return self._unblended

    def finish(self) -> None:
        """Blend what no layer has asked for yet, unless the modes have changed."""
        while self.pending and self._serves():
            self._blend(next(iter(self.pending.values())))

    def make_ready(self) -> None:
        """Let layers take the kernels that are kept through `ready`."""
        if self.modes.autocast is None:
            found = {slot: blended for slot, blended in self.blended.items() if blended is not None}
            self._blends = kept = Kept(self.plan.stacks, found)
            self._ready, self._shown = kept.ready, kept.shown

    def is_current(self) -> bool:
        """Return False if a stack of kernels that are kept was written to."""
        return not isinstance(self._blends, Kept) or self._blends.are_current()

    def release(self) -> None:
        """End the call: no layer may blend into the workspace any more."""
        if self.workspace is not None:
            workspace, self.workspace = self.workspace, None
            self._ready, self._shown = {}, {}
            self.plan.put_back(workspace)

    def ready(self, layer: nn.Module, dtype: torch.dtype | None) -> Ready | None:
        """Return the layer's kernel and bias in the fewest steps; None: ask `take`.

        They are right until another layer runs.

        Args:
            layer: One of the model's layers, or any other.
            dtype: The dtype of the layer's input.
        """
        ready = self._ready.get(layer)
        if (
            ready is None
            or is_grad_enabled()
            or _is_any_autocast_enabled()
            or _are_functorch_transforms_active()
            or dtype is not ready.dtype
        ):
            return None
        workspace = self.workspace
        if ready.is_used() and (workspace is None or ready.blend(self.alphas, workspace.blend)):
            return ready
        if workspace is None:
            self.plan.forget()
        else:
            workspace.is_stale = True
        return None

    def shown(self, home: nn.Module) -> Tensor | None:
        """Return the blend that an attribute reads as in the fewest steps; None: ask `take`.

        Args:
            home: The module that computes it.
        """
        shown = self._shown.get(home)
        if shown is None or is_grad_enabled() or _is_any_autocast_enabled() or _are_functorch_transforms_active():
            return None
        if self._blends is None:
            assert self.workspace is not None
            self._blends = ShownBlends(list(self._shown.values()), self.alphas, self.workspace.blend)
        value = self._blends.take(shown)
        if value is None:
            if self.workspace is None:
                self.blended.pop(self.plan.slots[shown.layer], None)  # it may be what was written to
                self.plan.forget()
            elif not shown.is_current():
                self.workspace.is_stale = True
        return value

    def take(self, layer: nn.Module, dtype: torch.dtype | None = None) -> tuple[Tensor, ...] | None:
        """Return the blends of a layer's stacks, or None if the layer has to blend by itself.

        Args:
            layer: One of the model's layers, or any other.
            dtype: The dtype of the layer's input, if it has to have that of the kernels.
        """
        if dtype is not None and not torch.compiler.is_compiling() and (ready := self.ready(layer, dtype)) is not None:
            return tuple(ready.kernels)
        slot = self.plan.slots.get(layer)
        if slot is None or not self._serves():
            return None
        if slot in self.pending:
            self._blend(self.pending[slot])
        blended = self.blended.get(slot)
        if blended is None:
            return None
        if not self.plan.stacks[slot].are_unchanged(blended):
            self.plan.forget()
            return None
        kernels = blended.kernels
        if dtype is not None and self.modes.autocast is None and kernels[0].dtype != dtype:
            return None
        if not self.keep and not self.is_unblended:  # a layer that runs again would blend by itself, with other bits
            del self.blended[slot]
        if self.stream is not None and (now := torch.cuda.current_stream(self.alphas.device)) != self.stream:
            for kernel in kernels:
                kernel.record_stream(now)  # its memory must not be given away while that stream reads it
        return kernels

    def kept(self, layer: nn.Module) -> functional.KeptKernel | None:
        """Return where a layer keeps its transformed kernel; None where blends are not kept for later calls."""
        slot = None if self._transformed is None else self.plan.slots.get(layer)
        return None if slot is None else self._transformed.setdefault(slot, functional.KeptKernel())  # type: ignore[union-attr]

    def _serves(self) -> bool:
        """Return True under the modes of the blend: `modes` without an object, since every layer asks."""
        gradients, inference, autocast = self.modes
        if torch.is_grad_enabled() is not gradients or torch.is_inference_mode_enabled() is not inference:
            return False
        if not checks.is_plain_eager():
            return False
        if not checks.autocast_is_on(self.device_type):
            return autocast is None
        return torch.get_autocast_dtype(self.device_type) == autocast

    def _blend(self, group: Sequence[int]) -> None:
        for slot in group:
            del self.pending[slot]
        members = [(self.plan.stacks[slot], self.tunings[slot], self.starts[slot]) for slot in group]
        recipe = self.plan.recipe(group[0], members, self.alphas, self.modes.autocast)
        blended = blend_stacks(recipe, self.alphas)
        self.blended.update(zip(group, blended, strict=True))
