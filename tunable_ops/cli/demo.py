"""`tunable-ops demo`: train a small tunable denoiser on photographs, show its slider and check it."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS

if TYPE_CHECKING:
    from tunable_ops.modules import TunableModel
    from tunable_ops.train import Config
    from tunable_ops.train.evaluate import Score

__all__ = ["add_parser", "run"]

SLIDER = [k / 8 for k in range(9)]
"""Weights of denoising on the curve; the strip shows every second one."""
STRIP = 256  # pixels: side of the central part shown in a strip; scores are those of whole pictures
GAIN = 5.0  # dB that full denoising must gain over the noisy input
PLAIN = 0.3  # dB by which full denoising may differ from a plain network trained on that objective alone
_MARKER = "demo.txt"
_WRITTEN = (_MARKER, "config.json", "log.jsonl", "metrics.json", "model.safetensors", "psnr.png", "state.safetensors")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "demo",
        help=COMMANDS["demo"],
        description="Train a small tunable denoiser on the photographs of scikit-image, with two objectives: "
        "the clean picture and the noisy one. Writes model.safetensors, a strip for each photograph that was not used "
        "for training, the curve psnr.png and metrics.json, and checks that PSNR rises along the slider. Replaces an "
        "earlier demo in the same folder.",
        epilog="Exit code: 0 trained and checks passed; 1 a check failed; 128 + n stopped by signal n; 2 wrong input.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="output folder (default: runs/demo)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: as in the config demo)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the config demo; can be repeated",
    )
    parser.add_argument(
        "--compare-plain",
        action="store_true",
        help="also train a plain network of the same size on the clean objective only, for as many steps, and check "
        f"that full denoising is within {PLAIN} dB of it",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, draw and check; return 0 if all checks pass."""
    import torch

    from tunable_ops.cli.device import set_threads
    from tunable_ops.serialization import load
    from tunable_ops.train import MODEL, Config, load_config, train
    from tunable_ops.train.data import held_out
    from tunable_ops.train.evaluate import degraded_pictures, evaluate

    started = time.perf_counter()
    set_threads(args.threads)
    overrides = [*args.set, *([] if args.steps is None else [f"optim.steps={args.steps}"])]
    config = load_config("demo", overrides)
    if (
        not isinstance(config, Config)
        or config.tuning.kind == "none"
        or len(config.objectives) != 2
        or config.tuning.domain != "simplex"
    ):
        raise ValueError("demo: the config must keep a tunable network with two objectives on the simplex")
    _clear(args.out)
    progress = not args.quiet
    print(
        f"demo: training a tunable {config.model.name}, {config.optim.steps} steps, {torch.get_num_threads()} threads"
    )
    outcome = train(config, args.out, progress=progress)
    if not outcome.finished:
        print(f"demo: stopped at step {outcome.step} of {config.optim.steps}; nothing was evaluated")
        return 128 + (outcome.signal or 0)
    net = load(args.out / MODEL)  # from disk, to show what was written
    pictures = degraded_pictures(
        held_out("skimage"), config.validation.degradation or config.degradation, config.seed + 1
    )
    evaluated = time.perf_counter()
    found = evaluate(net, pictures, [(w, 1 - w) for w in SLIDER], progress=progress)
    metrics = _metrics(config, net, found)
    metrics["seconds"] = {"training": outcome.seconds, "evaluation": time.perf_counter() - evaluated}
    if args.compare_plain:
        plain = _train_plain(config, overrides, args.out / "plain", pictures, progress)
        if plain is None:
            return 130
        metrics["plain"] = plain
        metrics["checks"]["within_of_plain"] = abs(plain["psnr"] - metrics["psnr"]["mean"][-1]) <= PLAIN
    _draw_strips(args.out, net, pictures, found, [(w, 1 - w) for w in SLIDER[::2]])
    metrics["pretrained"] = _show_pretrained(args.out, pictures, progress)
    _draw_curve(args.out / "psnr.png", metrics)
    metrics["seconds"]["all"] = time.perf_counter() - started
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return _report(args.out, metrics)


