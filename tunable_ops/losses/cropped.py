"""A loss on a random crop of every sample, for a share of the cost."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Any], Tensor]


class Crops(NamedTuple):
    """Squares of one side, one in each sample of a batch.

    Attributes:
        tops: First rows, one a sample.
        lefts: First columns.
        side: Of all of them.
        share: [H, W], probability with which a pixel is drawn.
    """

    tops: list[int]
    lefts: list[int]
    side: int
    share: Tensor

    def of(self, pictures: Tensor) -> Tensor:
        """Cut the squares out of [B, C, H, W]; return [B, C, side, side]."""
        if not self.tops:
            return pictures[..., : self.side, : self.side]
        corners = zip(self.tops, self.lefts, strict=True)
        samples = zip(pictures.unbind(0), corners, strict=True)
        return torch.stack([sample[:, a : a + self.side, b : b + self.side] for sample, (a, b) in samples])

    def add(self, pictures: Tensor, values: Tensor) -> None:
        """Add [B, C, side, side] to the squares of [B, C, H, W], in place."""
        for sample, value, a, b in zip(pictures, values, self.tops, self.lefts, strict=True):
            sample[:, a : a + self.side, b : b + self.side] += value


def check_side(op: str, argument: str, side: int) -> None:
    """Refuse a side that is no number of pixels."""
    if not isinstance(side, int) or isinstance(side, bool):
        raise TypeError(f"{op}: {argument} must be an integer, in pixels; got {side!r}")
    if side < 1:
        raise ValueError(f"{op}: {argument} must be at least 1 pixel; got {side}")


def draw_crops(op: str, argument: str, side: int, output: Tensor, target: Tensor | None) -> Crops:
    """Draw one square for every sample of [B, C, H, W] from torch's global generator of the CPU.

    It is one of those that cover the sample in rows and columns, as few as can be. Where the side divides the sample's
    they do not overlap, so that no pixel is drawn more often than another: free places would prefer the middle.

    Raises:
        TypeError: Output or target is no Tensor.
        ValueError: The output has other dimensions, or is smaller than the square; the target differs in size.
    """
    for name, given in (("output", output), ("target", target)):
        if not isinstance(given, Tensor) and (name == "output" or given is not None):
            raise TypeError(f"{op}: {name} must be a Tensor; got {type(given).__name__}")
    if output.ndim != 4:
        raise ValueError(f"{op}: output must be pictures, [B, C, H, W]; got {list(output.shape)}")
    batch, _, height, width = output.shape
    if min(height, width) < side:
        raise ValueError(f"{op}: {argument} must fit in the output of {height}x{width}; got {side}")
    if target is not None and (target.ndim != 4 or (len(target), *target.shape[2:]) != (batch, height, width)):
        raise ValueError(
            f"{op}: target must have the batch and the size of the output, {list(output.shape)}; "
            f"got {list(target.shape)}"
        )
    rows, columns = _starts(height, side), _starts(width, side)
    share = torch.outer(_share(rows, height, side), _share(columns, width, side))
    return Crops(_drawn(rows, batch), _drawn(columns, batch), side, share)


def _starts(extent: int, side: int) -> list[int]:
    """Return where the intervals begin that cover an extent."""
    last = math.ceil(extent / side) - 1
    return [round(k * (extent - side) / max(last, 1)) for k in range(last + 1)]


def _share(starts: list[int], extent: int, side: int) -> Tensor:
    """Return how many of the intervals hold each place, of one."""
    counts = torch.zeros(extent)
    for start in starts:
        counts[start : start + side] += 1
    return counts / len(starts)


def _drawn(starts: list[int], batch: int) -> list[int]:
    return [starts[k] for k in torch.randint(len(starts), (batch,)).tolist()]


class Cropped(nn.Module):
    """A loss on a random crop of each sample, at the same place in output and target.

    The crop is one of the tiles that cover a sample, drawn anew at every call from torch's global generator of the CPU.
    Where ``side`` divides the sample's sides the tiles do not overlap, and a loss that is a mean over pixels, or over
    maps of features, has the same mean over crops as over the whole, but for what features see of the edges; with other
    sides, pixels where tiles overlap count more. The gradient is that of the crop, and 0 outside.

    An expensive loss so costs the crop's share of the pixels at *every* step, where ``MultiLoss(every=...)`` computes
    it whole at some of them: as much work, and a gradient that changes less from step to step.

    Args:
        loss: ``f(output, target) -> [B]``, such as `losses.Perceptual`.
        side: Of the crop, in pixels.

    Raises:
        TypeError: `loss` cannot be called, or `side` is no integer.
        ValueError: `side` is below 1.

    Example:
        >>> from tunable_ops import losses
        >>> quarter = losses.Cropped(losses.Perceptual("vgg16", ["relu1_2"], weights="random"), side=16)
        >>> quarter(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(self, loss: Loss, side: int) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"Cropped: loss must be callable; got {type(loss).__name__}")
        check_side("Cropped", "side", side)
        self.loss, self.side = loss, side

    def forward(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return the loss of a crop of each sample, [B].

        Args:
            output: [B, C, H, W], not smaller than the crop.
            target: [B, C, H, W], or None for a loss without one.

        Raises:
            TypeError: Output or target is no Tensor.
            ValueError: The crop does not fit, or output and target differ in size.
        """
        crops = draw_crops("Cropped", "side", self.side, output, target)
        return self.loss(crops.of(output), None if target is None else crops.of(target))

    def extra_repr(self) -> str:
        """Return the crop's side."""
        return f"side={self.side}"
