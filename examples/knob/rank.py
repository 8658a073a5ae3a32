"""What the rank of a knob costs and buys: its size and its quality, as a table and a plot.

A knob of full rank is cut to lower ranks (`save_knob(rank=r)`: the nearest kernels), or the same knob is trained at
several ranks, or both. All are measured with the knob at the upper end of its range: on noisy pictures, or on small
ones where the base enlarges. The sets should be of more than one kind of pictures.

for r in 1 2 4 8; do tunable-ops train CONFIG --set tuning.rank=$r --out runs/rank$r; done
tunable-ops train CONFIG --out runs/full
for run in runs/*; do tunable-ops knob $run/model.safetensors --half --out $run.safetensors; done
python examples/knob/rank.py ffdnet_color --knob rank4=runs/rank4.safetensors full=runs/full.safetensors \
    --cut 1 2 4 8 --sets kodak24/ photographs/ --crop 500 --lpips --out runs/ranks

It writes the cut knobs, ranks.json, ranks.md and, where matplotlib is installed, ranks.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunable_ops import LambdaSpec, LiveFold, losses, pretrained, save_knob
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Degradation, Downsample, Noise
from tunable_ops.train.evaluate import degraded_pictures
from tunable_ops.train.measure import Measure

_TOP = 50  # noise level, of 255, at the upper end of a parameter "sigma"
_NAMES = {"psnr": "PSNR dB", "lpips": "LPIPS"}


class Case(NamedTuple):
    """Degraded pictures (name, clean, input), and the level of their noise, of 255; None where there is none."""

    title: str
    sigma: float | None
    pictures: Sequence[tuple[str, Tensor, Tensor]]


def cases_of(scale: int, folders: Sequence[Path], sigmas: Sequence[float], crop: int, most: int | None) -> list[Case]:
    """Return every set with every noise level; where the base enlarges, every set made smaller."""
    cases = []
    for folder in folders:
        pictures = held_out(str(folder), crop)
        if most is not None and most < len(pictures):
            pictures = [pictures[(2 * k + 1) * len(pictures) // (2 * most)] for k in range(most)]
        if scale > 1:
            pictures = [
                (name, x[:, : x.shape[1] // scale * scale, : x.shape[2] // scale * scale]) for name, x in pictures
            ]
            smaller = Degradation(downsample=Downsample(factors=[scale], enlarge=False))
            cases.append(Case(folder.name, None, degraded_pictures(pictures, smaller, seed=0)))
            continue
        for sigma in sigmas:
            noise = Degradation(noise=Noise(sigma=(sigma, sigma)))
            cases.append(Case(f"{folder.name}, sigma {sigma:g}", sigma, degraded_pictures(pictures, noise, seed=0)))
    return cases


def cut(base: str, knob: Path, ranks: Sequence[int], out: Path) -> list[tuple[str, Path]]:
    """Write a knob at lower ranks, in half precision; return labels and files.

    Raises:
        ValueError: The knob has one of these ranks, or a lower one, already.
    """
    net, about = pretrained.load(base, [knob]), read_knob_metadata(knob)
    found = []
    for rank in ranks:
        file = out / f"{knob.stem}.cut{rank}.safetensors"
        own = {key: about[key] for key in ("architecture", "arguments", "notes", "licence")}
        save_knob(net, file, dtype=torch.float16, rank=rank, **own)
        found.append((f"full, cut to {rank}", file))
    return found


def lambda_at(spec: LambdaSpec, name: str, share: float, sigma: float | None) -> list[float]:
    """Return the defaults with `name` at a share of its range and "sigma", if there is one, at the level, of 255."""
    if name not in spec.names:
        raise ValueError(f"rank: --parameter must be one of {', '.join(spec.names)}; got {name!r}")
    low, high = spec.ranges[spec.names.index(name)]
    lam = dict(zip(spec.names, spec.defaults, strict=True)) | {name: low + share * (high - low)}
    if "sigma" in spec.names and sigma is not None:
        lam["sigma"] = sigma / _TOP * spec.ranges[spec.names.index("sigma")][1]
    return list(lam.values())


@torch.no_grad()
def score(
    base: str, knob: Path, name: str, share: float, cases: Sequence[Case], measure: Measure
) -> dict[str, dict[str, float]]:
    """Return the mean of every measure, by title of the case, with a knob at a share of its range."""
    net = pretrained.load(base, [knob])
    live = LiveFold(net)
    live.network.to(memory_format=torch.channels_last)
    found = {}
    for title, sigma, pictures in cases:
        live.set(lambda_at(net.spec, name, share, sigma))
        run: Callable[[Tensor], Tensor] = live
        if sigma is not None and "sigma" not in net.spec.names:  # the base takes it, as the share of white
            run = lambda x, level=sigma / 255: live(x, level)  # noqa: E731
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
    """Draw every measure over the size of the file; a dashed line is the base, with the knob at 0."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base, *knobs = rows
    keys = list(next(iter(base["scores"].values())))
    figure, axes = pyplot.subplots(1, len(keys), figsize=(5 * len(keys), 3.5), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        for index, title in enumerate(base["scores"]):
            colour = f"C{index}"
            for marker, is_cut in (("o-", False), ("s:", True)):
                chosen = [row for row in knobs if row["cut"] is is_cut]
                if is_cut and chosen:
                    chosen.append(knobs[-1])  # the largest: what was cut
                points = [(row["bytes"] / 1000, row["scores"][title][key]) for row in chosen]
                if points:
                    label = f"{title}, {'cut' if is_cut else 'trained'}"
                    axis.plot(*zip(*points, strict=True), marker, color=colour, label=label)
            axis.axhline(base["scores"][title][key], color=colour, linestyle="--", linewidth=1)
        for row in knobs:
            axis.annotate(row["rank"].split()[-1], (row["bytes"] / 1000, next(iter(row["scores"].values()))[key]))
        axis.set(xscale="log", xlabel="knob file, KB", ylabel=_NAMES[key])
        sizes = [round(row["bytes"] / 1000) for row in knobs]
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def labelled(text: str) -> tuple[str, Path]:
    """Read LABEL=FILE, or FILE, whose label is its rank."""
    label, equals, file = text.rpartition("=")
    if equals:
        return label, Path(file)
    rank = read_knob_metadata(file)["conversion"].get("rank")
    return ("full" if rank is None else str(rank)), Path(file)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, measure every knob and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="name of a base that ships, or weights or checkpoint of another")
    parser.add_argument(
        "--knob", nargs="+", required=True, metavar="[LABEL=]FILE", help="knob files, one for each rank"
    )
    parser.add_argument("--cut", type=int, nargs="+", default=[], help="cut the last knob of full rank to these ranks")
    parser.add_argument("--parameter", default="texture", help="the knob (default: texture)")
    parser.add_argument("--sets", nargs="+", type=Path, required=True, help="folders of clean pictures")
    parser.add_argument("--sigma", nargs="+", type=float, default=[25.0, 50.0], help="noise, of 255 (default: 25 50)")
    parser.add_argument("--crop", type=int, default=0, help="use the central square of this side (default: all)")
    parser.add_argument("--most", type=int, help="use at most this many pictures of each set, evenly spread")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (AlexNet); needs its published weights")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    knobs = [(*labelled(text), False) for text in args.knob]
    if args.cut:
        full = [file for _, file, _ in knobs if read_knob_metadata(file)["conversion"].get("rank") is None]
        if not full:
            raise ValueError(f"rank: --cut must come with a knob of full rank; got {', '.join(args.knob)}")
        knobs += [(*each, True) for each in cut(args.base, full[-1], args.cut, args.out)]
    scale = getattr(pretrained.load(args.base, [knobs[0][1]]).network, "scale", 1)
    cases = cases_of(scale, args.sets, args.sigma, args.crop, args.most)
    measure = Measure(ssim=False, rounded=True, lpips=losses.LPIPS("alex") if args.lpips else None)
    rows: list[dict[str, Any]] = [
        {"rank": "base", "bytes": 0, "scores": score(args.base, knobs[0][1], args.parameter, 0.0, cases, measure)}
    ]
    for label, file, is_cut in knobs:
        scores = score(args.base, file, args.parameter, 1.0, cases, measure)
        rows.append({"rank": label, "file": file.name, "cut": is_cut, "bytes": file.stat().st_size, "scores": scores})
        rows[1:] = sorted(rows[1:], key=lambda row: row["bytes"])
        (args.out / "ranks.json").write_text(json.dumps(rows, indent=2) + "\n")
        print(f"{file.name} done", flush=True)
    sizes = ", ".join(f"{case.title}: {len(case.pictures)}" for case in cases)
    crop = f"the middle {args.crop}x{args.crop}" if args.crop else "whole"
    text = f"{table(rows)}\n\n{args.parameter} at its upper end, 0 for the base. Pictures: {sizes}; {crop}."
    (args.out / "ranks.md").write_text(text + "\n")
    print(text)
    try:
        plot(rows, args.out / "ranks.png")
    except ModuleNotFoundError:
        print("rank: no plot without matplotlib")


if __name__ == "__main__":
    main()
