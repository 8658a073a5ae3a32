"""Knob files: round trips, several knobs at once, and every way in which file and network can be the wrong ones."""

import copy
import doctest
import json
import re

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors", reason="safetensors is not installed (tunable-ops[train])")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tunable_ops
from tests.modules.networks import DTYPE, Picture, assert_equal, draw, perturb, plain_net, point
from tests.modules.test_convert import Tied
from tunable_ops import knob_files, load_knob, models, pretrained, save_knob, serialization
from tunable_ops.knob_files import fingerprint, load_base, read_knob_metadata
from tunable_ops.modules.fold import base_network


@pytest.fixture
def base():
    torch.manual_seed(0)
    return plain_net()


def turn(base, rank=1, seed=0, names=("texture",), **options):
    """Return a conversion whose new kernels, biases and phi are random, its base and what is not tunable kept."""
    net = tunable_ops.convert(base, len(names), domain="box", rank=rank, names=list(names), **options)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    perturb(net, seed)
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    tunable_ops.load_plain(net, state)  # puts base and norms back, but clears the new kernels
    own = net.state_dict()
    for name, value in trained.items():
        if name.endswith(("original1", "original2")) or "tuning" in name:
            own[name].copy_(value)
        elif name in own and own[name].dim() and own[name].shape[0] == 1 + len(names) and "norm" not in name:
            own[name][1:] = value[1:]
    net.load_state_dict(own)
    return net


def new_kernels(net, lam):
    """Return what every plain parameter is at `lam`, minus the base."""
    folded, plain = tunable_ops.fold(net, lam).state_dict(), base_network(net).state_dict()
    return {name: folded[name] - plain[name] for name in plain if plain[name].is_floating_point()}


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


# Fingerprints


def test_the_fingerprint_knows_layers_and_not_precisions():
    torch.manual_seed(0)
    plain = plain_net(Picture).float()
    found = fingerprint(plain)
    assert list(found) == ["head", "down", "mid.1", "up", "tail"]
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in found.values())
    assert fingerprint(copy.deepcopy(plain).double()) == found
    assert fingerprint(copy.deepcopy(plain).half()) == found
    assert fingerprint(copy.deepcopy(plain).half().float()) == found
    assert fingerprint(copy.deepcopy(plain).to(memory_format=torch.channels_last)) == found
    for name, parameter in plain.named_parameters():
        with torch.no_grad():
            kept = parameter.flatten()[-1].clone()
            parameter.view(-1)[-1] += 0.01
            changed = fingerprint(plain)
            parameter.view(-1)[-1] = kept
        layer = name.rpartition(".")[0]
        assert [key for key in found if changed[key] != found[key]] == [layer]


def test_shapes_names_and_buffers_count():
    one = nn.Linear(4, 6, bias=False)
    two = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        two.weight.copy_(one.weight.view(4, 6))
    assert fingerprint(one) != fingerprint(two)
    norm = nn.BatchNorm2d(3)
    before = fingerprint(nn.Sequential(norm))
    norm.running_mean += 1
    assert fingerprint(nn.Sequential(norm)) != before
    signs = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        signs.weight.zero_()
        before = fingerprint(signs)
        signs.weight.mul_(-1)
    assert fingerprint(signs) == before


# Bad input


def test_another_base(tmp_path, base):
    file = tmp_path / "knob.safetensors"
    save_knob(turn(base, 1), file, architecture="net", arguments={"channels": 4})
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.blocks[1].conv1.weight[0, 0, 0, 0] += 1
        other.tail[0].bias += 1
    wanted = r"load_knob: network must be the base of '.*knob.safetensors', net\(channels=4\) with fingerprint "
    with pytest.raises(ValueError, match=wanted + r"[0-9a-f]{16}; got fingerprint [0-9a-f]{16}, other values in ") as e:
        load_knob(other, file)
    assert "'blocks.1.conv1', the first layer that differs" in str(e.value)
    words = ": the knob is for another network than this one, or for one with other weights"
    assert str(e.value).endswith(words)  # "net" is a name of the caller's own, which does not tell the class
    with pytest.raises(ValueError, match=rf"without the layer 'gamma'{words}$"):
        load_knob(nn.Sequential(nn.Conv2d(3, 4, 3)), file)
    bigger = copy.deepcopy(base)
    bigger.more = nn.Linear(2, 2).to(DTYPE)
    with pytest.raises(ValueError, match=r"with a layer 'more' that the base does not have"):
        load_knob(bigger, file)
    with pytest.raises(ValueError, match=r"other values in 'gamma'"):
        load_knob(turn(plain_net(), 1), file)  # the base of a tunable network, too
    with pytest.raises(ValueError, match=r"other values in 'gamma'"):
        load_knob(plain_net(channels=2), file)


