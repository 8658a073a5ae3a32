"""`tunable-ops models`, and how `info` prints notes and configurations."""

import json
import os
from pathlib import Path

import pytest

from tunable_ops import pretrained
from tunable_ops.cli import info
from tunable_ops.cli.models import describe
from tunable_ops.serialization import load, save


def test_every_shipped_network_with_all_that_is_known(run):
    code, out, err = run("models")
    assert code == 0, err
    paragraphs = out.strip().split("\n\n")
    assert [text.split("  ")[0] for text in paragraphs] == pretrained.names()
    for name, text in zip(pretrained.names(), paragraphs, strict=True):
        spec = pretrained.load(name).spec
        found = pretrained.find(name)
        assert f"({found.bytes / 1e6:.2f} MB)" in text
        words = " ".join(text.split())
        assert ("non-commercial" in words) == (found.base is None)
        if found.base is not None:
            assert f"base {found.base} (MIT, copyright" in words
            assert f"licence {'Apache-2.0' if found.knobs else 'MIT, copyright'}" in words
            assert ("from 93 photographs under free licences" in words) == bool(found.knobs)
        for knob, (low, high), unit, default in zip(spec.names, spec.ranges, spec.units, spec.defaults, strict=True):
            (line,) = [line for line in text.splitlines() if f"{knob} " in line and "default" in line]
            assert f"{low:g} to {high:g}{unit and f' {unit}'}, default {default:g}" in line
            assert line.endswith("(weights that sum to 1)") == (spec.domain == "simplex")
    assert [found["name"] for found in json.loads(run("models", "--json")[1])] == pretrained.names()


def test_every_shipped_network_says_what_it_is_for():
    for name in pretrained.names():
        assert describe(pretrained.find(name))["purpose"]
    assert set(pretrained.PURPOSES) <= set(pretrained.names())


def test_the_notes_come_first(tmp_path, save_network):
    net = save_network(tmp_path / "net.safetensors", domain="box", names=("sigma", "grey"))
    net.notes = {"purpose": "tests", "licence": "MIT"}
    save(net, tmp_path / "denoise.safetensors", architecture="dncnn", arguments={}, notes=net.notes)
    found = describe(pretrained.find(tmp_path / "denoise.safetensors"))
    assert (found["purpose"], found["licence"]) == ("tests", "MIT")
    assert [knob["name"] for knob in found["knobs"]] == ["sigma", "grey"]
    save(net, tmp_path / "denoise.safetensors", architecture="dncnn", arguments={}, notes={})
    assert describe(pretrained.find(tmp_path / "denoise.safetensors"))["licence"] is None


@pytest.mark.parametrize(
    "value, lines",
    [
        ("free", ["note: free"]),
        (0.5, ["note: 0.5"]),
        (None, ["note: null"]),
        ([1, 2], ["note: [1, 2]"]),
        ({}, []),
        ({"a": 1, "b": None, "c": {}}, ["note: a = 1"]),
        ({"a": {"b": "x"}, "c": True}, ["note:", "  a: b = x", "  c: true"]),
        ([{"a": 1}, {"a": {"b": 2}}], ["note 1: a = 1", "note 2:", "  a: b = 2"]),
        ({"a": [{"b": 1}]}, ["note:", "  a 1: b = 1"]),
        ({"long": "x" * 90, "b": 1}, ["note:", "  long: " + "x" * 90, "  b: 1"]),
    ],
)
def test_notes_are_lines(value, lines):
    assert info.note_lines("note", value) == lines


def test_info_prints_the_configuration_as_tables(run, tmp_path, model):
    config = {"seed": 0, "model": {"name": "dncnn", "weights": None}, "objectives": [{"name": "a"}, {"name": "b"}]}
    path = tmp_path / "noted.safetensors"
    arguments = {"channels": 3, "features": 4, "depth": 3}
    save(load(model), path, architecture="dncnn", arguments=arguments, notes={"step": 5, "config": config})
    code, out, err = run("info", path)
    assert code == 0, err
    assert out.splitlines()[-1] == "configuration of its training, 3 sections: --configuration prints it"
    code, out, err = run("info", path, "--configuration")
    assert code == 0, err
    at = out.splitlines().index("notes         step: 5")
    assert [line.rstrip() for line in out.splitlines()[at + 1 :]] == [
        "configuration seed: 0",
        "              model: name = dncnn",
        "              objectives 1: name = a",
        "              objectives 2: name = b",
    ]
    assert json.loads(run("info", path, "--json")[1])["notes"]["config"] == config
    assert "{" not in run("info", "super_resolution_x4")[1]


def test_lpips_takes_its_weights_from_a_folder_or_a_file(run, tmp_path, model, photo, monkeypatch):
    from tunable_ops import losses

    asked = []

    class Stub:
        def __init__(self, net, weights=None, heads=None):
            asked.append((net, weights, heads))
            raise ValueError("enough")

    monkeypatch.setattr(losses, "LPIPS", Stub)
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder in (alone, both):
        folder.mkdir()
        (folder / "alex.safetensors").touch()
    (both / "lpips_heads.safetensors").touch()
    words = ["eval", photo, "--model", model, "--noise", 25]
    for given, want in (
        ([], ("alex", None, None)),
        (["--weights", both], ("alex", both, both)),
        (["--weights", both / "alex.safetensors"], ("alex", both / "alex.safetensors", both)),
        (["--weights", alone / "alex.safetensors"], ("alex", alone / "alex.safetensors", None)),
    ):
        assert run(*words, "--lpips", *given)[0] == 2 and asked.pop() == want
    code, _, err = run(*words, "--weights", both)
    assert code == 2 and "--weights must go with --lpips" in err
    code, _, err = run(*words, "--lpips", "--weights", tmp_path / "nowhere")
    assert code == 2 and "--weights must be an existing file or folder" in err
    assert not asked


def test_weights_are_found_in_a_folder(tmp_path):
    from tunable_ops import losses
    from tunable_ops.losses.weights import DATA_VARIABLE, read_weights

    if DATA_VARIABLE in os.environ:
        folder = Path(os.environ[DATA_VARIABLE], "weights")
        assert losses.LPIPS("alex", weights=folder, heads=folder).features is not None
    with pytest.raises(FileNotFoundError, match=r"LPIPS: weights must be a folder that holds alexnet_features_fp16"):
        read_weights("LPIPS", "alexnet", [], tmp_path)
