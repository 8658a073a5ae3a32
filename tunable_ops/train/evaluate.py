"""PSNR and SSIM over lambda on pictures that are degraded the same way every time."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tunable_ops.grey import PARAMETER, as_grey, has_knob, is_grey, on_grey, set_knob, stronger
from tunable_ops.modules import LambdaSpec, TunableModel
from tunable_ops.modules.spec import lambda_warnings_off
from tunable_ops.train.degradations import Degradation, degrade
from tunable_ops.train.measure import Measure
from tunable_ops.train.seeding import generator

__all__ = [
    "Score",
    "default_lams",
    "degraded_pictures",
    "evaluate",
    "grey_as_grey",
    "mean_psnr",
    "positions",
    "restore",
]

_MEASURE = Measure()


@dataclass(frozen=True)
class Score:
    """What `Measure` says of one picture, None for what was not asked for; ``lam`` None is the input itself."""

    picture: str
    lam: tuple[float, ...] | None
    psnr: float
    ssim: float | None = None
    lpips: float | None = None


def default_lams(spec: LambdaSpec) -> list[list[float]]:
    """Return the points of a sweep, in the units of lambda.

    Five between the two corners of a 2-simplex, or between the ends of one knob; else all corners and the middle.
    """
    num_params, domain = spec.num_params, spec.domain
    if domain == "simplex" and num_params == 2:
        return [[1 - t, t] for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    if domain == "simplex":
        corners = torch.eye(num_params).tolist()
        middle = [1 / num_params] * num_params
    elif num_params == 1:
        ((low, high),) = spec.ranges
        return [[low + (high - low) * t] for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    else:
        corners = [list(corner) for corner in itertools.islice(itertools.product(*spec.ranges), 16)]
        middle = [(low + high) / 2 for low, high in spec.ranges]
    return corners + ([middle] if num_params > 1 else [])


def positions(spec: LambdaSpec) -> list[list[float]]:
    """Return `default_lams` of a network; its parameter "grey" does not move, as the pictures decide it."""
    if not has_knob(spec) or spec.num_params == 1:
        return default_lams(spec)
    place = spec.names.index(PARAMETER)
    kept = [index for index in range(spec.num_params) if index != place]
    names, ranges = [spec.names[index] for index in kept], [spec.ranges[index] for index in kept]
    others = LambdaSpec.create(len(kept), spec.domain, names, ranges)
    return [[*lam[:place], 0.0, *lam[place:]] for lam in default_lams(others)]


def grey_as_grey(pictures: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Return named pictures with grey ones, also those of three equal channels, as [1, H, W]."""
    return [(name, as_grey(picture) if is_grey(picture) else picture) for name, picture in pictures]


def degraded_pictures(
    pictures: Sequence[tuple[str, Tensor]],
    degradation: Degradation,
    seed: int,
    lam: Sequence[float] | None = None,
) -> list[tuple[str, Tensor, Tensor]]:
    """Return (name, clean, degraded) per picture, shaped as it is; draws depend on the seed and the picture's place.

    `lam`, divided by its scales, is needed where blur or noise follow it.
    """
    out = []
    for index, (name, clean) in enumerate(pictures):
        draws = generator(seed, "evaluation", index)
        pair = degrade(clean.unsqueeze(0), degradation, draws, None if lam is None else torch.tensor(lam))
        out.append((name, clean, pair.input[0]))
    return out


@torch.no_grad()
def restore(net: nn.Module, picture: Tensor, lam: Sequence[float] | None, *, grey_knob: bool = True) -> Tensor:
    """Run a whole picture [3, H, W] through a tunable or plain network; the result on the CPU, clamped to [0, 1].

    A network for grey pictures runs on each of the three channels. A grey picture [1, H, W] stays grey, as
    `tunable_ops.grey` says; with ``grey_knob`` the network's parameter "grey", if it has one, is 1 for it.
    """
    device = next(net.parameters()).device
    tunable = isinstance(net, TunableModel) and lam is not None
    channels = getattr(net.network if isinstance(net, TunableModel) else net, "channels", 3)
    grey = picture.shape[0] == 1
    if tunable:
        assert isinstance(net, TunableModel) and lam is not None
        lam = set_knob(net.spec, lam, grey and grey_knob)
        lam = stronger(net, lam) if grey else lam

    def call(x: Tensor) -> Tensor:
        x = x.to(device).contiguous(memory_format=torch.channels_last)
        output: Tensor = net(x, torch.tensor(lam, device=device)) if tunable else net(x)
        return output

    if grey:
        with lambda_warnings_off():  # `stronger` may leave the range
            y = on_grey(call, channels)(picture.unsqueeze(0))[0]
    else:
        y = call(picture.unsqueeze(1))[:, 0] if channels == 1 else call(picture.unsqueeze(0))[0]
    return y.float().clamp(0, 1).cpu()


