"""Fit the latents of a frozen decoder to pictures, led by a perceptual loss or by what stands in for its gradient.

    train   an autoencoder of 64x64 pictures, by mean squares
    fit     from the mean latent to held-out pictures, with the decoder frozen: 20 * MSE + w * the objective

The objectives (objectives.py): mse, that term alone; true, the perceptual loss of VGG16; pgn, the gradient that a PGN
predicts for it; squeeze, LPIPS with SqueezeNet. The judge is LPIPS with AlexNet, which none of them uses. A stopped
training continues from its state, and fits that are finished are kept. ``table`` prints the means and writes a strip,
``time`` prints the time of a step with each objective.

python examples/perceptual/latents.py train --pictures TRAIN --out runs/latents
python examples/perceptual/latents.py fit --held-out KODAK OTHERS --out runs/latents
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from objectives import build_objective
from state import load, save
from torch import Tensor, nn

from tunable_ops import losses
from tunable_ops.images import find_images, read_image, strip, write_image
from tunable_ops.train.seeding import generator

SIDE = 64
OBJECTIVES = {"mse": 0.0, "true": 1.0, "pgn": 1.0, "squeeze": 2.0}
"""Weight of each; LPIPS of SqueezeNet times 2 has about the gradient of the true loss."""
SQUARES = 20.0  # weight of the mean squares beside it, as published
AT = (0, 10, 25, 50, 100)  # steps at which a fit is measured
RATE = 0.05  # of Adam on latents of standard deviation 1


class Autoencoder(nn.Module):
    """Pictures [B, 3, 64, 64] to latents [B, 16, 8, 8], whose mean and deviation are kept, and back.

    Args:
        widths: Channels at 8, 16, 32 and 64 pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: Sequence[int] = (64, 48, 32, 16), channels: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(
            *(nn.Conv2d(3, widths[3], 3, padding=1), nn.LeakyReLU(0.2)),
            *(m for k in (2, 1, 0) for m in (_down(widths[k + 1], widths[k]), nn.LeakyReLU(0.2))),
            nn.Conv2d(widths[0], channels, 1),
        )
        self.up = nn.Sequential(
            *(nn.Conv2d(channels, widths[0], 3, padding=1), nn.LeakyReLU(0.2)),
            *(m for k in (1, 2, 3) for m in _up(widths[k - 1], widths[k])),
            *(nn.Conv2d(widths[3], 3, 3, padding=1), nn.Sigmoid()),
        )
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def encode(self, y: Tensor) -> Tensor:
        """Return the latents of pictures."""
        return self.down(y)

    def decode(self, latent: Tensor) -> Tensor:
        """Return the pictures of latents."""
        return self.up(latent)


def _down(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)


def _up(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Upsample(scale_factor=2), first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2)


def shrunk(path: Path, factor: int) -> Tensor:
    """Return a picture [3, H, W] after averaging squares of pixels."""
    return F.avg_pool2d(read_image(path), factor)


def crops(pictures: Sequence[Tensor], count: int, source: torch.Generator) -> Tensor:
    """Draw crops [count, 3, 64, 64], half of them mirrored."""
    found = []
    for _ in range(count):
        picture = pictures[int(torch.randint(len(pictures), (), generator=source))]
        top, left = (int(torch.randint(side - SIDE + 1, (), generator=source)) for side in picture.shape[1:])
        crop = picture[:, top : top + SIDE, left : left + SIDE]
        found.append(crop.flip(2) if torch.rand((), generator=source) < 0.5 else crop)
    return torch.stack(found).contiguous(memory_format=torch.channels_last)


