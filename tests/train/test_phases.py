"""Training of the other knobs: phases, their schedule, resuming in the middle and at a border."""

import typing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunable_ops import control
from tunable_ops.serialization import load
from tunable_ops.train import MODEL, STATE, train
from tunable_ops.train.build import build_network
from tunable_ops.train.config import Optim, Tuning
from tunable_ops.train.phases import Schedule

ARGUMENTS = {
    "dni": {},
    "adafm": {"kernel_size": 3},
    "dynamic_net": {"after": ["model.2"]},
    "cfsnet": {"after": ["model.2"]},
}


def test_the_configuration_knows_every_method() -> None:
    kinds = typing.get_args(typing.get_type_hints(Tuning)["kind"])
    assert [kind for kind in kinds if kind not in ("affine", "identity", "none")] == list(control.METHODS)


@pytest.mark.parametrize("kind", ARGUMENTS)
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


def test_schedule() -> None:
    net = control.attach(torch.nn.Conv2d(3, 3, 3), "dni", 3)
    schedule = Schedule(net, Optim(steps=11))
    phases = [schedule.at(step) for step in range(11)]
    assert [phase.number for phase in phases] == [0] * 3 + [1] * 3 + [2] * 5
    assert [phase.first for phase in phases] == [0] * 3 + [3] * 3 + [6] * 5
    assert [phase.optim.steps for phase in phases] == [3] * 6 + [5] * 5
    assert Schedule(torch.nn.Conv2d(3, 3, 3), Optim(steps=11)).at(10) == (0, 0, Optim(steps=11))
    with pytest.raises(ValueError, match=r"optim\.steps must be at least 3, one per phase; got 2"):
        Schedule(net, Optim(steps=2))


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"tuning": {"control": {"kernel_size": 3}}}, r"tuning.control must be left out for kind 'affine'"),
        ({"tuning": {"kind": "dni", "num_kernels": 3}}, r"tuning must leave num_kernels alone for kind 'dni'"),
        ({"tuning": {"kind": "dni", "domain": "box"}}, r"tuning must leave domain alone for kind 'dni'"),
        ({"tuning": {"kind": "dni"}, "optim": {"weight_decay": 0.1}}, r"optim.weight_decay must be 0"),
    ],
)
def test_bad_configuration(make_config, sections: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_config(**sections)
