"""Train a tunable x4 super-resolution network with an L1 and a perceptual objective, the true loss or a stand-in.

The network is a small EDSR on top of bicubic enlargement, made tunable by `convert`; lambda is drawn per sample on the
simplex. All runs (``--objective true``, ``sparse``, ``pgn`` and the others of objectives.py) use the same seeds,
pictures and number of steps. A stopped run continues from its saved state. ``--evaluate`` writes PSNR and perceptual
distances over lambda on held-out pictures, ``--plot`` draws the figure, and ``--time`` prints time and memory of a
training step with each objective.

python examples/perceptual/super_resolution.py --objective pgn --pictures TRAIN --out runs/sr --pgn model.safetensors
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from objectives import OBJECTIVES, multi_loss, period_of
from state import load, save
from torch import Tensor, nn

import tunable_ops
from tunable_ops import losses
from tunable_ops.images import find_images, read_image, strip, write_image
from tunable_ops.train.config import Data
from tunable_ops.train.data import Photographs, draw_crop
from tunable_ops.train.generators import build_generator, reduced
from tunable_ops.train.seeding import generator

CROP = 64  # of the clean pictures
JUDGES = ("lpips", "lpips_vgg", "dists", "perceptual")
LAMS = (0.0, 0.25, 0.5, 0.75, 1.0)


def build() -> tunable_ops.TunableModel:
    """Return the network with which every run starts: bicubic enlargement at every lambda."""
    torch.manual_seed(0)
    return build_generator("edsr_x4")


def batch(args: argparse.Namespace, photographs: Photographs, step: int) -> tuple[Tensor, Tensor]:
    """Draw the clean crops [B, 3, 64, 64] and lambda [B, 2] of a step."""
    source = generator(0, "step", step)
    y = torch.stack([draw_crop(photographs, Data(crop=CROP), source) for _ in range(args.batch)])
    return y, losses.sampler("simplex", 2, corners=0.4)(args.batch, source)


def train(args: argparse.Namespace) -> None:
    """Train the network with one objective, from the saved state if there is one."""
    net, loss = build(), multi_loss(args.objective, args.period, args.pgn, args.weights, args.side)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    photographs = Photographs(find_images(args.pictures), CROP)
    name = args.name or args.objective
    file = args.out / f"{name}.safetensors"
    objective = loss.objectives["perceptual"]
    fitted = objective.state_dict() if isinstance(objective, losses.Corrected) else {}
    fitted = {key: fitted[key] for key in ("fit", "coefficient") if key in fitted}
    first, spent = load(file, net, optimizer, fitted) if file.exists() else (0, 0.0)
    started = time.perf_counter()
    for step in range(first, args.steps):
        torch.manual_seed(step)  # for the places of crops
        y, lam = batch(args, photographs, step)
        total, terms = loss(net(reduced(y), lam), {"l1": y, "perceptual": y}, lam, step)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            seconds = spent + time.perf_counter() - started
            save(file, net, optimizer, step + 1, seconds, fitted)
            values = ", ".join(f"{key} {value:.4f}" for key, value in terms.items())
            print(f"{name} {step + 1}: {values}, {seconds / (step + 1):.3f} s/step", flush=True)


def measure(args: argparse.Namespace) -> None:
    """Print time and memory of forward and backward with each objective, on random pictures, interleaved.

    Of an objective with a period all its steps are timed, and divided by their number.
    """
    from tunable_ops.bench.step import peak_bytes
    from tunable_ops.bench.timing import ProcessClock, compare

    y, lam = torch.rand(args.batch, 3, CROP, CROP), torch.tensor([[0.5, 0.5]] * args.batch)
    x, calls = reduced(y), {}
    for name in args.objectives:
        net, loss = build(), multi_loss(name, args.period, args.pgn, args.weights, args.side)

        def call(net: nn.Module = net, loss: losses.MultiLoss = loss, steps: Sequence[int] = (0,)) -> None:
            for step in steps:
                total, _ = loss(net(x, lam), {"l1": y, "perceptual": y}, lam, step)
                torch.autograd.grad(total, [p for p in net.parameters() if p.requires_grad])

        calls[name] = functools.partial(call, steps=range(period_of(name, args.period)))
    timings = compare(calls, rounds=args.rounds, clock=ProcessClock() if args.cpu_time else None)
    first = timings[args.objectives[0]].seconds / period_of(args.objectives[0], args.period)
    for name, call in calls.items():
        seconds = timings[name].seconds / period_of(name, args.period)
        memory = peak_bytes(call, "cpu") / 2**20
        print(f"{name}: {seconds * 1e3:.1f} ms, ratio {seconds / first:.2f}, {memory:.1f} MiB", flush=True)


@torch.no_grad()
def evaluate(args: argparse.Namespace) -> None:
    """Measure PSNR, LPIPS and the perceptual loss over lambda, and of bicubic enlargement for comparison."""
    judges: dict[str, Callable[[], nn.Module]] = {
        "lpips": lambda: losses.LPIPS(weights=args.weights),
        "lpips_vgg": lambda: losses.LPIPS("vgg"),
        "dists": losses.DISTS,
        "perceptual": lambda: losses.Perceptual("vgg16", weights=args.weights),
    }
    measures = {name: judges[name]() for name in args.judges}
    pictures = [centre(read_image(path), args.size) for path in find_images(args.held_out)[: args.count]]
    nets = {file.stem: build().eval() for file in sorted(args.out.glob("*.safetensors"))}
    steps = {name: load(args.out / f"{name}.safetensors", net)[0] for name, net in nets.items()}

    def score(outputs: list[Tensor]) -> dict[str, float]:
        pairs = [(x.clamp(0, 1), y) for x, y in zip(outputs, pictures, strict=True)]
        found = {"psnr": [-10 * float(losses.mse(x, y).log10()) for x, y in pairs]}
        found.update({k: [float(measure(x, y)) for x, y in pairs] for k, measure in measures.items()})
        return {key: round(sum(values) / len(values), 4) for key, values in found.items()}

    rows: dict = {"steps": steps, "pictures": len(pictures), "crop": args.size}
    rows["bicubic"] = score([F.interpolate(reduced(y), scale_factor=4, mode="bicubic") for y in pictures])
    for name, net in nets.items():
        rows[name] = []
        for lam in args.lams:
            outputs = [net(reduced(y), torch.tensor([1 - lam, lam])) for y in pictures]
            rows[name].append({"lambda": lam, **score(outputs)})
            print(name, rows[name][-1], flush=True)
    (args.out / "evaluation.json").write_text(json.dumps(rows, indent=1))
    show = pictures[args.show]
    shown = [("original", show), ("bicubic", F.interpolate(reduced(show), scale_factor=4, mode="bicubic"))]
    for name, net in nets.items():
        shown += [(f"{name}, {lam:g}", net(reduced(show), torch.tensor([1 - lam, lam]))) for lam in args.lams]
    row = strip([x[0].clamp(0, 1) for _, x in shown], [label for label, _ in shown], height=192)
    write_image(row, args.out / "super_resolution_strip.png")


def centre(picture: Tensor, size: int) -> Tensor:
    """Return the middle of a picture [3, H, W] as [1, 3, size, size]."""
    top, left = ((side - size) // 2 for side in picture.shape[-2:])
    return picture[None, :, top : top + size, left : left + size].contiguous()


def plot(args: argparse.Namespace) -> None:
    """Draw the three measures over lambda."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = json.loads((args.out / "evaluation.json").read_text())
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4))
    labels = {"psnr": "PSNR, dB", "lpips": "LPIPS (AlexNet)", "perceptual": "perceptual loss (VGG16)"}
    shown = [(key, label) for key, label in labels.items() if key in rows["bicubic"]]
    for axis, (key, label) in zip(axes, shown, strict=False):
        for name in rows["steps"]:
            axis.plot([r["lambda"] for r in rows[name]], [r[key] for r in rows[name]], "o-", label=name)
        axis.axhline(rows["bicubic"][key], color="tab:gray", linestyle="--", label="bicubic")
        axis.set(xlabel="lambda of the perceptual objective", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(args.out / "super_resolution.png", dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and train, evaluate, plot or time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=OBJECTIVES, default="pgn")
    parser.add_argument("--name", help="of the run's file in --out (default: the objective)")
    parser.add_argument("--period", type=int, default=4, help="N of the objectives that have one")
    parser.add_argument("--side", type=int, default=32, help="of the crops of the objectives that have them")
    parser.add_argument(
        "--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES[:7]), help="to time; the first is 1"
    )
    parser.add_argument("--rounds", type=int, default=7, help="of the timing")
    parser.add_argument("--cpu-time", action="store_true", help="time the processor, not the clock: where it is shared")
    parser.add_argument(
        "--judges", nargs="+", choices=JUDGES, default=["lpips", "perceptual"], help="distances of the evaluation"
    )
    parser.add_argument(
        "--lams", type=float, nargs="+", default=list(LAMS), help="points of the evaluation and the strip"
    )
    parser.add_argument("--pictures", type=Path, help="folder to train on")
    parser.add_argument("--held-out", type=Path, help="folder to evaluate on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pgn", type=Path, help="file of `tunable-ops train pgn_...` (default: the shipped one)")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--every", type=int, default=50, help="steps between saved states")
    parser.add_argument(
        "--size", type=int, default=192, help="use the central square of this side of held-out pictures"
    )
    parser.add_argument("--count", type=int, default=8, help="number of held-out pictures")
    parser.add_argument("--show", type=int, default=0, help="index of the picture to show")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", help="weights of VGG16 (default: found automatically)")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--quick", action="store_true", help="run a few steps, to see that it works")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.every, args.size, args.count = 4, 2, 64, 1
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.evaluate:
        evaluate(args)
    if args.plot:
        plot(args)
    if args.time:
        measure(args)
    if not (args.evaluate or args.plot or args.time):
        train(args)


if __name__ == "__main__":
    main()
