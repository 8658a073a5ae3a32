"""The networks inside a perceptual gradient network: concat(x, y), 6 channels, to 3 channels of the same size."""

from __future__ import annotations

import itertools
import math

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
    strides 2, 4, 8 and 32 on the way down and 8, 4, 2 on the way up; the input joins at full size. The arrangement is a
    choice of ours (`PublishedUNet` is the published one), and so is layer norm: it makes a field independent of the
    rest of the batch, in training too. 1.80 GMAC at 224x224.
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


class SeparableBlock(nn.Module):
    """Two times 5x5 with groups = inputs, 1x1, batch norm; plus the shortcut at the end; ReLU after both.

    The first 5x5 has the stride and the outputs. The shortcut is a 1x1 where the stride is 2, else x. No biases.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()

        def half(inputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 5, stride=stride, padding=2, groups=inputs, bias=False),
                nn.Conv2d(outputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

        self.first, self.second = half(inputs, stride), half(outputs, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, O, ceil(H / stride), ceil(W / stride)]."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class PublishedUNet(nn.Module):
    """The UNet of the publication: 1.77 million parameters, 1.94 GMAC at 224x224, both as published.

    Down: 7x7 with stride 2 to 64 channels, batch norm, ReLU; 3x3 max-pool with stride 2 and a block 64 -> 64; blocks
    64 -> 128 -> 256 -> 512 with stride 2 (`SeparableBlock`). Skips: each of the five stages through a separable 1x1 of
    its own width, the pictures through two separable 3x3, 6 -> 64 -> 64. Up: bilinear to the size of the next skip
    (corners aligned), joined with it, separable 3x3 to 512, 256, 256, 128 and, at full size, 64 channels; 1x1 to 3. A
    separable kxk is kxk from C to O in gcd(C, O) groups, 1x1, ReLU, with biases.

    Batch norm in training needs more than one value per channel: crops above 32 pixels, or more than one pair.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(6, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = (64, 128, 256, 512)
        blocks = [SeparableBlock(a, b, stride=2) for a, b in itertools.pairwise(widths)]
        self.down = nn.ModuleList([nn.Sequential(*stem), nn.Sequential(pool, SeparableBlock(64, 64)), *blocks])
        full = nn.Sequential(_separable(6, 64, 3), _separable(64, 64, 3))
        self.skips = nn.ModuleList([full, *(_separable(width, width, 1) for width in (64, *widths))])
        joined = ((512 + 256, 512), (512 + 128, 256), (256 + 64, 256), (256 + 64, 128), (128 + 64, 64))
        self.up = nn.ModuleList(_separable(inputs, outputs, 3) for inputs, outputs in joined)
        self.last = nn.Conv2d(64, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 6, H, W] to [B, 3, H, W], any size."""
        stages = [x]
        for step in self.down:
            stages.append(step(stages[-1]))
        skips = [skip(stage) for skip, stage in zip(self.skips, stages, strict=True)]
        x = skips.pop()
        for step in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            x = step(torch.cat((x, skip), dim=1))
        return self.last(x)


def _separable(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Return kxk in gcd(inputs, outputs) groups, 1x1, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=math.gcd(inputs, outputs)),
        nn.Conv2d(outputs, outputs, 1),
        nn.ReLU(inplace=True),
    )


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(_SLOPE, inplace=True),
    )
