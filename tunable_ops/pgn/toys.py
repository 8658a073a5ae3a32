"""Toy autoencoders: they make the pictures x that a PGN is trained on, and follow its gradients while it learns.

A PGN must be right where its own gradients lead. So three small autoencoders of different depths learn to reproduce
the training pictures y by the predicted gradients alone, and x is what they make of y. One that no longer gets better
starts anew now and then; so the PGN sees young, trained and badly led networks all the time.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (1, 2, 3)
PATIENCE = 200  # steps without a new best before an autoencoder may be reset
RESET = 0.01  # probability per step, from then on
LOST = 1e3  # mean absolute error from which on it is reset at once


class Autoencoder(nn.Module):
    """``depth`` 3x3 convolutions of stride 2 down, as many up with nearest x2; LeakyReLU 0.2; the last one linear."""

    def __init__(self, depth: int, width: int = 24) -> None:
        super().__init__()
        widths = [3, *(width * 2**k for k in range(depth))]
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, max(a, width), 3, padding=1) for a, b in reversed(pairs))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, y: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> the same shape, around [0, 1]."""
        x, sizes = y - 0.5, []
        for step in self.down:
            sizes.append(x.shape[-2:])
            x = F.leaky_relu(step(x), 0.2)
        for step in self.up:
            x = F.leaky_relu(step(F.interpolate(x, size=sizes.pop())), 0.2)
        return self.last(x) + 0.5


class Toy:
    """An autoencoder, its optimiser, and when it is reset.

    Args:
        depth: of the autoencoder.
        lr: Adam's rate.
        device: where it runs.
    """

    def __init__(self, depth: int, lr: float, device: torch.device | str = "cpu") -> None:
        self.depth, self.lr, self.device = depth, lr, device
        self.resets = -1
        self.reset()

    def reset(self) -> None:
        """Start anew, with weights from torch's global generator."""
        self.net = Autoencoder(self.depth).to(self.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.lr, foreach=True)
        self.best, self.since, self.average = float("inf"), 0, float("nan")
        self.resets += 1

    def step(self, x: Tensor, gradient: Tensor) -> None:
        """Follow a gradient field: that of ``(x * gradient).sum()``."""
        self.optimizer.zero_grad(set_to_none=True)
        x.backward(gradient)
        self.optimizer.step()

    def watch(self, error: float, draw: float) -> None:
        """Note this step's mean absolute error, and reset where it is time to; ``draw`` is uniform in [0, 1)."""
        self.average = error if self.average != self.average else 0.95 * self.average + 0.05 * error
        if self.average < 0.99 * self.best:
            self.best, self.since = self.average, 0
        else:
            self.since += 1
        if not error <= LOST or (self.since > PATIENCE and draw < RESET):
            self.reset()
