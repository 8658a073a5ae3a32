"""The adversarial objective in a run: resumption, when it begins, what it sees and logs, settings that do not fit."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunable_ops import losses
from tunable_ops.train import MODEL, STATE, train
from tunable_ops.train.adversarial import Adversarial, Adversary
from tunable_ops.train.build import build_adversary, build_network
from tunable_ops.train.distributed import Process
from tunable_ops.train.log import LOG
from tunable_ops.train.restoration import Restoration

HERE = Process(0, 1, torch.device("cpu"))
OBJECTIVES = [
    {"name": "accurate", "loss": "l1", "weight": {"texture": [1, 0.1]}},
    {"name": "real", "loss": "adversarial", "scale": 0.05, "weight": {"texture": [0, 1]}},
]
SECTIONS = {
    "tuning": {"domain": "box", "names": ["texture"]},
    "objectives": OBJECTIVES,
    "adversarial": {"features": 4, "depth": 2, "lr": 1e-3},
}


@pytest.fixture
def make(make_config):
    def build(**changes):
        sections = {**SECTIONS, **changes}
        sections["adversarial"] = {**SECTIONS["adversarial"], **changes.get("adversarial", {})}
        return make_config(**sections)

    return build


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("form", ["relativistic", "hinge"])
def test_stopped_and_resumed_gives_the_same_bits(make, tmp_path: Path, form: str) -> None:
    """Discriminator, its moments and its spectral vectors included: stops before it begins, on the ramp, after it."""
    config = make(
        optim={"steps": 8},
        adversarial={"form": form, "start": 2, "ramp": 3, "r1": 0.5, "r1_every": 2},
        sampler={"stratified": True},
    )
    train(config, tmp_path / "whole", progress=False)
    for stop in (1, 3, 4, 6):
        train(config, tmp_path / "parts", resume=True, stop_at=stop, progress=False)
        torch.manual_seed(stop)
    assert train(config, tmp_path / "parts", resume=True, progress=False).finished
    assert same(load_file(tmp_path / "whole" / MODEL), load_file(tmp_path / "parts" / MODEL))
    state = load_file(tmp_path / "whole" / STATE)
    assert same(state, load_file(tmp_path / "parts" / STATE))
    kept = {name for name in state if name.startswith("discriminator/")}
    assert "discriminator/weights/projection" in kept and any(name.endswith("._u") for name in kept)
    assert "discriminator/optimizer/projection/exp_avg" in kept


def test_it_begins_at_start_and_rises_on_the_ramp(make) -> None:
    adversary = Adversary(Adversarial(start=3, ramp=3), 0, 1, 3, HERE)
    assert [adversary.strength(step) for step in (0, 2, 3, 4, 5, 6, 99)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert Adversary(Adversarial(), 0, 1, 3, HERE).strength(0) == 1


def test_before_the_start_it_costs_and_changes_nothing(make, make_config, tmp_path: Path) -> None:
    late = make(adversarial={"start": 4}, optim={"steps": 4}, log={"every": 4})
    train(late, tmp_path / "late", progress=False)
    alone = make_config(**{**SECTIONS, "objectives": OBJECTIVES[:1], "adversarial": {}}, optim={"steps": 4})
    train(alone, tmp_path / "alone", progress=False)
    assert same(load_file(tmp_path / "late" / MODEL), load_file(tmp_path / "alone" / MODEL))
    fresh = build_adversary(late, HERE).discriminator.state_dict()
    state = load_file(tmp_path / "late" / STATE)
    assert all(torch.equal(state[f"discriminator/weights/{name}"], value) for name, value in fresh.items())
    (line,) = (json.loads(text) for text in (tmp_path / "late" / LOG).read_text().splitlines())
    assert "loss/real" not in line and "adversarial/loss" not in line and "loss/accurate" in line


def test_what_is_logged(make, tmp_path: Path) -> None:
    train(make(adversarial={"r1": 1, "r1_every": 2}), tmp_path / "run", progress=False)
    lines = [json.loads(text) for text in (tmp_path / "run" / LOG).read_text().splitlines()]
    names = {"loss/real", "adversarial/loss", "adversarial/real", "adversarial/fake", "adversarial/r1"}
    assert lines and all(names <= line.keys() for line in lines)
    assert all(line["adversarial/r1"] > 0 and math.isfinite(line["loss/total"]) for line in lines)


def test_both_are_judged_at_the_lambda_of_their_sample(make) -> None:
    """The loss is the formula's, the network alone gets its gradient, and real crops get the same lambda."""
    config = make(adversarial={"form": "relativistic"})
    task = Restoration(config, HERE)
    adversary, batch = task.adversary, task.batches[0]
    assert adversary is not None
    with torch.no_grad():
        adversary.discriminator.projection.normal_()
    before = {name: value.clone() for name, value in adversary.discriminator.state_dict().items()}
    total, terms = task.loss(batch, 0)
    total.backward()
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())
    assert any(parameter.grad is not None for parameter in task.net.parameters())
    other = losses.PatchDiscriminator(1, features=4, depth=2)
    other.load_state_dict(before)
    clean, t = batch.targets["clean"], batch.lam[:, 0]
    output = task.net(batch.input, batch.lam)
    wanted = losses.generator_loss(other(output, batch.lam), other(clean, batch.lam))
    weighted = (1 - 0.9 * t) * losses.l1(output, clean) + 0.05 * t * wanted
    torch.testing.assert_close(total, weighted.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["real"], wanted.mean().detach(), rtol=1e-4, atol=1e-6)
    values = adversary.learn(0)
    assert torch.isfinite(values["adversarial/loss"])
    assert not same(before, adversary.discriminator.state_dict())


