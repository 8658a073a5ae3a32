"""StyleNet: a feed-forward style network, an autoencoder of residual blocks with instance normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int, check_ints
from tunable_ops.models.whole_blocks import extend

_COLOUR = 16.0  # scale of the last convolution's output: see StyleNet
_SMALLEST = 8  # pixels: enough to reflect 4 for the 9x9 convolutions, and to leave 2 x 2 at the deepest level


class ResidualBlock(nn.Module):
    """``y = x + norm2(conv2(relu(norm1(conv1(x)))))``, both convolutions 3x3 on reflected borders.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.norm1 = _norm(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.norm2 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class StyleNet(nn.Module):
    """Style transfer in one pass: paint a picture in the style that the network was trained for.

    Formula, with ``unit = relu(norm(conv))`` and w = width:

    - ``intro`` 9x9, 3 -> w; ``down1`` 3x3 of stride 2, w -> 2w; blocks ``body.0``;
    - ``down2`` 3x3 of stride 2, 2w -> 4w; blocks ``body.1``;
    - ``up1`` nearest x2 and 3x3, 4w -> 2w; blocks ``body.2``;
    - ``up2`` nearest x2 and 3x3, 2w -> w; ``y = sigmoid(ending(...) / 16)`` with a 9x9, w -> 3.

    All five convolutions before the last are units. Borders are reflected. The norms are instance normalisations with a
    learned gain and offset; `convert` leaves them as they are and makes every convolution tunable, with one parameter
    per style. They depend on the whole picture, so tiles of a picture differ slightly from the picture. Sides that are
    not multiples of 4, or smaller than 8, are padded by repeating the last row or column, and the output is cropped.

    The defaults are the published configuration of the tunable style network: 64 -> 128 -> 256 channels, blocks
    [2, 6, 2], 9x9 at both ends. Where the publication is silent we chose that the three numbers of blocks belong
    before, at and after the deepest level, the order inside a block, and the sigmoid, which keeps colours in [0, 1] as
    the
    scaled tanh of Johnson et al. does. The factor 16, which the initial weights compensate, is for Adam: one step
    changes each of the 81 w weights of a colour by the learning rate, which would otherwise repaint the picture.

    Args:
        img_channel: Channels C of the picture, 3 for RGB.
        width: Channels w of the first level.
        num_blocks: Residual blocks at 2w channels on the way down, at 4w, and at 2w on the way up; each may be 0.

    Attributes:
        channels: C.

    Raises:
        TypeError: A number is not an int, or num_blocks is not a list or tuple.
        ValueError: A number is too small, or num_blocks does not have three entries.

    Source: Maggioni et al., "Tunable Convolutions with Parametric Multi-Loss Optimization", CVPR 2023; the elements
    are those of Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016
    (arXiv 1603.08155), with nearest-neighbour enlargement (Odena et al., "Deconvolution and Checkerboard Artifacts",
    2016) and instance normalisation (Ulyanov et al., 2016, arXiv 1607.08022).

    Example:
        >>> net = StyleNet(width=4, num_blocks=(0, 1, 0))
        >>> net(torch.zeros(2, 3, 9, 14)).shape
        torch.Size([2, 3, 9, 14])
    """

    def __init__(self, img_channel: int = 3, width: int = 64, num_blocks: Sequence[int] = (2, 6, 2)) -> None:
        super().__init__()
        check_int("StyleNet", "img_channel", img_channel)
        check_int("StyleNet", "width", width)
        check_ints("StyleNet", "num_blocks", num_blocks, 0)
        if len(num_blocks) != 3:
            raise ValueError(f"StyleNet: num_blocks must have 3 entries; got {list(num_blocks)}")
        self.channels = img_channel
        self.intro = _unit(img_channel, width, 9)
        self.down1 = _unit(width, 2 * width, 3, stride=2)
        self.down2 = _unit(2 * width, 4 * width, 3, stride=2)
        self.body = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(channels) for _ in range(number)))
            for number, channels in zip(num_blocks, (2 * width, 4 * width, 2 * width), strict=True)
        )
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2), *_unit(4 * width, 2 * width, 3))
        self.up2 = nn.Sequential(nn.Upsample(scale_factor=2), *_unit(2 * width, width, 3))
        self.ending = _conv(width, img_channel, 9)
        with torch.no_grad():
            self.ending.weight.mul_(_COLOUR)

    def forward(self, x: Tensor) -> Tensor:
        """Return the painted picture.

        Args:
            x: [B, C, H, W], any floating dtype, any H and W; values in [0, 1] by convention.

        Returns:
            Tensor like x, values in (0, 1).

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``.
        """
        check_input("StyleNet", x, self.channels)
        if not x.shape[0]:
            return x.clone()  # torch's instance normalisation rejects an empty batch
        height, width = x.shape[-2:]
        out = extend(x, 4, least=_SMALLEST)
        out = self.body[0](self.down1(self.intro(out)))
        out = self.body[1](self.down2(out))
        out = self.body[2](self.up1(out))
        return torch.sigmoid(self.ending(self.up2(out)) / _COLOUR)[..., :height, :width]


def _conv(c: int, o: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c, o, side, stride, padding=side // 2, padding_mode="reflect")


def _norm(channels: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=True)


def _unit(c: int, o: int, side: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(c, o, side, stride), _norm(o), nn.ReLU())
