"""A loss whose gradient is predicted by a network instead of computed by differentiation."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Any], Tensor]


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


class Corrected(nn.Module):
    """A cheap loss, corrected by the exact one at some steps: a control variate of `MultiLoss`.

    With ``every={name: N}`` the multi-loss takes ``cheap`` at every step, and at every N-th one ``cheap + N * (exact -
    cheap)``. The mean over N steps at one output is that of ``exact``, value and gradient alike, and the nearer
    ``cheap`` comes to ``exact``, the less the steps differ. Only the N-th steps pay for ``exact``.

    Args:
        cheap: ``f(output, target) -> [B]``, such as a `PerceptualGradient`.
        exact: The loss that it stands for, such as `losses.Perceptual`.

    Example:
        >>> from tunable_ops import losses
        >>> cheap = losses.PerceptualGradient(losses.PGN("unet"))
        >>> exact = losses.Perceptual("vgg16", ["relu1_2"], weights="random")
        >>> pair = losses.Corrected(cheap, exact)
        >>> criterion = losses.MultiLoss({"l1": losses.l1, "perceptual": pair}, every={"perceptual": 4})
        >>> x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
        >>> total, terms = criterion(x, y, [0.5, 0.5], step=0)
    """

    def __init__(self, cheap: Loss, exact: Loss) -> None:
        super().__init__()
        for name, loss in (("cheap", cheap), ("exact", exact)):
            if not callable(loss):
                raise TypeError(f"Corrected: {name} must be callable; got {type(loss).__name__}")
        self.cheap, self.exact = cheap, exact

    def forward(self, output: Tensor, target: Tensor, weight: float = 1.0) -> Tensor:
        """Return ``cheap + weight * (exact - cheap)`` of each sample, [B]; with weight 0 or 1 the other is spared.

        Args:
            output: As for both losses.
            target: As for both losses.
            weight: Of the correction; 1 is the exact loss.
        """
        if weight == 1:
            return self.exact(output, target)
        value = self.cheap(output, target)
        return value if weight == 0 else value + weight * (self.exact(output, target) - value)
