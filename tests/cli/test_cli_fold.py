"""`tunable-ops fold`: the plain network, its file, bad input."""

import json

import pytest
import torch

from tunable_ops import images, models
from tunable_ops.serialization import load, load_folded


def test_the_file_is_the_plain_network_at_that_lambda(run, model, photo, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    out = tmp_path / "plain.safetensors"
    code, stdout, err = run("fold", model, "--lam", "0.3,0.7", "--out", out)
    assert code == 0, err
    assert stdout == f"{out}: dncnn folded at denoise 0.30, keep 0.70\n"
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["architecture"]) == "dncnn"
    notes = json.loads(metadata["notes"])
    assert notes == {"psnr": 28.5, "lambda": {"denoise": 0.3, "keep": 0.7}, "folded_from": "net.safetensors"}
    plain = models.build(json.loads(metadata["architecture"]), **json.loads(metadata["arguments"]))
    plain.load_state_dict(load_file(out), strict=True)
    x = images.read_image(photo)[None]
    with torch.no_grad():
        expected = load(model)(x, (0.3, 0.7))
        torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(load_folded(out)(x), expected, rtol=1e-5, atol=1e-6)


def test_default_name_lies_in_the_working_folder(run, model, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert run("fold", model, "--lam", "keep=0.25")[0] == 0
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["net_lam0.75-0.25.safetensors"]


@pytest.mark.filterwarnings("default::UserWarning")
def test_warnings(run, model, tmp_path):
    code, _, err = run("fold", model, "--lam", "2,2", "--out", tmp_path / "p.safetensors")
    assert code == 0
    assert err == (
        "tunable-ops fold: warning: --lam must sum to 1; got '2,2', which sums to 4: using denoise 0.50, keep 0.50\n"
    )


def test_bad_input_gives_one_line_and_2(run, model, tmp_path):
    plain = tmp_path / "plain.safetensors"
    assert run("fold", model, "--lam", "1,0", "--out", plain)[0] == 0
    (tmp_path / "text.safetensors").write_text("not a checkpoint, whatever its name says")
    before = model.read_bytes()
    cases = [
        ([model, "--lam", "1"], "--lam must have 2 values: denoise 0 to 1"),
        ([model, "--lam", "nan,1"], "--lam must be finite numbers"),
        ([model, "--lam", "1,0", "--out", tmp_path / "a.pt"], "--out must end in .safetensors; got"),
        (
            [model, "--lam", "1,0", "--out", tmp_path / "no" / "a.safetensors"],
            "--out must lie in an existing folder; got",
        ),
        ([model, "--lam", "1,0", "--out", model], "--out must not be the checkpoint itself or one of its knobs; got"),
        (
            [tmp_path / "none.safetensors", "--lam", "1,0"],
            "pretrained: model must be an existing file or folder, or one of",
        ),
        ([tmp_path / "text.safetensors", "--lam", "1,0"], "checkpoint: path must be a safetensors file; got"),
        ([plain, "--lam", "1,0"], "checkpoint: path must hold a tunable network; got"),
    ]
    for words, text in cases:
        code, out, err = run("fold", *words)
        assert (code, out) == (2, ""), err
        assert err.startswith("tunable-ops fold: error: ") and text in err and err.count("\n") == 1
    assert model.read_bytes() == before


@pytest.mark.parametrize("kept", [4, 100, 0.5, -1])
def test_checkpoint_cut_short(run, model, tmp_path, kept):
    content = model.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    code, _, err = run("fold", cut, "--lam", "1,0", "--out", tmp_path / "plain.safetensors")
    assert code == 2 and err.count("\n") == 1 and str(cut) in err
    assert not (tmp_path / "plain.safetensors").exists()
