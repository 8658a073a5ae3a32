"""Parameter cosine: do predicted gradients move the weights of a generator as the true ones do?

A generator sums the gradients of many pixels and pictures in its parameters. What is random in a predicted gradient
averages out there, what is a bias stays; so the angle between two fields says little about a training with them, and
this measure says it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.losses import Corrected, Perceptual, PerceptualGradient
from tunable_ops.losses.pgn import PGN
from tunable_ops.losses.reduction import value_and_gradient
from tunable_ops.train.seeding import derive_seed, generator
from tunable_ops.train.toys import DEPTHS, Autoencoder

__all__ = ["ParameterCosine", "crops", "enlargement", "parameter_cosine", "trained_toy"]

NOISE = 25 / 255  # of the input of a generator that keeps the size
_PROBE = 32  # side of the picture that shows how a generator changes the size


class ParameterCosine(NamedTuple):
    """Cosines between the summed gradients of a generator's parameters, and a ratio of their norms.

    Attributes:
        predicted: Between the true and the predicted gradients.
        squares: Between the true gradients and those of mean squares.
        bias: Between the predicted gradients and those of mean squares.
        ratio: Norm of the predicted gradients over that of the true ones.
        corrected: Between the true gradients and the predicted ones that are corrected on crops; None where that was
            not asked for.
    """

    predicted: float
    squares: float
    bias: float
    ratio: float
    corrected: float | None = None


def parameter_cosine(
    pgn: PGN,
    loss: Perceptual,
    net: nn.Module,
    pairs: Iterator[tuple[Tensor, Tensor]],
    counts: Sequence[int],
    name: str = "net",
    correct_on: int | None = None,
) -> dict[int, ParameterCosine]:
    """Compare the gradients for a generator's parameters, summed over crops, by their source.

    Formula: with x_k = net(input_k), J_k its derivative for the parameters and g a field at (x_k, y_k), the sums
    ``G = sum_k J_k^T g(x_k, y_k)`` for the true gradient, the predicted one and x - y, that of mean squares.

    Args:
        pgn: The network that predicts.
        loss: The loss whose gradients it predicts.
        net: The generator, in the mode to measure in; its floating-point parameters all count. It is left as it was.
        pairs: (input [B, C, h, w], target y [B, 3, H, W] in [0, 1]) for each step; at least max(counts) samples.
        counts: Numbers of samples after which cosines are computed, rising.
        name: What errors call the generator.
        correct_on: Side of the crops on which `losses.Corrected` corrects the prediction, to measure that too.

    Returns:
        Count -> `ParameterCosine`.

    Raises:
        ValueError: A generator without parameters, that cannot be differentiated, or whose output has another shape
            than y; too few pairs; counts that do not rise; `correct_on` that does not fit in y, as of `Corrected`.
    """
    if not counts or counts[0] < 1 or list(counts) != sorted(set(counts)):
        raise ValueError(f"parameter_cosine: counts must rise from 1 or more; got {list(counts)}")
    parameters = [p for p in net.parameters() if p.is_floating_point()]
    if not parameters:
        raise ValueError(f"parameter_cosine: net must have parameters; got {name} without any")
    wanted = [p.requires_grad for p in parameters]
    found: dict[int, ParameterCosine] = {}
    pair = None
    if correct_on is not None:  # of a copy, for it is frozen
        pair = Corrected(PerceptualGradient(copy.deepcopy(pgn)), loss, correct_on)
    sums = [
        torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64) for _ in range(3 if pair is None else 4)
    ]
    seen = 0
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for source, y in pairs:
            output = _output(net, source, y, name)
            for total, field in zip(sums, _fields(pgn, loss, pair, output.detach(), y, seen), strict=True):
                total += _pulled_back(output, parameters, field, name)
            del output  # the next one is not to stand beside its graph
            seen += len(y)
            if seen in counts:
                found[seen] = _cosines(*sums)
            if seen >= counts[-1]:
                break
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
    missing = [count for count in counts if count not in found]
    if missing:
        raise ValueError(f"parameter_cosine: pairs must meet the counts {list(counts)}; got {seen} samples")
    return found


def _fields(pgn: PGN, loss: Perceptual, pair: Corrected | None, x: Tensor, y: Tensor, seen: int) -> list[Tensor]:
    """Return the true gradient, the predicted one, that of mean squares and, with a pair, the corrected one."""
    fields = [value_and_gradient(loss, x, y)[1], pgn.gradient(x, y), x - y]
    if pair is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "parameter cosine", "crop", seen))
            fields.append(value_and_gradient(pair, x, y)[1])
    return fields


def _output(net: nn.Module, source: Tensor, y: Tensor, name: str) -> Tensor:
    with torch.enable_grad():
        output = net(source)
    if not isinstance(output, Tensor) or output.shape != y.shape:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"parameter_cosine: net must return pictures of the target's shape {list(y.shape)}; got {got}")
    if not output.requires_grad:
        raise ValueError(
            f"parameter_cosine: net must be differentiable in its parameters; got {name}, whose output has no gradient"
        )
    return output


def _pulled_back(output: Tensor, parameters: list[nn.Parameter], field: Tensor, name: str) -> Tensor:
    """Return ``J^T field`` for all parameters, flat, in float64."""
    try:
        gradients = torch.autograd.grad(output, parameters, field, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise ValueError(
            f"parameter_cosine: net must be differentiable in its parameters; got {name}, of which torch says: {error}"
        ) from error
    pairs = zip(gradients, parameters, strict=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten().double().cpu() for g, p in pairs])
    if not bool(flat.isfinite().all()):
        raise ValueError(f"parameter_cosine: net must have finite gradients; got {name}, which has others")
    return flat


def _cosines(true: Tensor, predicted: Tensor, squares: Tensor, corrected: Tensor | None = None) -> ParameterCosine:
    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-300))

    ratio = float(predicted.norm() / true.norm().clamp_min(1e-300))
    return ParameterCosine(
        predicted=cosine(true, predicted),
        squares=cosine(true, squares),
        bias=cosine(predicted, squares),
        ratio=ratio,
        corrected=None if corrected is None else cosine(true, corrected),
    )


def enlargement(net: nn.Module, name: str = "net") -> int:
    """Return how many times larger a generator makes a picture.

    Raises:
        ValueError: It returns no RGB picture of 1, 2, 3, ... times the size.
    """
    with torch.no_grad():
        output = net(torch.full((1, 3, _PROBE, _PROBE), 0.5))
    shape = list(output.shape) if isinstance(output, Tensor) else []
    factor = shape[-1] // _PROBE if len(shape) == 4 else 0
    if factor < 1 or shape != [1, 3, factor * _PROBE, factor * _PROBE]:
        raise ValueError(f"parameter_cosine: net must return RGB pictures; got {shape} from {name}")
    return factor


def crops(pictures: Sequence[Tensor], crop: int, factor: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (input, target) of random crops for ever: the picture shrunk by `factor`, or with noise where that is 1.

    Args:
        pictures: [3, H, W] each, in [0, 1], none smaller than `crop`.
        crop: Side of the target.
        factor: Of the generator, a divisor of `crop`.
        seed: Of places and noise.

    Raises:
        ValueError: A picture is too small, or `factor` does not divide `crop`.
    """
    smallest = min(min(picture.shape[-2:]) for picture in pictures)
    if smallest < crop:
        raise ValueError(f"parameter_cosine: pictures must have sides of {crop} or more; got one of {smallest}")
    if crop % factor:
        raise ValueError(f"parameter_cosine: crop must be a multiple of the enlargement, {factor}; got {crop}")
    return _drawn(pictures, crop, factor, seed)


