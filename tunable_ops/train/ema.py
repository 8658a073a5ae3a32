"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """``average <- d * average + (1 - d) * weights`` after every step; buffers are copied.

    The decay d_k = min(decay, (1 + k) / (10 + k)) at the k-th update: a young average forgets the random start.

    Args:
        net: The network that is trained; copied.
        decay: In [0, 1); 0 keeps the average equal to the network.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"Ema: decay must be in [0, 1); got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights of ``net`` after the ``step``-th optimiser step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = [weight.detach() for weight in net.parameters()]
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.module.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)
