"""The networks inside a perceptual gradient network: concat(x, y), 6 channels, to 3 channels of the same size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.2  # of the LeakyReLUs


class ResidualBlock(nn.Module):
    """``x + bn(conv(act(bn(conv(x)))))``, convolutions 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return x + self.body(x)


class ResNet(nn.Module):
    """One step down, N residual blocks at half the size, one step up.

    3x3 convolutions 6 -> 64, 64 -> 128 with stride 2, N blocks, nearest x2, 128 -> 64, 64 -> 3; batch norm and
    LeakyReLU 0.2 after all but the last. Parameters for N = 4, 6, 8: 1.34, 1.93, 2.52 million; 19.7, 27.1, 34.5 GMAC
    at 224x224.

    Args:
        blocks: N.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.down = nn.Sequential(*_convolution(6, 64), *_convolution(64, 128, stride=2))
        self.body = nn.Sequential(*(ResidualBlock(128) for _ in range(blocks)))
        self.up = nn.Sequential(*_convolution(128, 64))
        self.last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 6, H, W] to [B, 3, H, W]."""
        deep = self.body(self.down(x))
        return self.last(self.up(F.interpolate(deep, size=x.shape[-2:])))


class Separable(nn.Module):
    """Depthwise 5x5, layer norm over the channels of every pixel, 1x1, LeakyReLU 0.2; plus x where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 5, stride=stride, padding=2, groups=inputs)
        self.norm = nn.LayerNorm(inputs) if norm else None
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.shortcut = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, O, ceil(H / stride), ceil(W / stride)]."""
        y = self.depthwise(x)
        if self.norm is not None:  # free of copies in channels_last
            y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = F.leaky_relu(self.pointwise(y), _SLOPE, inplace=True)
        return x + y if self.shortcut else y


class UNet(nn.Module):
    """Five steps down and up with skips, made of depthwise 5x5 and 1x1 convolutions: 1.81 million parameters.

    7x7 stem of stride 2 to 64 channels, then 128, 256, 512, 512 at strides 4, 8, 16, 32 and back; a second block at
    strides 2, 4, 8 and 32 on the way down and 8, 4, 2 on the way up; the input joins at full size. The published
    network of this kind has 1.77 million; its list of layers is recalled, so the arrangement is a choice of ours, and
    so is layer norm: it makes a field independent of the rest of the batch, in training too. 1.80 GMAC at 224x224
    (published: 1.94).
    """

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(6, 64, 7, stride=2, padding=3), nn.LeakyReLU(_SLOPE, inplace=True)]
        self.down = nn.ModuleList(
            [
                nn.Sequential(*stem, Separable(64, 64)),
                nn.Sequential(Separable(64, 128, stride=2), Separable(128, 128)),
                nn.Sequential(Separable(128, 256, stride=2), Separable(256, 256)),
                Separable(256, 512, stride=2),
                nn.Sequential(Separable(512, 512, stride=2), Separable(512, 512)),
            ]
        )
        self.up = nn.ModuleList(
            [
                Separable(512 + 512, 512),
                nn.Sequential(Separable(512 + 256, 256), Separable(256, 256)),
                nn.Sequential(Separable(256 + 128, 128), Separable(128, 128)),
                nn.Sequential(Separable(128 + 64, 64), Separable(64, 64)),
                Separable(64 + 6, 64, norm=False),
            ]
        )
        self.last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 6, H, W] to [B, 3, H, W], any size."""
        skips = [x]
        for step in self.down:
            skips.append(step(skips[-1]))
        x = skips.pop()
        for step in self.up:
            skip = skips.pop()
            x = step(torch.cat((F.interpolate(x, size=skip.shape[-2:]), skip), dim=1))
        return self.last(x)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(_SLOPE, inplace=True),
    )
