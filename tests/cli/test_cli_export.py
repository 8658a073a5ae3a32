"""`tunable-ops export`: the file, what the line says, options that do not fit."""

import importlib.util

import pytest
import torch

from tunable_ops import pretrained
from tunable_ops.serialization import load, load_folded

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not installed (tunable-ops[onnx])")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def evaluate(path, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


@needs_onnx
def test_an_onnx_file(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, err = run("export", model)
    assert code == 0, err
    size = (tmp_path / "net.onnx").stat().st_size
    assert stdout == (
        f"net.onnx: {size:,} bytes, input [B, 3, H, W] float32, lam [2]: denoise 0 to 1 (default 0.5), keep 0 to 1 "
        "(default 0.5)\n"
    )
    x, lam = torch.rand(1, 3, 19, 22), torch.tensor([0.25, 0.75])
    with torch.no_grad():
        torch.testing.assert_close(evaluate("net.onnx", input=x, lam=lam), load(model)(x, lam), rtol=0, atol=1e-5)


@pytest.mark.slow
@needs_onnx
def test_a_folded_network_and_its_fold(run, model, tmp_path):
    """`export --fold` of a tunable network, and `export` of the file that `fold` wrote."""
    assert run("fold", model, "--lam", "keep=0.75", "--out", tmp_path / "plain.safetensors")[0] == 0
    for words, name in (([model, "--fold", "keep=0.75"], "a.onnx"), ([tmp_path / "plain.safetensors"], "b.onnx")):
        code, stdout, err = run("export", *words, "--out", tmp_path / name)
        assert code == 0, err
        assert stdout.endswith("bytes, input [B, 3, H, W] float32\n")
    x = torch.rand(2, 3, 21, 20)
    with torch.no_grad():
        expected = load(model)(x, [0.25, 0.75])
    for name in ("a.onnx", "b.onnx"):
        torch.testing.assert_close(evaluate(tmp_path / name, input=x), expected, rtol=0, atol=1e-5)
    import onnx

    notes = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert notes["tunable_ops.folded_at"] == '{"denoise": 0.25, "keep": 0.75}'


def test_a_graph(run, model, tmp_path):
    from tunable_ops.deploy import load as load_file

    out = tmp_path / "a.pt2"
    code, stdout, err = run("export", model, "--format", "pt2", "--out", out)
    assert code == 0, err
    assert stdout.startswith(f"{out}: ") and "lam [2]: denoise 0 to 1 (default 0.5)" in stdout
    x = torch.rand(1, 3, 19, 22)
    with torch.no_grad():
        expected = load(model)(x, [0.25, 0.75])
        torch.testing.assert_close(load_file(out)(x, {"keep": 0.75}), expected, rtol=0, atol=1e-5)


def test_a_checkpoint(run, model, tmp_path):
    """Of a network that ships the base and its knob become one file; with --fold the plain network."""
    out = tmp_path / "a.safetensors"
    code, stdout, err = run("export", "denoise", "--format", "safetensors", "--out", out)
    assert code == 0, err
    assert "ffdnet, sigma 0 to 50 of 255 (default 25), texture 0 to 1 (default 0)" in stdout
    net, x, lam = load(out), torch.rand(1, 3, 16, 18), [20, 0.5]
    with torch.no_grad():
        assert torch.equal(net(x, lam), pretrained.load("denoise")(x, lam))
    code, stdout, err = run("export", model, "--format", "safetensors", "--fold", "keep=0.75", "--out", out)
    assert code == 0, err
    assert stdout.endswith("bytes, dncnn folded at denoise 0.25, keep 0.75\n")
    with torch.no_grad():
        torch.testing.assert_close(load_folded(out)(x), load(model)(x, [0.25, 0.75]), rtol=0, atol=1e-5)


def test_bad_input_gives_one_line_and_2(run, model, tmp_path):
    plain = tmp_path / "plain.safetensors"
    assert run("fold", model, "--lam", "1,0", "--out", plain)[0] == 0
    out = ["--out", tmp_path / "a.onnx"]
    cases = [
        ([model, "--format", "tflite"], "argument --format: invalid choice: 'tflite'"),
        ([model, "--out", tmp_path / "a.pt"], "--out must end in .onnx with --format onnx; got"),
        ([model, "--out", tmp_path / "no" / "a.onnx"], "--out must lie in an existing folder; got"),
        ([model, *out, "--fold", "1,0", "--per-sample"], "--fold must be left out with --per-sample or --map"),
        ([model, *out, "--operators"], "--operators must be left out with --format onnx, which needs none; got it"),
        ([model, "--format", "pt2", "--opset", "18"], "--opset must be left out with --format pt2; got 18"),
        (
            [model, "--format", "safetensors", "--half"],
            "--format must be another one with --per-sample, --map",
        ),
        ([model, *out, "--map", "--per-sample"], "--per-sample must be left out with --map"),
        ([model, *out, "--fold", "noise=1"], "--lam must name parameters of the network (denoise, keep); got 'noise'"),
        ([model, *out, "--opset", "11"], "export_onnx: opset must be an int of at least 18; got 11"),
        ([plain, *out, "--fold", "1,0"], "--fold must be left out for a plain network; got '1,0' for 'plain'"),
        ([plain, *out, "--per-sample"], "export_onnx: net must be a TunableModel to take a lambda; got DnCNN"),
        ([tmp_path / "none.safetensors", *out], "pretrained: model must be an existing file or folder, or one of"),
    ]
    for words, text in cases:
        code, stdout, err = run("export", *words)
        assert (code, stdout) == (2, ""), err
        assert err.startswith("tunable-ops export: error: ") and text in err and err.count("\n") == 1, err
    assert not (tmp_path / "a.onnx").exists()