def train(args: argparse.Namespace) -> None:
    """Train the autoencoder, from the saved state if there is one."""
    torch.manual_seed(0)
    net = Autoencoder().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    file = args.out / "autoencoder.safetensors"
    first, spent = load(file, net, optimizer) if file.exists() else (0, 0.0)
    pictures = [p for path in find_images(args.pictures) if min((p := shrunk(path, args.shrink)).shape[1:]) >= SIDE]
    started, total = time.process_time(), 0.0
    for step in range(first, args.steps):
        y = crops(pictures, args.batch, generator(0, "latents", step))
        optimizer.param_groups[0]["lr"] = 2e-3 * (0.02 + 0.98 * (1 - step / args.steps))
        loss = losses.mse(net.decode(net.encode(y)), y).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            with torch.no_grad():
                latents = net.encode(crops(pictures, 64, generator(0, "latents of", step)))
                net.mean.copy_(latents.mean((0, 2, 3), keepdim=True))
                net.std.copy_(latents.std((0, 2, 3), keepdim=True))
            seconds = spent + time.process_time() - started
            save(file, net, optimizer, step + 1, seconds)
            print(
                f"{step + 1}: mse {total / (step % args.every + 1):.5f}, {seconds:.0f} s of the processor", flush=True
            )
            total = 0.0


