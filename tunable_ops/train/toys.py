"""Toy autoencoders: they make the pictures x that a PGN is trained on, and follow its gradients while it learns.

A PGN must be right where its own gradients lead. So three small autoencoders of different depths learn to reproduce
the training pictures y by the predicted gradients alone, and x is what they make of y. One that stops improving
is reset now and then; so the PGN sees young, trained and misled networks all the time.

Image priors are an addition of ours: each writes one crop for many steps, and so comes much closer to it than any
autoencoder does. Without them training hardly ever sees x near y.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (1, 2, 3)
PATIENCE = 200  # steps without a new best before an autoencoder may be reset
RESET = 0.01  # probability per step, from then on
LOST = 1e3  # mean absolute error at which it is reset at once
LIVES = (100, 3000)  # steps that an image prior lives, uniform in the logarithm


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
        """Return what becomes of y, [B, 3, H, W] in [0, 1]: the same shape, around [0, 1]."""
        x, sizes = y - 0.5, []
        for step in self.down:
            sizes.append(x.shape[-2:])
            x = F.leaky_relu(step(x), 0.2)
        for step in self.up:
            x = F.leaky_relu(step(F.interpolate(x, size=sizes.pop())), 0.2)
        return self.last(x) + 0.5


class Painter(nn.Module):
    """Fixed noise [1, 12, H, W] to one picture in (0, 1): 3x3 convolutions, two of stride 2 down, two up."""

    noise: Tensor

    def __init__(self, size: int, width: int = 40) -> None:
        super().__init__()
        self.register_buffer("noise", 0.1 * torch.randn(1, 12, size, size))
        self.down = nn.ModuleList(nn.Conv2d(c, width, 3, stride=2, padding=1) for c in (12, width))
        self.up = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1) for c in (width, width + 12))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self) -> Tensor:
        """Return the picture, [1, 3, H, W]."""
        x, sizes = self.noise, []
        for step in self.down:
            sizes.append(x.shape[-2:])
            x = F.leaky_relu(step(x), 0.2)
        x = F.leaky_relu(self.up[0](F.interpolate(x, size=sizes.pop())), 0.2)
        x = torch.cat((F.interpolate(x, size=sizes.pop()), self.noise), dim=1)
        return torch.sigmoid(self.last(F.leaky_relu(self.up[1](x), 0.2)))


class Toy:
    """An autoencoder with its optimiser, reset when it stops improving.

    Args:
        depth: Of the autoencoder.
        lr: Adam's rate.
        device: Where it runs.
    """

    def __init__(self, depth: int, lr: float, device: torch.device | str = "cpu") -> None:
        self.depth, self.lr, self.device = depth, lr, device
        self.resets = -1
        self.reset()

    def build(self) -> nn.Module:
        """Return the network, with weights from torch's global generator."""
        return Autoencoder(self.depth)

    def reset(self) -> None:
        """Start anew."""
        self.net = self.build().to(self.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.lr, foreach=True)
        self.best, self.since, self.average = float("inf"), 0, float("nan")
        self.resets += 1

    def step(self, x: Tensor, gradient: Tensor) -> None:
        """Follow a gradient field: that of ``(x * gradient).sum()``."""
        self.optimizer.zero_grad(set_to_none=True)
        x.backward(gradient)
        self.optimizer.step()

    def _note(self, error: float) -> None:
        """Take a step's error into the running average, NaN before the first."""
        self.average = error if self.average != self.average else 0.95 * self.average + 0.05 * error

    def watch(self, error: float, draw: float) -> None:
        """Note this step's mean absolute error, and reset where it is time to; ``draw`` is uniform in [0, 1)."""
        self._note(error)
        if self.average < 0.99 * self.best:
            self.best, self.since = self.average, 0
        else:
            self.since += 1
        if not error <= LOST or (self.since > PATIENCE and draw < RESET):
            self.reset()


class ImagePrior(Toy):
    """A `Painter` that writes one crop until its life of so many steps ends; the next one writes another crop.

    Args:
        size: Side of the crop.
        lr: Adam's rate.
        device: Where it runs.
    """

    def __init__(self, size: int, lr: float, device: torch.device | str = "cpu") -> None:
        self.size = size
        super().__init__(0, lr, device)

    def build(self) -> nn.Module:
        """Return a fresh `Painter`."""
        return Painter(self.size)

    def watch(self, error: float, draw: float) -> None:
        """Count this step, and reset where a life of ``LIVES`` steps is over; ``draw`` is fixed for the life."""
        self._note(error)
        self.since += 1
        if not error <= LOST or self.since > LIVES[0] * (LIVES[1] / LIVES[0]) ** draw:
            self.reset()
