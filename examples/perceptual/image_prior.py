"""Deep image prior with three guides: MSE, the true perceptual gradient, and that of a PGN.

A small network turns fixed noise into one picture (Ulyanov et al., 2018), trained only by the guide's gradient. Every
run writes ``<picture>-<guide>.json`` (PSNR, perceptual loss and LPIPS over iterations) and a picture. Finished runs
are skipped, so a stopped program can be started again. ``--plot`` draws the figures.

python examples/perceptual/image_prior.py PICTURE... --out runs/prior --pgn runs/pgn/model.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import losses
from tunable_ops.images import read_image, strip, write_image
from tunable_ops.losses.pgn import PGN

GUIDES = ("mse", "true", "pgn")
COLOURS = {"mse": "tab:gray", "true": "tab:blue", "pgn": "tab:orange"}


class Prior(nn.Module):
    """Network from noise [1, 16, H, W] to a picture [1, 3, H, W] in (0, 1).

    Two steps down, two steps up, and a skip connection at full size.
    """

    def __init__(self, height: int, width: int, channels: int = 32) -> None:
        super().__init__()
        self.register_buffer("noise", 0.1 * torch.rand(1, 16, height, width))
        self.first = nn.Conv2d(16, channels, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        self.up = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(2 * channels, 3, 3, padding=1)

    def forward(self) -> Tensor:
        """Return the picture, [1, 3, H, W]."""
        x = first = F.leaky_relu(self.first(self.noise), 0.2)
        sizes = []
        for step in self.down:
            sizes.append(x.shape[-2:])
            x = F.leaky_relu(step(x), 0.2)
        for step in self.up:
            x = F.leaky_relu(step(F.interpolate(x, size=sizes.pop(), mode="bilinear")), 0.2)
        return torch.sigmoid(self.last(torch.cat((x, first), 1)))


def guides(pgn: PGN, true: losses.Perceptual, target: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions by guide, from the current picture to its gradient."""

    def perceptual(x: Tensor) -> Tensor:
        leaf = x.requires_grad_()
        (gradient,) = torch.autograd.grad(true.between(true.features.extract(leaf), wanted).sum(), leaf)
        return gradient

    wanted = true.features.extract(target)
    return {"mse": lambda x: 2 * (x - target) / x.numel(), "true": perceptual, "pgn": lambda x: pgn.gradient(x, target)}


def optimise(
    guide: Callable[[Tensor], Tensor], target: Tensor, measure: Callable[[Tensor], dict], iterations: int, every: int
) -> tuple[list[dict], Tensor]:
    """Return the measurements of every `every`-th iteration, and the last picture."""
    torch.manual_seed(0)
    net = Prior(*target.shape[-2:])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    curve = []
    for iteration in range(iterations + 1):
        x = net()
        if iteration % every == 0:
            curve.append({"iteration": iteration, **measure(x.detach())})
        optimizer.zero_grad(set_to_none=True)
        x.backward(guide(x.detach().clone()))
        optimizer.step()
    return curve, x.detach()


def run(args: argparse.Namespace) -> None:
    """Run every guide on every picture."""
    pgn = PGN.load(args.pgn) if args.pgn else PGN.pretrained()
    true = losses.Perceptual("vgg16", weights=args.weights)
    lpips = losses.LPIPS() if args.weights != "random" else None
    for path in args.pictures:
        target = centre(read_image(path), args.size, args.shrink)
        write_image(target[0], args.out / f"{path.stem}-target.png")
        for name, iterations in zip(GUIDES, args.iterations, strict=True):
            file = args.out / f"{path.stem}-{name}.json"
            if file.exists() or name not in args.guides:
                continue

            @torch.no_grad()
            def measure(x: Tensor, target: Tensor = target) -> dict[str, float]:
                found = {"psnr": -10 * losses.mse(x, target).log10(), "perceptual": true(x, target)}
                if lpips is not None:
                    found["lpips"] = lpips(x, target)
                return {key: round(float(value), 5) for key, value in found.items()}

            curve, x = optimise(guides(pgn, true, target)[name], target, measure, iterations, args.every)
            write_image(x[0], args.out / f"{path.stem}-{name}.png")
            file.write_text(json.dumps(curve))
            print(f"{path.stem} {name}: {curve[-1]}", flush=True)


def centre(picture: Tensor, size: int, shrink: int) -> Tensor:
    """Return the middle of a picture [3, H, W], shrunk by averaging squares of pixels, as [1, 3, size, size]."""
    top, left = ((side - size * shrink) // 2 for side in picture.shape[-2:])
    part = picture[None, :, top : top + size * shrink, left : left + size * shrink]
    return F.avg_pool2d(part, shrink).contiguous()


def plot(args: argparse.Namespace) -> None:
    """Draw the curves averaged over all pictures, and the results side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6))
    stems = [path.stem for path in args.pictures]
    for name in GUIDES:
        curves = [json.loads(file.read_text()) for s in stems if (file := args.out / f"{s}-{name}.json").exists()]
        if not curves:
            continue
        steps = [point["iteration"] for point in curves[0]]
        for axis, key in zip(axes, ("perceptual", "lpips"), strict=True):
            if key in curves[0][0]:
                means = [sum(point[key] for point in points) / len(points) for points in zip(*curves, strict=True)]
                axis.plot(steps, means, color=COLOURS[name], label=name)
                axis.set(xlabel="iteration", ylabel=f"{key} distance", yscale="log")
                axis.grid(alpha=0.3)
                axis.legend()
    figure.tight_layout()
    figure.savefig(args.out / "image_prior.png", dpi=110)
    for stem in stems:
        parts = [(name, args.out / f"{stem}-{name}.png") for name in ("target", *GUIDES)]
        shown = [(name, read_image(file)) for name, file in parts if file.exists()]
        rows = strip([picture for _, picture in shown], [name for name, _ in shown], height=192)
        write_image(rows, args.out / f"{stem}-strip.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and run or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pgn", type=Path, help="file of `tunable-ops train pgn_...` (default: the shipped one)")
    parser.add_argument("--guides", nargs="+", default=GUIDES, choices=GUIDES)
    parser.add_argument(
        "--iterations", nargs=3, type=int, default=(1350, 600, 1800), metavar=tuple(map(str.upper, GUIDES))
    )
    parser.add_argument("--every", type=int, default=25, help="iterations between measurements")
    parser.add_argument("--size", type=int, default=64, help="use the central square of this side")
    parser.add_argument("--shrink", type=int, default=1, help="shrink a square this many times larger to that side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", help="weights of VGG16 (default: found automatically)")
    parser.add_argument("--plot", action="store_true", help="only draw the finished runs")
    parser.add_argument("--quick", action="store_true", help="run a few iterations, to see that it works")
    args = parser.parse_args(argv)
    if args.quick:
        args.iterations, args.every = (3, 3, 9), 3
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    plot(args) if args.plot else run(args)


if __name__ == "__main__":
    main()
