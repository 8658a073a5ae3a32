"""Compare the shipped networks with FFDNet, BM3D and bicubic enlargement.

Each call measures one task, prints a Markdown table and can write all numbers as JSON. Noise has a fixed seed per
picture, and outputs are rounded to 8 bits. BM3D needs the package bm3d and takes minutes per set: ``--bm3d N`` runs it
on every N-th picture, and adds rows with the other methods on these pictures.

python examples/pretrained/measure.py denoise --sets cbsd68/ kodak24/ --ffdnet ffdnet_color.safetensors
python examples/pretrained/measure.py denoise_deblur --sets kodak24/
python examples/pretrained/measure.py super_resolution_x2 --sets set5/ set14/ --lpips
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import LiveFold, losses, models, pretrained, serialization
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Blur, Degradation, Noise, bicubic_downsample
from tunable_ops.train.evaluate import degraded_pictures
from tunable_ops.train.measure import Measure

Method = Callable[[Tensor], Tensor]
SIGMAS = (5, 15, 25, 35, 50)
GRID = [(noise, blur) for noise in (0.0, 12.5, 25.0) for blur in (0.0, 1.0, 2.0)]  # of 255, pixels
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def tunable(model: str) -> Callable[[Sequence[float]], Method]:
    """Return a function from lambda to the network at that setting, with kernels blended once."""
    live = LiveFold(pretrained.load(model))
    live.network.to(memory_format=torch.channels_last)

    def at(lam: Sequence[float]) -> Method:
        def run(x: Tensor) -> Tensor:
            live.set(list(lam))
            return live(x.contiguous(memory_format=torch.channels_last))

        return run

    return at


def ffdnet(path: Path, sigma: float) -> Method:
    """Return FFDNet with its published weights, for a known noise level."""
    net = models.FFDNet().eval()
    serialization.fill(path, net, serialization.read_weights(path)[0])
    net.to(memory_format=torch.channels_last)
    return lambda x: net(x.contiguous(memory_format=torch.channels_last), sigma / 255)


def bm3d(sigma: float) -> Method:
    """Return BM3D for colour pictures, for a known noise level."""
    import bm3d as package

    def run(x: Tensor) -> Tensor:
        found = package.bm3d_rgb(x[0].permute(1, 2, 0).double().numpy(), sigma / 255)
        return torch.from_numpy(found).permute(2, 0, 1).float().unsqueeze(0)

    return run


@torch.no_grad()
def score(method: Method, pairs: Sequence[tuple[Tensor, Tensor]], measure: Measure) -> list[dict[str, float | None]]:
    """Measure a method on every picture."""
    return [measure(method(x.unsqueeze(0))[0].clamp(0, 1), y)._asdict() for x, y in pairs]


def degraded(pictures: Sequence[tuple[str, Tensor]], config: Degradation) -> list[tuple[Tensor, Tensor]]:
    """List (degraded, clean), [3, H, W] each; random numbers depend only on the picture's position."""
    return [(x, clean) for _, clean, x in degraded_pictures(pictures, config, seed=0)]


