"""Weights of objectives as functions of named knobs, targets in other states than clean, strata of lambda."""

import os
from pathlib import Path

import pytest
import torch

from tunable_ops import losses
from tunable_ops.train import train
from tunable_ops.train.build import build_criterion, build_sampler, named_files, objective_weights
from tunable_ops.train.config import Config
from tunable_ops.train.data import Batches, Photographs, find_training_files
from tunable_ops.train.degradations import Blur, Degradation, Downsample, Noise, degrade
from tunable_ops.train.distributed import Process
from tunable_ops.train.fingerprint import fingerprints
from tunable_ops.train.restoration import Restoration
from tunable_ops.train.sections import flatten
from tunable_ops.train.seeding import generator

TEXTURE = {"domain": "box", "names": ["sigma", "texture"]}
FADING = [
    {"name": "accurate", "loss": "l1", "weight": {"texture": [1, 0.1]}},
    {"name": "edges", "loss": "tv", "scale": 0.02, "weight": {"texture": [0, 1]}},
]
NOISE = {"noise": {"levels": [50, 0], "floor": 1}}

STRENGTHS = {"domain": "box", "names": ["keep", "deblur"]}
CORNERS = [
    {"name": "quiet", "target": "noiseless", "weight": {"keep": [1, 0], "deblur": [1, 0]}},
    {"name": "as it is", "target": "input", "weight": {"keep": [0, 1], "deblur": [1, 0]}},
    {"name": "clean", "target": "clean", "weight": {"keep": [1, 0], "deblur": [0, 1]}},
    {"name": "sharp", "target": "noisy", "weight": {"keep": [0, 1], "deblur": [0, 1]}},
]
DAMAGE = {"noise": {"sigma": [25, 25]}, "blur": {"sigma": [1, 2]}}


def weights_at(config: Config, *lam: float) -> list[float]:
    return objective_weights(config.objectives, config.param_names, torch.tensor(lam)).tolist()


def test_a_weight_is_a_straight_line_along_its_knob(make_config) -> None:
    """(1 - t) L1 + t (0.1 L1 + 0.02 TV), whatever the other knob says."""
    config = make_config(tuning=TEXTURE, objectives=FADING, degradation=NOISE)
    for sigma in (0.0, 0.7):
        for t in (0.0, 0.25, 1.0):
            assert weights_at(config, sigma, t) == pytest.approx([(1 - t) + 0.1 * t, t])
    output, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    lam = torch.tensor([[0.3, 0.25], [0.9, 1.0]])
    weights = objective_weights(config.objectives, config.param_names, lam)
    total, _ = build_criterion(config)(output, {"accurate": target, "edges": target}, weights)
    l1, tv, t = losses.l1(output, target), losses.tv(output), lam[:, 1]
    torch.testing.assert_close(total, ((1 - t) * l1 + t * (0.1 * l1 + 0.02 * tv)).mean())


def test_weights_of_several_knobs_multiply(make_config) -> None:
    """At every corner one of the four targets alone; between them bilinear weights, of sum 1."""
    config = make_config(tuning=STRENGTHS, objectives=CORNERS, degradation=DAMAGE)
    assert weights_at(config, 0, 0) == [1, 0, 0, 0]
    assert weights_at(config, 1, 0) == [0, 1, 0, 0]
    assert weights_at(config, 0, 1) == [0, 0, 1, 0]
    assert weights_at(config, 1, 1) == [0, 0, 0, 1]
    assert weights_at(config, 0.25, 0.6) == pytest.approx([0.75 * 0.4, 0.25 * 0.4, 0.75 * 0.6, 0.25 * 0.6])
    lam = torch.rand(5, 2, generator=generator(0))
    weights = objective_weights(config.objectives, config.param_names, lam)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    same = [objective_weights(config.objectives, config.param_names, row) for row in lam]
    assert torch.equal(torch.stack(same), weights)


