"""Training of the other knobs: phases, their schedule, resuming in the middle and at a border."""

import math
import typing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunable_ops import control
from tunable_ops.serialization import load
from tunable_ops.train import MODEL, STATE, train
from tunable_ops.train.build import build_network, build_sampler
from tunable_ops.train.data import Batches, Photographs, find_training_files
from tunable_ops.train.evaluate import degraded_pictures, mean_psnr, sweep
from tunable_ops.train.measure import Measure
from tunable_ops.train.phases import Schedule
from tunable_ops.train.tuning import Tuning

ARGUMENTS = {
    "dni": {},
    "adafm": {"kernel_size": 3},
    "dynamic_net": {"after": ["model.2"]},
    "cfsnet": {"after": ["model.2"]},
    "film": {"hidden": 4},
    "planes": {},
    "cresmd": {"after": ["model.*[024]"]},
    "low_rank": {"rank": 1},
}


def test_the_configuration_knows_every_method() -> None:
    kinds = typing.get_args(typing.get_type_hints(Tuning)["kind"])
    assert [kind for kind in kinds if kind not in ("affine", "identity", "none")] == list(control.METHODS)


@pytest.mark.parametrize("kind", control.PHASED)
def test_stopped_and_resumed_gives_the_same_bits(make_config, tmp_path: Path, kind: str) -> None:
    config = make_config(tuning={"kind": kind, "control": ARGUMENTS[kind]}, optim={"steps": 7})
    train(config, tmp_path / "whole", progress=False)
    for stop in (2, 3, 5):  # phase 1 begins with step 3
        train(config, tmp_path / "parts", resume=True, stop_at=stop, progress=False)
        if stop == 3:
            main = load(tmp_path / "parts" / MODEL)
    assert train(config, tmp_path / "parts", resume=True, progress=False).finished
    for file in (MODEL, STATE):
        whole, parts = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
        assert whole.keys() == parts.keys()
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    # What phase 0 delivered is still there, to the last bit, and the other corner is another network.
    net, x = load(tmp_path / "whole" / MODEL), torch.rand(2, 3, 12, 11)
    assert torch.equal(net(x, [1.0, 0.0]), main(x, [1.0, 0.0]))
    assert not torch.equal(net(x, [0.0, 1.0]), main(x, [0.0, 1.0]))


def test_every_method_starts_from_the_same_weights(make_config) -> None:
    x = torch.rand(1, 3, 9, 8)
    plain = build_network(make_config(tuning={"kind": "none"}))
    for kind, arguments in ARGUMENTS.items():
        net = build_network(make_config(tuning={"kind": kind, "control": arguments}))
        torch.testing.assert_close(net(x, [1.0, 0.0]), plain(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in control.METHODS if kind not in control.PHASED])