def test_the_discriminator_learns(make, tmp_path: Path) -> None:
    config = make(
        degradation={"noise": {"sigma": [60, 60]}},
        optim={"steps": 60, "lr": 1e-6},
        adversarial={"lr": 5e-3},
        log={"every": 20},
    )
    train(config, tmp_path / "run", progress=False)
    lines = [json.loads(text) for text in (tmp_path / "run" / LOG).read_text().splitlines()]
    assert lines[-1]["adversarial/loss"] < 0.8 * lines[0]["adversarial/loss"]
    assert lines[-1]["adversarial/real"] > lines[-1]["adversarial/fake"]


def test_a_plain_network_and_grey_pictures(make, tmp_path: Path) -> None:
    """One lambda for the whole batch, and one channel."""
    tuning = {"kind": "none", "lam": [1.0], "names": ["texture"]}
    config = make(tuning=tuning, model={"arguments": {"features": 8, "depth": 3, "channels": 1}})
    assert train(config, tmp_path / "run", progress=False).finished


def test_the_plain_network_stays_at_zero(make, tmp_path: Path) -> None:
    """Base kernels and phi frozen: bit for bit at texture 0, and something else at 1."""
    config = make(optim={"base_lr": 0, "phi_lr": 0})
    before = build_network(config).eval().to(memory_format=torch.channels_last)  # as the trainer has it
    after = train(config, tmp_path / "run", progress=False).net
    x = torch.rand(1, 3, 20, 20)
    assert torch.equal(before(x, [0.0]), after(x, [0.0]))
    assert not torch.equal(before(x, [1.0]), after(x, [1.0]))


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        (
            {"objectives": [*OBJECTIVES, {"name": "b", "loss": "adversarial", "follows": False}]},
            "objectives must be adversarial in one at most, and in none for phases; got real, b",
        ),
        (
            {
                "objectives": [{"name": "a"}, {"name": "b", "loss": "adversarial"}],
                "tuning": {"kind": "dni", "domain": "simplex", "names": ["a", "b"]},
            },
            "in none for phases; got b",
        ),
        ({"objectives": OBJECTIVES[:1]}, "adversarial must be left out where no objective has the loss 'adversarial'"),
        ({"adversarial": {"depth": 5}}, "data.crop must be at least 32 for a discriminator of depth 5; got 16"),
        ({"adversarial": {"form": "lsgan"}}, "Input should be 'relativistic', 'hinge' or 'non_saturating'"),
        ({"adversarial": {"r1_every": 0}}, "greater than or equal to 1"),
        (
            {"objectives": [OBJECTIVES[0], {**OBJECTIVES[1], "arguments": {"form": "hinge"}}]},
            "objectives.arguments must be empty for the loss 'adversarial'",
        ),
    ],
)
def test_bad_settings(make, sections: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**sections)
