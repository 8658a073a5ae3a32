"""Make published denoisers tunable without training, and print PSNR at several positions of the new knob.

python examples/knob/published.py dncnn dncnn_gray_sigma25.safetensors set12/
python examples/knob/published.py ffdnet ffdnet_color.safetensors cbsd68/ --count 10
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import tunable_ops
from tunable_ops import models, serialization
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import add_noise
from tunable_ops.train.measure import Measure
from tunable_ops.train.seeding import generator

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dncnn": lambda: models.DnCNN(channels=1),
    "ffdnet": lambda: models.FFDNet(),
}
POSITIONS = (0.0, 0.5, 1.0)


@torch.no_grad()
def compare(
    plain: nn.Module, pictures: Sequence[tuple[str, Tensor]], sigma: float
) -> tuple[dict[str, list[float]], float]:
    """Run the plain network and its conversion on noisy pictures.

    Args:
        plain: Plain network with an attribute `channels`; FFDNet also gets the noise level.
        pictures: Names and clean pictures [3, H, W]; grey networks use the first channel.
        sigma: Standard deviation of the noise, on a scale of 255.

    Returns:
        PSNR in dB of each picture by network, and the largest difference from the plain network's output.
    """
    net = tunable_ops.convert(plain, num_params=1, domain="box", names=["knob"])
    measure, extra = Measure(ssim=False, rounded=True), {}
    if isinstance(plain, models.FFDNet):
        extra = {"sigma": sigma / 255}
    found: dict[str, list[float]] = {name: [] for name in ("plain", *(f"knob {lam:g}" for lam in POSITIONS))}
    largest = 0.0
    for index, (_, picture) in enumerate(pictures):
        clean = picture[None, : plain.channels]
        noisy = add_noise(clean, torch.tensor([sigma]), generator(0, "evaluation", index))
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        outputs = [plain(noisy, **extra), *(net(noisy, [lam], **extra) for lam in POSITIONS)]
        for name, output in zip(found, outputs, strict=True):
            found[name].append(measure(output[0], clean[0]).psnr)
            largest = max(largest, float((output - outputs[0]).abs().max()))
    return found, largest


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("weights", type=Path, help="published weights, safetensors")
    parser.add_argument("pictures", type=Path, help="folder of clean pictures")
    parser.add_argument("--count", type=int, default=6, help="number of pictures, in order of name; 0 for all")
    parser.add_argument("--sigma", type=float, default=25.0, help="standard deviation of the noise, on a scale of 255")
    args = parser.parse_args(words)
    plain = NETWORKS[args.network]().eval().to(memory_format=torch.channels_last)
    serialization.fill(args.weights, plain, serialization.read_weights(args.weights)[0])
    pictures = held_out(str(args.pictures))[: args.count or None]
    found, largest = compare(plain, pictures, args.sigma)
    for name, values in found.items():
        each = " ".join(f"{value:.2f}" for value in values) if len(values) < 13 else f"{len(values)} pictures"
        print(f"{name:9} mean {sum(values) / len(values):.3f} dB: {each}")
    print(f"largest difference between outputs: {largest:g}")


if __name__ == "__main__":
    main()
