"""`tunable-ops apply --model FOLDER`, `--knob FOLDER`: folders that `save_pretrained` wrote."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.hub.networks import DNCNN, small
from tunable_ops import cli, images, load_knob, models, pretrained, save_knob
from tunable_ops.hub import KnobFile
from tunable_ops.modules import convert
from tunable_ops.serialization import save


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Apply to a picture: exit code, the picture, and what was said."""
    torch.manual_seed(0)
    images.write_image(torch.rand(3, 24, 20), tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)

    def apply(*words):
        shutil.rmtree("output", ignore_errors=True)
        code = cli.main(["apply", "photo.png", *map(str, words), "--threads", "1"])
        written = list((tmp_path / "output").glob("*.png"))
        return code, written[0].read_bytes() if written else None, capsys.readouterr().err

    return apply


def gloss(plain, path, **about):
    """Write a knob that changes the pictures of a network."""
    net = convert(plain, 1, names=["gloss"], domain="box")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 5 and "tuning" not in name:
                parameter[1:] += 0.02 * torch.randn_like(parameter[1:])
    save_knob(net, path, **about)
    KnobFile(path).save_pretrained(path.with_suffix(""))


def test_a_whole_network(run, tmp_path):
    net = small()
    net.save_pretrained(tmp_path / "shared", arguments=DNCNN)
    save(net, tmp_path / "net.safetensors", architecture="dncnn", arguments=DNCNN)
    code, written, err = run("--model", "shared", "--lam", "sigma=10")
    assert code == 0, err
    assert written == run("--model", tmp_path / "net.safetensors", "--lam", "sigma=10")[1]
    assert written != run("--model", "shared", "--lam", "sigma=40")[1]


def test_a_knob_whose_base_ships(run, tmp_path):
    base, about = next((name, each) for name, each in pretrained.BASES.items() if not each.spec)
    words = {"architecture": about.architecture, "arguments": dict(about.arguments)}
    gloss(pretrained.load_base(base), tmp_path / "gloss.safetensors", **words)
    assert pretrained.find("gloss")[:1] == ("gloss",) and pretrained.find("gloss").base == base
    code, written, err = run("--model", "gloss", "--lam", "1")
    assert code == 0, err
    assert written == run("--model", base, "--knob", "gloss.safetensors", "--lam", "1")[1]
    assert written == run("--model", base, "--knob", "gloss", "--lam", "1")[1]
    assert written != run("--model", "gloss", "--lam", "0")[1]


def test_a_knob_whose_base_does_not_ship(run, tmp_path):
    torch.manual_seed(0)
    plain = models.build("dncnn", **DNCNN).eval()
    gloss(plain, tmp_path / "gloss.safetensors", architecture="dncnn", arguments=DNCNN)
    code, _, err = run("--model", "gloss")
    assert code == 2
    assert (
        "got 'gloss', whose base does not: name the base (--model BASE) and the folder as its knob (--knob gloss)"
        in err
    )
    torch.save({}, tmp_path / "unused.pt")

    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    code, written, err = run("--model", "plain.safetensors", "--knob", "gloss", "--lam", "1")
    assert code == 0 and written is not None, err
    assert load_knob(plain, pretrained.knob_file(tmp_path / "gloss")).spec.names == ("gloss",)


def test_config_json_decides_where_there_are_both(tmp_path):
    for name in ("model.safetensors", "knob.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert pretrained.folder_file(tmp_path).name == "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"format": "tunable_ops.knob"}))
    assert pretrained.folder_file(tmp_path).name == "knob.safetensors"
    for text in ("[", "[]", '{"format": []}', '{"format": "bert"}'):
        (tmp_path / "config.json").write_text(text)
        assert pretrained.folder_file(tmp_path).name == "model.safetensors"


@pytest.mark.parametrize(
    "files, option, message",
    [
        ((), "--model", "with model.safetensors or knob.safetensors; got 'folder' with nothing"),
        (("pytorch_model.bin", "a.txt"), "--model", "got 'folder' with a.txt, pytorch_model.bin"),
        (
            ("model.safetensors",),
            "--knob",
            "must hold one; got the network 'folder/model.safetensors'",
        ),
        (("knob.safetensors",), "--model", "path must be a safetensors file; got 'folder/knob.safetensors'"),
        (("model.safetensors",), "--model", "path must be a safetensors file; got 'folder/model.safetensors'"),
    ],
)
def test_folders_that_are_refused(run, tmp_path, files, option, message):
    (tmp_path / "folder").mkdir()
    for name in files:
        (tmp_path / "folder" / name).write_bytes(b"no tensors at all")
    words = ["--model", "folder"] if option == "--model" else ["--model", "denoise", "--knob", "folder"]
    code, _, err = run(*words)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_folder_with_the_name_of_a_network_that_ships(run, tmp_path):
    shipped = run("--model", "denoise", "--lam", "sigma=10")[1]
    small().save_pretrained(tmp_path / "denoise", arguments=DNCNN)
    code, written, err = run("--model", "denoise", "--lam", "sigma=10")
    assert code == 0 and written == shipped
    assert "warning: pretrained: 'denoise' is the network that ships, not the folder of that name" in err
    code, written, err = run("--model", "./denoise", "--lam", "sigma=10")
    assert code == 0 and written != shipped and "ships" not in err


def test_a_file_with_the_name_of_a_base_leaves_the_base_as_it_is(run, tmp_path):
    base, about = next((name, each) for name, each in pretrained.BASES.items() if not each.spec)
    words = {"architecture": about.architecture, "arguments": dict(about.arguments)}
    gloss(pretrained.load_base(base), tmp_path / "gloss.safetensors", **words)
    (tmp_path / base).write_text("something else")
    assert pretrained.shipped_base(tmp_path / "gloss.safetensors") == base
    assert run("--model", "gloss", "--lam", "1")[0] == 0
