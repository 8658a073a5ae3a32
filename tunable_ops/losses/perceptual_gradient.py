"""An objective that brings its gradient along, instead of a value to differentiate."""

from typing import Protocol

import torch
from torch import Tensor, nn


class GradientField(Protocol):
    """What `PerceptualGradient` needs; `tunable_ops.pgn.PGN` is one."""

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient of each sample's loss for x, [B, 3, H, W]; a value of each sample for logs, [B])."""
        ...


class PerceptualGradient(nn.Module):
    """The perceptual loss of a perceptual gradient network: its predicted field is the gradient for the output.

    For each sample ``value = v + sum((output - sg(output)) * g)`` with ``g, v = pgn.objective(sg(output), target)`` and
    sg to stop the gradient: the value is v, the derivative exactly g. So `MultiLoss`'s weights, scales and per-sample
    lambda act on it as on any loss, at the price of the small network's forward pass: nothing is stored for a backward
    pass through it.

    Args:
        pgn: a trained network, for example `pgn.PGN.pretrained(bounded=False)`. It is frozen and kept in evaluation
            mode.

    Example:
        >>> from tunable_ops import losses
        >>> from tunable_ops.pgn import PGN
        >>> criterion = losses.MultiLoss({"l1": losses.l1, "perceptual": losses.PerceptualGradient(PGN("unet"))})
        >>> x, y = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)
        >>> total, terms = criterion(x, y, lam=[[0.9, 0.1], [0.0, 1.0]])
        >>> total.backward()
    """

    def __init__(self, pgn: GradientField) -> None:
        super().__init__()
        self.pgn = pgn
        if isinstance(pgn, nn.Module):
            pgn.requires_grad_(False).eval()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The value of each sample, with the predicted gradient behind it.

        Args:
            output: [B, 3, H, W], RGB in [0, 1], floating point.
            target: The same shape and device.

        Returns:
            [B], float32: the squared distance to the proxy target (see `PGN.objective`), which is no estimate of the
            perceptual loss. First derivative alone, and for the output alone; the second is 0.

        Raises:
            TypeError, ValueError: As `PGN.gradient`.
        """
        with torch.no_grad():
            gradient, value = self.pgn.objective(output.detach(), target)
        step = (output - output.detach()).to(gradient.dtype)  # zeros
        return value + (step * gradient).flatten(1).sum(1)

    def train(self, mode: bool = True) -> "PerceptualGradient":
        """Stays in evaluation mode."""
        return super().train(False)
