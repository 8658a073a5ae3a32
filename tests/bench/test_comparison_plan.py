"""The plan of the comparison of knobs, its measures and its statistics."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tunable_ops.bench.comparison import evaluation, plan, report, run
from tunable_ops.bench.comparison.configure import config_of, placement
from tunable_ops.bench.comparison.report import Interval

from tests.bench.small_comparison import TINY
from tunable_ops.train.build import build_network, build_sampler
from tunable_ops.train.data import Batches, Photographs, find_training_files
from tunable_ops.train.phases import Schedule


@pytest.mark.parametrize("name, seeds", [("cpu", 3), ("gpu", 3), ("quick", 2), ("long", 8)])
@pytest.mark.parametrize("backbone", plan.BACKBONES)
def test_the_plan_is_complete(name: str, seeds: int, backbone: str) -> None:
    """13 knobs and 5 separate networks; CFSNet's two rows have no ends on the box. Twice the steps where it says so."""
    setting = plan.setting_named(name, backbone=backbone)
    found = plan.units(setting)
    assert len(found) == seeds * (18 + 18 + 16) == len({unit.id for unit in found})
    for unit in found:
        config = config_of(unit, setting, plan.Data())
        method = plan.METHOD[unit.method]
        assert config.optim.steps == setting.steps * (2 if unit.method.endswith("_2x") else 1)
        assert config.seed == unit.seed and config.model.name == backbone
        assert config.tuning.phased == method.phased
        phases = (3 if unit.task == "box" else 2) if method.phased else 1
        assert Schedule(config).count == phases
        shares = plan.steps_of(unit.method, unit.task, setting)
        if unit.t is None:
            assert eval(shares["each"]) == config.optim.steps == shares["total"]
            assert len(shares["each"].split("+")) == phases
    assert len(plan.mixes(setting)) == 3 * seeds


@pytest.mark.parametrize("task", plan.TASK)
def test_lambda_of_every_method(task: str) -> None:
    for t in plan.FINE:
        lam = plan.lam_of(task, t)
        assert all(0 <= value <= 1 for value in lam)
        assert plan.lam_for("film", task, t) == lam
        assert plan.lam_for("mix", task, t) == [1 - t, t]
        phased = plan.lam_for("dni_2x", task, t)
        assert sum(phased) == 1 and phased[-2:] == (lam if task == "box" else [1 - t, t])
    if task == "box":
        assert [plan.lam_of(task, t) for t in plan.GRID] == [[1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1]]
        assert plan.lam_for("dni", task, 0.5) == [-1, 1, 1]


@pytest.mark.parametrize("depth, backbone", [(4, "dncnn"), (5, "dncnn"), (6, "dncnn"), (12, "dncnn"), (3, "edsr")])
@pytest.mark.parametrize("task", ["level", "perception", "box"])
def test_blocks_have_places_in_every_network(task: str, depth: int, backbone: str, data: plan.Data) -> None:
    setting = dataclasses.replace(TINY, depth=depth, blocks=depth, backbone=backbone)
    everything = dataclasses.replace(setting, methods=tuple(plan.METHOD))
    x = torch.rand(1, 3, 8, 8)
    plain = build_network(config_of(plan.Unit(task, "separate", 0, 0.0), setting, data))
    for method in plan.methods_of(task, everything):
        if method.key in ("mix", "separate"):
            continue
        net = build_network(config_of(plan.Unit(task, method.key, 0), setting, data))
        lam = [1.0, 0.0, 0.0] if method.phased and task == "box" else [1.0, 0.0]
        torch.testing.assert_close(net(x, lam), plain(x), atol=1e-6, rtol=1e-5)  # the same start
    if backbone == "dncnn":
        assert len(placement("cfsnet", setting)["after"]) == depth - 2
        assert placement("dynamic_net", setting)["after"][-1] == f"model.{2 * (depth - 2)}"


