"""Draw a photograph over the simplex of three styles: corners, edge midpoints and centre.

python examples/style/strip.py runs/style/model.safetensors --out strip.png
python examples/style/strip.py runs/style/model.safetensors --onnx multistyle26.onnx --blend 11 19 20 --out strip.png

A second row can show another network: an ONNX file with inputs ``image`` [1, 3, H, W] and ``style_weights`` [N] and
one output of the image's shape, like the published network of 26 styles. That row needs the package onnxruntime.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.images import read_image, strip, write_image
from tunable_ops.modules import TunableModel
from tunable_ops.serialization import load
from tunable_ops.train.data import skimage_files

POINTS = (
    (1, 0, 0),
    (1 / 2, 1 / 2, 0),
    (0, 1, 0),
    (0, 1 / 2, 1 / 2),
    (0, 0, 1),
    (1 / 2, 0, 1 / 2),
    (1 / 3, 1 / 3, 1 / 3),
)
"""The border of the simplex from corner to corner, then its centre."""


def labels(names: Sequence[str]) -> list[str]:
    """Return a label for every point: the names of its styles."""
    return [" +\n".join(n for n, weight in zip(names, point, strict=True) if weight) for point in POINTS]


def tunable_row(net: TunableModel, photograph: Tensor) -> Tensor:
    """Return the photograph [3, H, W] and the network's output at every point, side by side."""
    with torch.no_grad():
        painted = [net(photograph.unsqueeze(0), point)[0] for point in POINTS]
    return strip([photograph, *painted], ["photograph", *labels(net.spec.names)])


def onnx_row(path: Path, photograph: Tensor, blend: Sequence[int]) -> Tensor:
    """Return the same for three styles of an ONNX network."""
    paint = onnx_network(path)
    painted = [paint(photograph, dict(zip(blend, point, strict=True))) for point in POINTS]
    return strip([photograph, *painted], ["photograph", *labels([f"style {index}" for index in blend])])


def onnx_network(path: Path) -> Callable[[Tensor, dict[int, float]], Tensor]:
    """Return the network as a function of a picture [3, H, W] and the weights of some of its styles.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: The network does not have one of the styles.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    count = next(given.shape[0] for given in session.get_inputs() if given.name == "style_weights")

    def paint(picture: Tensor, weights: dict[int, float]) -> Tensor:
        if not all(0 <= index < count for index in weights):
            raise ValueError(f"strip: blend must be among the styles 0 to {count - 1}; got {list(weights)}")
        vector = torch.zeros(count)
        for index, weight in weights.items():
            vector[index] = weight
        (out,) = session.run(None, {"image": picture.unsqueeze(0).numpy(), "style_weights": vector.numpy()})
        return torch.from_numpy(out)[0]

    return paint


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Stack rows [3, H, W] of different widths on a white background."""
    width = max(row.shape[2] for row in rows)
    return torch.cat([F.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows], dim=1)


def main(words: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint of a network with three styles")
    parser.add_argument("--photograph", type=Path, help="default: the cat that scikit-image ships")
    parser.add_argument("--side", type=int, default=192, help="shorter side of the photograph, in pixels")
    parser.add_argument("--onnx", type=Path, help="another network for a second row")
    parser.add_argument("--blend", type=int, nargs=3, default=(11, 19, 20), help="its three styles")
    parser.add_argument("--out", type=Path, default=Path("strip.png"))
    args = parser.parse_args(words)
    net = load(args.model).eval()
    if net.spec.num_params != len(POINTS[0]):
        parser.error(f"model must have three styles; got {net.spec.num_params}: {', '.join(net.spec.names)}")
    photograph = read_image(args.photograph or skimage_files(["chelsea.png"])[0])
    factor = args.side / min(photograph.shape[1:])
    photograph = F.interpolate(photograph.unsqueeze(0), scale_factor=factor, mode="bicubic", antialias=True)[0].clamp(
        0, 1
    )
    rows = [tunable_row(net, photograph)]
    if args.onnx is not None:
        rows.append(onnx_row(args.onnx, photograph, args.blend))
    print(write_image(stacked(rows), args.out))


if __name__ == "__main__":
    main()
