"""FFDNet: a chain of convolutions on unshuffled pixels, with the noise level as an input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int
from tunable_ops.models.dncnn import chain
from tunable_ops.models.whole_blocks import extend
from tunable_ops.modules import LambdaPlanes

_SIDE = 2  # pixels are unshuffled in blocks of 2 x 2


class FFDNet(nn.Module):
    """The classic tunable denoiser: ``y = shuffle(chain(cat(unshuffle(x), sigma)))``.

    The noise level is an input map: a knob without tunable layers. With `knob` it is an entry of lambda, of 255, beside
    others that tunable layers follow: ``convert(FFDNet(knob=0), 2, domain="box", names=("sigma", "texture"),
    ranges=((0, 50), (0, 1)), units=("of 255", ""))`` is called without sigma, and lambda (25, 0) gives what FFDNet
    computes at ``sigma = 25 / 255``, bit for bit. Parameters have the names of the published weights: ``model.0``,
    ``model.2``, ... (the odd numbers are the ReLUs). Odd sizes are padded by repeating the border, and the output is
    cropped.

    Args:
        channels: Channels C of the picture, 3 for RGB.
        features: Width of the hidden layers; published: 96 in colour, 64 in grey.
        depth: Number of convolutions, at least 2; published: 12 in colour, 15 in grey.
        knob: Position in lambda of the noise level, for calls without sigma; None where every call gives sigma.
        skip: Add a convolution of 1 x 1 from the unshuffled picture straight to the result, ``skip``, 0 at first and
            where weights do not have it (the published ones): for knobs that keep some of the noise, or all of it. It
            must be made tunable to be of use.

    Source: Zhang et al., "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising", 2018 (arXiv
    1710.04026).

    Example:
        >>> net = FFDNet(channels=1, features=8, depth=3)
        >>> net(torch.zeros(2, 1, 7, 9), 0.1).shape
        torch.Size([2, 1, 7, 9])
    """

    def __init__(
        self,
        channels: int = 3,
        features: int = 96,
        depth: int = 12,
        knob: int | None = None,
        skip: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (("channels", channels, 1), ("features", features, 1), ("depth", depth, 2)):
            check_int("FFDNet", name, value, least)
        if knob is not None:
            check_int("FFDNet", "knob", knob, 0)
        self.channels = channels
        self.planes = None if knob is None else LambdaPlanes([knob], [255.0])
        ends = channels * _SIDE**2
        self.model = chain([ends + 1, *[features] * (depth - 1), ends])
        self.skip = nn.Conv2d(ends, ends, 1, bias=False) if skip else None
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the parameters that published weights do not have: 0 where a file is without them."""
        return ("skip.weight",) if self.skip is not None else ()

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Return the denoised picture.

        Args:
            x: [B, C, H, W], values in [0, 1] by convention.
            sigma: Standard deviation of the noise on the scale of x, for instance 25 / 255: a number, [B], or a map
                [B, 1, H, W]; None for the one of lambda, with `knob`.

        Returns:
            Tensor like x.

        Raises:
            TypeError: sigma is None without `knob`.
            ValueError: x is not [B, C, H, W] with C = ``channels``, or sigma has another shape.
            RuntimeError: sigma is None with `knob`, outside every TunableModel.
        """
        check_input("FFDNet", x, self.channels)
        height, width = x.shape[-2:]
        picture = blocks = F.pixel_unshuffle(extend(x, _SIDE), _SIDE)
        if sigma is not None:
            level = F.avg_pool2d(extend(self._level(x, sigma), _SIDE), _SIDE)  # one value per block
            blocks = torch.cat((blocks, level), dim=1)
        elif self.planes is not None:
            blocks = self.planes(blocks)
        else:
            raise TypeError("FFDNet: sigma must be a number or a tensor where no knob is the noise level; got None")
        result = self.model(blocks)
        if self.skip is not None:
            result = result + self.skip(picture)
        return F.pixel_shuffle(result, _SIDE)[..., :height, :width]

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