def frozen(args: argparse.Namespace) -> Autoencoder:
    """Return the trained network."""
    net = Autoencoder()
    load(args.out / "autoencoder.safetensors", net)
    return net.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def held_out(args: argparse.Namespace) -> dict[str, Tensor]:
    """Return the middles of the first pictures of every folder, [count, 3, 64, 64], by its name."""
    found = {}
    for folder in args.held_out:
        paths = find_images(folder)
        chosen = paths[:: max(1, len(paths) // args.count)][: args.count]
        found[folder.name] = torch.stack([_centre(shrunk(path, args.shrink)) for path in chosen])
    return found


def _centre(picture: Tensor) -> Tensor:
    top, left = ((side - SIDE) // 2 for side in picture.shape[1:])
    return picture[:, top : top + SIDE, left : left + SIDE]


def criterion(name: str, args: argparse.Namespace) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of an objective, the sum over pictures: each has latents of its own."""
    weight = OBJECTIVES[name]
    objective = build_objective(name, args.pgn, args.weights) if weight else None

    def loss(x: Tensor, y: Tensor) -> Tensor:
        squares = SQUARES * losses.mse(x, y)
        return (squares if objective is None else squares + weight * objective(x, y)).sum()

    return loss


class Fit:
    """Latents on their way from the mean latent to pictures.

    Args:
        net: The frozen network.
        y: The pictures, [B, 3, 64, 64].
        loss: From outputs and pictures to a scalar.
    """

    def __init__(self, net: Autoencoder, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.net, self.y, self.loss = net, y, loss
        self.offset = torch.zeros(len(y), net.mean.shape[1], SIDE // 8, SIDE // 8, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.offset], lr=RATE)

    def picture(self) -> Tensor:
        """Return the present pictures."""
        return self.net.decode(self.net.mean + self.net.std * self.offset)

    def step(self) -> None:
        """Make a step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.picture(), self.y).backward()
        self.optimizer.step()


@torch.no_grad()
def scores(x: Tensor, y: Tensor, judge: nn.Module) -> dict[str, float]:
    """Return the mean distance and PSNR of pictures."""
    psnr = -10 * losses.mse(x, y).log10()
    return {"lpips": round(float(judge(x, y).mean()), 4), "psnr": round(float(psnr.mean()), 3)}


def start_fits(file: Path, rows: dict[str, Any]) -> None:
    """Note what the fits of a folder start from, or check that those that are there started from the same.

    Raises:
        ValueError: They are of another autoencoder, other pictures or other steps.
    """
    before = json.loads(file.read_text()) if file.exists() else rows
    if any(before.get(key) != rows[key] for key in ("autoencoder", "pictures", "at")):
        raise ValueError(
            f"latents: --out must hold fits of the same autoencoder, --count and --at; got {file} of others: delete "
            f"{file.stem}*.json to fit again"
        )
    file.write_text(json.dumps(rows))


def fit(args: argparse.Namespace) -> None:
    """Fit the pictures of every folder with every objective, and write what came out after some steps."""
    net, pictures = frozen(args), held_out(args)
    judge = losses.LPIPS("alex", weights=args.judge)
    for folder, y in pictures.items():
        with torch.no_grad():
            once = net.decode(net.encode(y))
        rows = {"encoder": scores(once, y, judge), "pictures": len(y), "at": list(args.at)}
        rows["autoencoder"] = hashlib.sha256((args.out / "autoencoder.safetensors").read_bytes()).hexdigest()
        start_fits(args.out / f"{folder}.json", rows)
        for k, picture in enumerate(y):
            write_image(picture, args.out / f"{folder}-{k}-original.png")
            write_image(once[k], args.out / f"{folder}-{k}-encoder.png")
        for name in args.objectives:
            file = args.out / f"{folder}-{name}.json"
            if file.exists():
                continue
            run, curve = Fit(net, y, criterion(name, args)), []
            for step in range(max(args.at) + 1):
                if step in args.at:
                    with torch.no_grad():
                        x = run.picture()
                    curve.append({"step": step, **scores(x, y, judge)})
                if step < max(args.at):
                    run.step()
            for k, picture in enumerate(x):
                write_image(picture, args.out / f"{folder}-{k}-{name}.png")
            file.write_text(json.dumps(curve))
            print(f"{folder} {name}: {curve[-1]}", flush=True)


def table(args: argparse.Namespace) -> None:
    """Print the means in Markdown, a table per folder, and write a strip of some pictures."""
    for folder in args.held_out:
        rows = json.loads((args.out / f"{folder.name}.json").read_text())
        found = {n: args.out / f"{folder.name}-{n}.json" for n in args.objectives}
        curves = {name: json.loads(file.read_text()) for name, file in found.items() if file.exists()}
        steps = [point["step"] for point in next(iter(curves.values()))][1:]
        once = rows["encoder"]
        print(f"\n{folder.name}, {rows['pictures']} pictures; encoder {once['lpips']:.3f}, {once['psnr']:.2f} dB\n")
        print("| LPIPS, PSNR after | " + " | ".join(f"{step} steps" for step in steps) + " |")
        print("| --- |" + " --- |" * len(steps))
        for name, curve in curves.items():
            print(f"| {name} | " + " | ".join(f"{p['lpips']:.3f}, {p['psnr']:.2f}" for p in curve[1:]) + " |")
        shown = ("original", "encoder", *curves)
        lines = [
            strip([read_image(args.out / f"{folder.name}-{k}-{name}.png") for name in shown], shown, height=2 * SIDE)
            for k in args.show
        ]
        write_image(torch.cat(lines, dim=1), args.out / f"{folder.name}-strip.png")


def measure(args: argparse.Namespace) -> None:
    """Print the time of a step with each objective, in interleaved rounds."""
    from tunable_ops.bench.timing import ProcessClock, compare

    net, y = frozen(args), torch.rand(args.count, 3, SIDE, SIDE, generator=generator(0, "time"))
    calls = {name: partial(Fit.step, Fit(net, y, criterion(name, args))) for name in args.objectives}
    timings = compare(calls, rounds=args.rounds, clock=ProcessClock())
    for name in args.objectives:
        seconds = timings[name].seconds
        print(f"{name}: {seconds * 1e3:.0f} ms, {seconds / timings[args.objectives[0]].seconds:.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and do one of the four."""
    actions = {"train": train, "fit": fit, "table": table, "time": measure}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=actions)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="folder to train on")
    parser.add_argument("--held-out", type=Path, nargs="+", help="folders to fit to")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=3000, help="of the training")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--every", type=int, default=250, help="steps between saved states")
    parser.add_argument("--shrink", type=int, default=2, help="average squares of this side in all pictures")
    parser.add_argument("--count", type=int, default=4, help="pictures of a folder")
    parser.add_argument("--at", type=int, nargs="+", default=AT, help="steps at which a fit is measured")
    parser.add_argument("--show", type=int, nargs="+", default=(0,), help="pictures of the strip, by index")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--pgn", type=Path, help="file of `tunable-ops train pgn_...` (default: the shipped one)")
    parser.add_argument("--weights", help="weights of VGG16 (default: found automatically)")
    parser.add_argument("--judge", help="weights of AlexNet (default: found automatically)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    actions[args.action](args)


if __name__ == "__main__":
    main()
