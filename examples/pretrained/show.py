"""Show the shipped networks: parts of scikit-image's photographs, degraded and restored at several knob positions.

python examples/pretrained/show.py --out docs/images
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import pretrained
from tunable_ops.images import strip, write_image
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import add_noise, bicubic_downsample, gaussian_blur
from tunable_ops.train.measure import Measure
from tunable_ops.train.seeding import generator

SIDE, HEIGHT = 160, 200  # pixels: side of a part, height of a picture in the strip
PLACES = {"astronaut": (40, 150), "chelsea": (60, 130), "coffee": (110, 200)}


def part(name: str) -> Tensor:
    """Return a part of a photograph, [1, 3, SIDE, SIDE]."""
    top, left = PLACES[name]
    return dict(held_out("skimage"))[name][None, :, top : top + SIDE, left : left + SIDE]


def row(clean: Tensor, shown: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Return a strip [3, H, W] with the PSNR of every picture, and the clean picture at the end."""
    measure = Measure(ssim=False)
    labels = [f"{label}\n{measure(x[0], clean[0]).psnr:.1f} dB" for label, x in shown]
    pictures = [x[0].clamp(0, 1) for _, x in shown]
    return strip([*pictures, clean[0]], [*labels, "clean\n "], height=HEIGHT)


def denoise() -> Tensor:
    """Show noise of sigma 25, and the knob below, at and above it."""
    net, clean = pretrained.load("denoise"), part("chelsea")
    noisy = add_noise(clean, torch.tensor([25.0]), generator(0, "show"))
    return row(clean, [("sigma 25", noisy), *((f"knob at {k:g}", net(noisy, [k])) for k in (15.0, 25.0, 40.0))])


def denoise_deblur() -> Tensor:
    """Show noise and blur together, with each knob and with both."""
    net, clean = pretrained.load("denoise_deblur"), part("astronaut")
    damaged = add_noise(gaussian_blur(clean, torch.tensor([1.2])), torch.tensor([7.5]), generator(0, "show"))
    shown = [("sigma 7.5, blur 1.2", damaged)]
    for lam in ([6.5, 0.0], [0.0, 1.2], [6.5, 1.2]):
        shown.append((f"sigma {lam[0]:g}, deblur {lam[1]:g}", net(damaged, lam)))
    return row(clean, shown)


def super_resolution_x2() -> Tensor:
    """Show enlargement by 2."""
    return enlarged(2, "coffee")


def super_resolution_x4() -> Tensor:
    """Show enlargement by 4."""
    return enlarged(4, "chelsea")


def enlarged(scale: int, name: str) -> Tensor:
    """Show enlargement, from accurate to perceptual, next to bicubic."""
    net, clean = pretrained.load(f"super_resolution_x{scale}"), part(name)
    small = bicubic_downsample(clean, scale)
    shown = [("bicubic", F.interpolate(small, scale_factor=scale, mode="bicubic"))]
    return row(clean, [*shown, *((f"perceptual {k:g}", net(small, [k])) for k in (0.0, 0.5, 1.0))])


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the strips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for draw in (denoise, denoise_deblur, super_resolution_x2, super_resolution_x4):
        print(write_image(draw(), args.out / f"pretrained_{draw.__name__}.png"))


if __name__ == "__main__":
    main()
