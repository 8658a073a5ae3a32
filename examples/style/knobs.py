"""Compare knobs from the photograph over one style to another: losses over the slider, and a strip of pictures.

python examples/style/knobs.py tunable=runs/two_ways/tunable "Dynamic-Net=runs/two_ways/dynamic" --out knobs.jpg

The runs are those of two_ways.toml. At position a lambda is (1 - |a|, max(a, 0), max(-a, 0)); Dynamic-Net's published
coefficients, one for each of its blocks, are then all a, and below its slider are some positions at which they differ.
Losses are means over scikit-image's three photographs, as in table.py. "goes right" is the share of the slider's steps
at which the first style comes nearer (a < 0), and the second (a > 0); "uneven" is the largest of these steps over their
mean, where 1 is a straight line.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from table import photographs
from torch import Tensor, nn

from tunable_ops.control.dynamic_net import DynamicNet
from tunable_ops.images import read_image, strip, write_image
from tunable_ops.modules import TunableModel
from tunable_ops.serialization import load
from tunable_ops.train import MODEL, Config
from tunable_ops.train.build import build_criterion
from tunable_ops.train.data import skimage_files

POSITIONS = tuple(k / 4 for k in range(-4, 5))
SHOWN = (-1.0, -0.5, 0.0, 0.5, 1.0)


def lam(position: float) -> list[float]:
    """Return lambda of a position in [-1, 1]."""
    return [1 - abs(position), max(position, 0.0), max(-position, 0.0)]


def apart(blocks: int) -> list[list[float]]:
    """Return coefficients that differ: one block alone at 1, and the first and last pulling to different ends."""
    alone = [[float(k == block) for k in range(blocks)] for block in range(blocks)]
    inner = [0.0] * (blocks - 2)
    return [*alone, [1.0, *inner, -1.0], [-1.0, *inner, 1.0]]


Position = float | Sequence[float]  # of the slider, or a coefficient for each of Dynamic-Net's blocks


def painted(net: TunableModel, x: Tensor, position: Position) -> Tensor:
    """Return the network's picture [1, 3, H, W] at a position."""
    return net(x, lam(position)) if isinstance(position, float) else net(x, alphas=position)


def label(position: Position) -> str:
    """Return a position as text."""
    return f"{position:+g}" if isinstance(position, float) else ", ".join(f"{a:g}" for a in position)


def differing(net: TunableModel) -> list[list[float]]:
    """Return coefficients that differ, for Dynamic-Net; others have none."""
    return apart(len(net.places)) if isinstance(net, DynamicNet) else []


@torch.no_grad()
def measured(
    net: TunableModel, criterion: nn.Module, pictures: Sequence[Tensor], position: Position
) -> dict[str, float]:
    """Return the mean losses at a position; "total", the multi-loss at its lambda, for those of the slider only."""
    weights = lam(position) if isinstance(position, float) else lam(0.0)
    sums: dict[str, float] = {}
    for x in pictures:
        total, terms = criterion(painted(net, x, position), x, weights)
        for key, value in {**terms, "total": total}.items():
            sums[key] = sums.get(key, 0.0) + float(value) / len(pictures)
    if not isinstance(position, float):
        del sums["total"]
    return sums


def evenness(values: Sequence[float]) -> tuple[float, float]:
    """Return the share of steps at which values fall, and the largest step over their mean."""
    steps = [a - b for a, b in itertools.pairwise(values)]
    mean = abs(sum(steps)) / len(steps)
    return sum(step > 0 for step in steps) / len(steps), max(map(abs, steps)) / mean if mean else math.inf


def report(name: str, net: TunableModel, side: int) -> None:
    """Print the tables of a network in Markdown."""
    criterion, pictures = build_criterion(Config.model_validate(net.notes["config"])), photographs(side)
    first, second = net.spec.names[:2]
    columns = [first, second, "content", "total"]
    size = sum(parameter.numel() for parameter in net.parameters())
    print(f"\n{name}, {size:,} parameters\n\n| position | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    slider = []
    for position in (*POSITIONS, *differing(net)):
        values = measured(net, criterion, pictures, position)
        slider += [values] * isinstance(position, float)
        cells = [f"{values[key]:.2f}" if key in values else "" for key in columns]
        print(f"| {label(position)} | {' | '.join(cells)} |", flush=True)
    middle = len(slider) // 2
    for style, part in ((first, slider[: middle + 1]), (second, slider[middle:])):
        right, uneven = evenness([values[style] for values in part])
        print(f"{style}: goes right {right:.2f}, uneven {uneven:.2f}")
    print(f"total, mean over the slider: {sum(values['total'] for values in slider) / len(slider):.3f}")


@torch.no_grad()
def drawn(name: str, net: TunableModel, photograph: Tensor) -> list[Tensor]:
    """Return the strips of a network [3, H, W]: its slider, and coefficients that differ."""
    rows = []
    for title, positions in ((name, SHOWN), ("by block", differing(net))):
        if positions:
            pictures = [painted(net, photograph.unsqueeze(0), position)[0] for position in positions]
            rows.append(strip([photograph, *pictures], [title, *map(label, positions)]))
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables and write the strip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--side", type=int, default=192, help="shorter side of the photographs, in pixels")
    parser.add_argument("--out", type=Path, help="picture to write")
    args = parser.parse_args(words)
    nets = {name: load(Path(folder) / MODEL).eval() for name, _, folder in (run.partition("=") for run in args.runs)}
    for name, net in nets.items():
        report(name, net, args.side)
    if args.out is not None:
        photograph = read_image(skimage_files(["chelsea.png"])[0]).unsqueeze(0)
        scale = args.side / min(photograph.shape[2:])
        photograph = F.interpolate(photograph, scale_factor=scale, mode="bicubic", antialias=True)[0].clamp(0, 1)
        rows = [row for name, net in nets.items() for row in drawn(name, net, photograph)]
        width = max(row.shape[2] for row in rows)
        write_image(torch.cat([F.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows], dim=1), args.out)


if __name__ == "__main__":
    main()