def denoise(args: argparse.Namespace, pictures: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """Measure PSNR at several noise levels."""
    at, measure = tunable(args.model or "denoise"), Measure(ssim=False, rounded=True)
    rows: dict[str, Any] = {}
    for sigma in SIGMAS:
        pairs = degraded(pictures, Degradation(noise=Noise(sigma=(sigma, sigma))))
        methods = {"noisy": lambda x: x, "ours": at([sigma])}
        if args.ffdnet:
            methods["FFDNet"] = ffdnet(args.ffdnet, sigma)
        for name, method in methods.items():
            rows.setdefault(name, {})[f"sigma {sigma}"] = score(method, pairs, measure)
        if args.bm3d and sigma in (15, 25, 50):
            rows.setdefault("BM3D", {})[f"sigma {sigma}"] = score(bm3d(sigma), pairs[:: args.bm3d], measure)
        print(f"sigma {sigma} done", flush=True)
    if args.bm3d:
        for name in [name for name in rows if name != "BM3D"]:
            part = {key: values[:: args.bm3d] for key, values in rows[name].items() if key in rows["BM3D"]}
            rows[f"{name}, BM3D's pictures"] = part
    return rows


def denoise_deblur(args: argparse.Namespace, pictures: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """Measure PSNR over noise and blur: of the input, with both knobs set correctly, and with only one of them."""
    at, measure = tunable(args.model or "denoise_deblur"), Measure(ssim=False, rounded=True)
    rows: dict[str, Any] = {}
    for noise, blur in GRID:
        level = noise + 1  # the floor of the training
        config = Degradation(blur=Blur(sigma=(blur, blur)), noise=Noise(sigma=(level, level)))
        pairs = degraded(pictures, config)
        methods = {"input": lambda x: x, "both knobs": at([noise, blur])}
        methods.update({"sigma alone": at([noise, 0]), "deblur alone": at([0, blur])})
        if args.ffdnet:
            methods["FFDNet"] = ffdnet(args.ffdnet, level)
        for name, method in methods.items():
            rows.setdefault(name, {})[f"{noise:g}, {blur:g}"] = score(method, pairs, measure)
        print(f"{noise:g}, {blur:g} done", flush=True)
    return rows


def super_resolution(args: argparse.Namespace, pictures: Sequence[tuple[str, Tensor]], scale: int) -> dict[str, Any]:
    """Measure PSNR and SSIM of the luma without the border, and LPIPS, over lambda."""
    at = tunable(args.model or args.task)
    measure = Measure(y=True, border=scale, rounded=True, lpips=losses.LPIPS("alex") if args.lpips else None)
    pairs = []
    for _, clean in pictures:
        height, width = (side - side % scale for side in clean.shape[-2:])
        clean = clean[:, :height, :width]
        small = bicubic_downsample(clean.unsqueeze(0), scale).clamp(0, 1)
        pairs.append(((small[0] * 255).round() / 255, clean))
    rows = {"bicubic": {"": score(lambda x: F.interpolate(x, scale_factor=scale, mode="bicubic"), pairs, measure)}}
    for step in STEPS:
        rows[f"perceptual {step:g}"] = {"": score(at([1 - step, step]), pairs, measure)}
        print(f"perceptual {step:g} done", flush=True)
    return rows


def table(rows: dict[str, Any]) -> str:
    """Return the means over the pictures as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    kinds = [kind for kind in ("psnr", "ssim", "lpips") if next(iter(rows.values()))[columns[0]][0][kind] is not None]
    titles = [f"{column} {kind if len(kinds) > 1 else ''}".strip() for column in columns for kind in kinds]
    lines = [f"| | {' | '.join(titles)} |", "|" + " --- |" * (len(titles) + 1)]
    for name, row in rows.items():
        cells = []
        for column in columns:
            for kind in kinds:
                values = [float(entry[kind]) for entry in row.get(column, [])]
                cells.append(f"{fmean(values):.{2 if kind == 'psnr' else 4}f}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and measure every set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["denoise", "denoise_deblur", "super_resolution_x2", "super_resolution_x4"])
    parser.add_argument("--sets", nargs="+", type=Path, required=True, help="folders of clean pictures")
    parser.add_argument("--model", help="checkpoint (default: the shipped one for the task)")
    parser.add_argument("--ffdnet", type=Path, help="FFDNet's weights for colour pictures")
    parser.add_argument("--bm3d", type=int, metavar="N", help="run BM3D on every N-th picture")
    parser.add_argument("--lpips", action="store_true")
    parser.add_argument("--count", type=int, help="use at most this many pictures of each set")
    parser.add_argument("--crop", type=int, default=0, help="use the central square of this side (default: all)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if len({folder.name for folder in args.sets}) < len(args.sets):
        raise ValueError(f"measure: --sets must be folders of different names; got {[str(f) for f in args.sets]}")
    found = {}
    for folder in args.sets:
        pictures = held_out(str(folder), args.crop)[: args.count]
        if args.task.startswith("super"):
            rows = super_resolution(args, pictures, int(args.task[-1]))
        else:
            rows = {"denoise": denoise, "denoise_deblur": denoise_deblur}[args.task](args, pictures)
        found[folder.name] = rows
        print(f"\n{folder.name}, {len(pictures)} pictures\n\n{table(rows)}\n", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
