"""How lambda reaches the layers: a stack of frames, one stack per thread.

`TunableModel.forward` runs its network under a frame; a layer that is called without lambda looks at the last one.
(A ContextVar breaks torch.compile and strict export; an attribute on modules breaks threads and deepcopy.)
"""

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from tunable_ops import functional
from tunable_ops.checks import is_one
from tunable_ops.modules.kernels_in_place import Ready
from tunable_ops.modules.network_blend import BlendPlan, NetworkBlend
from tunable_ops.modules.tuning import Tuning, blend_weights, split_weights

ON_MAP = ("raise", "mean")
Grid = Sequence[int] | Callable[[], Sequence[int]]  # a layer's output size, which only maps need
_POOL: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class Blending(Protocol):
    """What a frame needs to know of a layer."""

    tuning: Tuning

    @property
    def title(self) -> str:
        """What errors call the layer."""


class Frame:
    """One lambda and, for the layers of one model, their alphas and (one lambda for all samples) their kernels.

    Args:
        lam: [p], [B, p] or a map [B, p, *grid], as phi gets it.
        tunings: The phi of each layer. Their alphas come from one matrix product.
        plan: What is blended together; None: layers blend by themselves.
        on_map: What layers without a grid do with a map: "raise", or take its "mean".
        late: Slots of layers whose phi is not there yet (`PreHooks`); these evaluate it when they run.
        natural: lambda in its units, for what reads it itself; None where these are those of `lam`.

    Attributes:
        blend: The blends of the layers' kernels (`NetworkBlend`), or None.
    """

    __slots__ = (
        "alphas",
        "blend",
        "inference",
        "lam",
        "late",
        "natural",
        "on_map",
        "parts",
        "recorded",
        "starts",
        "tunings",
    )

    def __init__(
        self,
        lam: Tensor,
        tunings: Sequence[Tuning] = (),
        plan: BlendPlan | None = None,
        on_map: str = "raise",
        late: Collection[int] = (),
        natural: Tensor | None = None,
    ) -> None:
        self.lam, self.tunings, self.on_map, self.late = lam, tunings, on_map, late
        self.natural = lam if natural is None else natural
        self.recorded = torch.is_grad_enabled()
        self.inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        self.blend: NetworkBlend | None = None
        self.parts: list[Tensor] | None = None
        if lam.dim() > 2 or not tunings:
            return
        ready = self._ready()
        self.alphas, starts = blend_weights(ready, lam) if plan is None else plan.phis.blend_weights(ready, lam)
        self.starts = self._by_slot(starts, -1)
        if plan is not None and lam.dim() == 1:
            self.blend = NetworkBlend.start(plan, tunings, self.alphas, self.starts)

    def push(self) -> None:
        """Make this the frame that layers see."""
        _STACK.frames.append(self)

    def end(self) -> None:
        """Give back what the call borrowed: its forward is over."""
        if self.blend is not None:
            self.blend.release()

    def holds(self, tuning: Tuning) -> bool:
        """Return True for the phi of a layer of the frame's model."""
        # By its slot: torch.compile guards an int, but not the identity of a module that is looked up in a dict.
        slot = tuning.slot
        return slot is not None and slot < len(self.tunings) and self.tunings[slot] is tuning

    def _ready(self) -> Sequence[Tuning]:
        if not self.late:
            return self.tunings
        return [tuning for slot, tuning in enumerate(self.tunings) if slot not in self.late]

    def _by_slot(self, values: list[Any], missing: Any) -> list[Any]:
        """Return the values of the layers that are ready by slot, with `missing` for the late ones."""
        if not self.late:
            return values
        left = iter(values)
        return [missing if slot in self.late else next(left) for slot in range(len(self.tunings))]

    def alpha(self, layer: Blending, batch: int | None, grid: Grid) -> Tensor:
        """Return the blend for a call of a layer, as `TunableLayer.alpha` says."""
        tuning = layer.tuning
        if self.lam.dim() > 2:
            alpha = self._map_alpha(layer, grid() if callable(grid) else grid)
        elif self._has_alpha(tuning):
            alpha = self._part(tuning.slot)  # type: ignore[arg-type]  # _has_alpha: an int
        else:
            alpha = tuning(self.lam)
        if alpha.dim() == 1:
            return alpha
        if alpha.dim() == 2 and is_one(alpha.shape[0]):
            return alpha[0]
        if batch is None or alpha.shape[0] == batch:
            return alpha
        if alpha.shape[0] == 0 or batch % alpha.shape[0]:
            raise ValueError(
                f"{layer.title}: lam must fit the input's leading size {batch}: [p], B = {batch}, or a divisor B "
                f"(windows of a sample side by side); got B = {alpha.shape[0]}"
            )
        if alpha.dim() > 2 and alpha.shape[0] > 1:
            raise ValueError(
                f"{layer.title}: lam must not be a map for a layer that sees parts of a sample side by side; got B = "
                f"{alpha.shape[0]} and an input of leading size {batch}"
            )
        return alpha.repeat_interleave(batch // alpha.shape[0], 0)

    def _has_alpha(self, tuning: Tuning) -> bool:
        """Return True if the alphas of the frame hold those of `tuning`."""
        # Where the network turns gradients on, the alphas made without them would hide phi and lambda.
        if not self.holds(tuning) or not (self.recorded or not torch.is_grad_enabled()):
            return False
        return not self.late or tuning.slot not in self.late

    def _part(self, slot: int) -> Tensor:
        """Return the alpha of a layer, from one split for all of them: a slice each costs more."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() != self.inference:
            start = self.starts[slot]
            return self.alphas[..., start : start + self.tunings[slot].num_kernels]
        if self.parts is None:
            with torch.set_grad_enabled(self.recorded):
                self.parts = self._by_slot(split_weights(self.alphas, self._ready()), None)
        return self.parts[slot]

    def _map_alpha(self, layer: Blending, grid: Sequence[int]) -> Tensor:
        """Average the map down to the layer's output grid and send it through phi: [B, P, *grid]."""
        lam, tuning = self.lam, layer.tuning
        if len(grid) != lam.dim() - 2:
            if self.on_map == "mean":
                return tuning(lam.flatten(2).mean(-1))
            raise ValueError(
                f"{layer.title}: lam must not be a map for a layer without a grid of {lam.dim() - 2} dimensions; got "
                f"shape {list(lam.shape)}. on_map='mean' gives such layers the map's mean"
            )
        # The operator raises its own error for an empty grid.
        pooled = _POOL[len(grid)](lam, tuple(max(n, 1) for n in grid))
        return tuning(pooled.movedim(1, -1)).movedim(-1, 1)


class _FrameStack(threading.local):
    def __init__(self) -> None:
        # A list that is changed in place: where a graph breaks, torch.compile writes that back, but not an attribute
        # of a threading.local.
        self.frames: list[Frame] = []


_STACK = _FrameStack()


def pop() -> None:
    """Remove the most recent frame."""
    _STACK.frames.pop()


def current() -> Frame | None:
    """Return the frame that layers see, or None outside every TunableModel."""
    frames = _STACK.frames
    return frames[-1] if frames else None


def alpha(layer: Blending, batch: int | None, grid: Grid) -> Tensor:
    """Return the blend for a call of a layer inside a TunableModel, as `Frame.alpha`.

    Raises:
        RuntimeError: Outside every TunableModel.
    """
    frame = current()
    if frame is None:
        raise RuntimeError(
            f"{layer.title}: lam must be given outside a TunableModel's forward; got None. In activation checkpointing "
            "use tunable_ops.checkpoint, which carries lambda to the recomputation"
        )
    return frame.alpha(layer, batch, grid)


def blended(layer: nn.Module, dtype: torch.dtype | None = None) -> tuple[Tensor, ...] | None:
    """Return the layer's kernels from the blend of its whole network, as `NetworkBlend.take`; None outside one."""
    frame = current()
    return None if frame is None or frame.blend is None else frame.blend.take(layer, dtype)


def kept(layer: nn.Module) -> functional.KeptKernel | None:
    """Return where the layer keeps its transformed kernel, in a model that remembers its kernels; else None."""
    frame = current()
    return None if frame is None or frame.blend is None else frame.blend.kept(layer)


def ready(layer: nn.Module, dtype: torch.dtype) -> Ready | None:
    """Return the layer's kernel and bias as `NetworkBlend.ready`; None outside a blend."""
    if is_dynamo_compiling():
        return None
    frames = _STACK.frames
    blend = frames[-1].blend if frames else None
    return None if blend is None else blend.ready(layer, dtype)


def shown(home: nn.Module) -> Tensor | None:
    """Return the blend that an attribute reads as, as `NetworkBlend.shown`; None outside a blend.

    Not for compiled code.
    """
    frames = _STACK.frames
    blend = frames[-1].blend if frames else None
    return None if blend is None else blend.shown(home)


def keeps_blends() -> bool:
    """Return True inside a model whose layers find their blend again when they run again."""
    frame = current()
    return frame is not None and frame.blend is not None and frame.blend.keep


def is_unblended() -> bool:
    """Return True inside a model whose layers all have one of their kernels as it is (`NetworkBlend.is_unblended`)."""
    frame = current()
    return frame is not None and frame.blend is not None and frame.blend.is_unblended


def checkpoint(function: Callable[..., Any], *args: Any, use_reentrant: bool = False, **kwargs: Any) -> Any:
    """Call torch.utils.checkpoint.checkpoint and carry lambda along to the recomputation.

    The recomputation runs in the backward pass, after `TunableModel.forward` has returned; with torch's own function
    the layers would find no lambda there, and raise.

    Args:
        function: What is computed, and computed again in the backward pass.
        args: Its arguments.
        use_reentrant: Must be False: the reentrant form cannot carry gradients of lambda.
        kwargs: As torch.utils.checkpoint.checkpoint, then those of `function`.
    """
    if use_reentrant:
        raise ValueError("checkpoint: use_reentrant must be False; got True")
    frame = current()
    if frame is None:
        return torch_checkpoint(function, *args, use_reentrant=False, **kwargs)
    if frame.blend is not None:
        frame.blend.finish()  # the recomputation must find what the first run found

    def carried(*inner: Any, **named: Any) -> Any:
        frame.push()
        try:
            return function(*inner, **named)
        finally:
            pop()

    return torch_checkpoint(carried, *args, use_reentrant=False, **kwargs)