def test_another_base_in_words(tmp_path):
    """By the class of its architecture, as the network that was given is named."""
    first, second = (models.build("dncnn", channels=3, features=4, depth=3) for _ in range(2))
    net = tunable_ops.convert(first, 1, domain="box")
    save_knob(net, tmp_path / "knob.safetensors", architecture="dncnn", arguments={"features": 4, "depth": 3})
    with pytest.raises(ValueError, match=r": the knob is for another DnCNN than this one, with other weights or arg"):
        load_knob(second, tmp_path / "knob.safetensors")
    with pytest.raises(ValueError, match=r": the knob is for the network DnCNN, and the one given is EDSR$"):
        load_knob(models.build("edsr", scale=2, num_blocks=1, features=3), tmp_path / "knob.safetensors")


def test_a_base_that_was_trained_too(tmp_path, base):
    net = turn(base, 1)
    save_knob(net, tmp_path / "knob.safetensors", base=base)
    with torch.no_grad():
        net.network.tail[0].bias[0] += 1
    with pytest.raises(ValueError, match=r"save_knob: net must have the kernels of base; got .*'tail.0'.*trained too"):
        save_knob(net, tmp_path / "other.safetensors", base=base)
    assert not (tmp_path / "other.safetensors").exists()


def test_files_of_the_other_kind(tmp_path, base):
    arguments = {"channels": 1, "features": 4, "depth": 3}
    net = tunable_ops.convert(models.build("dncnn", **arguments), 1, domain="box")
    whole, plain, bare, knob = (tmp_path / name for name in ("whole", "plain", "bare", "knob"))
    serialization.save(net, whole, architecture="dncnn", arguments=arguments)
    serialization.save(tunable_ops.fold(net, [0.0]), plain, architecture="dncnn", arguments=arguments)
    save_file(net.network.state_dict(), bare)
    save_knob(net, knob)
    for file in (whole, plain):
        with pytest.raises(
            ValueError, match=r"must hold 'tunable_ops.knob'; got .*a whole network: .*serialization.load"
        ):
            load_knob(base, file)
    with pytest.raises(ValueError, match=r"must hold 'tunable_ops.knob'; got .*bare weights"):
        load_knob(base, bare)
    for read in (
        serialization.load,
        serialization.load_folded,
        serialization.read_metadata,
        serialization.read_weights,
    ):
        with pytest.raises(
            ValueError, match=r"a knob without its base: add it to that network with tunable_ops.load_knob"
        ):
            read(knob)
    with pytest.raises(FileNotFoundError):
        load_knob(base, tmp_path / "missing")


def test_damaged_files(tmp_path, base):
    file = tmp_path / "knob.safetensors"
    save_knob(turn(base, 1), file)
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(file)
    save_file(tensors, file, metadata={k: v for k, v in metadata.items() if k != "base"})
    with pytest.raises(ValueError, match=r"must be a whole knob file; got .* without base"):
        load_knob(base, file)
    save_file({k: v for k, v in tensors.items() if k != "phi.bias"}, file, metadata=metadata)
    with pytest.raises(ValueError, match=r"without phi\.bias"):
        load_knob(base, file)
    for name in ("head.weight.v", "head.weight.u", "head.bias.new"):
        save_file({k: v for k, v in tensors.items() if k != name}, file, metadata=metadata)
        with pytest.raises(ValueError, match=f"must be a whole knob file; got one without {re.escape(name)}"):
            load_knob(base, file)
    save_file({**tensors, "phi.bias": torch.zeros(2, 1)}, file, metadata=metadata)
    with pytest.raises(
        ValueError, match=r"must hold phi.weight .* for 11 layers and p = 1; got \[11, 1, 1\] and \[2, 1\]"
    ):
        load_knob(base, file)
    save_file({**tensors, "head.bias.new": torch.zeros(1, 9)}, file, metadata=metadata)
    with pytest.raises(ValueError, match=r"head.bias.new must be \[1, 4\] for this network; got \[1, 9\]"):
        load_knob(base, file)
    save_file({**tensors, "other.bias.new": torch.zeros(1, 9)}, file, metadata=metadata)
    with pytest.raises(ValueError, match=r"must have the layers of the knob; got none for 'other.bias.new'"):
        load_knob(base, file)
    save_file(tensors, file, metadata={**metadata, "version": "9"})
    with pytest.raises(ValueError, match="version must be 1; got '9'"):
        load_knob(base, file)


