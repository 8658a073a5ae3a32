"""`tunable-ops eval-gradient`: compare the gradients of a perceptual gradient network with those of the loss itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS
from tunable_ops.cli.lam import HELP

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunable_ops.losses import Perceptual
    from tunable_ops.losses.pgn import PGN

__all__ = ["add_parser", "run"]

_CROP = {False: 128, True: 64}  # with and without a generator


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "eval-gradient",
        help=COMMANDS["eval-gradient"],
        description="Measure the angle and the ratio of norms between predicted and true gradients on changed "
        "pictures; with --generator the cosine between what they add up to in a generator's parameters. Needs the "
        "weights of the loss's own network.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model.safetensors (default: the one that ships)")
    parser.add_argument("--pictures", default="skimage", help='folder, or "skimage" for its photographs (default)')
    parser.add_argument(
        "--crop", type=int, help="side of the central part (default 128), or of the generator's crops (default 64)"
    )
    parser.add_argument("--count", type=int, default=8, help="how many pictures at most (default %(default)s)")
    parser.add_argument("--network", help="vgg16 or vgg19 (default: the one it was trained with)")
    parser.add_argument("--weights", help="of that network: a file or 'download' (default: looked for)")
    parser.add_argument(
        "--generator",
        metavar="NET",
        help='parameter cosine instead of angles, for a network that ships, a published base, a checkpoint, or "toys", '
        "the autoencoders of training after 200 steps by mean squares",
    )
    parser.add_argument("--lam", metavar="LAM", help=f"where a tunable generator is measured: {HELP}")
    parser.add_argument(
        "--crops", type=int, default=64, help="crops to sum over, reported at 1, 4, 16, ... (default %(default)s)"
    )
    parser.add_argument(
        "--correct-on",
        type=int,
        metavar="SIDE",
        help="measure predicted gradients that are corrected on crops of this side, too",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Print the table; return 0."""
    from tunable_ops.cli.device import set_threads
    from tunable_ops.losses import Perceptual
    from tunable_ops.losses.pgn import PGN
    from tunable_ops.train.data import held_out

    crop = _CROP[args.generator is not None] if args.crop is None else args.crop
    for name, value in (("crop", crop), ("count", args.count), ("crops", args.crops)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")
    for name, given in (("lam", args.lam), ("correct-on", args.correct_on)):
        if given is not None and args.generator is None:
            raise ValueError(f"--{name} must be left out without --generator; got {given!r}")
    if args.correct_on is not None and not 1 <= args.correct_on <= crop:
        raise ValueError(f"--correct-on must be from 1 to the crop's {crop}; got {args.correct_on}")
    set_threads(args.threads)
    generators = {} if args.generator is None else _generators(args.generator, args.lam)
    pgn = PGN.load(args.model) if args.model else PGN.pretrained()
    config = pgn.notes.get("config", {})
    network = args.network or config.get("loss.network", "vgg19")
    loss = Perceptual(network, config.get("loss.layers", "relus"), config.get("loss.pool", "avg"), weights=args.weights)
    size = 0 if args.generator else crop
    pictures = [picture for _, picture in held_out(args.pictures, size)][: args.count]
    trained = pgn.notes.get("trained_on") or f"{pgn.notes.get('step', '?')} steps"
    print(f"{pgn.name}, {trained}; {network}; {len(pictures)} pictures")
    if args.generator:
        _print_cosines(pgn, loss, generators, pictures, crop, args)
    else:
        _print_angles(pgn, loss, pictures)
    return 0


def _print_angles(pgn: PGN, loss: Perceptual, pictures: list[Tensor]) -> None:
    from tunable_ops.train.agreement import evaluate

    print(f"{'x':20} {'angle':>6} {'norm ratio':>10} {'angle of x - y':>15}")
    for name, row in evaluate(pgn, loss, pictures).items():
        print(f"{name:20} {row.angle:6.1f} {row.ratio:10.3f} {row.pixels:15.1f}")


def _print_cosines(
    pgn: PGN,
    loss: Perceptual,
    generators: dict[str, nn.Module | None],
    pictures: list[Tensor],
    crop: int,
    args: argparse.Namespace,
) -> None:
    """Print the parameter cosines of each generator; None stands for the toy of the depth that ends its name."""
    from tunable_ops.train.parameter_cosine import crops, enlargement, parameter_cosine, trained_toy

    total, side = args.crops, args.correct_on
    counts = sorted({4**k for k in range(total.bit_length()) if 4**k <= total} | {total})
    pgn.bounded = loss.bounded = False  # a generator's output may leave [0, 1]
    print(
        f"{'generator':24} {'crops':>6} {'true, PGN':>10} {'true, MSE':>10} {'PGN, MSE':>9} {'norm ratio':>11}"
        + (f" {'true, corrected':>16}" if side else "")
    )
    for name, given in generators.items():
        net = trained_toy(int(name[-1]), pictures, crop) if given is None else given
        factor = enlargement(net, name)
        found = parameter_cosine(pgn, loss, net, crops(pictures, crop, factor), counts, name, side)
        for count, row in found.items():
            line = f"{name:24} {count:6} {row.predicted:10.3f} {row.squares:10.3f} {row.bias:9.3f} {row.ratio:11.3f}"
            print(line if row.corrected is None else f"{line} {row.corrected:16.3f}", flush=True)


def _generators(name: str, lam: str | None) -> dict[str, nn.Module | None]:
    """Return the plain networks to measure, by name; a tunable one folded at lambda. None: a toy, to be trained."""
    from tunable_ops import fold, pretrained, serialization
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.train.toys import DEPTHS

    if name == "toys":
        if lam is not None:
            raise ValueError(f"--lam must be left out for toys, which have no knob; got {lam!r}")
        return {f"toy of depth {depth}": None for depth in DEPTHS}
    found = pretrained.find(name)
    plain_base = found.base is not None and not found.knobs and not pretrained.BASES[found.base].spec
    plain_file = found.base is None and serialization.read_metadata(found.file).get("conversion") is None
    if plain_base or plain_file:
        if lam is not None:
            raise ValueError(f"--lam must be left out for a plain generator; got {lam!r} for {name!r}")
        return {found.name: pretrained.load_base(name) if plain_base else serialization.load_folded(found.file)}
    net = pretrained.load(name)
    at = list(net.spec.defaults) if lam is None else list(lambdas.parse(lam, net.spec))
    lambdas.already_warned()
    return {f"{found.name} {lambdas.numbers([at])[0]}": fold(net, at)}
