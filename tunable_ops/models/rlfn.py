"""RLFN: residual blocks of three convolutions, each with an attention to large structures, for super-resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int

_SLOPE = 0.05  # of every leaky ReLU
_RANGE = 255.0  # the published weights expect and return pixels of 0..255
# The attention pools with a window of 7 after a convolution of stride 2: what is smaller has nothing to pool.
_LEAST = 15


class ESA(nn.Module):
    """Enhanced spatial attention: ``y = x * sigmoid(conv4(up(conv3(pool(conv2(conv1(x))))) + conv_f(conv1(x))))``.

    conv2 is 3x3 of stride 2 and pool a max-pooling of 7x7 with stride 3, both without padding: what they see is a sixth
    of the picture's size, and ``up`` brings it back (bilinear). The other convolutions are 1x1, conv3 3x3.

    Args:
        channels: C.
        width: Width inside.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.conv_f = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.conv4 = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W], H and W at least 15, to the same shape."""
        narrow = self.conv1(x)
        pooled = F.max_pool2d(self.conv2(narrow), kernel_size=7, stride=3)
        wide = F.interpolate(self.conv3(pooled), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(wide + self.conv_f(narrow)))


class RLFB(nn.Module):
    """Residual local feature block: ``y = esa(c5(x + act(c3(act(c2(act(c1(x))))))))``, act = leaky ReLU of slope 0.05.

    Args:
        features: C.
        hidden: Width between its three 3x3 convolutions.
        attention: Width of the attention.
    """

    def __init__(self, features: int, hidden: int, attention: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(features, hidden, 3, padding=1)
        self.c2_r = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.c3_r = nn.Conv2d(hidden, features, 3, padding=1)
        self.c5 = nn.Conv2d(features, features, 1)
        self.esa = ESA(features, attention)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W], H and W at least 15, to the same shape."""
        out = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            out = F.leaky_relu(conv(out), _SLOPE)
        return self.esa(self.c5(out + x))


class RLFN(nn.Module):
    """Residual local feature network for super-resolution, in the form that won the NTIRE 2022 efficiency challenge.

    Formula: ``f = fea_conv(255 x)``, ``y = shuffle(upsampler(LR_conv(B4(B3(B2(B1(f))))) + f)) / 255``.

    The published weights expect pixels of 0..255; the network scales inside, so that x and y are in [0, 1]. Parameters
    have the names of these weights: fea_conv, B1.c1_r, B1.esa.conv1, LR_conv, upsampler.0. With the defaults it has
    317,218 of them.

    The attention sees the whole neighbourhood of a pixel through a max-pooling whose grid starts at the picture's
    corner: the parts of a picture that is cut into tiles differ a little from the whole.

    Args:
        scale: Enlargement, at least 1.
        features: Width between blocks.
        hidden: Width inside blocks.
        attention: Width inside the attentions.
        blocks: Number of blocks.
        channels: Channels C of the picture, 3 for RGB.

    Attributes:
        channels: C, as in all these networks.

    Raises:
        TypeError: An argument is not an int.
        ValueError: It is less than 1.

    Source: Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPR workshops 2022 (arXiv
    2205.07514).

    Example:
        >>> net = RLFN(scale=2, features=4, hidden=6, attention=2, blocks=1)
        >>> net(torch.zeros(2, 3, 15, 17)).shape
        torch.Size([2, 3, 30, 34])
    """

    def __init__(
        self,
        scale: int = 4,
        features: int = 46,
        hidden: int = 48,
        attention: int = 16,
        blocks: int = 4,
        channels: int = 3,
    ) -> None:
        super().__init__()
        given = {"scale": scale, "features": features, "hidden": hidden, "attention": attention, "blocks": blocks}
        for name, value in {**given, "channels": channels}.items():
            check_int("RLFN", name, value)
        self.channels, self.scale, self.blocks = channels, scale, blocks
        self.fea_conv = nn.Conv2d(channels, features, 3, padding=1)
        for number in range(1, blocks + 1):
            self.add_module(f"B{number}", RLFB(features, hidden, attention))
        self.LR_conv = nn.Conv2d(features, features, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(features, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture.

        Args:
            x: [B, C, H, W], any floating dtype, H and W at least 15; values in [0, 1].

        Returns:
            [B, C, scale * H, scale * W], otherwise like x.

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``, or is too small.
        """
        check_input("RLFN", x, self.channels)
        if any(n < _LEAST for n in x.shape[-2:]):  # not min(): graphs hold whichever side is longer
            raise ValueError(
                f"RLFN: x must have at least {_LEAST} x {_LEAST} pixels, which its attention pools; got {list(x.shape)}"
            )
        first = self.fea_conv(x * _RANGE)
        out = first
        for number in range(1, self.blocks + 1):
            out = getattr(self, f"B{number}")(out)
        return self.upsampler(self.LR_conv(out) + first) / _RANGE

    def extra_repr(self) -> str:
        """Return what the layers below do not show."""
        return f"scale={self.scale}"
