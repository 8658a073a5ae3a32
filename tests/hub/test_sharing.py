"""Networks and knobs to a folder and to a hub, and back; what a strange repository may not do."""

import json
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from huggingface_hub import ModelHubMixin
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

import tunable_ops
from tests.hub.networks import DNCNN, LAM, X, own, small
from tunable_ops import TunableModel, pretrained, serialization
from tunable_ops.hub import KnobFile, NetworkFile


def test_a_folder_and_back(tmp_path):
    net = small()
    net.notes = {"purpose": "removes noise", "training": 3}
    net.save_pretrained(tmp_path / "net", arguments=DNCNN)
    assert sorted(each.name for each in (tmp_path / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    back = TunableModel.from_pretrained(tmp_path / "net")
    assert type(back) is TunableModel and not back.training and back.spec == net.spec and back.notes == net.notes
    assert torch.equal(back(X, LAM), net(X, LAM))
    config = json.loads((tmp_path / "net/config.json").read_text())
    assert (config["library_name"], config["architecture"], config["arguments"]) == ("tunable_ops", "dncnn", DNCNN)
    assert config["lambda"]["units"] == ["of 255", ""]
    back.save_pretrained(tmp_path / "again")  # what it was loaded as is known
    assert torch.equal(TunableModel.from_pretrained(str(tmp_path / "again"))(X, LAM), net(X, LAM))


def test_it_is_the_mixin():
    assert issubclass(NetworkFile, ModelHubMixin) and issubclass(KnobFile, ModelHubMixin)


@pytest.mark.parametrize("name", ["denoise", "denoise_deblur", "super_resolution_x2"])
def test_networks_that_ship(tmp_path, name):
    net = pretrained.load(name)
    net.save_pretrained(tmp_path, licence="MIT and Apache-2.0")
    back, x = TunableModel.from_pretrained(tmp_path), torch.rand(1, 3, 12, 12)
    for lam in (None, [high for _, high in net.spec.ranges]):
        assert torch.equal(back(x, lam), net(x, lam))
    card = (tmp_path / "README.md").read_text()
    assert "93 photographs" in card and "license: other" in card and "license_name: MIT and Apache-2.0" in card


def test_a_network_of_another_class(tmp_path):
    net = tunable_ops.convert(own(), 1, names=["texture"], domain="box")
    with pytest.warns(UserWarning, match=r"'Sequential' is no architecture .*from_pretrained\(source, network=plain\)"):
        net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass network="):
        TunableModel.from_pretrained(tmp_path)
    back = TunableModel.from_pretrained(tmp_path, network=own())
    assert torch.equal(back(X, 0.3), net(X, 0.3))
    assert "network=plain)" in (tmp_path / "README.md").read_text()


def test_to_the_hub_and_back_at_a_revision(hub, tmp_path):
    first, second = small(), small()
    with torch.no_grad():
        next(second.parameters()).add_(1)
    address = first.push_to_hub("me/denoiser", arguments=DNCNN, private=True, commit_message="First")
    second.push_to_hub("me/denoiser", arguments=DNCNN)
    assert "/me/denoiser/commit/" in address and hub.messages == ["First", "Upload with tunable_ops"]
    assert hub.private["me/denoiser"]
    commit = address.rpartition("/")[2]
    assert set(hub.at("me/denoiser", commit)[1]) >= {"config.json", "model.safetensors", "README.md"}
    card = hub.at("me/denoiser", commit)[1]["README.md"].decode()
    assert '.from_pretrained("me/denoiser")' in card and "library_name: tunable_ops" in card
    assert torch.equal(TunableModel.from_pretrained("me/denoiser")(X, LAM), second(X, LAM))
    hub.asked.clear()
    pinned = TunableModel.from_pretrained("me/denoiser", revision=commit)
    assert torch.equal(pinned(X, LAM), first(X, LAM)) and not torch.equal(pinned(X, LAM), second(X, LAM))
    assert hub.asked and all(f"/{commit}" in path for _, path in hub.asked)
    hub.asked.clear()
    cached = TunableModel.from_pretrained("me/denoiser", revision=commit, local_files_only=True)
    assert torch.equal(cached(X, LAM), first(X, LAM)) and hub.asked == []


def test_a_knob_to_the_hub_and_back(hub, tmp_path):
    file = pretrained.find("denoise").knobs[0]
    KnobFile(file, purpose="fine texture", base_model="someone/ffdnet").push_to_hub("me/texture")
    files = hub.at("me/texture", "main")[1]
    assert {"config.json", "knob.safetensors"} <= set(files)
    assert json.loads(files["config.json"])["format"] == "tunable_ops.knob"
    card = files["README.md"].decode()
    for part in ("license: apache-2.0", "base_model: someone/ffdnet", "| `sigma` | 0 | 50 | of 255 | 25 |", "KnobFile"):
        assert part in card
    knob = KnobFile.from_pretrained("me/texture")
    plain = tunable_ops.knob_files.load_base(pretrained.weights_file("ffdnet_color"), knob)
    net, expected = tunable_ops.load_knob(plain, knob), pretrained.load("denoise")
    assert torch.equal(net(X, LAM), expected(X, LAM))
    for network in (None, plain):  # its base ships: it need not be given
        assert torch.equal(TunableModel.from_pretrained("me/texture", network=network)(X, LAM), expected(X, LAM))
    with pytest.raises(ValueError, match="must hold a knob; got a whole network"):
        small().save_pretrained(tmp_path / "whole", arguments=DNCNN)
        KnobFile.from_pretrained(tmp_path / "whole")


def test_a_knob_of_an_unknown_base_needs_it(tmp_path):
    net = tunable_ops.convert(own(), 1, names=["texture"], domain="box")
    tunable_ops.save_knob(net, tmp_path / "file.safetensors")
    KnobFile(tmp_path / "file.safetensors").save_pretrained(tmp_path / "knob")
    with pytest.raises(ValueError, match=r"network must be given for a knob whose base does not ship.*Sequential"):
        TunableModel.from_pretrained(tmp_path / "knob")
    assert TunableModel.from_pretrained(tmp_path / "knob", network=own()).spec.names == ("texture",)


# What else a repository may hold


class Boom:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


STRANGE = {
    "pytorch_model.bin": pickle.dumps(Boom()),
    "modeling.py": b"raise SystemExit('imported')",
    "tunable_ops/__init__.py": b"raise SystemExit('imported')",
}


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_pickles_and_code_beside_a_network_are_named_and_left_alone(hub, tmp_path, place, monkeypatch):
    net = small()
    net.save_pretrained(tmp_path / "net", arguments=DNCNN)
    files = {each.name: each.read_bytes() for each in (tmp_path / "net").iterdir()}
    config = {**json.loads(files["config.json"]), "auto_map": {"AutoModel": "modeling.Net"}}
    files |= {**STRANGE, "config.json": json.dumps(config).encode()}
    for name, data in files.items():
        (tmp_path / "net" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "net" / name).write_bytes(data)
    hub.add("bad/net", files)
    source = tmp_path / "net" if place == "folder" else "bad/net"
    with pytest.warns(UserWarning, match=r"also holds .*nothing in it is run or unpickled") as found:
        back = TunableModel.from_pretrained(source)
    text = str(found[0].message)
    assert all(name in text for name in (*STRANGE, "auto_map in config.json"))
    assert torch.equal(back(X, LAM), net(X, LAM))
    assert not any(name in path for _, path in hub.asked for name in STRANGE)  # not even downloaded


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_repository_of_pickles_alone(hub, tmp_path, place):
    for name, data in STRANGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    hub.add("bad/net", STRANGE)
    message = r"must hold model.safetensors or knob.safetensors; got .* with pytorch_model.bin \(pickles, which are"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            TunableModel.from_pretrained(tmp_path if place == "folder" else "bad/net")


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("config.json", b"{", "config.json must be JSON"),
        ("config.json", b"\xff\xfe", "config.json must be text"),
        ("config.json", b"[" * 100_000, "config.json must be JSON"),
        ("config.json", b"[1]", "must hold an object; got list"),
        ("config.json", b'{"model_type": "bert"}', "whose config.json names 'bert'"),
        ("config.json", b'{"format": ["x"], "library_name": "diffusers"}', "names 'diffusers'"),
        ("model.safetensors", pickle.dumps(Boom()), "must be a safetensors file.*pickle|something else"),
        ("model.safetensors", b"", "0 bytes of something else"),
    ],
)
def test_damaged_files(tmp_path, name, data, message):
    small().save_pretrained(tmp_path, arguments=DNCNN)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        TunableModel.from_pretrained(tmp_path)


