"""NIQE: how far the statistics of a picture are from those of natural ones, without a reference. Lower is better.

Written from the paper: Mittal, Soundararajan and Bovik, "Making a completely blind image quality analyzer", IEEE Signal
Processing Letters 2013. The model of natural pictures is its authors'; BasicSR carries it as niqe_pris_params.npz:
`pip install --no-deps basicsr==1.4.2` brings the file, and nothing of the package is imported.

python examples/pretrained/niqe.py kodak24/

prints the mean over pictures as they are, with noise and with blur.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import add_noise, gaussian_blur
from tunable_ops.train.seeding import generator

BLOCK = 96  # pixels: side of the blocks that the model was fitted on
LEAST = 3 * BLOCK  # pixels on a side: with fewer blocks the covariance is poor, and good pictures look bad
_SHAPES = torch.arange(200, 10001, dtype=torch.float64) / 1000
_GREY = (0.2989, 0.5870, 0.1140)  # Matlab's rgb2gray


def model_file() -> Path:
    """Return the file of the authors' model inside an installed BasicSR.

    Raises:
        FileNotFoundError: It is not installed.
    """
    found = importlib.util.find_spec("basicsr")
    for folder in [] if found is None else found.submodule_search_locations or []:
        file = Path(folder) / "metrics" / "niqe_pris_params.npz"
        if file.is_file():
            return file
    raise FileNotFoundError(
        "niqe: the model of natural pictures must be at hand; got no niqe_pris_params.npz: pip install --no-deps "
        "basicsr==1.4.2, or name the file"
    )


class NIQE:
    """``sqrt((m - m0)^T ((S + S0) / 2)^+ (m - m0))``: mean m and covariance S of the features of a picture's blocks.

    m0 and S0 are the model's. 18 features a block of 96x96, and as many of the same block at half the size: pixels are
    made ``(x - mean) / (deviation + 1)`` in windows of 7x7, and generalised Gaussians fitted to them and to the
    products with their neighbours.

    Args:
        file: With mu_pris_param [1, 36] and cov_pris_param [36, 36]; default `model_file`.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def __init__(self, file: str | os.PathLike[str] | None = None) -> None:
        with np.load(model_file() if file is None else file) as found:
            self.mean = torch.from_numpy(found["mu_pris_param"]).double().flatten()
            self.covariance = torch.from_numpy(found["cov_pris_param"]).double()

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> float:
        """Return the distance of a picture [1 or 3, H, W] in [0, 1] from natural ones.

        What is left of the blocks at the right and the bottom is not looked at.

        Raises:
            ValueError: A side is shorter than `LEAST`, or fewer than two blocks have any contrast.
        """
        grey = _grey(picture)
        height, width = (side - side % BLOCK for side in grey.shape)
        if min(height, width) < LEAST:
            raise ValueError(f"niqe: picture must have {LEAST} pixels on a side; got {list(picture.shape)}")
        grey = grey[:height, :width]
        half = F.interpolate(grey[None, None], scale_factor=0.5, mode="bicubic", antialias=True)[0, 0]
        features = torch.cat([_features(grey, BLOCK), _features(half, BLOCK // 2)], dim=1)  # [blocks, 36]
        features = features[~features.isnan().any(dim=1)]
        if len(features) < 2:
            raise ValueError(f"niqe: picture must have two blocks with contrast; got {len(features)}")
        difference = self.mean - features.mean(dim=0)
        inverse = torch.linalg.pinv((self.covariance + torch.cov(features.T)) / 2)
        return float((difference @ inverse @ difference).sqrt())


def _grey(picture: Tensor) -> Tensor:
    """Return the grey values 0 to 255, rounded, [H, W]."""
    x = (picture.double().clamp(0, 1) * 255).round()
    if len(x) == 3:
        x = torch.einsum("chw,c->hw", x, x.new_tensor(_GREY)).unsqueeze(0)
    return x[0].round()


def _local_mean(x: Tensor) -> Tensor:
    """Return the mean [H, W] in a Gaussian window of 7x7, deviation 7/6, edges repeated."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=x.dtype) / (7 / 6)) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(x[None, None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 7)), taps.view(1, 1, 7, 1))[0, 0]


def _features(x: Tensor, side: int) -> Tensor:
    """Return the 18 features of every block, [blocks, 18]."""
    mean = _local_mean(x)
    deviation = (_local_mean(x * x) - mean * mean).abs().sqrt()
    blocks = ((x - mean) / (deviation + 1)).unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)
    shape, left, right = _fit(blocks)
    found = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _fit(blocks * blocks.roll(shift, dims=(1, 2)))
        centre = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        found += [shape, centre, left, right]
    return torch.stack(found, dim=1)


def _fit(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalised Gaussian by moments: [B, H, W] -> its shape, left and right width, [B] each."""
    x = x.flatten(1)
    left, right = (
        (x.square() * side).sum(1).div(side.sum(1)).sqrt() for side in ((x < 0).to(x.dtype), (x > 0).to(x.dtype))
    )
    ratio = left / right
    wanted = x.abs().mean(1).square() / x.square().mean(1) * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    log = torch.lgamma(2 / _SHAPES) * 2 - torch.lgamma(1 / _SHAPES) - torch.lgamma(3 / _SHAPES)
    distance = (log.exp() - wanted.unsqueeze(1)).abs()  # [B, 9801]
    shape = _SHAPES[distance.argmin(dim=1)]
    width = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return torch.where(wanted.isnan(), wanted, shape), left * width, right * width


def main(argv: Sequence[str] | None = None) -> None:
    """Print the mean over the pictures of a folder: clean, noisy, blurred."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="folder of photographs")
    parser.add_argument("--crop", type=int, default=0, help="take the middle of this side (default: whole pictures)")
    parser.add_argument("--model", type=Path, help="file of the model (default: that of BasicSR)")
    args = parser.parse_args(argv)
    measure, pictures = NIQE(args.model), [picture.unsqueeze(0) for _, picture in held_out(args.pictures, args.crop)]
    print(f"{len(pictures)} pictures: {fmean(measure(x[0]) for x in pictures):.2f}")
    for sigma in (5.0, 15.0, 25.0, 50.0):
        noisy = [add_noise(x, torch.tensor([sigma]), generator(0, "niqe", k)) for k, x in enumerate(pictures)]
        print(f"noise {sigma:g}: {fmean(measure(x[0]) for x in noisy):.2f}", flush=True)
    for sigma in (0.5, 1.0, 2.0):
        blurred = [gaussian_blur(x, torch.tensor([sigma])) for x in pictures]
        print(f"blur {sigma:g}: {fmean(measure(x[0]) for x in blurred):.2f}", flush=True)


if __name__ == "__main__":
    main()
