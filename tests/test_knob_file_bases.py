"""Knob files: the base that a file belongs to, and every way in which file and network can be the wrong ones."""

import copy
import re

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors", reason="safetensors is not installed (tunable-ops[train])")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tunable_ops
from tests.knobs import turn
from tests.modules.networks import DTYPE, Picture, plain_net
from tunable_ops import load_knob, models, pretrained, save_knob, serialization
from tunable_ops.knob_files import fingerprint, load_base, read_knob_metadata


@pytest.fixture
def base():
    torch.manual_seed(0)
    return plain_net()


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


def test_a_network_of_a_file_says_what_its_base_is(tmp_path):
    """What was loaded knows its architecture, so its knob needs no network to come back."""
    net = pretrained.load("denoise")
    save_knob(net, tmp_path / "knob.safetensors")
    metadata = read_knob_metadata(tmp_path / "knob.safetensors")
    assert (metadata["architecture"], metadata["arguments"]) == ("ffdnet", dict(net.built_as["arguments"]))
    with pytest.raises(ValueError, match="base"):
        load_knob(models.build("ffdnet", **metadata["arguments"]), tmp_path / "knob.safetensors")
