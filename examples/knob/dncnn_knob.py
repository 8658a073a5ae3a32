"""Add a knob to a published DnCNN: one position is the published network, the others are for stronger noise.

python examples/knob/dncnn_knob.py train dncnn_gray_sigma25.safetensors bsd432/ --out runs/knob
python examples/knob/dncnn_knob.py score runs/knob/model.safetensors set12/ --count 6
python examples/knob/dncnn_knob.py strip runs/knob/model.safetensors --out strip.png

The plain kernels do not change by a single bit; one new kernel per layer is trained. The loop is written out to show
what `tunable-ops train` does with ``tuning.freeze = true``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import tunable_ops
from tunable_ops import losses, models, serialization
from tunable_ops.images import strip, write_image
from tunable_ops.train.config import Data
from tunable_ops.train.data import Photographs, draw_crop, find_training_files, grey, held_out
from tunable_ops.train.degradations import Degradation, Noise, add_noise
from tunable_ops.train.evaluate import degraded_pictures, evaluate, restore
from tunable_ops.train.measure import Measure
from tunable_ops.train.seeding import generator

LOWEST, HIGHEST = 25.0, 50.0  # sigma (0 to 255) at level 0, for which the published network was trained, and level 1
MEASURE = Measure(ssim=False, rounded=True)


def level(sigma: float) -> float:
    """Return the position of the knob for a sigma."""
    return (sigma - LOWEST) / (HIGHEST - LOWEST)


def with_knob(plain: nn.Module, scaled: bool) -> tunable_ops.TunableModel:
    """Return the network with a knob `level` that either has no effect yet, or works without any training.

    Convolutions, ReLU and x - net(x) commute with a positive factor k if the biases are multiplied by it. With kernels
    W and biases (1 + level) b the network computes ``k net(x / k)``, k = 1 + level: noise of k sigma is scaled to the
    sigma that the network was trained for, and the picture is scaled back.

    Args:
        plain: Chain of convolutions and ReLUs.
        scaled: Start the new kernels with these biases instead of zeros.
    """
    net = tunable_ops.convert(plain, num_params=1, domain="box", names=["level"])
    with torch.no_grad():
        for layer in net.layers if scaled else ():
            layer.bias[1] = (HIGHEST / LOWEST - 1) * layer.bias[0]
    return net


def train(
    net: tunable_ops.TunableModel,
    photographs: Photographs,
    data: Data,
    steps: int,
    rate: float,
) -> int:
    """Train the new kernels only; the network at lambda = 0 does not change.

    Args:
        net: What `with_knob` returns.
        photographs: Source of the crops.
        data: Crop and batch size.
        steps: Number of steps of AdamW, each at one lambda, uniform in [0, 1].
        rate: Highest learning rate.

    Returns:
        The number of parameters trained.
    """
    tunable_ops.freeze_all_but_new(net)
    groups = tunable_ops.optimizer_groups(net, new={"lr": rate})
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    warmup = min(20, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warmup, 0.5 * (1 + math.cos(math.pi * k / steps)))
    )
    recent = 0.0
    for step in range(steps):
        source = generator(0, "knob", step)
        clean = grey(torch.stack([draw_crop(photographs, data, source) for _ in range(data.batch)]))
        lam = torch.rand(1, generator=source)
        noisy = add_noise(clean, (LOWEST + (HIGHEST - LOWEST) * lam).expand(data.batch), source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = net(noisy.contiguous(memory_format=torch.channels_last), lam)
        loss = losses.mse(output.float(), clean).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        schedule.step()
        recent = 0.98 * recent + 0.02 * float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {recent / (1 - 0.98 ** (step + 1)):.6f}", flush=True)
    tunable_ops.merge_base(net)
    return sum(parameter.numel() for parameter in trained)


def as_published(net: tunable_ops.TunableModel) -> nn.Module:
    """Fold the network at lambda = 0, back to the plain DnCNN."""
    return tunable_ops.fold(net, [0.0]).eval()


def score(
    net: tunable_ops.TunableModel, pictures: Sequence[tuple[str, Tensor]], sigmas: Sequence[float]
) -> dict[str, list[list[float]]]:
    """Return PSNR in dB by row of the table, sigma and picture."""
    plain = as_published(net)
    untrained = with_knob(plain, scaled=True).to(memory_format=torch.channels_last)
    rows: dict[str, list[list[float]]] = {}
    for sigma in sigmas:
        noise = Degradation(noise=Noise(sigma=(sigma, sigma)))
        pairs = degraded_pictures([(name, clean[:1]) for name, clean in pictures], noise, seed=0)
        rows.setdefault("noisy input", []).append([MEASURE(noisy, clean).psnr for _, clean, noisy in pairs])
        for row, network, lam in (
            ("published", plain, 0.0),
            ("scaled biases, no training", untrained, level(sigma)),
            ("trained kernels", net, level(sigma)),
            ("the same, left at 1", net, 1.0),
        ):
            scores = evaluate(network, pairs, [[lam]], measure=MEASURE)
            rows.setdefault(row, []).append([found.psnr for found in scores if found.lam is not None])
    return rows


def table(rows: dict[str, list[list[float]]], sigmas: Sequence[float]) -> str:
    """Return the means over the pictures as a Markdown table, after the values of each picture if there are few."""
    lines = []
    for row, by_sigma in rows.items():
        for sigma, values in zip(sigmas, by_sigma, strict=True):
            if len(values) < 13:
                lines.append(f"sigma {sigma:g}, {row}: {' '.join(f'{value:.2f}' for value in values)}")
    lines.append("\n| sigma | " + " | ".join(f"{sigma:g}" for sigma in sigmas) + " |")
    lines.append("| --- |" + " --- |" * len(sigmas))
    for row, by_sigma in rows.items():
        lines.append(f"| {row} | " + " | ".join(f"{sum(v) / len(v):.2f}" for v in by_sigma) + " |")
    return "\n".join(lines)


def check(net: tunable_ops.TunableModel, published: dict[str, Tensor]) -> None:
    """Print whether folding gives a plain DnCNN, and whether level 0 equals the published one in every bit."""
    folded = tunable_ops.fold(net, [1.0])
    fresh = models.DnCNN(channels=1, **sizes(published)).eval()
    fresh.load_state_dict(folded.state_dict())  # strict: the same keys and shapes
    x = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((fresh(x) - net(x, [1.0])).abs().max())
    print(f"fold at 1: {type(folded).__name__}, its weights load into a new one, error {difference:.1e}")
    back = as_published(net).state_dict()
    equal = published.keys() == back.keys() and all(torch.equal(published[key], back[key]) for key in back)
    print(f"fold at 0: {'the published weights, every bit' if equal else 'NOT the published weights'}")


def draw(net: tunable_ops.TunableModel, picture: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Draw a strip over the knob for each sigma, one below the other: [3, H, W]."""
    rows = []
    for sigma in sigmas:
        noise = Degradation(noise=Noise(sigma=(sigma, sigma)))
        ((_, clean, noisy),) = degraded_pictures([("picture", picture)], noise, seed=0)
        images, labels = [noisy], [f"sigma {sigma:g}\n{MEASURE(noisy, clean).psnr:.2f} dB"]
        for lam in (0.0, 0.25, 0.5, 0.75, 1.0):
            images.append(restore(net, noisy, [lam]))
            labels.append(f"level {lam:g}\n{MEASURE(images[-1], clean).psnr:.2f} dB")
        rows.append(strip([*images, clean], [*labels, "clean\n"]))
    return torch.cat(rows, dim=1)


