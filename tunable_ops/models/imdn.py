"""IMDN: blocks that set a part of the channels aside after every convolution, for super-resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int

_SLOPE = 0.05  # of every leaky ReLU


class DistillationBlock(nn.Module):
    """Information multi-distillation: ``y = x + conv1x1(cat(d1, d2, d3, d4))``.

    ``d_i, r_i = split(act(conv_i(r_(i-1))))`` for i = 1, 2, 3 with r_0 = x and a quarter of the channels in d_i, and
    ``d4 = conv4(r_3)``; all four are 3x3, act is a leaky ReLU of slope 0.05.

    Args:
        features: C, a multiple of 4.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.kept = features // 4
        rest = features - self.kept
        self.conv1 = _activated(features, features)
        self.conv2 = _activated(rest, features)
        self.conv3 = _activated(rest, features)
        self.conv4 = nn.Conv2d(rest, self.kept, 3, padding=1)
        self.conv1x1 = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        rest, parts = x, []
        for conv in (self.conv1, self.conv2, self.conv3):
            out = conv(rest)
            part, rest = out[:, : self.kept], out[:, self.kept :]
            parts.append(part)
        return x + self.conv1x1(torch.cat((*parts, self.conv4(rest)), dim=1))


class Shortcut(nn.Module):
    """``y = x + sub(x)``.

    Args:
        sub: Keeps its input's shape.
    """

    def __init__(self, sub: nn.Module) -> None:
        super().__init__()
        self.sub = sub

    def forward(self, x: Tensor) -> Tensor:
        """Map x to the same shape."""
        return x + self.sub(x)


class IMDN(nn.Module):
    """Information multi-distillation network for super-resolution, in the form that NTIRE's challenges compare with.

    Formula: ``y = shuffle(conv(f + conv(blocks(f))))``, ``f = conv(x)``, all three convolutions 3x3.

    Parameters have the names of the published weights: model.0, model.1.sub.0.conv1.0, model.1.sub.8, model.2. With the
    defaults it has 893,936 of them.

    Args:
        scale: Enlargement, at least 1.
        features: Width of the hidden layers, a multiple of 4.
        blocks: Number of distillation blocks.
        channels: Channels C of the picture, 3 for RGB.

    Attributes:
        channels: C, as in all these networks.

    Raises:
        TypeError: An argument is not an int.
        ValueError: It is less than 1, or `features` is not a multiple of 4.

    Source: Hui et al., "Lightweight Image Super-Resolution with Information Multi-distillation Network", ACM Multimedia
    2019 (arXiv 1909.11856).

    Example:
        >>> net = IMDN(scale=2, features=8, blocks=1)
        >>> net(torch.zeros(2, 3, 7, 9)).shape
        torch.Size([2, 3, 14, 18])
    """

    def __init__(self, scale: int = 4, features: int = 64, blocks: int = 8, channels: int = 3) -> None:
        super().__init__()
        given = {"scale": scale, "features": features, "blocks": blocks, "channels": channels}
        for name, value in given.items():
            check_int("IMDN", name, value)
        if features % 4:
            raise ValueError(f"IMDN: features must be a multiple of 4; got {features}")
        self.channels, self.scale = channels, scale
        body = [*(DistillationBlock(features) for _ in range(blocks)), nn.Conv2d(features, features, 3, padding=1)]
        self.model = nn.Sequential(
            nn.Conv2d(channels, features, 3, padding=1),
            Shortcut(nn.Sequential(*body)),
            nn.Conv2d(features, channels * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture.

        Args:
            x: [B, C, H, W], any floating dtype, any H and W; values in [0, 1] by convention.

        Returns:
            [B, C, scale * H, scale * W], otherwise like x.

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``.
        """
        check_input("IMDN", x, self.channels)
        return self.model(x)

    def extra_repr(self) -> str:
        """Return what the layers below do not show."""
        return f"scale={self.scale}"


def _activated(c: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, o, 3, padding=1), nn.LeakyReLU(_SLOPE, inplace=True))
