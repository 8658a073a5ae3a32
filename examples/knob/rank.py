"""What the rank of a knob costs and buys: its size and its quality, as a table and a plot.

Train the same knob at several ranks, write each as a knob file, then measure them on noisy pictures with the knob at 1:

for r in 1 2 4 8; do tunable-ops train CONFIG --set tuning.rank=$r --out runs/rank$r; done
tunable-ops train CONFIG --out runs/full
for run in runs/*; do tunable-ops knob $run/model.safetensors --half --out $run.safetensors; done
python examples/knob/rank.py ffdnet_color.safetensors runs/*.safetensors --sets kodak24/ --lpips --out runs/ranks

It writes ranks.json, ranks.md and, where matplotlib is installed, ranks.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tunable_ops import LambdaSpec, LiveFold, losses, pretrained
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Degradation, Noise
from tunable_ops.train.evaluate import degraded_pictures
from tunable_ops.train.measure import Measure

_TOP = 50  # noise level, of 255, at the upper end of a parameter "sigma"
_NAMES = {"psnr": "PSNR dB", "lpips": "LPIPS"}


def lambda_at(spec: LambdaSpec, name: str, value: float, sigma: float) -> list[float]:
    """Return the defaults with `name` at `value` and "sigma", if there is one, at the noise level, of 255."""
    if name not in spec.names:
        raise ValueError(f"rank: --parameter must be one of {', '.join(spec.names)}; got {name!r}")
    lam = dict(zip(spec.names, spec.defaults, strict=True)) | {name: value}
    if "sigma" in spec.names:
        lam["sigma"] = sigma / _TOP * spec.ranges[spec.names.index("sigma")][1]
    return list(lam.values())


@torch.no_grad()
def score(
    base: Path, knob: Path, name: str, value: float, cases: Sequence[tuple[str, float, Any]], measure: Measure
) -> dict[str, dict[str, float]]:
    """Return the mean of every measure, by set and noise level, with a knob at `value`."""
    net = pretrained.load(base, [knob])
    live = LiveFold(net)
    live.network.to(memory_format=torch.channels_last)
    found = {}
    for title, sigma, pictures in cases:
        live.set(lambda_at(net.spec, name, value, sigma))
        run: Callable[[Tensor], Tensor] = live if "sigma" in net.spec.names else lambda x, s=sigma: live(x, s / 255)
        scores = [measure(run(x.unsqueeze(0))[0], clean) for _, clean, x in pictures]
        found[title] = {
            key: fmean(getattr(each, key) for each in scores) for key in _NAMES if getattr(scores[0], key) is not None
        }
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table, a row for each rank."""
    columns = [(title, key) for title, values in rows[0]["scores"].items() for key in values]
    lines = [f"| rank | KB | {' | '.join(f'{title}: {_NAMES[key]}' for title, key in columns)} |"]
    lines.append("|" + " --- |" * (len(columns) + 2))
    for row in rows:
        values = [f"{row['scores'][title][key]:.{2 if key == 'psnr' else 4}f}" for title, key in columns]
        size = f"{row['bytes'] / 1000:.0f}" if row["bytes"] else ""
        lines.append(f"| {row['rank']} | {size} | {' | '.join(values)} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every measure over the size of the file; a dashed line is the base, without the knob."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base, *knobs = rows
    keys = list(next(iter(base["scores"].values())))
    figure, axes = pyplot.subplots(1, len(keys), figsize=(5 * len(keys), 3.5), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        for title in base["scores"]:
            sizes = [row["bytes"] / 1000 for row in knobs]
            (line,) = axis.plot(sizes, [row["scores"][title][key] for row in knobs], "o-", label=title)
            axis.axhline(base["scores"][title][key], color=line.get_color(), linestyle="--", linewidth=1)
        for row in knobs:
            axis.annotate(row["rank"], (row["bytes"] / 1000, next(iter(row["scores"].values()))[key]))
        axis.set(xscale="log", xlabel="knob file, KB", ylabel=_NAMES[key])
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, measure every knob and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="weights or checkpoint of the base")
    parser.add_argument("knobs", type=Path, nargs="+", help="knob files, one for each rank")
    parser.add_argument("--parameter", default="texture", help="the knob (default: texture)")
    parser.add_argument("--sets", nargs="+", type=Path, required=True, help="folders of clean pictures")
    parser.add_argument("--sigma", nargs="+", type=float, default=[25.0, 50.0], help="noise, of 255 (default: 25 50)")
    parser.add_argument("--crop", type=int, default=0, help="use the central square of this side (default: all)")
    parser.add_argument("--count", type=int, help="use at most this many pictures of each set")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (AlexNet); needs its published weights")
    parser.add_argument("--out", type=Path, required=True, help="folder for ranks.json, ranks.md and ranks.png")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cases = []
    for folder in args.sets:
        pictures = held_out(str(folder), args.crop)[: args.count]
        for sigma in args.sigma:
            noise = Degradation(noise=Noise(sigma=(sigma, sigma)))
            cases.append((f"{folder.name}, sigma {sigma:g}", sigma, degraded_pictures(pictures, noise, seed=0)))
    measure = Measure(ssim=False, rounded=True, lpips=losses.LPIPS("alex") if args.lpips else None)
    rows: list[dict[str, Any]] = [
        {"rank": "base", "bytes": 0, "scores": score(args.base, args.knobs[0], args.parameter, 0.0, cases, measure)}
    ]
    for knob in args.knobs:
        rank = read_knob_metadata(knob)["conversion"].get("rank")
        scores = score(args.base, knob, args.parameter, 1.0, cases, measure)
        name = "full" if rank is None else str(rank)
        rows.append({"rank": name, "file": knob.name, "bytes": knob.stat().st_size, "scores": scores})
        print(f"{knob.name} done", flush=True)
    rows[1:] = sorted(rows[1:], key=lambda row: row["bytes"])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ranks.json").write_text(json.dumps(rows, indent=2) + "\n")
    (args.out / "ranks.md").write_text(table(rows) + "\n")
    print(table(rows))
    try:
        plot(rows, args.out / "ranks.png")
    except ModuleNotFoundError:
        print("rank: no plot without matplotlib")


if __name__ == "__main__":
    main()
