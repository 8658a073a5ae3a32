"""Knob files: round trips, and several knobs at once."""

import doctest
import json

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors", reason="safetensors is not installed (tunable-ops[train])")

from safetensors.torch import load_file

import tunable_ops
from tests.knobs import new_kernels, turn
from tests.modules.networks import DTYPE, assert_equal, draw, plain_net, point
from tests.modules.test_convert import Tied
from tunable_ops import knob_files, load_knob, models, save_knob, serialization
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.modules.fold import base_network


@pytest.fixture
def base():
    torch.manual_seed(0)
    return plain_net()


# Round trips


@pytest.mark.parametrize("rank", [None, 1, 2])
@pytest.mark.parametrize("names", [("texture",), ("texture", "grain")])
def test_round_trip_is_exact(tmp_path, base, rank, names):
    net, x = turn(base, rank, names=names), draw(2, 3, 8, 8)
    save_knob(net, tmp_path / "knob.safetensors", notes={"psnr": 30.5}, licence="MIT")
    back = load_knob(base, tmp_path / "knob.safetensors")
    assert back.spec == net.spec and back.conversion == net.conversion and back.training == base.training
    state = back.state_dict()
    assert set(state) == set(net.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for seed in range(2):
        lam = point("box", len(names), seed=seed)
        assert torch.equal(back(x, lam), net(x, lam)) and not torch.allclose(back(x, lam), base(x))
    assert back.notes == {"knobs": [{"names": list(names), "licence": "MIT", "notes": {"psnr": 30.5}}]}


def test_at_zero_it_is_the_base_bit_for_bit(tmp_path):
    torch.manual_seed(3)
    plain = models.FFDNet(channels=3, features=8, depth=4).eval()
    net = tunable_ops.convert(plain, 1, domain="box", rank=2)
    tunable_ops.freeze_base(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad and parameter.dim() > 1 and parameter.shape != (1, 1):
                parameter.add_(torch.randn_like(parameter))
    save_knob(net, tmp_path / "knob.safetensors", base=plain, dtype=torch.float16)
    back, x = load_knob(plain, tmp_path / "knob.safetensors"), torch.rand(1, 3, 10, 9)
    assert torch.equal(back(x, [0.0], 0.1), plain(x, 0.1))
    assert not torch.allclose(back(x, [1.0], 0.1), plain(x, 0.1))
    folded = tunable_ops.fold(back, [0.0]).state_dict()
    assert all(torch.equal(value, folded[name]) for name, value in plain.state_dict().items())
    assert type(base_network(back)) is models.FFDNet


def test_only_what_is_not_the_base_is_written(tmp_path, base):
    file = tmp_path / "knob.safetensors"
    save_knob(turn(base, None), file)
    tensors = load_file(file)
    assert set(tensors) - {"phi.weight", "phi.bias"} == {
        f"{name}.new"
        for name, _ in base.named_parameters()
        if "norm" not in name
    }  # fmt: skip
    assert all(value.shape[0] == 1 for name, value in tensors.items() if name.endswith(".new"))
    save_knob(turn(base, 1), file)
    assert {"head.weight.u", "head.weight.v", "head.bias.new", "up.weight.u", "gamma.new"} <= set(load_file(file))
    assert {"phi.weight", "phi.bias"} <= set(load_file(file))


def test_half_precision(tmp_path, base):
    file = tmp_path / "knob.safetensors"
    net = turn(base, 1)
    save_knob(net, file, dtype=torch.float16)
    tensors = load_file(file)
    assert {value.dtype for name, value in tensors.items() if not name.startswith("phi")} == {torch.float16}
    assert tensors["phi.weight"].dtype == DTYPE
    back, lam = load_knob(base, file), point("box", 1)
    assert next(back.parameters()).dtype == DTYPE
    torch.testing.assert_close(back(draw(2, 3, 8, 8), lam), net(draw(2, 3, 8, 8), lam), rtol=0.02, atol=0.05)


def test_a_texture_knob_of_rank_4_for_ffdnet_is_about_100_kb(tmp_path):
    net = tunable_ops.convert(models.FFDNet(), 1, domain="box", rank=4, names=["texture"])
    save_knob(net, tmp_path / "knob.safetensors", architecture="ffdnet", arguments={}, dtype=torch.float16)
    assert 80_000 < (tmp_path / "knob.safetensors").stat().st_size < 105_000


def test_a_loaded_knob_can_be_saved_again_and_as_a_whole_network(tmp_path):
    arguments = {"channels": 1, "features": 8, "depth": 3}
    plain = models.build("dncnn", **arguments).eval()
    net = turn(plain, 1)
    save_knob(net, tmp_path / "a.safetensors", notes={"seed": 3}, licence="MIT")
    back = load_knob(plain, tmp_path / "a.safetensors")
    save_knob(back, tmp_path / "b.safetensors")
    assert read_knob_metadata(tmp_path / "a.safetensors") == read_knob_metadata(tmp_path / "b.safetensors")
    first, second = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())
    serialization.save(back, tmp_path / "whole.safetensors", architecture="dncnn", arguments=arguments)
    whole, x = serialization.load(tmp_path / "whole.safetensors"), torch.rand(1, 1, 6, 7)
    assert torch.equal(whole(x, [0.7]), back(x, [0.7]))
    assert whole.notes == back.notes and whole.conversion == json.loads(json.dumps(back.conversion))


def test_tied_layers(tmp_path):
    torch.manual_seed(0)
    plain = Tied().to(DTYPE).eval()
    net = turn(plain, 1)
    save_knob(net, tmp_path / "knob.safetensors")
    back = load_knob(plain, tmp_path / "knob.safetensors")
    lam = point("box", 1)
    assert_equal(back(draw(1, 3, 6, 6), lam), net(draw(1, 3, 6, 6), lam))
    assert len(list(back.parameters())) == len(list(net.parameters()))


# Several knobs on one base


@pytest.mark.parametrize(
    "one, two, rank",
    [
        ({"rank": 1}, {"rank": 1}, 1),
        ({"rank": 1}, {"rank": 2}, None),
        ({"rank": None}, {"rank": 1}, None),
        ({"rank": 1, "include": ["blocks.*"]}, {"rank": 1, "exclude": ["tail.0"], "parameters": ["gamma"]}, 1),
        ({"rank": 1, "num_kernels": 4}, {"rank": 1, "names": ("a", "b")}, 1),
    ],
    ids=["same rank", "ranks", "full and low", "layers", "numbers"],
)
def test_the_kernels_of_several_knobs_add_up(tmp_path, base, one, two, rank):
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    nets = [turn(base, seed=1, **{"names": ("texture",), **one}), turn(base, seed=2, **{"names": ("blur",), **two})]
    for net, file in zip(nets, files, strict=True):
        save_knob(net, file)
    both = load_knob(base, files)
    assert both.spec.names == nets[0].spec.names + nets[1].spec.names
    assert both.conversion.get("rank") == rank
    lams = [point("box", net.spec.num_params, seed=5 + i) for i, net in enumerate(nets)]
    added = new_kernels(both, torch.cat(lams))
    parts = [new_kernels(net, lam) for net, lam in zip(nets, lams, strict=True)]
    for name, value in added.items():
        assert_equal(value, parts[0][name] + parts[1][name])
    one_after_the_other = load_knob(load_knob(base, files[0]), files[1])
    assert one_after_the_other.spec == both.spec
    x = draw(2, 3, 8, 8)
    assert_equal(one_after_the_other(x, torch.cat(lams)), both(x, torch.cat(lams)))
    assert [entry["names"] for entry in one_after_the_other.notes["knobs"]] == [list(net.spec.names) for net in nets]
    # what both make together is a knob, too
    save_knob(both, tmp_path / "both.safetensors")
    assert_equal(load_knob(base, tmp_path / "both.safetensors")(x, torch.cat(lams)), both(x, torch.cat(lams)))


def test_ranges_and_defaults_travel(tmp_path, base):
    for name, high in (("sigma", 50.0), ("texture", 1.0)):
        net = tunable_ops.convert(
            base, 1, domain="box", names=[name], ranges=[(0, high)], defaults=[high / 2], include=["head"]
        )
        save_knob(net, tmp_path / name)
    both = load_knob(base, [tmp_path / "sigma", tmp_path / "texture"])
    assert both.spec.ranges == ((0.0, 50.0), (0.0, 1.0)) and both.spec.defaults == (25.0, 0.5)
    assert load_knob(base, tmp_path / "sigma").spec.ranges == ((0.0, 50.0),)


def test_a_tunable_network_keeps_its_own_knobs_and_notes(tmp_path, base):
    own = turn(base, None, seed=1, names=("sigma",))
    own.notes = {"trained": "on noise"}
    save_knob(turn(base, 1, seed=2), tmp_path / "knob.safetensors")
    both = load_knob(own, tmp_path / "knob.safetensors")
    assert both.spec.names == ("sigma", "texture") and both.notes["trained"] == "on noise"
    x = draw(2, 3, 8, 8)
    assert_equal(both(x, [0.6, 0.0]), load_like(own, x, [0.6], both))
    assert own.spec.names == ("sigma",)


def load_like(own, x, lam, both):
    """Return own(x, lam) plus what the trained phi of the second knob adds at 0: its bias moves kernels there too."""
    at_zero = new_kernels(both, [0.0, 0.0])
    first = new_kernels(own, [0.0])
    folded = tunable_ops.fold(own, lam)
    state = folded.state_dict()
    for name, value in at_zero.items():
        state[name] = state[name] + value - first[name]
    folded.load_state_dict(state)
    return folded(x)


def test_rename(tmp_path, base):
    save_knob(turn(base, 1, seed=1), tmp_path / "a")
    save_knob(turn(base, 1, seed=2), tmp_path / "b")
    with pytest.raises(ValueError, match=r"different names; got 'texture' twice.*rename=\{'texture': 'texture2'\}"):
        load_knob(base, [tmp_path / "a", tmp_path / "b"])
    first = load_knob(base, tmp_path / "a")
    both = load_knob(first, tmp_path / "b", rename={"texture": "texture2"})
    assert both.spec.names == ("texture", "texture2") == tuple(both.conversion["names"])
    with pytest.raises(ValueError, match=r"rename must name parameters of the knobs \(texture\); got 'txture'"):
        load_knob(base, tmp_path / "a", rename={"txture": "b"})
    with pytest.raises(TypeError, match="rename must hold names; got 3 for 'texture'"):
        load_knob(base, tmp_path / "a", rename={"texture": 3})


def test_examples():
    assert doctest.testmod(knob_files, extraglobs={"nn": nn}).failed == 0
