"""Measure the networks that ship over their knobs: PSNR, LPIPS (AlexNet) and DISTS, as JSON and as tables.

Outputs are rounded to 8 bits; noise has a fixed seed per picture; small pictures are made by this package's bicubic
filter with anti-aliasing, in 8 bits. At 0 every knob is compared with the published network, bit for bit. A set is
called like its folder; --others is a folder of another kind of pictures, of which the middle is taken. Set 5 with its
usual small pictures (LRx2, LRx4) is measured on the luma; set 12 is grey. With --docs the tables replace those between
`<!-- NAME -->` and `<!-- /NAME -->`.

python examples/pretrained/measure.py --sets kodak24/ set14/ cbsd68/ --others photographs/ --set5 set5/ --set12 set12/ \
    --out runs/measured --docs docs/pretrained.md
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import TunableModel, losses, pretrained
from tunable_ops.images import read_image
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Degradation, Noise, bicubic_downsample
from tunable_ops.train.evaluate import degraded_pictures, grey_as_grey, restore
from tunable_ops.train.measure import Measure, in_colour

Pictures = list[tuple[str, Tensor]]
Triples = list[tuple[str, Tensor, Tensor]]
OTHERS = "other photographs"
SIGMAS = (5, 15, 25, 50)
NINE = tuple(k / 8 for k in range(9))  # positions that must be in order
FIVE = NINE[::2]  # positions of the tables
SLACK = {"psnr": 0.02, "lpips": 0.002}  # the wrong way, from one position to the next


class Case(NamedTuple):
    """A set of degraded pictures.

    Args:
        label: What the row is called.
        triples: (name, clean, degraded).
        fixed: Lambda apart from the knob that moves.
        positions: Of that knob.
        luma: PSNR of the luma, without a border as wide as the enlargement.
    """

    label: str
    triples: Triples
    fixed: dict[str, float]
    positions: Sequence[float] = FIVE
    luma: bool = False


class Judge:
    """PSNR, LPIPS and DISTS of a picture; where they are not wanted (`luma`), PSNR alone.

    Args:
        scale: Enlargement.
        perceptual: Measure LPIPS and DISTS, whose weights must be at hand.
    """

    def __init__(self, scale: int, perceptual: bool = True) -> None:
        self.lpips: nn.Module | None = losses.LPIPS("alex") if perceptual else None
        self.dists: nn.Module | None = losses.DISTS() if perceptual else None
        self.plain = Measure(ssim=False, rounded=True, lpips=self.lpips)
        self.luma = Measure(ssim=False, y=True, border=scale, rounded=True)

    @torch.no_grad()
    def __call__(self, output: Tensor, clean: Tensor, luma: bool, dists: bool) -> dict[str, float]:
        """Judge one output."""
        found = (self.luma if luma else self.plain)(output, clean)
        values = {"psnr": found.psnr} if found.lpips is None else {"psnr": found.psnr, "lpips": found.lpips}
        if dists and not luma and self.dists is not None:
            shown = (output.clamp(0, 1) * 255).round() / 255
            values["dists"] = float(self.dists(*(in_colour(x.unsqueeze(0)) for x in (shown, clean))))
        return values


def pictures_of(folder: Path, count: int | None, crop: int = 0) -> Pictures:
    """Return evenly chosen pictures of a folder, grey ones as one channel."""
    found = held_out(str(folder), crop)
    stride = 1 if count is None else max(1, len(found) // count)
    return grey_as_grey(found[::stride][:count])


def shrunk(pictures: Pictures, scale: int) -> Triples:
    """Return (name, clean, small in 8 bits), clean ones cut to a multiple of the enlargement."""
    triples = []
    for name, clean in pictures:
        height, width = (side - side % scale for side in clean.shape[-2:])
        clean = clean[:, :height, :width]
        small = bicubic_downsample(clean.unsqueeze(0), scale)[0].clamp(0, 1)
        triples.append((name, clean, (small * 255).round() / 255))
    return triples


def given(folder: Path, scale: int) -> Triples:
    """Return (name, clean, small) of Set 5 with its own small pictures."""
    triples = []
    for name, clean in held_out(str(folder)):
        small = read_image(folder / f"LRx{scale}" / f"{name}x{scale}.png")
        height, width = (scale * side for side in small.shape[-2:])
        triples.append((name, clean[:, :height, :width], small))
    return triples


def denoise_cases(sets: dict[str, Pictures], args: argparse.Namespace) -> list[Case]:
    """Noise of several strengths on every set; nine positions of the knob at sigma 25."""
    cases = []
    for sigma in args.sigmas:
        config = Degradation(noise=Noise(sigma=(sigma, sigma)))
        for label, pictures in sets.items():
            positions = NINE if sigma == 25 else FIVE
            triples = degraded_pictures(pictures, config, seed=0)
            cases.append(Case(f"{label}, sigma {sigma}", triples, {"sigma": float(sigma)}, positions))
        if args.set12 is not None and sigma > 5:
            triples = degraded_pictures(pictures_of(args.set12, args.count), config, seed=0)
            cases.append(Case(f"set12 (grey), sigma {sigma}", triples, {"sigma": float(sigma)}, FIVE))
    return cases


def enlarging_cases(sets: dict[str, Pictures], args: argparse.Namespace, scale: int) -> list[Case]:
    """Small pictures of every set, and those of Set 5."""
    cases = [Case(label, shrunk(pictures, scale), {}, NINE) for label, pictures in sets.items() if label != "cbsd68"]
    if args.set5 is not None:
        cases.append(Case("set5, luma", given(args.set5, scale), {}, FIVE, luma=True))
    return cases


def equals_base(name: str, net: TunableModel, knob: str | None, case: Case) -> bool:
    """Return True if the network with its knob at 0 gives what the published one gives, bit for bit."""
    base = pretrained.load_base(name)
    clean = case.triples[0][2]
    x = in_colour(clean.unsqueeze(0)).contiguous()
    with torch.no_grad():
        level = {"sigma": case.fixed["sigma"] / 255} if "sigma" in case.fixed else {}
        return torch.equal(net(x, {**case.fixed, **({} if knob is None else {knob: 0.0})}), base(x, **level))


def run(name: str, cases: list[Case], perceptual: bool) -> dict[str, Any]:
    """Measure a network; return the means of each case by position, and what has been checked."""
    net = pretrained.load(name)
    knob = next((each for each in net.spec.names if each not in cases[0].fixed), None)
    scale = getattr(net.network, "scale", 1)
    judge = Judge(scale, perceptual)
    found: dict[str, Any] = {"knob": knob, "at_zero_equals_base": True, "cases": {}}
    for case in cases:
        if not equals_base(name, net, knob, case):
            raise RuntimeError(
                f"measure: {name} at {knob or 'any lambda'} 0 must be its base bit for bit; got another on {case.label}"
            )
        rows: dict[str, Any] = {}
        for label, method, dists in _methods(net, knob, case, scale):
            scores = [judge(method(x), clean, case.luma, dists) for _, clean, x in case.triples]
            rows[label] = {kind: round(fmean(score[kind] for score in scores), 5) for kind in scores[0]}
        found["cases"][case.label] = {"pictures": len(case.triples), "positions": rows}
        print(f"{name}, {case.label} done", flush=True)
    found["order"] = order(found["cases"])
    return found


def _methods(
    net: TunableModel, knob: str | None, case: Case, scale: int
) -> list[tuple[str, Callable[[Tensor], Tensor], bool]]:
    """List (label, picture -> picture, measure DISTS too): without the network, then at every position of a knob."""

    def without(x: Tensor) -> Tensor:
        return x if scale == 1 else F.interpolate(x.unsqueeze(0), scale_factor=scale, mode="bicubic")[0]

    methods: list[tuple[str, Callable[[Tensor], Tensor], bool]] = [("input", without, True)]
    if knob is None:
        lam = net.spec.fill(case.fixed)
        return [*methods, ("output", lambda x: restore(net, x, lam), True)]
    for position in case.positions:
        lam = net.spec.fill({**case.fixed, knob: position})
        methods.append((f"{position:g}", lambda x, lam=lam: restore(net, x, lam), position in FIVE))
    return methods


def order(cases: dict[str, Any]) -> dict[str, Any]:
    """Return, for PSNR and LPIPS, the largest step the wrong way (up) between neighbouring positions, and where.

    Both should fall along the knob.
    """
    worst: dict[str, Any] = {}
    for label, case in cases.items():
        rows = [row for position, row in case["positions"].items() if position != "input"]
        if len(rows) < len(NINE):
            continue
        for kind in SLACK:
            values = [row[kind] for row in rows if kind in row]
            step = max((b - a for a, b in itertools.pairwise(values)), default=None)
            if step is not None and step > worst.get(kind, {"step": float("-inf")})["step"]:
                worst[kind] = {"step": round(step, 5), "case": label, "passed": step <= SLACK[kind]}
    return worst


def table(name: str, found: dict[str, Any]) -> str:
    """Return the means as a Markdown table, and a line about the order of the positions."""
    without = "bicubic" if name.startswith("super") else "noisy"
    columns = ["output"] if found["knob"] is None else [f"{position:g}" for position in FIVE]
    heads = [without, *(f"{found['knob']} {column}" if found["knob"] else name for column in columns)]
    lines = [f"| PSNR dB, LPIPS, DISTS | pictures | {' | '.join(heads)} |", "|" + " --- |" * (len(heads) + 2)]
    for label, case in found["cases"].items():
        rows = case["positions"]
        cells = [_cell(rows[key]) for key in ("input", *columns)]
        lines.append(f"| {label} | {case['pictures']} | {' | '.join(cells)} |")
    said = []
    for kind, unit in (("psnr", " dB"), ("lpips", "")):
        if kind in found["order"]:
            worst = found["order"][kind]
            verdict = "falls" if worst["passed"] else "**does not fall throughout**"
            said.append(f"{kind.upper()} {verdict} (largest step upwards {worst['step']:+.4f}{unit}, {worst['case']})")
    order_line = f"\n\nOver nine positions of `{found['knob']}`: {'; '.join(said)}." if said else ""
    return "\n".join(lines) + order_line


def _cell(row: dict[str, float]) -> str:
    return ", ".join(f"{value:.{2 if kind == 'psnr' else 3}f}" for kind, value in row.items())


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of a network in a document.

    Raises:
        ValueError: The document has no such marks.
    """
    whole = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if whole.count(start) != 1 or whole.count(end) != 1:
        raise ValueError(f"measure: --docs must have the marks {start} and {end} once; got {str(path)!r}")
    before, after = whole.split(start)[0], whole.split(end)[1]
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, measure every network and write the files."""
    shipped = [name for name, network in pretrained.NETWORKS.items() if network.base is not None]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=shipped, default=shipped)
    parser.add_argument("--sets", nargs="+", type=Path, default=[], help="folders of clean pictures")
    parser.add_argument("--others", type=Path, help="folder of photographs of another kind")
    parser.add_argument("--others-count", type=int, default=8, help="how many of them (default: 8)")
    parser.add_argument("--others-crop", type=int, default=512, help="side of their middle part (default: 512)")
    parser.add_argument("--set5", type=Path, help="folder of Set 5 with LRx2 and LRx4, for the luma")
    parser.add_argument("--set12", type=Path, help="folder of grey pictures, for the denoiser")
    parser.add_argument("--sigmas", nargs="+", type=int, default=SIGMAS, help="noise levels of the denoiser, of 255")
    parser.add_argument("--count", type=int, help="take this many pictures of each set, evenly chosen")
    parser.add_argument("--crop", type=int, default=0, help="take the middle of this side (default: whole pictures)")
    parser.add_argument("--no-perceptual", action="store_true", help="PSNR alone: needs no weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.json and NAME.md")
    parser.add_argument("--docs", type=Path, help="document whose tables are replaced")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.others is None and not args.sets:
        raise ValueError("measure: --sets or --others must name pictures; got neither")
    sets = {folder.name: pictures_of(folder, args.count, args.crop) for folder in args.sets}
    if args.others is not None:
        sets[OTHERS] = pictures_of(args.others, args.others_count, args.others_crop)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.networks:
        scale = getattr(pretrained.load_base(name), "scale", 1)
        cases = denoise_cases(sets, args) if scale == 1 else enlarging_cases(sets, args, scale)
        found = run(name, cases, not args.no_perceptual)
        text = table(name, found)
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        (args.out / f"{name}.md").write_text(text + "\n")
        if args.docs is not None:
            insert(args.docs, name, text)
        print(f"\n{name}\n\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