def _clear(out: Path) -> None:
    """Remove the files of an earlier demo, so that none can be mistaken for new ones; keep all other files."""
    old = [out / name for name in _WRITTEN if (out / name).exists()] + sorted(out.glob("strip_*.png"))
    if (old or any((out / name).exists() for name in ("logs", "plain"))) and not (out / _MARKER).exists():
        raise ValueError(f"--out must be a new folder or that of an earlier demo; got {out} with other files")
    if old:
        print(f"demo: replacing the earlier demo in {out}")
    for file in old:
        file.unlink()
    for folder in (out / "logs", out / "plain"):
        if folder.is_dir():
            shutil.rmtree(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).write_text("Written by `tunable-ops demo`, which clears this folder when it runs again.\n")


def _metrics(config: Config, net: TunableModel, found: Sequence[Score]) -> dict[str, Any]:
    """Return the scores per picture and their means, and the results of the checks."""
    import torch

    names = list(dict.fromkeys(score.picture for score in found))
    by_place = {(score.picture, score.lam): score for score in found}
    lams = [(w, 1 - w) for w in SLIDER]
    psnr = {name: [by_place[name, lam].psnr for lam in lams] for name in names}
    ssim = {name: [by_place[name, lam].ssim for lam in lams] for name in names}
    noisy = {name: by_place[name, None].psnr for name in names}
    for table in (psnr, ssim):
        table["mean"] = [sum(values) / len(values) for values in zip(*table.values(), strict=True)]
    noisy["mean"] = sum(noisy.values()) / len(noisy)
    gain = psnr["mean"][-1] - noisy["mean"]
    return {
        "slider": SLIDER,
        "lambda_names": list(net.spec.names),
        "psnr_noisy": noisy,
        "psnr": psnr,
        "ssim": ssim,
        "gain": gain,
        "checks": {
            "rises": all(a < b for values in psnr.values() for a, b in itertools.pairwise(values)),
            "gain_at_least_5_db": gain >= GAIN,
        },
        "steps": config.optim.steps,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
    }


def _train_plain(
    config: Config, overrides: Sequence[str], out: Path, pictures: Sequence[Any], progress: bool
) -> dict[str, Any] | None:
    """Train and score the plain network on the clean objective only; return None if it was stopped."""
    from tunable_ops.train import load_config, train
    from tunable_ops.train.evaluate import evaluate, mean_psnr
    from tunable_ops.train.measure import Measure

    print(f"demo: training the plain {config.model.name} for {config.optim.steps} steps")
    plain = load_config("demo", [*overrides, "tuning.kind=none", "tuning.lam=[1, 0]"])
    outcome = train(plain, out, progress=progress)
    if not outcome.finished:
        print(f"demo: stopped at step {outcome.step} of {config.optim.steps} of the plain network")
        return None
    found = evaluate(outcome.net, pictures, [(1.0, 0.0)], measure=Measure(ssim=False), progress=progress)
    return {
        "psnr": mean_psnr(found, (1.0, 0.0)),
        "per_picture": {score.picture: score.psnr for score in found if score.lam is not None},
        "parameters": sum(parameter.numel() for parameter in outcome.net.parameters()),
        "seconds": outcome.seconds,
    }


def _show_pretrained(out: Path, pictures: Sequence[Any], progress: bool) -> dict[str, Any]:
    """Run the shipped denoiser on the same pictures: draw a strip for each, return its PSNR at each level."""
    from tunable_ops import pretrained
    from tunable_ops.train.evaluate import evaluate, mean_psnr
    from tunable_ops.train.measure import Measure

    net = pretrained.load("denoise")
    high = net.spec.ranges[net.spec.names.index("sigma")][1]
    lams = [net.spec.fill({"sigma": level * high}) for level in SLIDER[::2]]
    found = evaluate(net, pictures, lams, measure=Measure(ssim=False), progress=progress)
    _draw_strips(out, net, pictures, found, lams, "_pretrained")
    return {"model": "denoise", "psnr": {f"{lam[0]:g}": mean_psnr(found, lam) for lam in lams}}


