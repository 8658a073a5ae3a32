"""Measure the estimate of noise behind ``--lam auto`` on photographs: clean, and with white noise of known strength.

Each folder's pictures are taken whole, noise is not clipped and has one seed per picture.

python examples/pretrained/noise_estimates.py kodak24/ cbsd68/ set5/ set14/
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from tunable_ops.cli.noise import advice
from tunable_ops.images import estimate_noise
from tunable_ops.modules import LambdaSpec
from tunable_ops.train.data import held_out

SIGMAS = (0, 5, 15, 25, 50)
SPEC = LambdaSpec.create(1, "box", ["sigma"], [(0, 50)], [25], ["of 255"])  # that of the denoiser


def estimates(pictures: Sequence[Tensor], sigma: float, clip: bool = False) -> list[float]:
    """Return the estimate for each picture [3, H, W] with noise of sigma, of 255, added."""
    found = []
    for index, picture in enumerate(pictures):
        noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(index))
        noisy = picture + sigma / 255 * noise
        found.append(estimate_noise((noisy.clamp(0, 1) * 255).round() / 255 if clip else noisy))
    return found


def table(pictures: Sequence[Tensor]) -> str:
    """Return a table: median, 95th percentile and extremes of the estimates, and how many a knob is warned about at."""
    lines = ["| sigma | median | 95 % below | least | most | as 8 bits: median | warned about at sigma |"]
    lines.append("| --- " * 7 + "|")
    for sigma in SIGMAS:
        found = sorted(estimates(pictures, sigma))
        warned = sum(advice((sigma,), SPEC, [value]) is not None for value in found)
        below = found[min(len(found) - 1, round(0.95 * len(found)))]
        figures = (median(found), below, found[0], found[-1], median(estimates(pictures, sigma, clip=True)))
        lines.append(f"| {sigma} | " + " | ".join(f"{value:.1f}" for value in figures) + f" | {warned} |")
    clean = estimates(pictures, 0)
    at_25 = sum(advice((25,), SPEC, [value]) is not None for value in clean)
    return "\n".join([*lines, "", f"{at_25} of {len(clean)} clean ones are warned about at 25"])


def main() -> None:
    """Print the table for the pictures of all folders together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of clean photographs")
    args = parser.parse_args()
    pictures = [picture for folder in args.folders for _, picture in held_out(str(folder))]
    print(f"{len(pictures)} photographs\n\n{table(pictures)}")


if __name__ == "__main__":
    main()
