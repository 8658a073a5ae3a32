"""torch.save, pickle and copy of whole models: blends behind attributes, split stacks, and models of older versions."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import tunable_ops
from tests.modules.networks import assert_equal, draw, perturb, plain_net, point
from tunable_ops.modules import TunableModel


def saved(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "torch.save": saved,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "pickle-2": lambda net: pickle.loads(pickle.dumps(net, 2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickled twice": lambda net: saved(saved(net)),
    "a copy of a pickle": lambda net: copy.deepcopy(saved(net)),
}


def model(state: str) -> TunableModel:
    net = tunable_ops.convert(plain_net(), 2, domain="box")
    perturb(net)
    if state == "split":
        tunable_ops.split_base(net)
    elif state == "frozen":
        tunable_ops.freeze_base(net)
    return net


@pytest.mark.parametrize("state", ["whole", "split", "frozen"])
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_computes_the_same_and_is_as_complete(make, state: str) -> None:
    net, x = model(state), draw(2, 3, 8, 8)
    lam, each = point("box", 2), point("box", 2, 2)
    wanted = net(x, lam), net(x, each)  # the plans of a call are not copied
    other = make(net)
    assert_equal(other(x, lam), wanted[0])
    assert_equal(other(x, each), wanted[1])
    assert type(other.network) is not type(net.network) or make in (copy.copy, copy.deepcopy)
    assert repr(other) == repr(net)
    names = {name: p.requires_grad for name, p in net.named_parameters()}
    assert {name: p.requires_grad for name, p in other.named_parameters()} == names
    assert list(other.state_dict()) == list(net.state_dict())
    other.load_state_dict(net.state_dict())
    assert other.spec == net.spec
    assert other.conversion == net.conversion
    plain = tunable_ops.fold(other, lam)
    assert type(plain) is type(plain_net())
    assert_equal(plain(x), wanted[0])
    if make is copy.copy:
        assert other.network is net.network
        return
    assert not {id(p) for p in other.parameters()} & {id(p) for p in net.parameters()}
    perturb(other)
    assert not torch.allclose(other(x, lam), wanted[0])
    if state != "whole":
        tunable_ops.merge_base(other)
        assert isinstance(other.network.head.weight, nn.Parameter)
        assert not parametrize.is_parametrized(other.network.head)
    assert_equal(net(x, lam), wanted[0])


def test_a_block_with_a_blend_is_pickled_by_its_own_getstate() -> None:
    net = tunable_ops.convert(Keeps(), 2)
    other = saved(net)
    assert other.network.cache == []
    assert_equal(other(torch.ones(1, 2), [0.3, 0.7]), net(torch.ones(1, 2), [0.3, 0.7]))


class Keeps(nn.Module):
    """Network that pickles without its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.cache = nn.Parameter(torch.ones(1, 2)), [1]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "cache": []}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


@pytest.mark.parametrize("missing", [("_plans",), ("_plans", "_pre_hooks", "left_alone", "notes")], ids=len)
def test_a_model_that_an_older_version_pickled(missing: tuple[str, ...]) -> None:
    net, x = model("whole"), draw(2, 3, 8, 8)
    wanted = net(x, [0.3, 0.7])
    old = TunableModel.__new__(TunableModel)
    old.__setstate__({name: value for name, value in vars(net).items() if name not in missing})
    assert_equal(old(x, [0.3, 0.7]), wanted)
    assert old.left_alone == old.notes == {}
    assert "head" in str(saved(old).network)