def _draw_strips(
    out: Path,
    net: TunableModel,
    pictures: Sequence[Any],
    found: Sequence[Score],
    lams: Sequence[tuple[float, ...]],
    suffix: str = "",
) -> None:
    """Draw a labelled strip for each picture: noisy, at positions of the slider, clean."""
    from tunable_ops.images import strip, write_image
    from tunable_ops.train.evaluate import restore

    scores = {(score.picture, score.lam): score.psnr for score in found}
    unit = f" {net.spec.units[0]}" if net.spec.units[0] else ""
    for name, clean, noisy in pictures:
        parts = [noisy, *(restore(net, noisy, lam) for lam in lams), clean]
        labels = [f"noisy\n{scores[name, None]:.1f} dB"]
        labels += [f"{net.spec.names[0]} {lam[0]:g}{unit}\n{scores[name, lam]:.1f} dB" for lam in lams]
        top, left = ((size - min(size, STRIP)) // 2 for size in clean.shape[-2:])
        crops = [part[:, top : top + STRIP, left : left + STRIP] for part in parts]
        write_image(strip(crops, [*labels, "clean\n "]), out / f"strip_{name}{suffix}.png")


def _draw_curve(path: Path, metrics: dict[str, Any]) -> None:
    """Draw PSNR over the weight of denoising, for each picture and for the mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in metrics["psnr"].items():
        style: dict[str, Any] = {"color": "black", "linewidth": 2.5} if name == "mean" else {"linewidth": 1.2}
        axes.plot(metrics["slider"], values, marker="o", markersize=4, label=name, **style)
    axes.axhline(metrics["psnr_noisy"]["mean"], color="grey", linestyle=":", label="noisy input, mean")
    if "plain" in metrics:
        axes.plot([1], [metrics["plain"]["psnr"]], marker="*", markersize=13, color="tab:red", linestyle="none")
        axes.annotate(
            "plain network", (1, metrics["plain"]["psnr"]), xytext=(-8, 8), textcoords="offset points", ha="right"
        )
    axes.set_xlabel(f"weight of {metrics['lambda_names'][0]!r} (the other one is 1 minus it)")
    axes.set_ylabel("PSNR in dB, sigma 25")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path)


def _report(out: Path, metrics: dict[str, Any]) -> int:
    mean = metrics["psnr"]["mean"]
    print(f"demo: mean PSNR over {len(metrics['psnr']) - 1} photographs, noisy {metrics['psnr_noisy']['mean']:.2f} dB")
    for weight, value in zip(metrics["slider"], mean, strict=True):
        print(f"  {metrics['lambda_names'][0]} {weight:5.3f}  {value:6.2f} dB")
    if "plain" in metrics:
        print(f"  plain network  {metrics['plain']['psnr']:6.2f} dB")
    shipped = metrics["pretrained"]
    level, value = max(shipped["psnr"].items(), key=lambda item: item[1])
    print(f"  the shipped network {shipped['model']!r} at its best position {level}: {value:.2f} dB")
    seconds = metrics["seconds"]
    print(
        f"demo: {seconds['all']:.0f} s: training {seconds['training']:.0f} s, evaluation {seconds['evaluation']:.0f} s"
    )
    print(f"demo: wrote {out}/: model.safetensors, strip_*.png, psnr.png, metrics.json")
    names = {
        "rises": "PSNR must rise along the slider on every photograph",
        "gain_at_least_5_db": f"full denoising must gain {GAIN:g} dB; got {metrics['gain']:.2f} dB",
        "within_of_plain": f"full denoising must be within {PLAIN:g} dB of the plain network",
    }
    failed = [name for name, passed in metrics["checks"].items() if not passed]
    for name in failed:
        print(f"demo: check failed: {names[name]}")
    return 1 if failed else 0
