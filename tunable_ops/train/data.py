"""Clean pictures and the batches cut from them; every draw depends on (seed, step, rank) alone."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tunable_ops.images import find_images, read_image, read_size
from tunable_ops.losses import Sampler
from tunable_ops.train.config import Config, Data
from tunable_ops.train.degradations import Degraded, degrade
from tunable_ops.train.phases import Schedule
from tunable_ops.train.seeding import generator

__all__ = [
    "HELD_OUT",
    "TRAINING",
    "Batch",
    "Batches",
    "Photographs",
    "balance",
    "batch_loader",
    "draw_crop",
    "find_training_files",
    "grey",
    "held_out",
    "skimage_files",
]

HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")
"""Photographs of scikit-image that training never sees: a portrait, a cat, a cup of espresso; all in colour."""

TRAINING = (
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Photographs inside scikit-image's wheel that training uses; drawings, text and tiny pictures are left out."""


def skimage_files(names: Sequence[str]) -> list[Path]:
    """Return the files of scikit-image's photographs as the package ships them; nothing is downloaded.

    Raises:
        ValueError: The package scikit-image is not installed or ships without one of them.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError('data: source "skimage" must be installed; got no scikit-image: pip install scikit-image')
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"data: scikit-image must ship {', '.join(names)}; got a release without {', '.join(missing)}")
    return [folder / name for name in names]


def find_training_files(source: str) -> list[Path]:
    """Return the pictures that a run trains on: `TRAINING` for "skimage", else those of a folder.

    Raises:
        ValueError: The folder is missing or has no picture.
    """
    return skimage_files(TRAINING) if source == "skimage" else find_images(source)


def held_out(source: str, crop: int = 0) -> list[tuple[str, Tensor]]:
    """Return pictures for validation, by name: the central ``crop`` x ``crop`` part, or all of each for 0.

    Args:
        source: "skimage" for `HELD_OUT`, or a folder.
        crop: Side in pixels; smaller pictures stay as they are.

    Returns:
        List of (name without extension, [3, H, W] float32 in [0, 1]). Unreadable files are left out with a warning.

    Raises:
        ValueError: The folder is missing or holds no readable picture.
    """
    files = skimage_files(HELD_OUT) if source == "skimage" else find_images(source)
    pictures = []
    for file in files:
        picture = _read_or_warn(file)
        if picture is not None:
            pictures.append((file.stem, _centre(picture, crop)))
    if not pictures:
        raise ValueError(f"data: source must hold a readable picture; got {source!r} with {len(files)} unreadable")
    return pictures


class Photographs:
    """Clean pictures by index, kept in memory as bytes up to a budget, decoded on demand beyond it.

    Files that are no pictures, or are smaller than ``smallest`` on a side by their header, are named in a warning and
    left out. One that turns out to be damaged when it is decoded keeps its index, under which the next good picture is
    found: which pictures are drawn does not depend on the budget.

    Args:
        files: Picture files.
        smallest: Least height and width.
        cache_mb: Budget for decoded pictures in MiB.

    Raises:
        ValueError: No file is left.
    """

    def __init__(self, files: Sequence[Path], smallest: int = 1, cache_mb: int = 2048) -> None:
        self.smallest = smallest
        self.files = [file for file in files if self._has_size(file)]
        self._cache: dict[int, Tensor] = {}
        self._damaged: set[int] = set()
        budget = cache_mb * 2**20
        for index in range(len(self.files)):
            if budget <= 0:
                break
            picture = self._read(index)
            if picture is not None:
                self._cache[index] = picture
                budget -= picture.numel()
        if len(self._damaged) == len(self.files):
            raise ValueError(
                f"data: source must hold readable pictures of at least {smallest} x {smallest} pixels; "
                f"got {len(files)} files, none of them usable"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Return [3, H, W] uint8; the next good one where the file is damaged."""
        for shift in range(len(self.files)):
            position = (index + shift) % len(self.files)
            picture = self._cache.get(position)
            if picture is None and position not in self._damaged:
                picture = self._read(position)
            if picture is not None:
                return picture
        raise ValueError(f"data: source must hold readable pictures; got {len(self.files)} files, none usable")

    def _read(self, index: int) -> Tensor | None:
        picture = _read_or_warn(self.files[index])
        if picture is None or not self._is_large_enough(self.files[index], picture.shape[2], picture.shape[1]):
            self._damaged.add(index)
            return None
        return (picture * 255).round_().to(torch.uint8)

    def _has_size(self, file: Path) -> bool:
        try:
            return self._is_large_enough(file, *read_size(file))
        except ValueError as error:
            warnings.warn(f"{error}: skipped", stacklevel=3)
            return False

    def _is_large_enough(self, file: Path, width: int, height: int) -> bool:
        if min(width, height) >= self.smallest:
            return True
        warnings.warn(
            f"data: pictures must be at least {self.smallest} x {self.smallest} pixels; got {height} x {width} in "
            f"{str(file)!r}: skipped",
            stacklevel=3,
        )
        return False


