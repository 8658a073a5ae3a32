"""DnCNN: a plain chain of convolutions that predicts the noise, optionally on 2x2- or 4x4-unshuffled pixels."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DnCNN(nn.Module):
    """Chain of 3x3 convolutions with ReLU between; ``y = x - chain(x - mean)``.

    If not residual, ``y = mean + chain(x - mean)``.

    Without batch norm: the widely used re-trained weights fold it away, and per-picture inference does not want it.
    The keys are those of such weights, ``model.0``, ``model.2``, ... (the odd numbers are the ReLUs).

    With ``downscale=r > 1`` the chain runs on pixels unshuffled to [B, r*r*C, H/r, W/r] and its output is shuffled back
    (the trick of FFDNet): r*r fewer pixels at the same width, hence about r*r times faster, and an r times larger
    receptive field. Sizes that r does not divide are padded by repeating the border, and cropped again.

    Args:
        channels: channels C of the picture, 3 for RGB.
        features: width of the hidden layers.
        depth: number of convolutions, at least 2.
        downscale: side r of the unshuffled block, 1 for none.
        residual: whether the chain predicts what is subtracted from the input rather than the picture itself.
        mean: value that the chain sees as zero. 0 is what published weights want; 0.5, the middle of [0, 1], trains
            much faster from scratch.

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
        sizes = {"channels": (channels, 1), "features": (features, 1), "depth": (depth, 2), "downscale": (downscale, 1)}
        for name, (value, least) in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"DnCNN: {name} must be an int; got {value!r}")
            if value < least:
                raise ValueError(f"DnCNN: {name} must be at least {least}; got {value}")
        self.channels = channels
        self.downscale = downscale
        self.residual = residual
        self.mean = mean
        ends = channels * downscale**2
        widths = [ends] + [features] * (depth - 1) + [ends]
        layers: list[nn.Module] = []
        for c, o in itertools.pairwise(widths):
            layers += [nn.Conv2d(c, o, 3, padding=1), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*layers[:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: a random rotation in the centre tap, 0 around it; a tenth of that in the last layer.

        Delta-orthogonal initialisation (Xiao et al., "Dynamical Isometry and a Mean Field Theory of CNNs", 2018, arXiv
        1806.05393) with the gain sqrt(2) for ReLU: signals and gradients keep their size through the chain, which
        normalisation layers would see to otherwise. Biases are 0. The last layer makes y start near x.
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
            x: [B, C, H, W], any floating dtype; values in [0, 1] by convention. H and W are arbitrary.

        Returns:
            Tensor like x.

        Raises:
            ValueError: if x is not [B, C, H, W] with C = ``channels``.
        """
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"DnCNN: x must be [B, {self.channels}, H, W]; got {list(x.shape)}")
        out = x - self.mean if self.mean else x
        if self.downscale == 1:
            out = self.model(out)
        else:
            height, width = x.shape[-2:]
            pad_h, pad_w = -height % self.downscale, -width % self.downscale
            if pad_h or pad_w:
                out = F.pad(out, (0, pad_w, 0, pad_h), mode="replicate")
            out = F.pixel_shuffle(self.model(F.pixel_unshuffle(out, self.downscale)), self.downscale)
            out = out[..., :height, :width]
        return x - out if self.residual else out + self.mean

    def extra_repr(self) -> str:
        """What the layers below do not show."""
        return f"channels={self.channels}, downscale={self.downscale}, residual={self.residual}, mean={self.mean}"
