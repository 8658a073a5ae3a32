"""DnCNN: a plain chain of convolutions that predicts the noise, optionally on unshuffled pixels (blocks of r x r)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int
from tunable_ops.models.whole_blocks import extend


class DnCNN(nn.Module):
    """Chain of 3x3 convolutions with ReLUs in between: ``y = x - chain(x - mean)``.

    If not residual, ``y = mean + chain(x - mean)``.

    There is no batch normalisation: the widely used retrained weights have it folded in. Parameters have the names of
    these weights: ``model.0``, ``model.2``, ... (the odd numbers are the ReLUs).

    With ``downscale=r > 1`` the chain runs on pixels unshuffled to [B, r*r*C, H/r, W/r], and its output is shuffled
    back
    as in FFDNet: about r*r times faster, because there are r*r times fewer pixels, with an r times larger receptive
    field. Sizes that are not multiples of r are padded by repeating the border, and the output is cropped.

    Args:
        channels: Channels C of the picture, 3 for RGB.
        features: Width of the hidden layers.
        depth: Number of convolutions, at least 2.
        downscale: Side r of the unshuffled blocks; 1: no unshuffling.
        residual: True if the chain predicts the noise to subtract rather than the picture.
        mean: Value subtracted from the chain's input. Published weights expect 0; training from scratch is much faster
            with 0.5, the middle of [0, 1].

    Source: Zhang et al., "Beyond a Gaussian Denoiser", 2017 (arXiv 1608.03981); the unshuffling is that of FFDNet,
    Zhang et al., 2018 (arXiv 1710.04026).

    Example:
        >>> net = DnCNN(channels=1, features=8, depth=3, downscale=2)
        >>> net(torch.zeros(2, 1, 7, 9)).shape
        torch.Size([2, 1, 7, 9])
    """

    def __init__(
        self,
        channels: int = 3,
        features: int = 64,
        depth: int = 17,
        downscale: int = 1,
        residual: bool = True,
        mean: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("features", features), ("downscale", downscale)):
            check_int("DnCNN", name, value)
        check_int("DnCNN", "depth", depth, 2)
        self.channels = channels
        self.downscale = downscale
        self.residual = residual
        self.mean = mean
        ends = channels * downscale**2
        self.model = chain([ends, *[features] * (depth - 1), ends])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: a random rotation in the centre tap, 0 elsewhere; scaled by a tenth in the last layer.

        Delta-orthogonal initialisation (Xiao et al., "Dynamical Isometry and a Mean Field Theory of CNNs", 2018, arXiv
        1806.05393) with a gain of sqrt(2) for ReLU keeps the scale of signals and gradients through the chain, as
        normalisation layers otherwise would. Biases are 0. The small last layer makes y start near x.
        """
        convolutions = [layer for layer in self.model if isinstance(layer, nn.Conv2d)]
        with torch.no_grad():
            for layer in convolutions:
                centre = torch.empty(layer.out_channels, layer.in_channels)
                nn.init.orthogonal_(centre, gain=2**0.5 if layer is not convolutions[-1] else 0.1)
                layer.weight.zero_()
                layer.weight[:, :, 1, 1] = centre
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored picture.

        Args:
            x: [B, C, H, W], any floating dtype, any H and W; values in [0, 1] by convention.

        Returns:
            Tensor like x.

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``.
        """
        check_input("DnCNN", x, self.channels)
        out = x - self.mean if self.mean else x
        if self.downscale == 1:
            out = self.model(out)
        else:
            height, width = x.shape[-2:]
            blocks = F.pixel_unshuffle(extend(out, self.downscale), self.downscale)
            out = F.pixel_shuffle(self.model(blocks), self.downscale)
            out = out[..., :height, :width]
        return x - out if self.residual else out + self.mean

    def extra_repr(self) -> str:
        """Return what the layers below do not show."""
        return f"channels={self.channels}, downscale={self.downscale}, residual={self.residual}, mean={self.mean}"


def chain(widths: Sequence[int]) -> nn.Sequential:
    """Build 3x3 convolutions between the given numbers of channels, with ReLUs in between."""
    layers: list[nn.Module] = []
    for c, o in itertools.pairwise(widths):
        layers += [nn.Conv2d(c, o, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