def test_bad_arguments(tmp_path, base):
    file = tmp_path / "knob.safetensors"
    net = turn(base, 1)
    with pytest.raises(TypeError, match="save_knob: net must be a TunableModel; got Net"):
        save_knob(base, file)
    with pytest.raises(
        ValueError, match=r"net must be made with tunable_ops.convert, on the box .*; got domain 'simplex'"
    ):
        save_knob(tunable_ops.convert(base, 2), file)
    with pytest.raises(ValueError, match=r"load_knob: network must be made with tunable_ops.convert, on the box"):
        load_knob(tunable_ops.convert(base, 2), file)
    with pytest.raises(TypeError, match="licence must be a string; got 3"):
        save_knob(net, file, licence=3)
    with pytest.raises(TypeError, match=r"dtype must be a floating-point dtype; got torch.int8"):
        save_knob(net, file, dtype=torch.int8)
    with pytest.raises(TypeError, match="notes must be JSON"):
        save_knob(net, file, notes={"a": torch.zeros(1)})
    with torch.no_grad():
        net.network.head.bias[1] = 1e6
    with pytest.raises(ValueError, match=r"must have finite kernels in torch.float16; got others in 'head.bias.new'"):
        save_knob(net, file, dtype=torch.float16)
    assert not file.exists()
    with pytest.raises(TypeError, match=r"load_knob: network must be an nn\.Module; got str"):
        load_knob("net", file)
    with pytest.raises(ValueError, match=r"path must name at least one file; got \[\]"):
        load_knob(base, [])
    with pytest.raises(TypeError, match="path must be a path or a sequence of paths; got 5"):
        load_knob(base, 5)
    with pytest.raises(TypeError, match=r"rename must map names to names; got \['texture'\]"):
        load_knob(base, file, rename=["texture"])


# Bases as files


def test_load_base(tmp_path):
    arguments = {"channels": 1, "features": 8, "depth": 3}
    torch.manual_seed(0)
    plain = models.build("dncnn", **arguments).eval()
    knob, named, bare, half, whole = (tmp_path / n for n in ("knob", "named", "bare", "half", "whole"))
    net = turn(plain, 1)
    save_knob(net, knob, architecture="dncnn", arguments=arguments)
    save_file(plain.state_dict(), bare)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in plain.state_dict().items()}, half)
    serialization.save(plain, named, architecture="dncnn", arguments=arguments)
    own = turn(plain, 1, seed=4, names=("level",))
    serialization.save(own, whole, architecture="dncnn", arguments=arguments)
    x = torch.rand(1, 1, 6, 5)
    for file in (named, bare):
        found = load_base(file, knob)
        assert not found.training and torch.equal(load_knob(found, knob)(x, [0.4]), net.eval()(x, [0.4]))
    assert load_knob(load_base(half, knob).float(), knob).spec.names == ("texture",)
    assert load_knob(load_base(whole, knob), knob).spec.names == ("level", "texture")
    about = read_knob_metadata(knob)
    assert (about["architecture"], about["arguments"]) == ("dncnn", arguments)
    save_knob(net, knob)
    with pytest.raises(ValueError, match=r"load_base: path must be a checkpoint .*how to build its base 'DnCNN'"):
        load_base(bare, knob)


def test_examples():
    assert doctest.testmod(knob_files, extraglobs={"nn": nn}).failed == 0


def test_a_network_of_a_file_says_what_its_base_is(tmp_path):
    """What was loaded knows its architecture, so its knob needs no network to come back."""
    net = pretrained.load("denoise")
    save_knob(net, tmp_path / "knob.safetensors")
    metadata = read_knob_metadata(tmp_path / "knob.safetensors")
    assert (metadata["architecture"], metadata["arguments"]) == ("ffdnet", dict(net.built_as["arguments"]))
    with pytest.raises(ValueError, match="base"):
        load_knob(models.build("ffdnet", **metadata["arguments"]), tmp_path / "knob.safetensors")
