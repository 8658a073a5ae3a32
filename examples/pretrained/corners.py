"""Compare `denoise_deblur` at deblur 1 with networks of its size that were trained for that corner alone.

Prints a table of the PSNR to the corner's target, blur by blur and noise by noise, and of the same where nothing is
blurred: what a network loses there that must expect a blur. The networks are trained with corner.toml, which says how.

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


def rows(alone: dict[str, TunableModel], sets: Sequence[Set]) -> Iterator[str]:
    """Give the lines of the table as they are measured."""
    judge, net = Judge(("psnr",)), pretrained.load(NAME)
    names = [f"{kind}: {column}" for kind in alone for column in ("all corners", "alone", "difference")]
    yield f"| PSNR dB | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for each, blur, sigma in itertools.product(sets, BLURS, SIGMAS):
        damage, cells = damaged(blur, sigma), []
        for kind, other in alone.items():
            keep, deblur = CORNERS[kind]
            both: tuple[list[float], list[float]] = ([], [])
            for picture in each.pictures:
                sample = damage(picture)
                target = sample.target(keep, deblur)
                lam = {"sigma": sigma, "keep": keep, "deblur": deblur}
                both[0].append(judge.psnr(restore(net, sample.input, net.spec.fill(lam)), target))
                both[1].append(judge.psnr(restore(other, sample.input, other.spec.fill({"sigma": sigma})), target))
            ours, theirs = (math.fsum(values) / len(values) for values in both)
            cells += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}"]
        yield f"| {each.label}, blur {blur:g}, sigma {sigma:g} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-start", type=Path, help="write where the training of the noisy corner begins, and stop")
    parser.add_argument("--clean", type=Path, help="network for keep 0, deblur 1 alone")
    parser.add_argument("--noisy", type=Path, help="network for keep 1, deblur 1 alone")
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
    for line in rows({kind: serialization.load(file) for kind, file in files.items()}, sets):
        print(line, flush=True)


if __name__ == "__main__":
    main()
