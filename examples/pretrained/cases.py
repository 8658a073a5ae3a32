"""What the networks that ship are measured on: pictures, how they are damaged, and positions of the knobs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tunable_ops import LambdaSpec, grey
from tunable_ops.images import read_image
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Blur, Degradation, Noise, bicubic_downsample, degrade
from tunable_ops.train.evaluate import grey_as_grey
from tunable_ops.train.seeding import generator

NINE = tuple(k / 8 for k in range(9))  # positions that must be in order
FIVE = NINE[::2]  # positions of the tables
CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))  # of the grid of keep and deblur
MIDDLE = (0.5, 0.5)
EDGES = ((0, 1), (0, 2), (1, 3), (2, 3))  # corners at their ends
EDGE_BLUR, EDGE_SIGMA = 1.0, 15.0  # the damage under which the positions along the edges are measured


class Picture(NamedTuple):
    """A clean picture [C, H, W], and its place in its folder, which seeds its noise."""

    place: int
    name: str
    clean: Tensor


class Sample(NamedTuple):
    """A damaged picture: the input of the network, the same without noise, and without blur either."""

    clean: Tensor
    noiseless: Tensor
    input: Tensor

    def target(self, keep: float, deblur: float) -> Tensor:
        """Return what the output should be: `deblur` of the way to the sharp picture, with `keep` of the noise."""
        wanted = self.clean
        if deblur != 1:
            wanted = self.noiseless + deblur * (self.clean - self.noiseless)
        if keep != 0:
            wanted = wanted + keep * (self.input - self.noiseless)
        return wanted.clamp(0, 1)


class Position(NamedTuple):
    """A position of the knobs.

    Args:
        label: What its column is called.
        lam: Values of the knobs that move, in their units.
        keep: Share of the noise that the output should have.
        deblur: Share of the way to the sharp picture.
        full: It is in the tables; otherwise it is there for the order alone, and DISTS and NIQE are left out.
    """

    label: str
    lam: dict[str, float]
    keep: float = 0.0
    deblur: float = 1.0
    full: bool = True


class Order(NamedTuple):
    """Positions along which a measure must fall (sign -1) or rise (1)."""

    kind: str
    labels: tuple[str, ...]
    sign: int


@dataclass(frozen=True)
class Case:
    """A set of pictures with one damage.

    Args:
        label: What the row is called.
        pictures: The clean pictures.
        damage: Picture -> sample.
        fixed: Lambda apart from the knobs that move.
        positions: Of these.
        paths: What must be in order.
        crop: Side of the middle part that is taken; 0 for whole pictures.
        luma: PSNR of the luma alone, without a border as wide as the enlargement.
        corners: Measure the PSNR to the targets of all four `CORNERS` at every position.
    """

    label: str
    pictures: Sequence[Picture]
    damage: Callable[[Picture], Sample]
    fixed: dict[str, float]
    positions: Sequence[Position]
    paths: Sequence[Order] = ()
    crop: int = 0
    luma: bool = False
    corners: bool = False


class Set(NamedTuple):
    """Pictures of a folder, and the side of the middle part that was taken (0: whole)."""

    label: str
    pictures: Sequence[Picture]
    crop: int = 0


def pictures_of(folder: Path, most: int | None = None, crop: int = 0) -> list[Picture]:
    """Return the pictures of a folder, or at most so many of them, evenly spread; grey ones as one channel.

    Raises:
        ValueError: `most` is below 1.
    """
    if most is not None and most < 1:
        raise ValueError(f"measure: --most must be at least 1; got {most}")
    found = [Picture(place, *each) for place, each in enumerate(grey_as_grey(held_out(str(folder), crop)))]
    if most is None or most >= len(found):
        return found
    return [found[(2 * k + 1) * len(found) // (2 * most)] for k in range(most)]


def moving(spec: LambdaSpec) -> tuple[str, ...]:
    """Return the knobs that are moved: all but the noise level, and the one that grey pictures decide."""
    return tuple(name for name in spec.names if name not in ("sigma", grey.PARAMETER))


def cases_of(spec: LambdaSpec, scale: int, sets: Sequence[Set], options: Any) -> list[Case]:
    """Return the cases of a network.

    Args:
        spec: Of its lambda.
        scale: Its enlargement.
        sets: The usual sets, and others.
        options: `sigmas`, `blurs`, `noises`, `set5`, `set12`, `most`, as on the command line.
    """
    if scale > 1:
        return enlarging_cases(spec, scale, sets, options)
    if {"keep", "deblur"} <= set(spec.names):
        return deblurring_cases(spec, sets, options)
    return denoising_cases(spec, sets, options)


def denoising_cases(spec: LambdaSpec, sets: Sequence[Set], options: Any) -> list[Case]:
    """Noise of several strengths on every set and on grey pictures; nine positions of the knob at sigma 25."""
    cases = []
    for sigma in options.sigmas:
        every = [*sets]
        if options.set12 is not None and sigma > 5:
            every.append(Set("set12 (grey)", pictures_of(options.set12, options.most)))
        for each in every:
            positions, paths = along(spec, NINE if sigma == 25 and each in sets else FIVE)
            label, fixed = f"{each.label}, sigma {sigma:g}", {"sigma": float(sigma)}
            cases.append(Case(label, each.pictures, damaged(0, sigma), fixed, positions, paths, each.crop))
    return cases


def deblurring_cases(spec: LambdaSpec, sets: Sequence[Set], options: Any) -> list[Case]:
    """Gaussian blur and noise on every set: the corners of the grid of keep and deblur, and its middle."""
    cases = []
    for blur, sigma in itertools.product(options.blurs, options.noises):
        edges = blur == EDGE_BLUR and sigma == EDGE_SIGMA
        points = [*CORNERS, MIDDLE]
        if edges:
            points += [point for edge in EDGES for point in _between(edge) if point not in CORNERS]
        positions = [_grid_position(spec, point, point in (*CORNERS, MIDDLE)) for point in points]
        paths = [path for edge in EDGES for path in _edge_paths(edge)] if edges else []
        for each in sets:
            label, fixed = f"{each.label}, blur {blur:g}, sigma {sigma:g}", {"sigma": float(sigma)}
            damage = damaged(blur, sigma)
            cases.append(Case(label, each.pictures, damage, fixed, positions, paths, each.crop, corners=True))
    return cases


def enlarging_cases(spec: LambdaSpec, scale: int, sets: Sequence[Set], options: Any) -> list[Case]:
    """Small pictures of every set but cbsd68, and those of Set 5."""
    positions, paths = along(spec, NINE)
    cases = [
        Case(each.label, each.pictures, lambda picture: shrunk(picture, scale), {}, positions, paths, each.crop)
        for each in sets
        if each.label != "cbsd68"
    ]
    if options.set5 is not None:
        folder, (positions, _) = options.set5, along(spec, FIVE)
        pictures = pictures_of(folder)
        cases.append(
            Case("set5, luma", pictures, lambda picture: given(folder, picture, scale), {}, positions, luma=True)
        )
    return cases


def damaged(blur: float, sigma: float) -> Callable[[Picture], Sample]:
    """Return a function that blurs pictures (deviation in pixels) and adds noise (of 255), with the seeds of `eval`."""
    config = Degradation(
        blur=Blur(sigma=(blur, blur)) if blur else None, noise=Noise(sigma=(sigma, sigma)) if sigma else None
    )

    def damage(picture: Picture) -> Sample:
        found = degrade(picture.clean.unsqueeze(0), config, generator(0, "evaluation", picture.place))
        return Sample(picture.clean, found.noiseless[0], found.input[0])

    return damage


def shrunk(picture: Picture, scale: int) -> Sample:
    """Return a picture, cut to a multiple of the enlargement, and the small one in 8 bits."""
    height, width = (side - side % scale for side in picture.clean.shape[-2:])
    clean = picture.clean[:, :height, :width]
    small = bicubic_downsample(clean.unsqueeze(0), scale)[0].clamp(0, 1)
    small = (small * 255).round() / 255
    return Sample(clean, small, small)


def given(folder: Path, picture: Picture, scale: int) -> Sample:
    """Return a picture of Set 5 with its own small one."""
    small = read_image(folder / f"LRx{scale}" / f"{picture.name}x{scale}.png")
    height, width = (scale * side for side in small.shape[-2:])
    return Sample(picture.clean[:, :height, :width], small, small)


def along(spec: LambdaSpec, shares: Sequence[float]) -> tuple[list[Position], list[Order]]:
    """Return positions of the first knob, and that PSNR and LPIPS must fall along nine; without a knob, one position.

    Args:
        spec: Of lambda; a knob that moves is at `share` of its range.
        shares: Of 1.
    """
    names = moving(spec)
    if not names:
        return [Position("output", {})], []
    positions = [
        Position(f"{names[0]} {share:g}", {names[0]: at(spec, names[0], share)}, full=share in FIVE) for share in shares
    ]
    labels = tuple(position.label for position in positions)
    paths = [Order(kind, labels, -1) for kind in ("psnr", "lpips")] if len(shares) == len(NINE) else []
    return positions, paths


def at(spec: LambdaSpec, name: str, share: float) -> float:
    """Return the value of a knob at a share of its range."""
    low, high = spec.ranges[spec.names.index(name)]
    return low + share * (high - low)


def grid_label(point: tuple[float, float]) -> str:
    """Return what a position of keep and deblur is called."""
    return "keep {:g}, deblur {:g}".format(*point)


def corner_kind(corner: int) -> str:
    """Return the name of the PSNR to the target of a corner."""
    return "to {:g}, {:g}".format(*CORNERS[corner])


def _grid_position(spec: LambdaSpec, point: tuple[float, float], full: bool) -> Position:
    keep, deblur = point
    lam = {"keep": at(spec, "keep", keep), "deblur": at(spec, "deblur", deblur)}
    return Position(grid_label(point), lam, keep, deblur, full)


def _between(edge: tuple[int, int]) -> list[tuple[float, float]]:
    """Return nine points from one corner to another."""
    (keep, deblur), (last_keep, last_deblur) = (CORNERS[corner] for corner in edge)
    return [(keep + share * (last_keep - keep), deblur + share * (last_deblur - deblur)) for share in NINE]


def _edge_paths(edge: tuple[int, int]) -> list[Order]:
    """Along an edge the output leaves the target of its first corner and comes closer to that of its last."""
    labels = tuple(grid_label(point) for point in _between(edge))
    return [Order(corner_kind(edge[0]), labels, -1), Order(corner_kind(edge[1]), labels, 1)]
