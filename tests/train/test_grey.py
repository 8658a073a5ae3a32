"""Training on grey pictures: share, knob, noise, and that nothing else is drawn otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunable_ops.modules import LambdaSpec
from tunable_ops.serialization import load
from tunable_ops.train import Config, train
from tunable_ops.train.build import build_sampler
from tunable_ops.train.data import Batch, Batches, Photographs
from tunable_ops.train.data import grey as luma
from tunable_ops.train.evaluate import positions

Make = Callable[..., Config]


@pytest.fixture
def make(make_config: Make) -> Make:
    """A denoiser with a level and a knob for grey pictures."""

    def build(share: Any = 0.5, **changes: Any) -> Config:
        tree: dict[str, Any] = {
            "tuning": {"domain": "box", "names": ["sigma", "grey"]},
            "objectives": [{"name": "clean", "follows": False}],
            "degradation": {"noise": {"levels": [50, 0], "floor": 1}},
        }
        for section, keys in changes.items():
            tree[section] = {**tree[section], **keys} if isinstance(tree.get(section), dict) else keys
        tree["data"] = {"batch": 8, "grey": share, **changes.get("data", {})}
        return make_config(**tree)

    return build


def batches(config: Config) -> Batches:
    files = sorted(Path(config.data.source).iterdir())
    return Batches(Photographs(files, config.data.crop), config, build_sampler(config))


def grey_of(batch: Batch) -> torch.Tensor:
    clean = batch.targets["clean"]
    return (clean == clean[:, :1]).flatten(1).all(1)


def test_grey_samples_have_one_noise_on_three_channels_and_set_the_knob(make: Make) -> None:
    config = make()
    seen = []
    for step in range(6):
        batch, colour = batches(config)[step], batches(make(1e-12))[step]
        chosen = grey_of(batch)
        seen += chosen.tolist()
        assert torch.equal(batch.lam[:, 1], chosen.float())
        assert torch.equal(batch.lam[:, 0], colour.lam[:, 0])
        for part, other in ((batch.input, colour.input), (batch.targets["clean"], colour.targets["clean"])):
            assert torch.equal(part[~chosen], other[~chosen])
            assert bool((part[chosen] == part[chosen][:, :1]).all()) and part.shape == other.shape
        torch.testing.assert_close(batch.targets["clean"][chosen][:, :1], luma(colour.targets["clean"][chosen]))
        noise = (batch.input - batch.targets["clean"])[:, 0]
        torch.testing.assert_close(noise, (colour.input - colour.targets["clean"])[:, 0], atol=1e-6, rtol=0)
    assert 12 < sum(seen) < 36  # of 48


def test_noise_has_the_strength_that_lambda_says(make: Make) -> None:
    batch = batches(make(1.0, data={"crop": 32}))[0]
    noise = batch.input - batch.targets["clean"]
    torch.testing.assert_close(noise.std((1, 2, 3)) * 255, 50 * batch.lam[:, 0] + 1, rtol=0.15, atol=0)


@pytest.mark.parametrize("share, count", [(True, 8), (1, 8), (False, 0), (0, 0)])
def test_all_or_none(make: Make, share: Any, count: int) -> None:
    config = make(share, tuning={"names": ["sigma"]}, degradation={"noise": {"levels": [50]}})
    assert int(grey_of(batches(config)[3]).sum()) == count


def test_the_same_bits_in_any_order_and_other_ones_per_rank_and_seed(make: Make) -> None:
    config = make()
    first = batches(config)
    later = [first[step] for step in (4, 2, 0)]
    again = batches(config)
    for step, batch in zip((4, 2, 0), later, strict=True):
        assert torch.equal(again[step].input, batch.input) and torch.equal(again[step].lam, batch.lam)
    found = [grey_of(first[step]).tolist() for step in range(6)]
    assert found != [grey_of(batches(make(seed=1))[step]).tolist() for step in range(6)]
    other = Batches(first.photographs, config, first.sampler, rank=1)
    assert found != [grey_of(other[step]).tolist() for step in range(6)]


def test_a_group_is_grey_or_not(make: Make) -> None:
    config = make(sampler={"groups": 2})
    for step in range(8):
        batch = batches(config)[step]
        for half in (slice(0, 4), slice(4, 8)):
            assert len(set(grey_of(batch)[half].tolist())) == 1
            assert len(torch.unique(batch.lam[half], dim=0)) == 1


def test_blur_and_reduction_keep_grey_samples_grey(make: Make) -> None:
    degradation = {
        "blur": {"sigma": [0.5, 2]},
        "downsample": {"factors": [2], "enlarge": False},
        "noise": {"clip": True},
    }
    batch = batches(make(1.0, degradation=degradation, tuning={"names": ["clean", "grey"]}, objectives=[
        {"name": "clean"}, {"name": "fixed", "follows": False}]))[0]  # fmt: skip
    assert batch.input.shape == (8, 3, 8, 8)
    for part in (batch.input, batch.targets["noiseless"]):
        assert bool((part == part[:, :1]).all())


def test_without_a_knob_the_pictures_alone_are_grey(make: Make) -> None:
    config = make(tuning={"names": ["sigma"]}, degradation={"noise": {"levels": [50]}})
    batch, colour = batches(config)[0], batches(make(0, tuning={"names": ["sigma"]}, degradation={"noise": {
        "levels": [50]}}))[0]  # fmt: skip
    assert config.grey_knob is None and bool(grey_of(batch).any()) and torch.equal(batch.lam, colour.lam)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"share": 1.5}, "less than or equal to 1"),
        ({"share": -0.1}, "greater than or equal to 0"),
        ({"model": {"arguments": {"channels": 1}}}, r"data\.grey must be 0 for a network of one channel; got 0\.5"),
        (
            {"degradation": {"noise": {"levels": [50, 10]}}},
            r"tuning\.names must leave 'grey' to grey samples, without an objective or a level",
        ),
        ({"share": 0}, r"tuning\.names must name knobs that move an objective or a level; got \['grey'\]"),
    ],
)
def test_what_does_not_fit(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_points_of_a_sweep_leave_the_knob_to_the_pictures() -> None:
    assert positions(LambdaSpec.create(2, "box", ("sigma", "grey"))) == [[t, 0.0] for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    three = positions(LambdaSpec.create(3, "box", ("grey", "a", "b")))
    assert {lam[0] for lam in three} == {0.0} and [1.0, 0.0] in [lam[1:] for lam in three]
    assert positions(LambdaSpec.create(1, "box", ("grey",)))[-1] == [1.0]
    assert len(positions(LambdaSpec.create(2, "simplex", ("grey", "a")))) == 5


def test_a_run_learns_the_knob_and_resumes_with_the_same_bits(make: Make, tmp_path: Path) -> None:
    config = make(validation={"every": 3, "source": str(tmp_path / "pictures"), "crop": 16})
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "parts", stop_at=2, progress=False)
    train(config, tmp_path / "parts", resume=True, progress=False)
    net, parts = (load(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), parts.parameters(), strict=True))
    assert net.spec.names == ("sigma", "grey") and net.notes["config"]["data"]["grey"] == 0.5
    log = (tmp_path / "whole" / "log.jsonl").read_text()
    assert "psnr grey 0.5,0" in log and "psnr 0.5,0" in log
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert not torch.equal(net(x, (0.5, 0.0)), net(x, (0.5, 1.0)))


def test_the_knob_beside_objectives_with_weights(make: Make) -> None:
    """Objectives that named knobs of their own counted as if they followed the first places."""
    objectives = [{"name": "near", "weight": {"texture": [1, 0]}}, {"name": "far", "weight": {"texture": [0, 1]}}]
    names = ["sigma", "grey", "texture"]
    noise = {"noise": {"levels": [50, 0, 0]}}
    config = make(tuning={"names": names}, objectives=objectives, degradation=noise)
    assert config.grey_knob == 1
    objectives[0]["weight"]["grey"] = [1, 0]
    with pytest.raises(ValueError, match=r"tuning.names must leave 'grey' to grey samples, without an objective"):
        make(tuning={"names": names}, objectives=objectives, degradation=noise)
