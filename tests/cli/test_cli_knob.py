"""Knobs on the command line: `knob` writes them, apply, eval, fold and info read them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunable_ops import convert, fold, images, load_knob, models, save_knob
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.serialization import load, load_folded, save

ARGUMENTS = {"channels": 3, "features": 4, "depth": 3}


@pytest.fixture
def base():
    torch.manual_seed(0)
    return models.build("dncnn", **ARGUMENTS).eval()


@pytest.fixture
def weights(base, tmp_path):
    """The published file: bare weights."""
    save_file(base.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def trained(base, name, seed):
    net = convert(base, 1, domain="box", names=[name], rank=1)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("original1"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


@pytest.fixture
def knobs(base, tmp_path):
    files = []
    for seed, name in enumerate(("texture", "grain")):
        files.append(tmp_path / f"{name}.safetensors")
        net = trained(base, name, seed)
        save_knob(net, files[-1], architecture="dncnn", arguments=ARGUMENTS, licence="MIT", notes={"seed": seed})
    return files


def test_apply(run, base, weights, knobs, photo, tmp_path):
    given = [word for file in knobs for word in ("--knob", file)]
    words = ["apply", photo, "--model", weights, *given, "--lam", "texture=0.5,grain=1", "--out", tmp_path / "o.png"]
    code, _, err = run(*words, "--quiet")
    assert code == 0, err
    x = images.read_image(photo).unsqueeze(0)
    expected = (load_knob(base, knobs)(x, [0.5, 1.0])[0].clamp(0, 1) * 255).round()
    assert (images.read_image(tmp_path / "o.png") * 255 - expected).abs().max() <= 1
    assert run("apply", photo, "--model", weights, *given[:2], "--out", tmp_path / "p.png", "--quiet")[0] == 0
    expected = (base(x)[0].clamp(0, 1) * 255).round()  # the default is 0: the base
    assert (images.read_image(tmp_path / "p.png") * 255 - expected).abs().max() <= 1


def test_a_tunable_checkpoint_as_base(run, base, knobs, tmp_path):
    whole = tmp_path / "whole.safetensors"
    save(trained(base, "level", 7), whole, architecture="dncnn", arguments=ARGUMENTS)
    out = tmp_path / "plain.safetensors"
    code, _, err = run("fold", whole, "--knob", knobs[0], "--lam", "level=0.3,texture=0.8", "--out", out)
    assert code == 0, err
    expected = fold(load_knob(load(whole), knobs[0]), [0.3, 0.8]).state_dict()
    got = load_folded(out).state_dict()
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_fold_bare_weights(run, base, weights, knobs, tmp_path):
    out = tmp_path / "plain.safetensors"
    code, _, err = run("fold", weights, "--knob", knobs[0], "--lam", "0", "--out", out)
    assert code == 0, err
    got = load_folded(out)
    assert all(torch.equal(value, got.state_dict()[name]) for name, value in base.state_dict().items())
    assert "licence: MIT" in run("info", out)[1]


def test_eval(run, weights, knobs, photo, tmp_path):
    file = tmp_path / "scores.json"
    words = ["eval", photo, "--model", weights, "--knob", knobs[0], "--noise", "25", "--lam", "0", "--lam", "1"]
    code, out, err = run(*words, "--json", file, "--quiet")
    assert code == 0, err
    assert "texture 0.00" in out and "texture 1.00" in out
    assert json.loads(file.read_text())["knobs"] == [str(knobs[0])]


def test_info(run, knobs):
    code, out, err = run("info", knobs[0])
    assert code == 0, err
    lines = {line[:13].strip(): line[14:] for line in out.splitlines() if line[:13].strip()}
    assert lines["kind"] == "knob without its base, version 1"
    assert lines["architecture"] == "dncnn(channels=3, features=4, depth=3)"
    assert lines["base"].startswith("fingerprint ") and lines["base"].endswith(", 3 layers")
    assert lines["lambda"] == "texture  0 to 1, default 0"
    assert lines["layers"] == "3 tunable, 1 new kernel of rank 1 each"
    assert lines["licence"] == "MIT" and lines["notes"] == "seed: 0"
    facts = json.loads(run("info", knobs[0], "--json")[1])
    assert facts["kind"] == "knob" and facts["rank"] == 1 and facts["licence"] == "MIT"
    # U and V of every layer, a bias each, and phi of three layers: 4 + 27, 4 + 36, 3 + 36; 4 + 4 + 3; 3 + 3
    assert facts["parameters"] == 31 + 40 + 39 + 11 + 6


def test_info_counts_no_kernels_for_what_the_base_reads(run, tmp_path):
    plain = models.FFDNet(features=4, depth=3, knob=0)
    save_knob(convert(plain, 2, domain="box", names=["sigma", "texture"]), tmp_path / "k.safetensors")
    code, out, err = run("info", tmp_path / "k.safetensors")
    assert code == 0 and "3 tunable, 1 new kernel of full rank each" in out, (out, err)


def test_knob(run, base, weights, tmp_path):
    whole, out = tmp_path / "whole.safetensors", tmp_path / "knob.safetensors"
    net = trained(base, "texture", 3)
    save(net, whole, architecture="dncnn", arguments=ARGUMENTS, notes={"steps": 800})
    words = ["knob", whole, "--out", out, "--licence", "CC0-1.0"]
    code, text, err = run(*words, "--base", weights)
    assert code == 0, err
    assert text == f"{out}: texture for dncnn, {out.stat().st_size:,} bytes\n"
    about = read_knob_metadata(out)
    assert (about["licence"], about["notes"], about["arguments"]) == ("CC0-1.0", {"steps": 800}, ARGUMENTS)
    x = torch.rand(1, 3, 6, 5)
    assert torch.equal(load_knob(base, out)(x, [0.6]), net.eval()(x, [0.6]))
    assert run(*words, "--half")[0] == 0
    assert load_file(out)["model.0.weight.u"].dtype == torch.float16


def test_bad_input(run, base, weights, knobs, photo, tmp_path):
    def error(*words):
        code, out, err = run(*words)
        assert code == 2 and out == "" and err.count("\n") == 1, (code, out, err)
        return err

    apply = ["apply", photo, "--out", tmp_path / "o.png", "--model"]
    assert "a knob without its base" in error(*apply, knobs[0])
    assert "must hold 'tunable_ops.knob'" in error(*apply, weights, "--knob", weights)
    whole = tmp_path / "whole.safetensors"
    save(trained(base, "texture", 1), whole, architecture="dncnn", arguments=ARGUMENTS)
    assert "a whole network: read it with serialization.load" in error(*apply, whole, "--knob", whole)
    assert "got 'texture' twice" in error(*apply, whole, "--knob", knobs[0])
    other = tmp_path / "other.safetensors"
    save_file({name: value + 1 for name, value in base.state_dict().items()}, other)
    message = error(*apply, other, "--knob", knobs[0])
    assert "the base of" in message and "other values in 'model.0'" in message
    assert "must exist" in error(*apply, weights, "--knob", tmp_path / "missing.safetensors")
    assert "must end in .safetensors" in error("knob", whole, "--out", tmp_path / "knob.bin")
    assert "must not be the checkpoint itself" in error("knob", whole, "--out", whole)
    assert "was the base trained too?" in error("knob", whole, "--out", tmp_path / "k.safetensors", "--base", other)
    simplex = tmp_path / "simplex.safetensors"
    save(convert(base, 2), simplex, architecture="dncnn", arguments=ARGUMENTS)
    assert "on the box" in error("knob", simplex, "--out", tmp_path / "k.safetensors")
