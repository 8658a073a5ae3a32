"""Write what the trainings of FFDNet's knobs start from: its kernels, and new ones that keep a part of the noise.

The output of a network that lets a share k of the noise pass is ``(1 - k) f(x) + k x``: with FFDNet's `skip` that is k
times the identity there, and -k times the kernels of the last convolution. For `texture` k is small, and training makes
texture of it; for `keep` it is 1, the smallest mean square for the target between the clean and the noisy picture.

python examples/pretrained/start.py runs/texture_start.safetensors --knobs texture --keep texture=0.1
python examples/pretrained/start.py runs/strengths_start.safetensors --knobs keep deblur --keep keep=1
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from tunable_ops import TunableModel, convert, models, pretrained, serialization
from tunable_ops.serialization import fill, read_weights

ARGUMENTS = {"knob": 0, "skip": True}


def start(knobs: Sequence[str], keep: Mapping[str, float], include: Sequence[str] | None = None) -> TunableModel:
    """Return FFDNet with knobs beside the noise level, each 0 to 1.

    Args:
        knobs: Their names.
        keep: The share of the noise that a knob keeps at 1; the new kernels of the others are 0.
        include: Patterns of the layers that get new kernels; None for all. Must take in the last one and the skip.

    Raises:
        ValueError: `keep` names none of the knobs.
    """
    for name in keep:
        if name not in knobs:
            raise ValueError(f"start: --keep must name one of {', '.join(knobs)}; got {name!r}")
    plain = models.build("ffdnet", **ARGUMENTS)
    file = pretrained.weights_file("ffdnet_color")
    fill(file, plain, read_weights(file)[0])
    spec = pretrained.BASES["ffdnet_color"].spec
    net = convert(
        plain,
        1 + len(knobs),
        domain="box",
        names=[*spec["names"], *knobs],
        ranges=[*spec["ranges"], *[[0, 1]] * len(knobs)],
        defaults=[*spec["defaults"], *[0] * len(knobs)],
        units=[*spec["units"], *[""] * len(knobs)],
        include=include,
    )
    last, skip = net.network.get_submodule("model")[-1], net.network.get_submodule("skip")
    with torch.no_grad():
        for name, share in keep.items():
            place = 1 + knobs.index(name)  # of the kernel: 0 is the base
            last.weight[place] = -share * last.weight[0]
            last.bias[place] = -share * last.bias[0]
            nn.init.dirac_(skip.weight[place]).mul_(share)
    return net


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="checkpoint to write, for `model.weights` of a configuration")
    parser.add_argument("--knobs", nargs="+", required=True, help="names of the knobs beside the noise level")
    parser.add_argument("--keep", nargs="+", default=[], metavar="KNOB=SHARE", help="share of the noise kept at 1")
    parser.add_argument("--include", nargs="+", help="patterns of the layers that get new kernels (default: all)")
    args = parser.parse_args(argv)
    keep = {name: float(share) for name, _, share in (entry.partition("=") for entry in args.keep)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    serialization.save(start(args.knobs, keep, args.include), args.out, architecture="ffdnet", arguments=ARGUMENTS)


if __name__ == "__main__":
    main()
