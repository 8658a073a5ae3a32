"""Measure the networks that ship over their knobs: PSNR, LPIPS (AlexNet), DISTS and NIQE, as JSON and as tables.

Outputs are rounded to 8 bits; noise has a fixed seed per picture, that of `tunable-ops eval`; small pictures are made
by this package's bicubic filter with anti-aliasing, in 8 bits. With all knobs at 0 every network is compared with the
published one, bit for bit. Sets are measured whole and called like their folders; --others is a folder of another kind
of pictures, of which the middle is taken. Set 5 with its usual small pictures (LRx2, LRx4) is measured on the luma; set
12 is grey. NIQE needs its authors' model (niqe.py).

A network with `keep` and `deblur` is measured on a grid of the two, each position against its own target: the blurred
picture without its noise at (0, 0), the input at (1, 0), the sharp picture at (0, 1), and this with the input's noise
at (1, 1).

Scores are written after every picture; the same command goes on where it was stopped. With --docs the tables replace
those between `<!-- NAME -->` and `<!-- /NAME -->`.

python examples/pretrained/measure.py --sets kodak24/ set14/ cbsd68/ --others photographs/ --set5 set5/ --set12 set12/ \
    --out runs/measured --docs docs/pretrained.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import CORNERS, Case, Picture, Set, cases_of, corner_kind, moving, pictures_of
from judge import KINDS, Judge
from report import insert, means, order, table
from torch import Tensor

from tunable_ops import TunableModel, pretrained
from tunable_ops.train.evaluate import restore
from tunable_ops.train.measure import in_colour

OTHERS = "other photographs"
SIGMAS = (5, 15, 25, 50)


def check_base(name: str, net: TunableModel, case: Case) -> None:
    """Check that the network with its knobs at 0 gives what the published one gives, bit for bit, on a picture.

    Raises:
        RuntimeError: It does not.
    """
    base = pretrained.load_base(name)
    x = in_colour(case.damage(case.pictures[0]).input.unsqueeze(0)).contiguous()
    level = {"sigma": case.fixed["sigma"] / 255} if "sigma" in case.fixed else {}
    with torch.no_grad():
        equal = torch.equal(net(x, {**case.fixed, **dict.fromkeys(moving(net.spec), 0.0)}), base(x, **level))
    if not equal:
        knobs = ", ".join(moving(net.spec)) or "any lambda"
        raise RuntimeError(f"measure: {name} with {knobs} at 0 must be its base bit for bit; got another, {case.label}")


def scores_of(net: TunableModel, case: Case, picture: Picture, judge: Judge) -> dict[str, dict[str, float]]:
    """Measure a picture: the clean one (NIQE alone), the input (enlarged by a bicubic filter), and every position."""
    sample = case.damage(picture)

    def score(output: Tensor, target: Tensor, full: bool) -> dict[str, float]:
        values = judge(output, target, full=full, luma=case.luma)
        if case.corners:
            targets = {corner_kind(k): sample.target(*corner) for k, corner in enumerate(CORNERS)}
            values |= {kind: judge.psnr(output, each) for kind, each in targets.items()}
        return {kind: round(value, 5) for kind, value in values.items()}

    shown = sample.input
    if shown.shape != sample.clean.shape:
        shown = F.interpolate(shown.unsqueeze(0), size=sample.clean.shape[-2:], mode="bicubic")[0]
    natural = {} if case.luma else judge.natural(sample.clean)
    found = {"clean": natural, "input": score(shown, sample.clean, True)}
    for position in case.positions:
        output = restore(net, sample.input, net.spec.fill({**case.fixed, **position.lam}))
        found[position.label] = score(output, sample.target(position.keep, position.deblur), position.full)
    return found


class Record:
    """The scores of a network in a JSON file, which is written after every picture and read again.

    Args:
        file: The file.
        setting: What the scores depend on.

    Raises:
        ValueError: The file holds scores of another setting.
    """

    def __init__(self, file: Path, setting: dict[str, Any]) -> None:
        self.file = file
        self.found: dict[str, Any] = {"setting": setting, "cases": {}}
        if file.is_file():
            self.found = json.loads(file.read_text())
            if self.found.get("setting") != setting:
                raise ValueError(
                    f"measure: --out must be empty or hold scores of the same networks, crops and measures; got "
                    f"{self.found.get('setting')} in {str(file)!r}, now {setting}"
                )

    def pictures(self, case: Case) -> dict[str, Any]:
        """Return the scores of a case, by picture."""
        found: dict[str, Any] = self.found["cases"].setdefault(case.label, {})
        return found

    def write(self) -> None:
        """Replace the file."""
        temporary = self.file.with_suffix(".part")
        temporary.write_text(json.dumps(self.found, indent=1) + "\n")
        os.replace(temporary, self.file)


def run(name: str, net: TunableModel, cases: Sequence[Case], judge: Judge, record: Record) -> dict[str, Any]:
    """Measure a network; return the means of each case by position, and what is in order."""
    done, total, started = 0, sum(len(case.pictures) for case in cases), time.monotonic()
    found: dict[str, Any] = {}
    for case in cases:
        check_base(name, net, case)
        scores = record.pictures(case)
        labels = {"clean", "input", *(position.label for position in case.positions)}
        for picture in case.pictures:
            done += 1
            if labels <= set(scores.get(picture.name, ())):
                continue
            scores[picture.name] = scores_of(net, case, picture, judge)
            record.write()
            seconds = time.monotonic() - started
            print(f"{name}: {done}/{total}, {seconds:.0f} s: {case.label}, {picture.name}", flush=True)
        found[case.label] = means({picture.name: scores[picture.name] for picture in case.pictures})
    return {"at_zero_equals_base": True, "means": found, "order": order(cases, found)}


def setting_of(name: str, knobs: Sequence[Path], judge: Judge, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the scores of a network depend on: its files, the crops and the measures."""
    place = pretrained.find(name)
    files = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in (place.file, *place.knobs, *knobs)
    }
    return {"files": files, "crops": [args.crop, args.others_crop], "measures": list(judge.kinds)}


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    shipped = [name for name, network in pretrained.NETWORKS.items() if network.base is not None]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=[*shipped, *pretrained.BASES], default=shipped)
    parser.add_argument("--knob", nargs="+", type=Path, default=[], help="knob files to add to a single network")
    parser.add_argument("--sets", nargs="+", type=Path, default=[], help="folders of clean pictures")
    parser.add_argument("--others", type=Path, help="folder of photographs of another kind")
    parser.add_argument("--others-crop", type=int, default=512, help="side of their middle part (default: 512)")
    parser.add_argument("--set5", type=Path, help="folder of Set 5 with LRx2 and LRx4, for the luma")
    parser.add_argument("--set12", type=Path, help="folder of grey pictures, for the denoiser")
    parser.add_argument("--sigmas", nargs="+", type=float, default=SIGMAS, help="noise of the denoiser, of 255")
    parser.add_argument("--blurs", nargs="+", type=float, default=(0, 1, 2), help="of the deblurring network, pixels")
    parser.add_argument("--noises", nargs="+", type=float, default=(0, 15, 25), help="of the deblurring network")
    parser.add_argument("--most", type=int, help="take at most this many pictures of each folder, evenly spread")
    parser.add_argument("--crop", type=int, default=0, help="take the middle of this side (default: whole pictures)")
    parser.add_argument("--measures", nargs="+", choices=KINDS, default=KINDS, help="psnr alone needs no weights")
    parser.add_argument("--niqe-model", type=Path, help="file of NIQE's model (default: see niqe.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.json and NAME.md")
    parser.add_argument("--docs", type=Path, help="document whose tables are replaced")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, measure every network and write the files."""
    args = options().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.others is None and not args.sets:
        raise ValueError("measure: --sets or --others must name pictures; got neither")
    if args.knob and len(args.networks) != 1:
        raise ValueError(f"measure: --knob must come with a single network; got {', '.join(args.networks)}")
    sets = [Set(folder.name, pictures_of(folder, args.most, args.crop), args.crop) for folder in args.sets]
    if args.others is not None:
        sets.append(Set(OTHERS, pictures_of(args.others, args.most, args.others_crop), args.others_crop))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.networks:
        net = pretrained.load(name, args.knob)
        scale = getattr(net.network, "scale", 1)
        judge = Judge(args.measures, scale, args.niqe_model)
        cases = cases_of(net.spec, scale, sets, args)
        record = Record(args.out / f"{name}.json", setting_of(name, args.knob, judge, args))
        found = run(name, net, cases, judge, record)
        record.found |= found
        record.write()
        text = table(cases, found, judge.kinds)
        (args.out / f"{name}.md").write_text(text + "\n")
        if args.docs is not None:
            insert(args.docs, name, text)
        print(f"\n{name}\n\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