def test_the_config_decides_no_path_and_no_class(tmp_path):
    """Its architecture and arguments are for readers: the file of tensors says what is built."""
    net = small()
    net.save_pretrained(tmp_path, arguments=DNCNN)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architecture": "os:system", "arguments": {"command": "false"}, "network": "x", "path": "/etc/passwd"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(TunableModel.from_pretrained(tmp_path)(X, LAM), net(X, LAM))


def test_bare_weights_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="bare weights without our metadata"):
        TunableModel.from_pretrained(tmp_path)


# Bad input


@pytest.mark.parametrize(
    "source", ["no/such/folder", "./missing", "/missing", "two words", "a..b", "~/net", "a\\b", ""]
)
def test_neither_a_folder_nor_a_repository(source):
    with pytest.raises(FileNotFoundError, match="must be an existing folder or a repository 'owner/name'"):
        TunableModel.from_pretrained(source)


@pytest.mark.parametrize("load", [TunableModel.from_pretrained, NetworkFile.from_pretrained, KnobFile.from_pretrained])
def test_a_mistyped_folder_is_called_missing_before_the_hub_answers(hub, monkeypatch, load):
    missing = "^hub: no folder 'shared/nope' exists here, and as a repository: "
    with pytest.raises(RepositoryNotFoundError, match=missing + ".*404"):
        load("shared/nope")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LocalEntryNotFoundError, match=missing + ".*check your connection"):
        load("shared/nope")