class Batch(NamedTuple):
    """One step's worth: network input [B, C, H, W], the possible targets by name, lambda in its units.

    lambda is [B, p] or, if fixed, [p].
    """

    input: Tensor
    targets: dict[str, Tensor]
    lam: Tensor


class Batches(Dataset[Batch]):
    """Batch k of a run, for k = 0, 1, ...; the same bits whenever and in whatever order it is asked for.

    A network of one channel (``model.channels``) gets grey pictures. With ``data.grey`` some samples are
    grey on three equal channels, noise included; these draws have a generator of their own, so that the other samples
    are what they are without.

    Args:
        photographs: The clean pictures.
        config: The run's configuration.
        sampler: Draws lambda as phi gets it; None for the fixed one of the configuration, or of a step's phase.
        rank: Of this process; ranks draw different batches.
    """

    def __init__(self, photographs: Photographs, config: Config, sampler: Sampler | None, rank: int = 0) -> None:
        self.photographs, self.config, self.sampler, self.rank = photographs, config, sampler, rank
        self.schedule = Schedule(config)

    def __len__(self) -> int:
        return self.config.optim.steps

    def __getitem__(self, step: int) -> Batch:
        data = self.config.data
        crops = generator(self.config.seed, "crops", step, self.rank)
        clean = torch.stack([draw_crop(self.photographs, data, crops) for _ in range(data.batch)])
        if self.config.channels == 1:
            clean = grey(clean)
        lam = self._lam(step)
        chosen = self._grey_samples(step)
        if chosen is not None:
            clean = torch.where(chosen, grey(clean), clean)
            if self.config.grey_knob is not None and self.sampler is not None:
                lam[:, self.config.grey_knob] = chosen.flatten().to(lam.dtype)
        draws = generator(self.config.seed, "degradation", step, self.rank)
        pair = degrade(clean, self.config.degradation, draws, lam)
        if chosen is not None:  # the first channel's noise on all
            pair = Degraded(*(part if part is None else torch.where(chosen, part[:, :1], part) for part in pair))  # type: ignore[arg-type]
        targets = {"clean": clean, "noiseless": pair.noiseless, "input": pair.input}
        if pair.noisy is not None:
            targets["noisy"] = pair.noisy
        return Batch(pair.input, targets, self.config.spec.denormalise(lam))

    def _lam(self, step: int) -> Tensor:
        """Return lambda as phi gets it, [B, p], or the fixed one [p]."""
        if self.sampler is None:
            return self.config.spec.normalise(torch.tensor(self.schedule.at(step).lam))
        batch, balanced = self.config.data.batch, self.config.sampler.balanced
        count = self.config.sampler.groups or batch
        source = generator(self.config.seed, "lambda", step, self.rank)
        if balanced and self.sampler.stratified:
            # the strata belong to the draws that stay, one in every ``images``
            images = mirror_images(self.sampler.num_params, self.sampler.kind)
            lam = self.sampler(-(-count // images), generator=source).repeat_interleave(images, dim=0)[:count]
        else:
            lam = self.sampler(count, generator=source)
        if balanced:
            lam = balance(lam, self.sampler.kind, self.sampler.ranges)
        return lam.repeat_interleave(batch // count, dim=0)

    def _grey_samples(self, step: int) -> Tensor | None:
        """Draw which samples are grey, [B, 1, 1, 1], group by group; None where none ever is."""
        data = self.config.data
        if not data.grey:
            return None
        count = self.config.sampler.groups or data.batch
        draws = torch.rand(count, generator=generator(self.config.seed, "grey", step, self.rank)) < data.grey
        return draws.repeat_interleave(data.batch // count).view(-1, 1, 1, 1)


def draw_crop(photographs: Photographs, data: Data, source: torch.Generator) -> Tensor:
    """Draw a random part of a random picture, varied as ``data`` says: [3, crop, crop] float32 in [0, 1]."""

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=source))

    picture = photographs[draw(len(photographs))]
    top = draw(picture.shape[-2] - data.crop + 1)
    left = draw(picture.shape[-1] - data.crop + 1)
    patch = picture[:, top : top + data.crop, left : left + data.crop]
    flip, turns = draw(2), draw(4)
    if data.flips and flip:
        patch = patch.flip(-1)
    if data.rotations:
        patch = patch.rot90(turns, (-2, -1))
    patch = patch.float() / 255
    if data.colours:
        patch = patch[torch.randperm(3, generator=source)]
        factors = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=source)
        if draw(2):
            patch = patch * factors
    return patch


def grey(pictures: Tensor) -> Tensor:
    """Return ``0.299 R + 0.587 G + 0.114 B``, [B, 3, H, W] -> [B, 1, H, W]: for networks of one channel."""
    return (pictures * pictures.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def mirror_images(params: int, kind: str) -> int:
    """Return how many rows `balance` makes of one draw, itself included."""
    return 2 if kind == "uniform" else params


def balance(lam: Tensor, kind: str, ranges: Sequence[tuple[float, float]] | None = None) -> Tensor:
    """Replace draws by mirror images of others, so that the mean of lambda hardly varies from batch to batch.

    Of p rows that follow one another on the simplex, the later ones become cyclic shifts of the first; on the box the
    second of two becomes the mirror image of the first, ``low + high - lambda``. Every row keeps its distribution;
    only rows of a batch go together.

    Args:
        lam: [B, p] draws of `tunable_ops.losses.sampler`.
        kind: Of the sampler, "simplex" or "uniform".
        ranges: Those of a uniform one; default [0, 1].
    """
    count, params = lam.shape
    if kind == "uniform":
        ends = lam.new_tensor([low + high for low, high in ranges or ((0.0, 1.0),) * params])
        return torch.stack([lam[::2], ends - lam[::2]], dim=1).flatten(0, 1)[:count]
    shifts = torch.stack([lam[::params].roll(k, dims=1) for k in range(params)], dim=1)  # [ceil(B/p), p, p]
    return shifts.flatten(0, 1)[:count]


def batch_loader(batches: Dataset[Any], steps: range, workers: int, pin_memory: bool) -> Iterator[Any]:
    """Return the batches of some steps in turn, prepared by a number of worker processes."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def _leave_interrupts_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the parent stops the run and needs its workers until then
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_or_warn(file: Path) -> Tensor | None:
    try:
        return read_image(file)
    except ValueError as error:
        warnings.warn(f"{error}: skipped", stacklevel=3)
        return None


def _centre(picture: Tensor, crop: int) -> Tensor:
    height, width = picture.shape[-2:]
    if not crop:
        return picture
    side_h, side_w = min(crop, height), min(crop, width)
    top, left = (height - side_h) // 2, (width - side_w) // 2
    return picture[:, top : top + side_h, left : left + side_w]
