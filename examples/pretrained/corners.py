"""Compare `denoise_deblur` at deblur 1 with networks of its size that were trained for that corner alone.

Prints a table of the PSNR to the corner's target, blur by blur and noise by noise; without blur, the table says what a
network loses that must expect one. The networks are trained with corner.toml, which says how.

python examples/pretrained/corners.py --clean runs/corner/clean/model.safetensors \
    --noisy runs/corner/noisy/model.safetensors --sets kodak24/ cbsd68/ --others photographs/
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from cases import Set, damaged, pictures_of
from judge import Judge
from start import ARGUMENTS
from torch import nn

from tunable_ops import TunableModel, models, pretrained, serialization
from tunable_ops.train.evaluate import restore

NAME = "denoise_deblur"
CORNERS = {"clean": (0.0, 1.0), "noisy": (1.0, 1.0)}  # keep, deblur
BLURS, SIGMAS = (0.0, 1.0, 2.0), (0.0, 25.0)


def input_back() -> nn.Module:
    """Return FFDNet whose output is its input: where the corner with all of the noise begins."""
    net = models.build("ffdnet", **ARGUMENTS)
    file = pretrained.weights_file("ffdnet_color")
    serialization.fill(file, net, serialization.read_weights(file)[0])
    last, skip = net.get_submodule("model")[-1], net.get_submodule("skip")
    with torch.no_grad():
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.dirac_(skip.weight)
    return net


def rows(net: TunableModel, alone: dict[str, TunableModel], sets: Sequence[Set]) -> Iterator[str]:
    """Give the lines of the table as they are measured."""
    judge = Judge(("psnr",))
    columns = ("deblur 0", "deblur 1", "alone", "difference")
    names = [f"keep {CORNERS[kind][0]:g}: {column}" for kind in alone for column in columns]
    yield f"| PSNR dB | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for each, blur, sigma in itertools.product(sets, BLURS, SIGMAS):
        damage, cells = damaged(blur, sigma), []
        for kind, other in alone.items():
            keep, deblur = CORNERS[kind]
            lam = {"sigma": sigma, "keep": keep}
            calls = [(net, {**lam, "deblur": 0.0}), (net, {**lam, "deblur": deblur}), (other, {"sigma": sigma})]
            found: list[list[float]] = [[] for _ in calls]
            for picture in each.pictures:
                sample = damage(picture)
                target = sample.target(keep, deblur)
                for values, (model, position) in zip(found, calls, strict=True):
                    values.append(judge.psnr(restore(model, sample.input, model.spec.fill(position)), target))
            without, ours, theirs = (math.fsum(values) / len(values) for values in found)
            cells += [f"{without:.2f}", f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}"]
        yield f"| {each.label}, blur {blur:g}, sigma {sigma:g} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-start", type=Path, help="write what the noisy corner starts from, and stop")
    parser.add_argument("--clean", type=Path, help="network for keep 0, deblur 1 alone")
    parser.add_argument("--noisy", type=Path, help="network for keep 1, deblur 1 alone")
    parser.add_argument("--network", default=NAME, help="whole network in the place of the one that ships")
    parser.add_argument("--sets", type=Path, nargs="+", default=[], help="folders of pictures")
    parser.add_argument("--others", type=Path, help="a folder of another kind of pictures")
    parser.add_argument("--most", type=int, default=4, help="pictures of each set (default: 4)")
    parser.add_argument("--crop", type=int, default=320, help="side of the middle part (default: 320)")
    args = parser.parse_args(argv)
    if args.write_start is not None:
        serialization.save(input_back(), args.write_start, architecture="ffdnet", arguments=ARGUMENTS)
        return
    files = {kind: file for kind in CORNERS if (file := getattr(args, kind)) is not None}
    if not files or not (args.sets or args.others):
        parser.error("corners: --clean or --noisy, and --sets or --others, must be given")
    sets = [Set(folder.name, pictures_of(folder, args.most, args.crop), args.crop) for folder in args.sets]
    if args.others is not None:
        sets.append(Set("other photographs", pictures_of(args.others, args.most, args.crop), args.crop))
    net = pretrained.load(args.network)
    for line in rows(net, {kind: serialization.load(file) for kind, file in files.items()}, sets):
        print(line, flush=True)


if __name__ == "__main__":
    main()