def test_what_the_hub_does_not_have(hub, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        TunableModel.from_pretrained("me/nothing")
    small().push_to_hub("me/net", arguments=DNCNN)
    with pytest.raises(RevisionNotFoundError):
        TunableModel.from_pretrained("me/net", revision="v9")
    with pytest.raises(EntryNotFoundError):
        TunableModel.from_pretrained("me/other", local_files_only=True)
    with pytest.raises(ValueError, match="revision must be left out for a folder"):
        TunableModel.from_pretrained(tmp_path, revision="main")


def test_without_a_connection_the_cache_serves(hub, monkeypatch):
    net = small()
    net.push_to_hub("me/net", arguments=DNCNN)
    TunableModel.from_pretrained("me/net")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert torch.equal(TunableModel.from_pretrained("me/net")(X, LAM), net(X, LAM)) and hub.asked == []


@pytest.mark.parametrize(
    "about, error, message",
    [
        ({"licence": 3}, TypeError, "licence must be a string"),
        ({"measured": [1]}, TypeError, "measured must map"),
        ({"measured": {"0": "good"}}, TypeError, "measured must hold numbers"),
        ({"measured": {"scores": [3]}}, TypeError, "must be a record of `tunable-ops eval --json`"),
        ({"arguments": None}, ValueError, "arguments must be given for 'dncnn'"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, about, error, message):
    with pytest.raises(error, match=message):
        small().save_pretrained(tmp_path / "net", **{"arguments": DNCNN, **about})
    assert not (tmp_path / "net").exists()


def test_other_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="save_directory must be a folder; got the file"):
        small().save_pretrained(tmp_path / "file", arguments=DNCNN)
    with pytest.raises(TypeError, match="net must be a TunableModel"):
        NetworkFile(own())
    with pytest.raises(FileNotFoundError):
        KnobFile(tmp_path / "none.safetensors")
    serialization.save(small(), tmp_path / "whole.safetensors", architecture="dncnn", arguments=DNCNN)
    with pytest.raises(ValueError, match="a whole network"):
        KnobFile(tmp_path / "whole.safetensors")
    hand = TunableModel(nn.Sequential(tunable_ops.TunableConv2d(3, 3, 1, num_params=1)), 1)
    with pytest.raises(ValueError, match="must come from convert"):
        hand.save_pretrained(tmp_path / "hand")


def test_without_huggingface_hub_everything_else_works():
    code = """
import sys
sys.modules["huggingface_hub"] = None
import torch, tunable_ops
net = tunable_ops.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), 1, domain="box")
for call in (lambda: net.save_pretrained("x"), lambda: net.push_to_hub("a/b"),
             lambda: tunable_ops.TunableModel.from_pretrained("a/b"), lambda: tunable_ops.hub.KnobFile):
    try:
        call()
    except ModuleNotFoundError as error:
        assert "pip install --no-build-isolation --editable '.[hub]'" in str(error), error
    else:
        raise AssertionError("no error")
print("done")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "done\n", result.stderr


def test_importing_the_package_leaves_huggingface_hub_alone():
    code = "import sys, tunable_ops; print('huggingface_hub' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "False\n", result.stderr


def test_older_pickles_have_no_built_as():
    net = small()
    state = net.__getstate__()
    del state["built_as"]
    other = TunableModel.__new__(TunableModel)
    other.__setstate__(state)
    assert other.built_as is None