def _drawn(pictures: Sequence[Tensor], crop: int, factor: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    index = 0
    while True:
        draws = generator(seed, "parameter cosine", index)
        picture = pictures[index % len(pictures)]
        top, left = (int(torch.randint(n - crop + 1, (), generator=draws)) for n in picture.shape[-2:])
        y = picture[None, :, top : top + crop, left : left + crop]
        if factor == 1:
            yield (y + NOISE * torch.randn(y.shape, generator=draws)).clamp(0, 1), y
        else:
            small = F.interpolate(y, scale_factor=1 / factor, mode="bicubic", antialias=True)
            yield small.clamp(0, 1), y
        index += 1


def trained_toy(depth: int, pictures: Sequence[Tensor], crop: int, steps: int = 200, seed: int = 0) -> nn.Module:
    """Return one of the toy autoencoders, trained by mean squares for some steps of one noisy crop.

    Args:
        depth: In `toys.DEPTHS`.
        pictures: As `crops`.
        crop: As `crops`.
        steps: Of Adam, rate 1e-3.
        seed: Of weights and crops.
    """
    assert depth in DEPTHS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "parameter cosine", depth))
        net = Autoencoder(depth)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    pairs = crops(pictures, crop, 1, seed + 1)
    for _, (source, y) in zip(range(steps), pairs, strict=False):
        optimizer.zero_grad()
        (net(source) - y).square().mean().backward()
        optimizer.step()
    return net
