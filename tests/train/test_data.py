"""Pictures, crops and batches."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tunable_ops import losses
from tunable_ops.images import write_image
from tunable_ops.train.data import (
    HELD_OUT,
    TRAINING,
    Batches,
    Photographs,
    balance,
    batch_loader,
    held_out,
    skimage_files,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return all(same(x, y) for x, y in zip(a, b, strict=True))


def test_photographs_ship_with_scikit_image_and_are_kept_apart() -> None:
    assert not set(HELD_OUT) & set(TRAINING)
    assert len(HELD_OUT) >= 3
    assert all(file.is_file() for file in skimage_files([*HELD_OUT, *TRAINING]))
    for name, picture in held_out("skimage"):
        grey = (picture - picture.mean(0, keepdim=True)).abs().max() < 1e-3
        assert not grey, f"{name} has no colour"
    with pytest.raises(ValueError, match=r"a release without nothing.png"):
        skimage_files(["brick.png", "nothing.png"])


def test_held_out_crops_the_middle(pictures: Path) -> None:
    whole = dict(held_out(str(pictures)))
    cut = dict(held_out(str(pictures), crop=34))
    assert {name: tuple(p.shape[1:]) for name, p in cut.items()} == {"0": (34, 34), "1": (34, 33), "2": (34, 34)}
    assert torch.equal(cut["0"], whole["0"][:, 3:37, 8:42])


def test_bad_and_small_files_are_named_and_skipped(pictures: Path) -> None:
    (pictures / "bad.png").write_bytes(b"not a picture")
    write_image(torch.zeros(3, 10, 50), pictures / "small.png")
    files = sorted(pictures.iterdir())
    with pytest.warns(UserWarning) as caught:
        photographs = Photographs(files, smallest=16)
    assert [file.stem for file in photographs.files] == ["0", "1", "2"]
    text = "\n".join(str(w.message) for w in caught)
    assert "bad.png" in text
    assert "at least 16 x 16 pixels; got 10 x 50 in" in text
    assert "small.png" in text


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    with (
        pytest.warns(UserWarning, match=r"bad.png"),
        pytest.raises(ValueError, match="got 1 files, none of them usable"),
    ):
        Photographs([bad])
    with pytest.warns(UserWarning, match=r"bad.png"), pytest.raises(ValueError, match="with 1 unreadable"):
        held_out(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="images: path must be a folder with pictures"):
        held_out(str(tmp_path / "empty"))


def test_beyond_the_budget_pictures_are_decoded_on_demand(pictures: Path) -> None:
    files = sorted(pictures.iterdir())
    cached, lazy = Photographs(files), Photographs(files, cache_mb=0)
    assert all(torch.equal(cached[i], lazy[i]) for i in range(3))
    files[1].write_bytes(b"broken since")
    with pytest.warns(UserWarning, match=r"1.png"):
        assert torch.equal(lazy[1], cached[2])
    for file in files:
        file.write_bytes(b"broken since")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="3 files, none usable"):
        lazy[0]


def test_batches_are_crops_of_the_pictures(make_config) -> None:
    config = make_config(data={"flips": False, "rotations": False, "batch": 32})
    photographs = Photographs(sorted(Path(config.data.source).iterdir()), config.data.crop)
    batch = Batches(photographs, config, losses.sampler("simplex", 2))[3]
    found = 0
    for crop in (batch.targets["clean"] * 255).round().to(torch.uint8):
        windows = [photographs[i].unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4) for i in range(3)]
        found += any(bool((w == crop).flatten(2).all(-1).any()) for w in windows)
    assert found == 32
    assert batch.input.shape == (32, 3, 16, 16)
    assert torch.equal(batch.targets["input"], batch.input)
    assert batch.lam.shape == (32, 2)
    torch.testing.assert_close(batch.lam.sum(1), torch.ones(32))


def test_flips_and_rotations_reach_all_eight_positions(make_config, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    write_image(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), folder / "x.png")
    config = make_config(data={"source": str(folder), "batch": 100})
    photographs = Photographs([folder / "x.png"], 16)
    clean = Batches(photographs, config, None)[0].targets["clean"]
    assert len({bytes((crop * 255).round().to(torch.uint8).numpy().tobytes()) for crop in clean}) == 8


def test_a_batch_depends_on_seed_step_and_rank_alone(make_config) -> None:
    config = make_config()
    photographs = Photographs(sorted(Path(config.data.source).iterdir()), config.data.crop)
    sampler = losses.sampler("simplex", 2, corners=0.3)
    batches = Batches(photographs, config, sampler)
    first = batches[4]
    batches[0], batches[1]
    torch.manual_seed(5)
    assert same(batches[4], first)
    assert not same(batches[5].input, first.input)
    assert not same(Batches(photographs, config, sampler, rank=1)[4].input, first.input)
    assert not same(Batches(photographs, make_config(seed=1), sampler)[4].input, first.input)


def test_grouped_and_fixed_lambda(make_config) -> None:
    config = make_config(sampler={"groups": 2}, tuning={"lam": [0.25, 0.75]})
    photographs = Photographs(sorted(Path(config.data.source).iterdir()), config.data.crop)
    lam = Batches(photographs, config, losses.sampler("simplex", 2))[0].lam
    assert lam.shape == (4, 2)
    assert torch.equal(lam[0], lam[1])
    assert torch.equal(lam[2], lam[3])
    assert not torch.equal(lam[0], lam[2])
    assert Batches(photographs, config, None)[0].lam.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("params", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 6, 12])
def test_balance_keeps_the_mean_still_and_the_domain(params: int, count: int) -> None:
    source = torch.Generator().manual_seed(0)
    lam = balance(losses.sampler("simplex", params, corners=0.3)(count, generator=source), "simplex")
    assert lam.shape == (count, params)
    torch.testing.assert_close(lam.sum(1), torch.ones(count))
    if count % params == 0:
        torch.testing.assert_close(lam.mean(0), torch.full((params,), 1 / params))
    box = balance(losses.sampler("uniform", params, corners=0.3)(count, generator=source), "uniform")
    assert box.shape == (count, params)
    assert bool(((box >= 0) & (box <= 1)).all())
    if count % 2 == 0:
        torch.testing.assert_close(box.mean(0), torch.full((params,), 0.5))


def test_balanced_draws_keep_their_distribution() -> None:
    """Each row of a balanced pair is spread over the simplex as a plain draw is: mean 1/p, variance of Dirichlet."""
    draw = losses.sampler("simplex", 3)
    rows = torch.stack([balance(draw(3, generator=torch.Generator().manual_seed(k)), "simplex") for k in range(3000)])
    for row in range(3):
        torch.testing.assert_close(rows[:, row].mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.02)
        torch.testing.assert_close(rows[:, row].var(0), torch.full((3,), 1 / 18), rtol=0.1, atol=0)


def test_colours_are_permuted_and_scaled(make_config, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    colour = torch.tensor([51.0, 102.0, 204.0]).view(3, 1, 1) / 255
    write_image(colour.expand(3, 16, 16), folder / "x.png")
    config = make_config(data={"source": str(folder), "batch": 200, "colours": True})
    seen = Batches(Photographs([folder / "x.png"], 16), config, None)[0].targets["clean"][:, :, 0, 0] * 255
    unscaled = seen.sort(dim=1).values.isclose(torch.tensor([51.0, 102.0, 204.0])).all(dim=1)
    assert 60 < int(unscaled.sum()) < 140
    assert len({tuple(row.round().tolist()) for row in seen[unscaled]}) == 6
    assert bool(((seen[~unscaled] <= 204.01) & (seen[~unscaled] >= 25.4)).all())


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(make_config) -> None:
    alone, helped = make_config(), make_config(data={"workers": 2})
    photographs = Photographs(sorted(Path(alone.data.source).iterdir()), alone.data.crop)
    sampler = losses.sampler("simplex", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = list(batch_loader(Batches(photographs, alone, sampler), range(2, 6), 0, pin_memory=False))
        b = list(batch_loader(Batches(photographs, helped, sampler), range(2, 6), 2, pin_memory=False))
    assert len(a) == len(b) == 4
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
