"""A knob written at a lower rank than it was trained at: the nearest kernels, and the same network at 0."""

import pytest
import torch
from torch import nn

import tunable_ops
from tunable_ops import load_knob, save_knob
from tunable_ops.cli import main
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.modules.fold import base_network
from tunable_ops.serialization import save


def turned(rank=None, seed=0):
    """A conversion of a grouped, a transposed, a linear layer and a parameter, all new values random."""
    torch.manual_seed(seed)
    plain = Layers()
    net = tunable_ops.convert(plain, 1, domain="box", names=["texture"], rank=rank)
    tunable_ops.freeze_all_but_new(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 4)
    return plain, net.eval()


class Layers(nn.Module):
    """One layer of each kind."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 12, 3, padding=1, groups=2)
        self.second = nn.ConvTranspose2d(12, 8, 3, padding=1)
        self.third = nn.Linear(8, 9)
        self.beta = nn.Parameter(torch.ones(6, 9))

    def forward(self, x):
        y = self.third(self.second(self.first(x)).movedim(1, -1))
        return (y * self.beta.mean(0)).movedim(-1, 1)


def moved(net):
    """What every plain value is at 1, minus the base."""
    folded, plain = tunable_ops.fold(net, [1.0]).state_dict(), base_network(net).state_dict()
    return {name: (folded[name] - plain[name]).double() for name in plain}


@pytest.mark.parametrize("trained, rank", [(None, 1), (None, 3), (3, 1)])
@torch.no_grad()
def test_kernels_are_the_nearest_of_that_rank(tmp_path, trained, rank):
    plain, net = turned(trained)
    save_knob(net, tmp_path / "k.safetensors", rank=rank)
    back = load_knob(plain, tmp_path / "k.safetensors")
    assert read_knob_metadata(tmp_path / "k.safetensors")["conversion"]["rank"] == rank
    assert back.conversion["rank"] == rank
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(tunable_ops.fold(back, [0.0])(x), plain.eval()(x))
    for name, wanted in moved(net).items():
        found = moved(back)[name]
        if not name.endswith(".weight"):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=name)
            continue
        u, s, v = torch.linalg.svd(wanted.flatten(1), full_matrices=False)  # by definition, in float64
        nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(found.flatten(1), nearest, rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.allclose(found, wanted, atol=1e-2), name


def test_layers_that_save_nothing_stay_whole(tmp_path):
    plain, net = turned()
    save_knob(net, tmp_path / "k.safetensors", rank=100)
    back = load_knob(plain, tmp_path / "k.safetensors")
    x = torch.randn(1, 4, 6, 5)
    assert torch.equal(back(x, [0.7]), net(x, [0.7]))


def test_the_network_itself_is_not_changed(tmp_path):
    _, net = turned()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    save_knob(net, tmp_path / "k.safetensors", rank=1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.conversion.get("rank") is None


@pytest.mark.parametrize(
    "rank, error, message",
    [
        (0, ValueError, "save_knob: rank must be at least 1; got 0"),
        (1.5, TypeError, "save_knob: rank must be an int; got 1.5"),
        (True, TypeError, "save_knob: rank must be an int; got True"),
        (2, ValueError, "save_knob: rank must be below that of the knob, 2; got 2"),
    ],
)
def test_bad_ranks(tmp_path, rank, error, message):
    _, net = turned(rank=2)
    with pytest.raises(error, match=f"^{message}$"):
        save_knob(net, tmp_path / "k.safetensors", rank=rank)
    assert not (tmp_path / "k.safetensors").exists()


def test_the_command(tmp_path, capsys):
    from tunable_ops import models

    arguments = {"channels": 3, "features": 8, "depth": 3}
    net = tunable_ops.convert(models.build("dncnn", **arguments), 1, domain="box", names=["texture"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    save(net, tmp_path / "net.safetensors", architecture="dncnn", arguments=arguments)
    words = ["knob", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "k.safetensors"), "--rank"]
    assert main([*words, "2"]) == 0
    assert read_knob_metadata(tmp_path / "k.safetensors")["conversion"]["rank"] == 2
    assert main([*words, "0"]) == 2 and "rank must be at least 1; got 0" in capsys.readouterr().err
