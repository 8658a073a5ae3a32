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

from tunable_ops import TunableModel, pretrained
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


def denoise(net: TunableModel) -> Tensor:
    """Show noise of sigma 25 and 50: over the knob, or with `sigma` below, at and above the noise where it has none."""
    clean, rows = part("chelsea"), []
    for sigma in (25.0, 50.0):
        noisy = add_noise(clean, torch.tensor([sigma]), generator(0, "show"))
        lams = {f"texture {k:g}": {"sigma": sigma, "texture": k} for k in (0.0, 0.5, 1.0)}
        rows.append(
            row(clean, [(f"noise {sigma:g}", noisy), *((label, net(noisy, lam)) for label, lam in lams.items())])
        )
    return below(rows)


def denoise_deblur(net: TunableModel) -> Tensor:
    """Show noise and blur together: the grid of `keep` and `deblur`, a row for each `deblur`."""
    clean, noise = part("astronaut"), torch.tensor([15.0])
    blurred = gaussian_blur(clean, torch.tensor([1.2]))
    damaged = add_noise(blurred, noise, generator(0, "show"))
    shown = [(f"sigma {float(noise):g}, blur 1.2", damaged)]
    rows = []
    for deblur in (0.0, 0.5, 1.0):
        grid = [
            (f"keep {keep:g}, deblur {deblur:g}", net(damaged, {"sigma": float(noise), "keep": keep, "deblur": deblur}))
            for keep in (0.0, 0.5, 1.0)
        ]
        rows.append(row(clean, [*shown, *grid]))
    return below(rows)


def below(rows: Sequence[Tensor]) -> Tensor:
    """Put strips [3, H, W] below each other, on white where one is narrower."""
    width = max(each.shape[2] for each in rows)
    return torch.cat([F.pad(each, (0, width - each.shape[2]), value=1.0) for each in rows], dim=1)


def super_resolution_x2(net: TunableModel) -> Tensor:
    """Show enlargement by 2."""
    return enlarged(net, "coffee")


def super_resolution_x4(net: TunableModel) -> Tensor:
    """Show enlargement by 4."""
    return enlarged(net, "chelsea")


def enlarged(net: TunableModel, name: str) -> Tensor:
    """Show enlargement, from accurate to perceptual, next to bicubic."""
    clean, scale = part(name), int(net.network.scale)  # type: ignore[arg-type]
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
        net = pretrained.load(draw.__name__)
        print(write_image(draw(net), args.out / f"pretrained_{draw.__name__}.png"))


if __name__ == "__main__":
    main()
