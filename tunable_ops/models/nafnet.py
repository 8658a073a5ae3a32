"""NAFNet: a U of blocks without activations (gates, channel attention, scaled residuals) that restores a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int, check_ints
from tunable_ops.models.whole_blocks import extend


class LayerNorm2d(nn.Module):
    """Layer normalisation of every pixel over its channels.

    Formula: ``y = (x - mu) / sqrt(var + eps) * weight + bias``, with the mean and the biased variance over C for each
    pixel; sums are fp32 in low precision.

    The result is in channels_last, where a pixel's channels are contiguous: input in that layout is not copied, any
    other is converted once. Twice differentiable.

    Args:
        channels: C.
        eps: Constant added to the variance, at least 0.

    State: weight [C], bias [C].
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Return channels and eps."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class NAFBlock(nn.Module):
    """One block: ``y = x + beta * attend(x)``, ``z = y + gamma * expand(y)``; beta and gamma start at 0, so z = x.

    Formula: with ``gate``, the product of the two halves of the channels, and ``g = gate(conv2(conv1(norm1(x))))``,
    ``attend(x) = conv3(g * sca(g))`` and ``expand(y) = conv5(gate(conv4(norm2(y))))``. conv1 and conv4 double the
    channels, conv2 is a depthwise 3x3, the others 1x1; sca is the mean over all pixels and a 1x1 convolution.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.conv1 = nn.Conv2d(c, 2 * c, 1)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3 = nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.conv4 = nn.Conv2d(c, 2 * c, 1)
        self.conv5 = nn.Conv2d(c, c, 1)
        self.norm1 = LayerNorm2d(c)
        self.norm2 = LayerNorm2d(c)
        # the leading 1 becomes the batch when lambda is given per sample
        self.beta = nn.Parameter(torch.zeros(1, c, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        g = _gate(self.conv2(self.conv1(self.norm1(x))))
        y = x + self.conv3(g * self.sca(g)) * self.beta
        return y + self.conv5(_gate(self.conv4(self.norm2(y)))) * self.gamma


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a * b


class NAFNet(nn.Module):
    """U-shaped restoration network: ``y = x + net(x)``.

    The layers are ``intro`` (3x3); for each level an encoder of blocks and a 2x2 convolution of stride 2 that doubles
    the channels; the middle blocks; for each level a 1x1 convolution without bias and a pixel shuffle, the skip
    connection and a decoder of blocks; ``ending`` (3x3). Sides that are not multiples of 2**levels are padded with 0 at
    the right and the bottom, and the output is cropped.

    The defaults are NAFNet-32 as published for denoising (29.16M parameters, 16.05 GMAC at 256x256); parameters have
    the names of the published weights. Channel attention depends on the mean over the whole picture, so tiles of a
    picture differ slightly from the picture.

    Args:
        img_channel: Channels C of the picture, 3 for RGB.
        width: Channels of the first level.
        middle_blk_num: Number of blocks at the lowest level; may be 0.
        enc_blk_nums: Number of blocks in each encoder, from the top; its length is the number of levels.
        dec_blk_nums: Number of blocks in each decoder, from the bottom; the same length.

    Attributes:
        channels: C.

    Raises:
        TypeError: A number is not an int, or the numbers of blocks are not a list or tuple.
        ValueError: A number is too small, or encoders and decoders differ in number.

    Source: Chen et al., "Simple Baselines for Image Restoration", ECCV 2022 (arXiv 2204.04676).

    Example:
        >>> net = NAFNet(width=4, middle_blk_num=1, enc_blk_nums=(1, 1), dec_blk_nums=(1, 1))
        >>> net(torch.zeros(2, 3, 7, 9)).shape
        torch.Size([2, 3, 7, 9])
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 32,
        middle_blk_num: int = 12,
        enc_blk_nums: Sequence[int] = (2, 2, 4, 8),
        dec_blk_nums: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        check_int("NAFNet", "img_channel", img_channel)
        check_int("NAFNet", "width", width)
        check_int("NAFNet", "middle_blk_num", middle_blk_num, 0)
        check_ints("NAFNet", "enc_blk_nums", enc_blk_nums, 0)
        check_ints("NAFNet", "dec_blk_nums", dec_blk_nums, 0)
        if len(enc_blk_nums) != len(dec_blk_nums):
            raise ValueError(
                "NAFNet: dec_blk_nums must have as many entries as enc_blk_nums; got "
                f"{list(dec_blk_nums)} for {list(enc_blk_nums)}"
            )
        self.channels = img_channel
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        for number in enc_blk_nums:
            self.encoders.append(_blocks(number, width))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, stride=2))
            width *= 2
        self.middle_blks = _blocks(middle_blk_num, width)
        for number in dec_blk_nums:
            self.ups.append(nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)))
            width //= 2
            self.decoders.append(_blocks(number, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored picture.

        Args:
            x: [B, C, H, W], any floating dtype, any H and W; values in [0, 1] by convention.

        Returns:
            Tensor like x.

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``.
        """
        check_input("NAFNet", x, self.channels)
        height, width = x.shape[-2:]
        padded = extend(x, 2 ** len(self.encoders), "constant")
        out = self.intro(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            out = encoder(out)
            skips.append(out)
            out = down(out)
        out = self.middle_blks(out)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            # skip first: the sum has the layout of its first operand, and pixel shuffle may lose channels_last
            out = decoder(skips.pop() + up(out))
        out = padded + self.ending(out)
        return out[..., :height, :width]


def _blocks(number: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(number)))
