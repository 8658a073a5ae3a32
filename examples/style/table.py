"""Print style and content losses over the simplex of three styles, on photographs that were not used in training.

python examples/style/table.py runs/style/model.safetensors

The losses are those of the training run, whose configuration is in the checkpoint. A style loss of 0 is that of the
style picture itself, 1 that of a Gram matrix of zeros. The style pictures and the weights of VGG16 must still be at
the same paths.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.serialization import load
from tunable_ops.train import Config
from tunable_ops.train.build import build_criterion
from tunable_ops.train.data import held_out

POINTS = (
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1 / 2, 1 / 2, 0),
    (0, 1 / 2, 1 / 2),
    (1 / 2, 0, 1 / 2),
    (1 / 3, 1 / 3, 1 / 3),
)


def photographs(side: int) -> list[Tensor]:
    """Return the middles of scikit-image's three photographs that training leaves out, [1, 3, side, side]."""
    return [
        F.interpolate(picture.unsqueeze(0), size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        for _, picture in held_out("skimage", crop=300)
    ]


@torch.no_grad()
def losses(model: Path, side: int) -> dict[str, dict[str, float]]:
    """Return the mean terms over scikit-image's three photographs: unchanged, then painted at every point."""
    net = load(model).eval()
    criterion = build_criterion(Config.model_validate(net.notes["config"]))
    pictures = photographs(side)
    rows = {"photograph": [criterion(x, x, POINTS[0])[1] for x in pictures]}
    for point in POINTS:
        label = " ".join(f"{weight:.2f}" for weight in point)
        rows[label] = [criterion(net(x, point), x, point)[1] for x in pictures]
    return {label: {k: sum(float(t[k]) for t in terms) / len(terms) for k in terms[0]} for label, terms in rows.items()}


def main(words: Sequence[str] | None = None) -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint written by `tunable-ops train style`")
    parser.add_argument("--side", type=int, default=192, help="side of the photographs, in pixels")
    args = parser.parse_args(words)
    rows = losses(args.model, args.side)
    terms = [name for name in next(iter(rows.values())) if name != "tv"]
    print("| lambda | " + " | ".join(terms) + " |")
    print("| --- |" + " --- |" * len(terms))
    for label, values in rows.items():
        print(f"| {label} | " + " | ".join(f"{values[name]:.2f}" for name in terms) + " |")


if __name__ == "__main__":
    main()
