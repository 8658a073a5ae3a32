"""What bounds the calls of a Runner: tiles beside sizes, the memory, and the batches of `submit`."""

import pytest
import torch
from torch import nn

from tests.deploy.test_runner import picture, three_layers
from tunable_ops.deploy import Runner


def called(runner):
    """Return a list that gets the shape of every call."""
    shapes, run = [], runner._run
    runner._run = lambda part, rows: (shapes.append(tuple(part.shape)), run(part, rows))[1]
    return shapes


@pytest.mark.parametrize(
    "side, options",
    [
        (32, {"sizes": [(32, 32), (64, 64)], "tile": 32}),
        (32, {"sizes": [(32, 32), (64, 64)], "tile": 48}),  # the largest bucket within the tile
        (32, {"sizes": [(32, 32), (16, 128)], "tile": 32}),  # 16 x 128 holds parts of tiles too
        (32, {"sizes": 32, "tile": 48}),  # 48 would be padded to 64
        (48, {"sizes": 16, "tile": 48}),
        (32, {"tile": 32}),
    ],
)
def test_no_call_is_larger_than_a_tile(side, options):
    runner = Runner(three_layers(), "eager", **options)
    shapes = called(runner)
    for size in ((60, 60), (10, 70), (side, side), (5, 5)):
        assert runner(picture(*size)).shape == (1, 3, *size)
    assert max(max(shape[-2:]) for shape in shapes) == side


def test_memory_bounds_the_buckets(monkeypatch):
    monkeypatch.setattr("tunable_ops.deploy.runner.tile_for", lambda *_: 80)
    for sizes, side in (([(64, 64), (256, 256)], 64), (64, 64), ([(512, 512), (80, 80)], 80)):
        runner = Runner(three_layers(), "eager", sizes=sizes, memory=1 << 20)
        shapes = called(runner)
        runner(picture(200, 130))
        assert max(max(shape[-2:]) for shape in shapes) == side


@pytest.mark.parametrize(
    "text, options",
    [
        (r"sizes must allow tiles of at least 16 .* than 32 when padded; got \[\(64, 64\)\]", {"sizes": [(64, 64)]}),
        (r"sizes must allow tiles of at least 16 .* than 32 when padded; got 100", {"sizes": 100}),
        ("tile must be a positive multiple of 16; got '32'", {"tile": "32"}),
    ],
)
def test_sizes_that_no_tile_fits(text, options):
    with pytest.raises(ValueError, match=f"Runner: {text}"):
        Runner(three_layers(), "eager", **{"tile": 32, **options})


def test_buckets_too_small_for_tiles_serve_pictures_that_they_hold():
    """An error named `tile`, which was not given."""
    net = nn.Conv2d(3, 3, 10)
    runner = Runner(net, "eager", sizes=[(16, 16), (16, 32)])
    assert runner.warm_up() == {}
    with pytest.raises(ValueError, match="sizes must hold the picture; got 17x32"):
        runner(picture(17, 32))
    with pytest.raises(ValueError, match="tile must be at least 25 for this network; got 16"):
        Runner(net, "eager", sizes=[(16, 16)], tile=16)


@pytest.mark.parametrize(
    "samples, options, lam, calls",
    [
        (10, {"max_batch": 4}, {"sigma": 5}, [4, 4, 2]),
        (10, {"max_batch": 4}, {"sigma": [5] * 10}, [4, 4, 2]),
        (5, {"batch_pixels": 2 * 64}, {}, [2, 2, 1]),
        (3, {"batch_pixels": 10}, {}, [1, 1, 1]),  # a sample is never cut
        (3, {}, {}, [3]),
    ],
)
def test_batches_of_submit_are_bounded(samples, options, lam, calls, small):
    x = picture(8, 8, batch=samples)
    with Runner(small, "livefold", **options) as runner, torch.no_grad():
        shapes = called(runner)
        found = runner.submit(x, **lam).result(60)
        torch.testing.assert_close(found, small(x, {"sigma": 5} if lam else None), rtol=1e-4, atol=1e-4)
    assert [shape[0] for shape in shapes] == calls


def test_a_lambda_for_a_plain_network_is_refused():
    """Of a tensor of two, the message itself failed."""
    runner = Runner(three_layers(), "eager")
    with pytest.raises(ValueError, match=r"lam must be left out for a network without one; got tensor\(\[5., 0.\]\)"):
        runner(picture(), torch.tensor([5.0, 0.0]))
    with pytest.raises(ValueError, match=r"lam must be left out for a network without one; got \{'sigma': 5\}"):
        runner(picture(), sigma=5)
