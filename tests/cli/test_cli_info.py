"""`tunable-ops info`: the table, the JSON, bad input."""

import json

import torch

from tunable_ops import convert
from tunable_ops.serialization import save


def test_table(run, model):
    code, out, err = run("info", model)
    assert code == 0, err
    lines = {line[:13].strip(): line[14:] for line in out.splitlines() if line[:13].strip()}
    assert lines["file"].startswith(f"{model} (") and lines["file"].endswith(" KiB)")
    assert lines["kind"] == "tunable network, checkpoint version 1"
    assert lines["architecture"] == "dncnn(channels=3, features=4, depth=3)"
    assert lines["domain"] == "simplex: weights that sum to 1"
    assert lines["lambda"] == "denoise  0 to 1, default 0.5"
    assert "              keep     0 to 1, default 0.5\n" in out
    assert lines["layers"] == "3 tunable, 2 kernels each"
    # 3 -> 4 -> 4 -> 3 channels, 3x3, with biases: 112 + 148 + 111 = 371
    assert lines["parameters"].endswith("(F32), 371 once folded")
    assert lines["notes"] == "psnr: 28.5"


def test_json(run, model, tmp_path, save_network):
    code, out, _ = run("info", model, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["kind"] == "tunable" and facts["architecture"] == "dncnn"
    assert facts["arguments"] == {"channels": 3, "features": 4, "depth": 3}
    assert facts["lambda"][1] == {"name": "keep", "unit": "", "low": 0.0, "high": 1.0, "default": 0.5}
    assert facts["bytes"] == model.stat().st_size
    assert (facts["tunable_layers"], facts["kernels"], facts["plain_parameters"]) == (3, [2], 371)
    # two kernels each, and phi: a 2x2 map with bias per layer
    assert facts["parameters"] == 2 * 371 + 3 * 6
    save_network(tmp_path / "box.safetensors", domain="box", names=("a", "b"))
    facts = json.loads(run("info", tmp_path / "box.safetensors", "--json")[1])
    assert facts["domain"] == "box" and facts["kernels"] == [3]


def test_a_folded_network(run, model, tmp_path):
    assert run("fold", model, "--lam", "1,0", "--out", tmp_path / "plain.safetensors")[0] == 0
    code, out, err = run("info", tmp_path / "plain.safetensors")
    assert code == 0, err
    assert "kind          plain network" in out and "parameters    371 (F32)\n" in out
    assert "lambda: denoise = 1.0, keep = 0.0" in out


def test_a_network_of_ones_own(run, tmp_path):
    net = convert(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), num_params=2)
    save(net, tmp_path / "own.safetensors", architecture="mine", arguments={})
    code, out, err = run("info", tmp_path / "own.safetensors")
    assert code == 0, err
    assert "architecture  mine()" in out and "layers" not in out
    facts = json.loads(run("info", tmp_path / "own.safetensors", "--json")[1])
    assert facts["tunable_layers"] is None and facts["parameters"] > 24


def test_bad_input_gives_one_line_and_2(run, model, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model.read_bytes()[:-20])
    pickled = tmp_path / "net.pt"
    torch.save({"weight": torch.zeros(1)}, pickled)
    for path, text in (
        (tmp_path / "none.safetensors", "pretrained: model must be an existing file or folder, or one of"),
        (tmp_path, "pretrained: a folder must be one that save_pretrained wrote"),
        (cut, "cut short"),
        (pickled, "a pickle"),
    ):
        code, out, err = run("info", path)
        assert (code, out) == (2, ""), err
        assert err.startswith("tunable-ops info: error: ") and text in err and err.count("\n") == 1


def test_the_installation(run):
    code, out, err = run("info")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("tunable_ops   0.") and f"torch {torch.__version__}" in lines[0]
    assert lines[1] == "backends      torch"
    assert any(line.split()[0].rstrip(":") == "cpp" for line in lines)
    if not torch.cuda.is_available():
        assert any(line.split()[:2] == ["triton:", "no;"] for line in lines)
    facts = json.loads(run("info", "--json")[1])
    assert facts["backends"]["reference"] is None
    assert (facts["backends"]["cpp"] is None) == (facts["operators"] is not None)
