"""Draw the proxy target: x, y, the targets towards which the predicted and true gradients pull x, and both gradients.

Gradients are drawn around grey on one scale: black and white are three standard deviations of the true gradient.

python examples/perceptual/proxy_target.py PICTURE OUT.png --pgn runs/pgn/model.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from tunable_ops import losses
from tunable_ops.images import read_image, strip, write_image
from tunable_ops.losses.pgn import PGN
from tunable_ops.losses.reduction import value_and_gradient
from tunable_ops.train.agreement import agreement


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pgn", type=Path, help="file of `tunable-ops train pgn_...` (default: the shipped one)")
    parser.add_argument("--corner", nargs=2, type=int, default=(0, 0), metavar=("TOP", "LEFT"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--weights", help="weights of VGG16 (default: found automatically)")
    args = parser.parse_args(argv)
    pgn = PGN.load(args.pgn) if args.pgn else PGN.pretrained()
    top, left = args.corner
    y = read_image(args.picture)[None, :, top : top + args.size, left : left + args.size]
    small = F.interpolate(y, scale_factor=0.25, mode="bicubic", antialias=True)
    x = F.interpolate(small, size=y.shape[-2:], mode="bicubic").clamp(0, 1)
    _, true = value_and_gradient(losses.Perceptual("vgg16", weights=args.weights), x, y)
    predicted = pgn.gradient(x, y)
    angle, ratio = (float(value) for value in agreement(predicted, true))
    print(f"angle {angle:.1f} degrees, ratio of norms {ratio:.3f}")
    shown = {
        "y": y,
        "x": x,
        "proxy target t": pgn.proxy_target(x, y),
        "true proxy t*": pgn.true_proxy(x, true),
        "predicted -g": _around_grey(-predicted, true),
        "true -g": _around_grey(-true, true),
    }
    write_image(strip([value[0].clamp(0, 1) for value in shown.values()], list(shown), height=256), args.out)


def _around_grey(field: Tensor, scale: Tensor) -> Tensor:
    return 0.5 + field / (6 * scale.std())


if __name__ == "__main__":
    main()
