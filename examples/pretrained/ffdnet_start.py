"""FFDNet's published weights as a tunable network: the map of the noise's level becomes a knob.

FFDNet is told the level of the noise by a constant map beside the picture. A constant map through a convolution is a
bias in proportion to the level: a second, tunable kernel of the first layer. So the published network *is* a tunable
one, of which one kernel of one layer moves (but for a border of two pixels, where the map is padded with zeros and a
bias is not). The file that this writes is what `tunable-ops train denoise` starts from; there all layers learn to
follow the knob. With ``--deblur`` it is that of `tunable-ops train denoise_deblur`; its second knob moves nothing yet.

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

SINGLE = (0.0, 50 / 255)  # levels of the noise at which the knob is 0 and 1
WITH_DEBLUR = (1 / 255, 26 / 255)
TUNABLE = ("model.0", "model.6", "model.12", "model.18", "model.22")  # layers of three kernels beside a second knob
ARGUMENTS = {"features": 96, "depth": 12, "downscale": 2, "residual": False}


def convert(weights: dict[str, Tensor], deblur: bool = False) -> tunable_ops.TunableModel:
    """FFDNet's weights, keys ``model.N.*``, in a tunable chain whose (first) knob is the level of the noise.

    Args:
        weights: Of the colour network, 96 features, 12 convolutions.
        deblur: Whether there is a second knob; the layers `TUNABLE` alone follow the two.

    Raises:
        ValueError: Keys or shapes of another network.
    """
    first = weights.get("model.0.weight")
    if first is None or first.shape[1] != 13:
        got = "no such key" if first is None else f"shape {list(first.shape)}"
        raise ValueError(f"ffdnet: model.0.weight must be [96, 13, 3, 3]; got {got}: is it FFDNet for colour pictures?")
    plain = models.build("dncnn", **ARGUMENTS)
    serialization.fill("weights", plain, {**weights, "model.0.weight": first[:, :12]})
    names = ["denoise", "deblur"] if deblur else ["denoise"]
    include = TUNABLE if deblur else None
    net = tunable_ops.convert(
        plain, len(names), domain="box", names=names, defaults=[0.5] * len(names), include=include
    )
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
    parser.add_argument("--deblur", action="store_true", help="with a second knob, for `denoise_deblur`")
    args = parser.parse_args(argv)
    weights, _ = serialization.read_weights(args.weights)
    net = convert(weights, args.deblur)
    serialization.save(net, args.out, architecture="dncnn", arguments=ARGUMENTS)
    print(f"{args.out}: {sum(p.numel() for p in net.parameters()):,} parameters, a knob {net.spec.names}")


if __name__ == "__main__":
    main()