def sizes(weights: dict[str, Tensor]) -> dict[str, int]:
    """Return width and depth of the DnCNN that the weights belong to."""
    return {"features": weights["model.0.weight"].shape[0], "depth": sum(key.endswith("weight") for key in weights)}


def _train(args: argparse.Namespace) -> None:
    weights, _ = serialization.read_weights(args.weights)
    arguments = {"channels": 1, **sizes(weights)}
    plain = models.DnCNN(**arguments)
    serialization.fill(args.weights, plain, weights)
    net = with_knob(plain, scaled=args.start == "biases").to(memory_format=torch.channels_last)
    data = Data(crop=args.crop, batch=args.batch)
    photographs = Photographs(find_training_files(str(args.pictures)), args.crop)
    started, used = time.perf_counter(), time.process_time()
    count = train(net, photographs, data, args.steps, args.lr)
    used, started = time.process_time() - used, time.perf_counter() - started
    print(f"{count:,} of {sum(p.numel() for p in net.parameters()):,} parameters trained, {args.steps} steps: ", end="")
    print(f"{used:.0f} s of CPU time, {started:.0f} s elapsed")
    file = args.out / "model.safetensors"
    serialization.save(net.eval(), file, architecture="dncnn", arguments=arguments)
    print(file)
    check(net, weights)


def _score(args: argparse.Namespace) -> None:
    net = serialization.load(args.model).to(memory_format=torch.channels_last)
    print(table(score(net, held_out(str(args.pictures))[: args.count or None], args.sigma), args.sigma))


def _strip(args: argparse.Namespace) -> None:
    net = serialization.load(args.model).to(memory_format=torch.channels_last)
    picture = grey(dict(held_out("skimage"))[args.picture][None])[0]
    top, left, side = args.part
    print(write_image(draw(net, picture[:, top : top + side, left : left + side], (LOWEST, HIGHEST)), args.out))


def main(words: Sequence[str] | None = None) -> None:
    """Train, score or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train", help="train the new kernels")
    one.add_argument("weights", type=Path, help="weights of the published DnCNN for grey pictures, safetensors")
    one.add_argument("pictures", type=Path, help='folder of photographs, or "skimage"')
    one.add_argument("--out", type=Path, required=True, help="output folder of the run")
    one.add_argument("--steps", type=int, default=800)
    one.add_argument("--crop", type=int, default=40)
    one.add_argument("--batch", type=int, default=8)
    one.add_argument("--lr", type=float, default=3e-4)
    one.add_argument("--start", choices=("zero", "biases"), default="zero", help="initial values of the new kernels")
    one.set_defaults(run=_train)
    two = commands.add_parser("score", help="print PSNR over sigma")
    two.add_argument("model", type=Path)
    two.add_argument("pictures", type=Path, help="folder of clean pictures")
    two.add_argument("--count", type=int, default=6, help="number of pictures, in order of name; 0 for all")
    two.add_argument("--sigma", type=float, nargs="+", default=(25.0, 35.0, 50.0))
    two.set_defaults(run=_score)
    three = commands.add_parser("strip", help="draw one of scikit-image's photographs over the knob")
    three.add_argument("model", type=Path)
    three.add_argument("--picture", choices=("astronaut", "chelsea", "coffee"), default="astronaut")
    three.add_argument("--part", type=int, nargs=3, default=(20, 130, 176), metavar=("TOP", "LEFT", "SIDE"))
    three.add_argument("--out", type=Path, required=True)
    three.set_defaults(run=_strip)
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