@pytest.mark.parametrize("domain", ["simplex", "box"])
def test_knobs_of_all_lambda_train_in_one_phase(make_config, tmp_path: Path, kind: str, domain: str) -> None:
    """With lambda drawn per sample over the whole domain; stopped and resumed they get the same bits."""
    tuning = {"kind": kind, "control": ARGUMENTS[kind], "domain": domain}
    config = make_config(tuning=tuning, optim={"steps": 5}, ema={"decay": 0.0})
    assert Schedule(config).count == 1
    drawn = build_sampler(config)(200, torch.Generator().manual_seed(0))
    assert (drawn.sum(1) > 1.2).any() == (domain == "box")
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "parts", stop_at=2, progress=False)
    assert train(config, tmp_path / "parts", resume=True, progress=False).finished
    whole, parts = (load_file(tmp_path / name / MODEL) for name in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    net, x = load(tmp_path / "whole" / MODEL), torch.rand(2, 3, 12, 11)
    start = build_network(config)
    middle = [0.5, 0.5]
    assert not torch.equal(net(x, middle), start(x, middle))
    assert not torch.equal(net(x, [1.0, 0.0]), net(x, [0.0, 1.0]))


def test_schedule(make_config) -> None:
    three = {"objectives": [{"name": name} for name in "abc"], "tuning": {"kind": "dni", "names": list("abc")}}
    schedule = Schedule(make_config(**three, optim={"steps": 11}))
    phases = [schedule.at(step) for step in range(11)]
    assert [phase.number for phase in phases] == [0] * 3 + [1] * 3 + [2] * 5
    assert [phase.first for phase in phases] == [0] * 3 + [3] * 3 + [6] * 5
    assert [phase.optim.steps for phase in phases] == [3] * 6 + [5] * 5
    assert [phases[step].lam for step in (0, 3, 10)] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    plain = make_config(tuning={"kind": "none", "lam": [0.25, 0.75]}, optim={"steps": 11})
    assert Schedule(plain).at(10) == (0, 0, plain.optim, [0.25, 0.75])
    with pytest.raises(ValueError, match=r"optim\.steps must be at least 3, one per phase; got 2"):
        Schedule(make_config(**three, optim={"steps": 2}))


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"tuning": {"control": {"kernel_size": 3}}}, r"tuning.control must be left out for kind 'affine'"),
        ({"tuning": {"kind": "dni", "num_kernels": 3}}, r"tuning must leave num_kernels alone for kind 'dni'"),
        ({"tuning": {"kind": "dni", "domain": "box"}}, r"tuning must leave domain alone for kind 'dni'"),
        ({"tuning": {"kind": "film", "rank": 3, "domain": "box"}}, r"tuning must leave rank alone for kind 'film'"),
        ({"tuning": {"kind": "dni"}, "optim": {"weight_decay": 0.1}}, r"optim.weight_decay must be 0"),
    ],
)
def test_bad_configuration(make_config, sections: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_config(**sections)


@pytest.mark.parametrize("kind", ["affine", "none", "adafm"])
def test_noise_that_follows_lambda(make_config, kind: str) -> None:
    """Its standard deviation is <lambda, levels>, per sample; a phase trains at its own level."""
    tuning = {"kind": kind, "lam": [0.5, 0.5]} if kind == "none" else {"kind": kind}
    noise = {"noise": {"levels": [5.0, 55.0]}}
    config = make_config(tuning=tuning, degradation=noise, data={"batch": 4, "crop": 32}, optim={"steps": 6})
    photographs = Photographs(find_training_files(config.data.source), 32)
    batches = Batches(photographs, config, build_sampler(config))
    for step in range(6):
        batch = batches[step]
        sigma = 255 * (batch.input - batch.targets["clean"]).flatten(1).std(1)
        expected = (batch.lam @ torch.tensor([5.0, 55.0])).expand(4)
        torch.testing.assert_close(sigma, expected, rtol=0.08, atol=0)
        if kind == "adafm":
            assert batch.lam.tolist() == ([1.0, 0.0] if step < 3 else [0.0, 1.0])


def test_a_sweep_at_levels_of_noise(make_config) -> None:
    """Every lambda is scored on pictures of its own level; the inputs have no common score."""
    noise = make_config(degradation={"noise": {"levels": [5.0, 50.0]}}).degradation
    clean = [("a", torch.full((3, 40, 40), 0.5)), ("b", torch.full((3, 36, 48), 0.4))]
    identity = torch.nn.Identity()
    identity.weight = torch.nn.Parameter(torch.zeros(1))  # evaluate looks for a device
    found = sweep(identity, clean, noise, [[1.0, 0.0], [0.0, 1.0]], 0, measure=Measure(ssim=False))
    assert [(score.picture, score.lam) for score in found] == [
        (name, lam) for lam in ((1.0, 0.0), (0.0, 1.0)) for name in "ab"
    ]
    assert mean_psnr(found, [1.0, 0.0]) == pytest.approx(-20 * math.log10(5 / 255), abs=0.15)
    assert mean_psnr(found, [0.0, 1.0]) == pytest.approx(-20 * math.log10(50 / 255), abs=0.15)
    with pytest.raises(ValueError, match=r"lam must have one value for each of the noise levels .*; got none"):
        degraded_pictures(clean, noise, 0)