@pytest.mark.parametrize("method, t", [("separate", 0.25), ("separate", 1.0), ("affine", None), ("dni", None)])
def test_noise_follows_lambda_for_every_method(data: plan.Data, method: str, t: float | None) -> None:
    setting = dataclasses.replace(TINY, batch=8)
    config = config_of(plan.Unit("level", method, 0, t), setting, data)
    batches = Batches(Photographs(find_training_files(data.train)), config, build_sampler(config))
    first, last = batches[0], batches[setting.steps - 1]
    for batch in (first, last):
        sigma = 255 * (batch.input - batch.targets["clean"]).flatten(1).std(1)
        lam = batch.lam.expand(8, 2)
        torch.testing.assert_close(sigma, lam @ torch.tensor([50.0, 15.0]), rtol=0.1, atol=0)
    if t is not None:
        assert first.lam.tolist() == [1 - t, t]
    if method == "dni":
        assert (first.lam.tolist(), last.lam.tolist()) == ([1, 0], [0, 1])


def test_intervals_are_students() -> None:
    found = report.interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert report.interval([0.5, 0.5]) == Interval(0.5, 0.0)
    assert report.interval([7.0]) == Interval(7.0, math.inf)
    assert Interval(7.0, math.inf).text() == "7.00 ± ?" and found.text(1, "+") == "+2.0 ± 2.5"
    for bad in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="values must be finite numbers, one per seed; got"):
            report.interval(bad)


@pytest.mark.parametrize(
    "b, outcome, where",
    [
        (Interval(0.3, 0.29), "holds", "b"),
        (Interval(-0.3, 0.1), "fails", "b"),
        (Interval(0.3, 0.31), "not resolved", "b"),
        (Interval(-0.3, 0.31), "not resolved", "b"),
        (Interval(0.3, math.inf), "not resolved", "b"),
        (Interval(9.0, 0.1), "holds", "a"),
    ],
)
def test_claims_are_judged_by_their_intervals(b: Interval, outcome: str, where: str) -> None:
    verdict = report.judge("better", {"a": Interval(0.5, 0.1), "b": b}, 0.0)
    assert (verdict.outcome, verdict.evidence[0]) == (outcome, where)


def test_differences_are_paired() -> None:
    def rows(*firsts: float) -> dict[str, Any]:
        return {"seeds": {str(k): {"db": [first, 1.0, 2.0, 3.0, 4.0]} for k, first in enumerate(firsts)}}

    made = {"tasks": {"level": {"dni": rows(10.0, 20.0, 30.0), "separate": rows(11.0, 21.5, 30.5)}}}
    found = report.differences(made, "level", "dni", "separate")
    assert found[0].mean == pytest.approx(-1.0) and found[0].half == pytest.approx(4.302653 * 0.5 / math.sqrt(3))
    assert found[1] == Interval(0.0, 0.0)
    del made["tasks"]["level"]["dni"]["seeds"]["2"]
    with pytest.raises(ValueError, match="methods must have the same seeds"):
        report.differences(made, "level", "dni", "separate")


def test_travel_numbers() -> None:
    assert evaluation.falling([[3.0, 3.0], [2.0, 3.0], [1.0, 2.0]]) == 0.75  # standing still is no way down
    assert evaluation.unevenness([4.0, 3.0, 2.0]) == 1.0
    assert evaluation.unevenness([0.0, 3.0, 2.0, 2.0]) == pytest.approx(9 / 4)
    with pytest.raises(ValueError, match="values must move along t"):
        evaluation.unevenness([1.0, 1.0])
    assert evaluation.decibels(0.0) == pytest.approx(58.92, abs=0.01)
    assert evaluation.decibels(0.01) == pytest.approx(20.0, abs=1e-3)


