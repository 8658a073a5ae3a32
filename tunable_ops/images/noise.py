"""How noisy a picture is: Donoho's estimate from its finest wavelet coefficients."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The high-pass filter of Daubechies' wavelet with two vanishing moments: it is blind to slopes.
_HIGH = (-0.48296291314469025, 0.836516303737469, -0.22414386804185735, -0.12940952255092145)
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as in JPEG
_SMALLEST, _LARGEST = 8, 2048  # pixels of a side


def estimate_noise(picture: Tensor, subsampled: bool = False) -> float:
    """Return the standard deviation of the white noise in a picture, on the scale 0..255.

    ``median |d| / 0.6745`` over the finest diagonal wavelet coefficients d of each channel, and the mean of the
    channels (Donoho and Johnstone, 1994). Texture counts as noise; noise that was smoothed, scaled or compressed reads
    too low. Where colour has fewer pixels than luma, its noise was smoothed: there the luma alone is judged, and its
    deviation divided by ``sqrt(0.299^2 + 0.587^2 + 0.114^2)``, which gives that of noise that was white and equally
    strong in R, G and B.

    Args:
        picture: [C, H, W], values in [0, 1]; of one larger than 2048x2048 the middle is taken.
        subsampled: The picture comes from a file with fewer pixels of colour than of luma (`Frame.subsampled`); without
            effect on one that has not three channels.

    Returns:
        The estimate, at least 0.

    Raises:
        ValueError: A picture of another rank, or below 8x8 pixels.
    """
    if picture.dim() != 3 or min(picture.shape[1:]) < _SMALLEST or not picture.shape[0]:
        raise ValueError(
            f"estimate_noise: picture must be [C, H, W] of at least {_SMALLEST} x {_SMALLEST} pixels; got "
            f"{list(picture.shape)}"
        )
    height, width = picture.shape[1:]
    top, left = max(0, height - _LARGEST) // 2, max(0, width - _LARGEST) // 2
    middle = picture[:, None, top : top + _LARGEST, left : left + _LARGEST].float()
    share = 1.0
    if subsampled and len(picture) == 3:
        luma = middle.new_tensor(_LUMA)
        middle, share = torch.einsum("c,cdhw->dhw", luma, middle)[None], math.hypot(*_LUMA)
    high = middle.new_tensor(_HIGH)
    details = F.conv2d(middle, torch.outer(high, high)[None, None], stride=2)
    return 255 / (0.6745 * share) * float(details.flatten(1).abs().median(1).values.mean())
