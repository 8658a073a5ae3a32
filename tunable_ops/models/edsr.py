"""EDSR: residual blocks of two 3x3 convolutions without normalisation, for super-resolution or restoration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int, check_number


class ResidualBlock(nn.Module):
    """``y = x + res_scale * conv2(relu(conv1(x)))``, both convolutions 3x3.

    Args:
        channels: C.
        res_scale: Fixed factor of the residual.
    """

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return torch.add(x, self.conv2(F.relu(self.conv1(x), inplace=True)), alpha=self.res_scale)

    def extra_repr(self) -> str:
        """Return the factor."""
        return f"res_scale={self.res_scale}"


class EDSR(nn.Module):
    """Residual network for super-resolution (scale 2 or 4) or, at scale 1, restoration.

    Formula: ``f = conv_first((x - mean) * img_range)``,
    ``y = conv_last(upsample(conv_after_body(body(f)) + f)) / img_range + mean``.

    For each factor of 2, upsample has a 3x3 convolution to 4 times the channels and a pixel shuffle; at scale 1 it is
    empty. Parameters have the names of BasicSR's EDSR (conv_first, body.0.conv1, conv_after_body, upsample.0,
    conv_last). Its weights need ``res_scale=1, img_range=255, mean=(0.4488, 0.4371, 0.4040)``; those of the larger
    network also ``num_blocks=32, features=256`` and ``res_scale=0.1``. The mean is not in the state dict.

    At scale 1 without ``body_conv`` the network is as large as the published tunable one for denoising and deblurring:
    1,185,219 parameters (1,222,147 with it). That one also has a ReLU after its first convolution.

    Args:
        scale: Enlargement: 1, 2 or 4.
        num_blocks: Number of residual blocks, at least 1.
        features: Width of the hidden layers.
        res_scale: Factor of every residual: 0.1 in the tunable network and in the largest plain one, 1 in the plain
            baseline of this size.
        body_conv: True for a convolution after the blocks, as published for super-resolution.
        img_channel: Channels C of the picture, 3 for RGB.
        mean: Value subtracted from x before the network and added after it: one number, or one per channel.
        img_range: Factor on the network's input and divisor of its output; positive.

    Attributes:
        channels: C, as in all these networks.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `scale` is not 1, 2 or 4, a number is too small, or mean does not have one value per channel.

    Source: Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017 (arXiv
    1707.02921); the tunable one: Maggioni et al., "Tunable Convolutions with Parametric Multi-Loss Optimization", CVPR
    2023.

    Example:
        >>> net = EDSR(scale=2, num_blocks=1, features=4)
        >>> net(torch.zeros(2, 3, 7, 9)).shape
        torch.Size([2, 3, 14, 18])
    """

    mean: Tensor

    def __init__(
        self,
        scale: int = 1,
        num_blocks: int = 16,
        features: int = 64,
        res_scale: float = 0.1,
        body_conv: bool = True,
        img_channel: int = 3,
        mean: float | Sequence[float] = 0.0,
        img_range: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in {"num_blocks": num_blocks, "features": features, "img_channel": img_channel}.items():
            check_int("EDSR", name, value)
        if not isinstance(scale, int) or isinstance(scale, bool):
            raise TypeError(f"EDSR: scale must be an int; got {scale!r}")
        if scale not in (1, 2, 4):
            raise ValueError(f"EDSR: scale must be 1, 2 or 4; got {scale}")
        for name, number in {"res_scale": res_scale, "img_range": img_range}.items():
            check_number("EDSR", name, number)
        if img_range <= 0:
            raise ValueError(f"EDSR: img_range must be positive; got {img_range}")
        if not isinstance(body_conv, bool):
            raise TypeError(f"EDSR: body_conv must be a bool; got {body_conv!r}")
        means = _per_channel(mean, img_channel)
        self.channels = img_channel
        self.scale = scale
        self.img_range = img_range
        self.centred = any(means)
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(img_channel, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(features, res_scale) for _ in range(num_blocks)))
        self.conv_after_body = nn.Conv2d(features, features, 3, padding=1) if body_conv else None
        steps: list[nn.Module] = []
        for _ in range(scale.bit_length() - 1):
            steps += [nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2)]
        self.upsample = nn.Sequential(*steps)
        self.conv_last = nn.Conv2d(features, img_channel, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored or enlarged picture.

        Args:
            x: [B, C, H, W], any floating dtype, any H and W; values in [0, 1] by convention.

        Returns:
            [B, C, scale * H, scale * W], otherwise like x.

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``.
        """
        check_input("EDSR", x, self.channels)
        if self.centred:
            x = x - self.mean
        if self.img_range != 1:
            x = x * self.img_range
        first = self.conv_first(x)
        out = self.body(first)
        if self.conv_after_body is not None:
            out = self.conv_after_body(out)
        out = self.conv_last(self.upsample(out + first))
        if self.img_range != 1:
            out = out / self.img_range
        return out + self.mean if self.centred else out

    def extra_repr(self) -> str:
        """Return what the layers below do not show."""
        return f"scale={self.scale}, centred={self.centred}, img_range={self.img_range}"


def _per_channel(mean: float | Sequence[float], channels: int) -> list[float]:
    means: list[Any] = list(mean) if isinstance(mean, list | tuple) else [mean] * channels
    if not all(isinstance(value, int | float) for value in means):
        raise TypeError(f"EDSR: mean must be a number or a list or tuple of numbers; got {mean!r}")
    if len(means) != channels:
        raise ValueError(f"EDSR: mean must be one number or {channels} of them; got {means}")
    return means