class Constant(nn.Module):
    """``y = scale * x``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_what_is_measured_of_known_networks(data: plan.Data) -> None:
    pictures = evaluation.test_pictures(data, TINY)
    assert [name for name, _ in pictures] == ["0", "2"] and pictures[0][1].shape == (3, 24, 24)
    kept = evaluation.evaluate(Constant(1.0), plan.Unit("strength", "separate", 0, 1.0), TINY, data, pictures)
    assert kept["ts"] == [1.0] and kept["db"][0] == pytest.approx([evaluation.decibels(0)] * 2)
    # half way between the clean picture and the input, the input is half the noise off
    assert kept["lpips"] is None and kept["loss"][0] == pytest.approx([0.0] * 2)
    half = evaluation.evaluate(Constant(1.0), plan.Unit("strength", "separate", 0, 0.5), TINY, data, pictures)
    assert half["db"][0] == pytest.approx([-20 * math.log10(12.5 / 255)] * 2, abs=0.3)
    level = evaluation.evaluate(Constant(1.0), plan.Unit("level", "separate", 0, 1.0), TINY, data, pictures)
    assert level["db"][0] == pytest.approx([-20 * math.log10(15 / 255)] * 2, abs=0.6)
    assert level["travel"] == [[0.0, 0.0]]
    # mixed with a network that removes everything, the energy removed falls along t as (1 - t)^2
    mix = evaluation.Mix([Constant(0.0), Constant(1.0)])
    found = evaluation.evaluate(mix, plan.Unit("level", "mix", 0), TINY, data, pictures)
    assert found["travel_ts"] == list(plan.FINE) and len(found["db"]) == 5
    whole = found["travel"][0][0]
    assert [row[0] / whole for row in found["travel"]] == pytest.approx([(1 - t) ** 2 for t in plan.FINE], abs=1e-5)
    with pytest.raises(RuntimeError, match=r"(travel|db) of level-mix-s0 must be finite"):
        evaluation.evaluate(
            evaluation.Mix([Constant(math.nan)] * 2), plan.Unit("level", "mix", 0), TINY, data, pictures
        )


def test_a_chain_without_room_is_refused(data: plan.Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"depth must be at least 4, .*; got 3"):
        run.run_all(dataclasses.replace(TINY, depth=3), data, tmp_path)
    with pytest.raises(ValueError, match=r"blocks must be at least 3, .*; got 2"):
        run.run_all(dataclasses.replace(TINY, backbone="edsr", blocks=2), data, tmp_path)


def test_hypervolume() -> None:
    """By hand: unions of rectangles below the reference."""
    assert evaluation.hypervolume([[0.5, 0.5]], [1, 1]) == 0.25
    assert evaluation.hypervolume([[1.0, 4.0], [4.0, 1.0]], [8, 8]) == pytest.approx((7 * 4 + 4 * 7 - 4 * 4) / 64)
    assert evaluation.hypervolume([[0.5, 0.5], [0.6, 0.7], [0.2, 1.5], [1.5, 0.1]], [1, 1]) == 0.25
    assert evaluation.hypervolume([[2.0, 2.0]], [1, 1]) == 0
    assert evaluation.front_of("level", [[0.5, 0.5]], [1, 1]) is None
    assert evaluation.front_of("strength", [[0.5, 0.5]], [1, 0]) == 0.25  # the input is one of the targets


def test_measures_of_the_box_and_of_perception(data: plan.Data) -> None:
    """The input is what (0, 0) asks for; the targets of an edge mix; the multi-loss is what training computes."""
    pictures = evaluation.test_pictures(data, TINY)
    kept = evaluation.evaluate(Constant(1.0), plan.Unit("box", "film", 0), TINY, data, pictures)
    noise, blur = kept["reference"]
    assert kept["terms"] == [kept["reference"]] * 9 and noise == pytest.approx((15 / 255) ** 2, rel=0.1)
    # at (1, 0) the input is the noise off the target, at (0, 1) the blur
    assert [sum(row) / 2 for row in kept["loss"]][::4] == pytest.approx([noise, blur], rel=1e-4)
    assert kept["travel"][0] == kept["travel"][8] and kept["travel"][0][0] > 0
    mixed = kept["db"][1][0]  # half way between the blurred and the sharp picture
    judge = evaluation._judge("box", TINY, data)
    shot = judge.shots(pictures, None)[0]
    wanted = (shot.x - (shot.targets["noiseless"] + shot.targets["clean"]) / 2).square().mean()
    assert mixed == pytest.approx(evaluation.decibels(wanted), abs=1e-3)

    found = evaluation.evaluate(Constant(1.0), plan.Unit("perception", "film", 0), TINY, data, pictures)
    l1, perceptual = found["reference"]
    assert [sum(row) / 2 for row in found["loss"]][::4] == pytest.approx([l1, 0.01 * perceptual], rel=1e-4)
    assert found["db"][2] == pytest.approx([-10 * math.log10(value) for value in found["loss"][2]], abs=1e-4)
    small = dataclasses.replace(TINY, backbone="edsr")
    shot = evaluation._judge("perception", small, data).shots(pictures, None)[0]
    assert shot.x.shape[-1] == 12 and shot.enlarged.shape == shot.targets["clean"].shape
