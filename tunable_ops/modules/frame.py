"""How lambda reaches the layers: a stack of frames, one stack per thread.

`TunableModel.forward` pushes a frame and pops it at the end; a layer that is called without lambda looks at the top.
(A ContextVar breaks torch.compile and strict export; an attribute on modules breaks threads and deepcopy.)
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from tunable_ops.modules.network_blend import NetworkBlend, modes
from tunable_ops.modules.tuning import Tuning, blend_weights

if TYPE_CHECKING:
    from tunable_ops.modules.layer import TunableLayer

ON_MAP = ("raise", "mean")
_POOL: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class Frame:
    """One lambda and, for the layers of one model, their alphas and (one lambda for all samples) their kernels.

    Args:
        lam: [p], [B, p] or a map [B, p, *grid].
        layers: The model's layers; layer i has `slot` i. Their alphas come from one matrix product.
        on_map: What layers without a grid do with a map: "raise", or take its "mean".
        groups: The layers' slots in groups that are blended together (`make_groups`); None: layers blend alone.

    Attributes:
        blend: The blends of the layers' kernels (`NetworkBlend`), or None.
    """

    __slots__ = ("alphas", "blend", "lam", "layers", "on_map", "recorded", "starts")

    def __init__(
        self,
        lam: Tensor,
        layers: Sequence["TunableLayer"] = (),
        on_map: str = "raise",
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.lam = lam
        self.layers = layers
        self.on_map = on_map
        self.recorded = torch.is_grad_enabled()
        self.blend: NetworkBlend | None = None
        if lam.dim() > 2 or not layers:
            return
        self.alphas, self.starts = blend_weights([layer.tuning for layer in layers], lam)
        if groups is not None and lam.dim() == 1 and (now := modes(lam.device.type)) is not None:
            self.blend = NetworkBlend(layers, groups, self.alphas, self.starts, now)

    def alpha(self, layer: "TunableLayer", grid: Sequence[int]) -> Tensor:
        """The layer's blend: [P], [B, P], or for a map [B, P, *grid]."""
        if self.lam.dim() > 2:
            return map_alpha(layer, self.lam, grid, self.on_map)
        # Where the network turns gradients on, the alphas made without them would hide phi and lambda.
        if layer.slot is not None and self.holds(layer) and (self.recorded or not torch.is_grad_enabled()):
            start = self.starts[layer.slot]
            return self.alphas[..., start : start + layer.tuning.num_kernels]
        return layer.tuning(self.lam)

    def holds(self, layer: "TunableLayer") -> bool:
        """True for the layers of the frame's model."""
        slot = layer.slot
        return slot is not None and slot < len(self.layers) and self.layers[slot] is layer


class _Stack(threading.local):
    def __init__(self) -> None:
        # A list that is changed in place: where a graph breaks, torch.compile writes that back, but not an attribute
        # of a threading.local.
        self.frames: list[Frame] = []


_STACK = _Stack()


def push(frame: Frame) -> None:
    """Makes `frame` the one that layers see."""
    _STACK.frames.append(frame)


def pop() -> None:
    """Takes the frame off again that was pushed last."""
    _STACK.frames.pop()


def current() -> Frame | None:
    """The frame that layers see, or None outside every TunableModel."""
    frames = _STACK.frames
    return frames[-1] if frames else None


def map_alpha(layer: nn.Module, lam: Tensor, grid: Sequence[int], on_map: str) -> Tensor:
    """A map of lambda [B, p, *size], averaged down to the layer's output grid and sent through phi: [B, P, *grid]."""
    name = type(layer).__name__
    tuning: Tuning = layer.tuning  # type: ignore[assignment]
    if len(grid) != lam.dim() - 2:
        if on_map == "mean":
            return tuning(lam.flatten(2).mean(-1))
        raise ValueError(
            f"{name}: lam must not be a map for a layer without a grid of {lam.dim() - 2} dimensions; got shape "
            f"{list(lam.shape)}. on_map='mean' gives such layers the map's mean"
        )
    # A grid without a pixel is the operator's to refuse.
    pooled = _POOL[len(grid)](lam, tuple(max(n, 1) for n in grid))
    return tuning(pooled.movedim(1, -1)).movedim(-1, 1)


def checkpoint(function: Callable[..., Any], *args: Any, use_reentrant: bool = False, **kwargs: Any) -> Any:
    """torch.utils.checkpoint.checkpoint that carries lambda along to the recomputation.

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
        push(frame)
        try:
            return function(*inner, **named)
        finally:
            pop()

    return torch_checkpoint(carried, *args, use_reentrant=False, **kwargs)
