"""Turn FFDNet's published weights into a tunable network whose knob replaces the noise level map.

FFDNet gets the noise level as a constant map next to the picture. After a convolution, a constant map is a bias in
proportion to the level: a second, tunable kernel of the first layer. So the published network *is* a tunable one with
one moving kernel in one layer (except at a border of two pixels, where the map, unlike a bias, is padded with zeros).
`tunable-ops train denoise` starts from the file that this script writes, and teaches all layers to follow the knob.
With ``--deblur`` the file is for `tunable-ops train denoise_deblur`; its second knob has no effect yet.

python examples/pretrained/ffdnet_start.py ffdnet_color.safetensors --out runs/denoise_start.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import tunable_ops
from tunable_ops import models, serialization

SINGLE = (0.0, 50 / 255)  # noise levels at the two ends of the knob
WITH_DEBLUR = (1 / 255, 26 / 255)
TUNABLE = (
    "model.0",
    "model.6",
    "model.12",
    "model.18",
    "model.22",
)  # layers that --deblur makes tunable
ARGUMENTS = {"features": 96, "depth": 12, "downscale": 2, "residual": False}


def convert(weights: dict[str, Tensor], deblur: bool = False) -> tunable_ops.TunableModel:
    """Put FFDNet's weights, keys ``model.N.*``, into a tunable chain whose (first) knob is the noise level.

    Args:
        weights: Weights of the colour network: 96 features, 12 convolutions.
        deblur: Add a second knob; then only the layers in `TUNABLE` are tunable.

    Raises:
        ValueError: Keys or shapes are those of another network.
    """
    first = weights.get("model.0.weight")
    if first is None or first.shape[1] != 13:
        got = "no such key" if first is None else f"shape {list(first.shape)}"
        raise ValueError(f"ffdnet: model.0.weight must be [96, 13, 3, 3]; got {got}: is it FFDNet for colour pictures?")
    plain = models.build("dncnn", **ARGUMENTS)
    serialization.fill("weights", plain, {**weights, "model.0.weight": first[:, :12]})
    knobs = {"names": ["sigma"], "ranges": [(0, 50)], "units": ["of 255"], "defaults": [25]}
    if deblur:
        knobs = {
            "names": ["sigma", "deblur"],
            "ranges": [(0, 25), (0, 2)],
            "units": ["of 255", "pixels"],
            "defaults": [12.5, 1],
            "include": TUNABLE,
        }
    net = tunable_ops.convert(plain, len(knobs["names"]), domain="box", **knobs)
    weakest, strongest = WITH_DEBLUR if deblur else SINGLE
    bias = net.get_submodule("network.model.0").get_parameter("bias")  # [constant and moving kernels, 96]
    with torch.no_grad():
        bias[0] += weakest * first[:, 12].sum((1, 2))
        bias[1] = (strongest - weakest) * first[:, 12].sum((1, 2))
    return net.eval()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="FFDNet's weights for colour pictures, safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deblur", action="store_true", help="add a second knob, for `denoise_deblur`")
    args = parser.parse_args(argv)
    weights, _ = serialization.read_weights(args.weights)
    net = convert(weights, args.deblur)
    serialization.save(net, args.out, architecture="dncnn", arguments=ARGUMENTS)
    print(f"{args.out}: {sum(p.numel() for p in net.parameters()):,} parameters, a knob {net.spec.names}")


if __name__ == "__main__":
    main()
