"""A loss whose gradient is predicted by a network instead of computed by differentiation."""

from typing import Protocol

import torch
from torch import Tensor, nn


class GradientField(Protocol):
    """What `PerceptualGradient` needs; `tunable_ops.losses.PGN` is one."""

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of each sample's loss for x, [B, 3, H, W], and a value per sample for logs, [B]."""
        ...


class PerceptualGradient(nn.Module):
    """Perceptual loss whose gradient for the output is what a perceptual gradient network predicts.

    For each sample ``value = v + sum((output - sg(output)) * g)`` with ``g, v = pgn.objective(sg(output), target)``,
    where sg stops the gradient: the value is v, its derivative exactly g. So the weights, scales and per-sample lambda
    of `MultiLoss` act on it as on any loss. It costs one forward pass of the small network, and stores nothing for a
    backward pass.

    Args:
        pgn: Trained network, for example `losses.PGN.pretrained(bounded=False)`. It is frozen and stays in evaluation
            mode.

    Example:
        >>> from tunable_ops import losses
        >>> field = losses.PerceptualGradient(losses.PGN("unet"))
        >>> criterion = losses.MultiLoss({"l1": losses.l1, "perceptual": field})
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
        """Return the value of each sample, with the predicted gradient as its derivative.

        Args:
            output: [B, 3, H, W], RGB in [0, 1], floating point.
            target: Same shape and device.

        Returns:
            [B], float32: the squared distance to the proxy target (see `PGN.objective`), not an estimate of the
            perceptual loss. Only the first derivative exists, and only for the output; the second is 0.

        Raises:
            TypeError, ValueError: As for `PGN.gradient`.
        """
        with torch.no_grad():
            gradient, value = self.pgn.objective(output.detach(), target)
        step = (output - output.detach()).to(gradient.dtype)  # zeros
        return value + (step * gradient).flatten(1).sum(1)

    def train(self, mode: bool = True) -> "PerceptualGradient":
        """Stay in evaluation mode."""
        return super().train(False)
