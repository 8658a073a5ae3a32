"""FFDNet's published weights as a tunable network: the map of the noise's level becomes a knob.

FFDNet is told the level of the noise by a constant map beside the picture. A constant map through a convolution is a
bias in proportion to the level: a second, tunable kernel of the first layer. So the published network *is* a tunable
one, of which one kernel of one layer moves (but for a border of two pixels, where the map is padded with zeros and a
bias is not). The file that this writes is what `tunable-ops train denoise` starts from; there all layers learn to
follow the knob.

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

STRONGEST = 50 / 255  # level at which the knob is 1
ARGUMENTS = {"features": 96, "depth": 12, "downscale": 2, "residual": False}


def convert(weights: dict[str, Tensor]) -> tunable_ops.TunableModel:
    """FFDNet's weights, keys ``model.N.*``, in a tunable chain whose knob is the level of the noise.

    Args:
        weights: of the colour network, 96 features, 12 convolutions.

    Raises:
        ValueError: keys or shapes of another network.
    """
    first = weights.get("model.0.weight")
    if first is None or first.shape[1] != 13:
        got = "no such key" if first is None else f"shape {list(first.shape)}"
        raise ValueError(f"ffdnet: model.0.weight must be [96, 13, 3, 3]; got {got}: is it FFDNet for colour pictures?")
    plain = models.build("dncnn", **ARGUMENTS)
    serialization.fill("weights", plain, {**weights, "model.0.weight": first[:, :12]})
    net = tunable_ops.convert(plain, 1, domain="box", names=["denoise"], defaults=[0.5])
    bias = net.get_submodule("network.model.0").get_parameter("bias")  # [constant and moving kernel, 96]
    with torch.no_grad():
        bias[1] = STRONGEST * first[:, 12].sum((1, 2))
    return net.eval()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="FFDNet's weights for colour pictures, safetensors")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    weights, _ = serialization.read_weights(args.weights)
    net = convert(weights)
    serialization.save(net, args.out, architecture="dncnn", arguments=ARGUMENTS)
    print(f"{args.out}: {sum(p.numel() for p in net.parameters()):,} parameters, a knob {net.spec.names}")


if __name__ == "__main__":
    main()
