"""How close a picture comes to the one it should be: PSNR, SSIM and, on request, LPIPS, as papers report them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tunable_ops import losses

__all__ = ["Measure", "Measured", "luma"]


class Measured(NamedTuple):
    """PSNR in dB for a peak of 1; SSIM and LPIPS where they were asked for."""

    psnr: float
    ssim: float | None = None
    lpips: float | None = None


@dataclass(frozen=True)
class Measure:
    """``measure(output, clean)`` of two pictures [3, H, W], or [1, H, W] in grey; the output is clamped to [0, 1].

    PSNR and SSIM are of all channels, or of the luma alone, and without a border, as papers on super-resolution report
    them. LPIPS is of the whole picture in colour, whatever the other two are of.

    Args:
        ssim: Measure SSIM, over the windows inside the picture.
        y: Take the luma (`luma`) instead of RGB.
        border: Pixels that are cut off on every side.
        rounded: Round the output to 8 bits, as a file would.
        lpips: `tunable_ops.losses.LPIPS`, or None for none.
    """

    ssim: bool = True
    y: bool = False
    border: int = 0
    rounded: bool = False
    lpips: nn.Module | None = None

    def __call__(self, output: Tensor, clean: Tensor) -> Measured:
        """Compare.

        Raises:
            ValueError: Sizes differ, or the border leaves nothing.
        """
        if output.shape != clean.shape:
            raise ValueError(
                f"measure: output must have the clean picture's shape {list(clean.shape)}; got {list(output.shape)}"
            )
        least = 2 * self.border + (losses.SSIM_WINDOW if self.ssim else 1)
        if min(clean.shape[1:]) < least:
            height, width = clean.shape[1:]
            raise ValueError(
                f"measure: pictures must be at least {least} x {least} pixels for a border of {self.border}; "
                f"got {height} x {width}"
            )
        output = output.clamp(0, 1)
        if self.rounded:
            output = (output * 255).round() / 255
        pair = output.double().unsqueeze(0), clean.double().unsqueeze(0)
        distance = None if self.lpips is None else float(self.lpips(*(in_colour(p).float() for p in pair)))
        x, y = (self._part(picture) for picture in pair)
        psnr = float(-10 * torch.log10((x - y).square().mean()))  # inf for equal pictures
        return Measured(psnr, 1 - float(losses.ssim(x, y, inside=True)) if self.ssim else None, distance)

    def _part(self, picture: Tensor) -> Tensor:
        if self.y:
            picture = luma(in_colour(picture))
        b = self.border
        return picture[..., b : picture.shape[-2] - b, b : picture.shape[-1] - b]


def in_colour(x: Tensor) -> Tensor:
    """Return a picture [B, 1 or 3, H, W] with three channels."""
    return x.expand(-1, 3, -1, -1)


def luma(x: Tensor) -> Tensor:
    """Return the Y of BT.601 in studio range, ``(65.481 R + 128.553 G + 24.966 B + 16) / 255``.

    [B, 3, H, W] -> [B, 1, H, W]. That of Matlab's rgb2ycbcr, which papers on super-resolution use: white is 235/255,
    black 16/255.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=x.dtype, device=x.device) / 255
    return (x * weights.view(3, 1, 1)).sum(1, keepdim=True) + 16 / 255
