"""Distorted pictures: how far they go, what is drawn, and that training has them."""

import itertools

import torch

from tunable_ops.train.distortions import distort
from tunable_ops.train.seeding import generator


def drawn(count: int = 200) -> tuple[torch.Tensor, list[torch.Tensor]]:
    y = torch.rand(1, 3, 20, 24, generator=generator(0, "y"))
    return y, [distort(y, generator(0, k)) for k in range(count)]


def test_a_distortion_follows_its_source_and_leaves_the_picture_alone() -> None:
    y, found = drawn(8)
    kept = y.clone()
    again = [distort(y, generator(0, k)) for k in range(8)]
    assert torch.equal(y, kept)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(found))


def test_distortions_reach_from_almost_nothing_to_all_of_the_picture() -> None:
    y, found = drawn()
    away = torch.tensor([float((x - y).square().mean().sqrt()) for x in found])
    assert all(x.shape == y.shape and bool(x.isfinite().all()) for x in found)
    assert away.min() < 0.01 and away.max() > 0.3 and 0.02 < away.median() < 0.3
    outside = torch.tensor([bool(((x < 0) | (x > 1)).any()) for x in found])
    assert 0.2 < outside.float().mean() <= 0.6


def test_a_picture_of_one_pixel_can_be_distorted() -> None:
    y = torch.full((1, 3, 1, 1), 0.5)
    assert all(distort(y, generator(1, k)).shape == y.shape for k in range(50))
