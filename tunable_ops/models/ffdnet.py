"""FFDNet: a chain of convolutions on unshuffled pixels, with the noise level as an input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int
from tunable_ops.models.dncnn import chain

_SIDE = 2  # pixels are unshuffled in blocks of 2 x 2


class FFDNet(nn.Module):
    """The classic tunable denoiser: ``y = shuffle(chain(cat(unshuffle(x), sigma)))``.

    The noise level is an input map: a knob without tunable layers. Parameters have the names of the published weights:
    ``model.0``, ``model.2``, ... (the odd numbers are the ReLUs). Odd sizes are padded by repeating the border, and the
    output is cropped.

    Args:
        channels: Channels C of the picture, 3 for RGB.
        features: Width of the hidden layers; published: 96 in colour, 64 in grey.
        depth: Number of convolutions, at least 2; published: 12 in colour, 15 in grey.

    Source: Zhang et al., "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising", 2018 (arXiv
    1710.04026).

    Example:
        >>> net = FFDNet(channels=1, features=8, depth=3)
        >>> net(torch.zeros(2, 1, 7, 9), 0.1).shape
        torch.Size([2, 1, 7, 9])
    """

    def __init__(self, channels: int = 3, features: int = 96, depth: int = 12) -> None:
        super().__init__()
        for name, value, least in (("channels", channels, 1), ("features", features, 1), ("depth", depth, 2)):
            check_int("FFDNet", name, value, least)
        self.channels = channels
        ends = channels * _SIDE**2
        self.model = chain([ends + 1, *[features] * (depth - 1), ends])

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the denoised picture.

        Args:
            x: [B, C, H, W], values in [0, 1] by convention.
            sigma: Standard deviation of the noise on the scale of x, for instance 25 / 255: a number, [B], or a map
                [B, 1, H, W].

        Returns:
            Tensor like x.

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``, or sigma has another shape.
        """
        check_input("FFDNet", x, self.channels)
        height, width = x.shape[-2:]
        level = self._level(x, sigma)
        pad = (0, -width % _SIDE, 0, -height % _SIDE)
        if any(pad):
            x, level = (F.pad(t, pad, mode="replicate") for t in (x, level))
        # one value per block
        level = F.avg_pool2d(level, _SIDE)
        out = self.model(torch.cat((F.pixel_unshuffle(x, _SIDE), level), dim=1))
        return F.pixel_shuffle(out, _SIDE)[..., :height, :width]

    def _level(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return sigma as a map [B, 1, H, W]."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        shape = (x.shape[0], 1, *x.shape[-2:])
        if level.dim() == 0 or level.shape == x.shape[:1]:
            return level.view(-1, 1, 1, 1).expand(shape)
        if level.shape != shape:
            raise ValueError(
                f"FFDNet: sigma must be a number, [{x.shape[0]}] or {list(shape)}; got {list(level.shape)}"
            )
        return level