def test_weights_beside_objectives_of_other_kinds(make_config) -> None:
    """The first follows the lambda of its place, the last none; a tuple in JSON comes back as it was."""
    objectives = [{"name": "first"}, {"name": "second", "weight": {"b": [2, 0.5]}}, {"name": "third", "follows": False}]
    config = make_config(tuning={"domain": "box", "names": ["a", "b"]}, objectives=objectives)
    assert weights_at(config, 0.25, 0.5) == [0.25, 1.25, 1.0]
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert flatten(config)["objectives.1.weight.b"] == [2.0, 0.5]


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        (
            {"objectives": [{"name": "a", "weight": {"textur": [0, 1]}}]},
            "weight must name tuning parameters, sigma, tex",
        ),
        ({"objectives": [{"name": "a", "weight": {"texture": [1, 1]}}]}, "weight must differ between the two ends"),
        ({"objectives": [{"name": "a", "weight": {"texture": [-1, 1]}}]}, "greater than or equal to 0"),
        ({"objectives": [{"name": "a", "weight": {"texture": [0, float("inf")]}}]}, "finite number"),
        ({"objectives": [{"name": "a", "weight": {"texture": [1]}}]}, "Field required"),
        ({"objectives": [{"name": "a", "weight": {}}]}, "at least 1 item"),
        (
            {"objectives": [{"name": "a", "weight": {"texture": [0, 1]}, "follows": False}]},
            "objectives.follows must be left out where weight says",
        ),
        ({"objectives": [FADING[0], {"name": "b"}]}, "objectives that do not follow the lambda of their place must"),
        ({"objectives": FADING, "degradation": {"noise": {"sigma": [1, 9]}}}, r"knobs that move .*; got \['sigma'\]"),
        ({"objectives": FADING, "tuning": {"names": None}}, "tuning.names must have one entry per objective"),
        (
            {
                "weigh_samples": "by_damage",
                "objectives": FADING,
                "degradation": {**NOISE, "downsample": {"factors": [2], "enlarge": False}},
            },
            'weigh_samples must be "alike" where the input is smaller',
        ),
        (
            {
                "objectives": [*FADING, {"name": "n", "target": "noisy", "follows": False}],
                "degradation": {**NOISE, "downsample": {"factors": [2], "enlarge": False}},
            },
            "objectives.target must not be 'noisy' where the input is smaller",
        ),
    ],
)
def test_bad_weights(make_config, sections: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_config(**{"tuning": TEXTURE, "degradation": NOISE, **sections})


def test_the_noisy_picture_is_the_clean_one_with_the_noise_of_the_input() -> None:
    clean = torch.rand(2, 3, 24, 20, generator=generator(1))
    blurred = Degradation(blur=Blur(sigma=(2, 2)), noise=Noise(sigma=(25, 25)))
    found = degrade(clean, blurred, generator(0))
    torch.testing.assert_close(found.noisy - clean, found.input - found.noiseless)
    assert not torch.allclose(found.noiseless, clean, atol=1e-2)
    clipped = degrade(clean, blurred.model_copy(update={"noise": Noise(sigma=(99, 99), clip=True)}), generator(0))
    assert clipped.noisy.min() == 0 and clipped.noisy.max() == 1
    assert torch.equal(degrade(clean, Degradation(), generator(0)).noisy, clean)
    small = Degradation(downsample=Downsample(factors=[2], enlarge=False), noise=Noise())
    assert degrade(clean, small, generator(0)).noisy is None


def test_damage_balances_the_samples(make_config, tmp_path: Path) -> None:
    """Every sample's loss is divided by the mean square of its own damage and 15 of 255."""
    noise = {"noise": {"sigma": [0, 50]}}
    found = {}
    for rule in ("alike", "by_damage"):
        config = make_config(weigh_samples=rule, degradation=noise, compute={"precision": "fp32"})
        task = Restoration(config, Process(0, 1, torch.device("cpu")))
        batch = task.batches[0]
        found[rule] = task.loss(batch, 0)[0]
    output = task.net(batch.input, batch.lam)
    squares = [losses.mse(output, batch.targets[o.target]) for o in config.objectives]
    weights = objective_weights(config.objectives, config.param_names, config.spec.normalise(batch.lam))
    loss = (torch.stack(squares, -1) * weights).sum(-1)
    torch.testing.assert_close(found["alike"], loss.mean())
    damage = (batch.input - batch.targets["clean"]).square().mean((1, 2, 3)) + (15 / 255) ** 2
    torch.testing.assert_close(found["by_damage"], (loss / damage).mean())
    assert damage.max() > 4 * damage.min()


def test_four_targets_become_two_strengths(make_config, tmp_path: Path) -> None:
    """A network without hidden layers can at least keep the input: what it keeps rises with the knob."""
    config = make_config(
        tuning=STRENGTHS, objectives=CORNERS, degradation=DAMAGE, optim={"steps": 60, "lr": 1e-2, "warmup": 2}
    )
    net = train(config, tmp_path / "run", progress=False).net
    picture = Photographs(find_training_files(config.data.source), 16)[0].unsqueeze(0) / 255
    pair = degrade(picture, config.degradation, generator(0))
    with torch.no_grad():
        distances = [float((net(pair.input, [keep, 0.0]) - pair.input).square().mean()) for keep in (0.0, 0.5, 1.0)]
    assert distances[0] > distances[1] > distances[2], distances


@pytest.mark.parametrize("balanced", [False, True])
def test_strata_of_a_batch(make_config, balanced: bool) -> None:
    """Every part of both ranges once; where draws are mirrored, the draws themselves."""
    sampler = {"stratified": True, "corners": 0.0, "balanced": balanced}
    config = make_config(
        tuning=TEXTURE, objectives=FADING, degradation=NOISE, data={"batch": 8, "crop": 16}, sampler=sampler
    )
    photographs = Photographs(find_training_files(config.data.source), 16)
    for step in range(3):
        lam = Batches(photographs, config, build_sampler(config))[step].lam
        draws = lam[::2] if balanced else lam
        for column in draws.T:
            assert (len(draws) * column).floor().sort().values.tolist() == list(range(len(draws)))
        if balanced:
            torch.testing.assert_close(lam[1::2], 1 - lam[::2])


def test_strata_of_groups_on_the_simplex(make_config) -> None:
    config = make_config(sampler={"stratified": True, "corners": 0.0, "groups": 4}, data={"batch": 8, "crop": 16})
    lam = Batches(Photographs(find_training_files(config.data.source), 16), config, build_sampler(config))[0].lam
    assert lam.shape == (8, 2) and torch.equal(lam[::2], lam[1::2])
    assert sorted((2 * lam[::4, 0]).floor().tolist()) == [0, 1]
    torch.testing.assert_close(lam[2::4], lam[::4].flip(1))


@pytest.mark.parametrize("net", ["vgg", "squeeze"])
def test_lpips_is_an_objective(net, make_config) -> None:
    """Per sample, on outputs beyond [0, 1], with the published weights found where they lie."""
    if not os.environ.get("TUNABLE_OPS_DATA"):
        pytest.skip("TUNABLE_OPS_DATA is not set: no published weights at hand")
    fading = {"name": "accurate", "loss": "log_mse", "weight": {"texture": [1, 0]}}
    seen = {"name": "seen", "loss": "lpips", "arguments": {"net": net}, "scale": 0.5, "weight": {"texture": [0, 1]}}
    config = make_config(tuning=TEXTURE, objectives=[fading, seen], degradation=NOISE, data={"crop": 32})
    output, target = 1.2 * torch.rand(2, 3, 32, 32, generator=generator(0)) - 0.1, torch.rand(2, 3, 32, 32)
    output.requires_grad_()
    weights = objective_weights(config.objectives, config.param_names, torch.tensor([[0.0, 0.25], [0.0, 1.0]]))
    total, _ = build_criterion(config)(output, {"accurate": target, "seen": target}, weights)
    lpips, decibels = losses.LPIPS(net, bounded=False)(output, target), losses.log_mse(output, target)
    wanted = (weights[:, 0] * decibels + 0.5 * weights[:, 1] * lpips).mean()
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(torch.autograd.grad(total, output), torch.autograd.grad(wanted, output))


def test_an_objective_takes_the_perceptual_gradient_network_that_ships(make_config) -> None:
    config = make_config(objectives=[{"name": "a", "loss": "l1"}, {"name": "b", "loss": "perceptual_gradient"}])
    (field,) = [m for m in build_criterion(config).modules() if isinstance(m, losses.PGN)]
    assert "free licences" in field.notes["trained_on"]
    assert not fingerprints(named_files(config))