def _restored(net: nn.Module, picture: Tensor, lam: Sequence[float], as_given: Collection[tuple[float, ...]]) -> Tensor:
    return restore(net, picture, lam, grey_knob=tuple(lam) not in as_given)


def _score(name: str, lam: Sequence[float] | None, output: Tensor, clean: Tensor, measure: Measure) -> Score:
    return Score(name, None if lam is None else tuple(lam), *measure(output, clean))


def evaluate(
    net: nn.Module,
    pictures: Sequence[tuple[str, Tensor, Tensor]],
    lams: Sequence[Sequence[float]],
    *,
    measure: Measure = _MEASURE,
    progress: bool = False,
    as_given: Collection[tuple[float, ...]] = (),
) -> list[Score]:
    """Score every picture as it is, then at every lambda; the network runs in evaluation mode and is left as it was.

    Args:
        net: A `TunableModel`, or a plain network, which is scored once per lambda given, with the same result.
        pictures: From `degraded_pictures`. An input of another size than the clean picture is not scored itself.
        lams: The points.
        measure: What to measure, and how.
        progress: Show a bar.
        as_given: Points that hold for grey pictures as they are; at the others these set the network's parameter
            "grey", if it has one, to 1. Scores are listed under the point.
    """
    training = net.training
    net.eval()
    found = []
    with tqdm(total=len(pictures) * len(lams), desc="evaluate", disable=not progress, leave=False) as bar:
        for name, clean, degraded in pictures:
            if degraded.shape == clean.shape:
                found.append(_score(name, None, degraded, clean, measure))
            for lam in lams:
                found.append(_score(name, lam, _restored(net, degraded, lam, as_given), clean, measure))
                bar.update()
    net.train(training)
    return found


def sweep(
    net: nn.Module,
    pictures: Sequence[tuple[str, Tensor]],
    degradation: Degradation,
    lams: Sequence[Sequence[float]],
    seed: int,
    spec: LambdaSpec | None = None,
    **options: Any,
) -> list[Score]:
    """Degrade clean pictures and score them at every lambda; where they follow lambda, each at its own.

    Args:
        net: As for `evaluate`.
        pictures: (name, [3, H, W]), from `tunable_ops.train.data.held_out`; grey ones are degraded and judged as grey.
        degradation: What is done to them.
        lams: The points.
        seed: Of the draws.
        spec: Of lambda; default the network's.
        options: Those of `evaluate`.

    Returns:
        As `evaluate`; the inputs themselves have no scores where they differ from lambda to lambda.
    """
    pictures = grey_as_grey(pictures)
    if not degradation.follows:
        return evaluate(net, degraded_pictures(pictures, degradation, seed), lams, **options)
    if spec is None:
        spec = net.spec if isinstance(net, TunableModel) else LambdaSpec.create(len(lams[0]))
    found = []
    for lam in lams:
        position = spec.normalise(torch.tensor(lam)).tolist()
        scores = evaluate(net, degraded_pictures(pictures, degradation, seed, position), [lam], **options)
        found += [score for score in scores if score.lam is not None]
    return found


def mean_psnr(found: Sequence[Score], lam: Sequence[float] | None) -> float:
    """Return the mean PSNR in dB over the pictures at one lambda, or of the inputs for None; NaN if there is none."""
    wanted = None if lam is None else tuple(lam)
    values = [score.psnr for score in found if score.lam == wanted]
    return sum(values) / len(values) if values else float("nan")
