"""The programs of examples/perceptual, for a few steps with random weights."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from tunable_ops import losses
from tunable_ops.images import write_image
from tunable_ops.losses.pgn import PGN

FOLDER = Path(__file__).parents[2] / "examples" / "perceptual"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the examples")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A picture, and a PGN that knows nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    write_image(torch.rand(3, 70, 80), folder / "pictures" / "a.png")
    PGN("unet").save(folder / "pgn.safetensors")
    return folder


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # the programs import each other


def call(name: str, *words: str) -> None:
    runpy.run_path(str(FOLDER / name))["main"](list(words))


def test_image_prior(data: Path, tmp_path: Path) -> None:
    words = [str(data / "pictures" / "a.png"), "--out", str(tmp_path), "--pgn", str(data / "pgn.safetensors")]
    words += ["--size", "32", "--shrink", "2", "--weights", "random"]
    call("image_prior.py", *words, "--quick")
    curves = {name: json.loads((tmp_path / f"a-{name}.json").read_text()) for name in ("mse", "true", "pgn")}
    assert [point["iteration"] for point in curves["pgn"]] == [0, 3, 6, 9]
    assert curves["mse"][-1]["psnr"] > curves["mse"][0]["psnr"]
    assert curves["true"][-1]["perceptual"] < curves["true"][0]["perceptual"]
    before = (tmp_path / "a-true.json").stat().st_mtime_ns
    call("image_prior.py", *words, "--quick")
    assert (tmp_path / "a-true.json").stat().st_mtime_ns == before  # what is there is kept
    call("image_prior.py", *words, "--plot")
    assert (tmp_path / "image_prior.png").exists() and (tmp_path / "a-strip.png").exists()


def test_proxy_target(data: Path, tmp_path: Path, capsys) -> None:
    words = [str(data / "pictures" / "a.png"), str(tmp_path / "t.png"), "--size", "32", "--weights", "random"]
    call("proxy_target.py", *words, "--pgn", str(data / "pgn.safetensors"))
    assert "degrees" in capsys.readouterr().out and (tmp_path / "t.png").exists()


@pytest.mark.slow
def test_super_resolution(data: Path, tmp_path: Path, monkeypatch) -> None:
    heads = {f"alex.lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 192, 384, 256, 256))}
    monkeypatch.setattr(losses.lpips, "read_weights", lambda *_: heads)
    words = ["--pictures", str(data / "pictures"), "--held-out", str(data / "pictures"), "--weights", "random"]
    words += ["--pgn", str(data / "pgn.safetensors"), "--quick", "--out"]
    call("super_resolution.py", *words, str(tmp_path / "one"), "--objective", "true")
    call("super_resolution.py", *words, str(tmp_path / "one"), "--objective", "pgn")
    call("super_resolution.py", *words, str(tmp_path / "one"), "--evaluate", "--plot")
    rows = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    assert rows["steps"] == {"true": 4, "pgn": 4} and len(rows["pgn"]) == 5
    assert {path.name for path in (tmp_path / "one").glob("*.png")} == {
        "super_resolution.png",
        "super_resolution_strip.png",
    }


@pytest.mark.slow
def test_super_resolution_is_timed(data: Path, tmp_path: Path, capsys) -> None:
    words = ["--out", str(tmp_path), "--weights", "random", "--pgn", str(data / "pgn.safetensors"), "--batch", "1"]
    call("super_resolution.py", *words, "--time")
    assert "true: " in (printed := capsys.readouterr().out) and "pgn: " in printed and "MiB" in printed


def test_stand_ins_for_the_true_loss(data: Path) -> None:
    module = runpy.run_path(str(FOLDER / "objectives.py"))
    build, pgn = module["multi_loss"], str(data / "pgn.safetensors")
    names = ("true", "crop", "sparse", "pgn", "corrected_crop", "corrected_sparse", "corrected_both")
    built = {name: build(name, 4, pgn, "random", 16) for name in names}
    periods = {name: loss.every["perceptual"] for name, loss in built.items()}
    assert periods == {**dict.fromkeys(names, 1), "sparse": 4, "corrected_sparse": 4, "corrected_both": 2}
    inner = {name: loss.objectives["perceptual"] for name, loss in built.items()}
    assert isinstance(inner["crop"], losses.Cropped) and inner["crop"].side == 16
    assert isinstance(inner["corrected_sparse"], losses.Corrected) and inner["corrected_sparse"].crop is None
    assert isinstance(inner["corrected_crop"], losses.Corrected) and inner["corrected_crop"].crop == 16


def test_latents_of_a_frozen_decoder(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    sizes = {"alex": (64, 192, 384, 256, 256), "squeeze": (64, 128, 256, 384, 384, 512, 512)}
    heads = {f"{n}.lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for n, cs in sizes.items() for k, c in enumerate(cs)}
    monkeypatch.setattr(losses.lpips, "read_weights", lambda *_: heads)
    words = ["--shrink", "1", "--pgn", str(data / "pgn.safetensors"), "--weights", "random", "--judge", "random"]
    words += ["--pictures", str(data / "pictures"), "--held-out", str(data / "pictures"), "--count", "1"]
    words += ["--steps", "40", "--every", "20", "--batch", "2", "--at", "0", "2", "12", "--out", str(tmp_path)]
    call("latents.py", "train", *words, "--objectives", "mse")
    assert capsys.readouterr().out.count("mse 0.") == 2
    call("latents.py", "fit", *words, "--objectives", "mse", "true", "pgn")
    curves = {name: json.loads((tmp_path / f"pictures-{name}.json").read_text()) for name in ("mse", "true", "pgn")}
    assert [point["step"] for point in curves["pgn"]] == [0, 2, 12]
    assert curves["mse"][0] == curves["true"][0] == curves["pgn"][0]
    kept = (tmp_path / "pictures-true.json").stat().st_mtime_ns
    call("latents.py", "fit", *words, "--objectives", "true")
    assert (tmp_path / "pictures-true.json").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="fits of the same autoencoder"):
        call("latents.py", "fit", *words, "--objectives", "mse", "--at", "0", "2")
    call("latents.py", "table", *words, "--objectives", "mse", "true", "pgn")
    printed = capsys.readouterr().out
    assert "| LPIPS, PSNR after | 2 steps | 12 steps |" in printed and (tmp_path / "pictures-strip.png").exists()
    call("latents.py", "time", *words, "--objectives", "true", "mse", "--rounds", "3")
    assert "true: " in (printed := capsys.readouterr().out) and "mse: " in printed


def test_latents_are_found_again() -> None:
    """A picture that the decoder can write is fitted well by mean squares, and every picture by itself."""
    module, source = runpy.run_path(str(FOLDER / "latents.py")), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = module["Autoencoder"]((16, 12, 8, 8)).requires_grad_(False)
    for layer in net.up:
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight *= 2  # as torch starts them, the picture hardly depends on the latents
    y = net.decode(torch.randn(2, 16, 8, 8, generator=source))

    def fitted(y: torch.Tensor) -> torch.Tensor:
        run = module["Fit"](net, y, lambda x, y: 20 * losses.mse(x, y).sum())
        start = losses.mse(run.picture(), y)
        for _ in range(60):
            run.step()
        assert bool((losses.mse(run.picture(), y) < 0.1 * start).all())
        return run.picture()

    torch.testing.assert_close(fitted(y)[:1], fitted(y[:1]), atol=1e-3, rtol=0)


def test_latents_training_goes_on_where_it_was_stopped(data: Path, tmp_path: Path) -> None:
    module = runpy.run_path(str(FOLDER / "latents.py"))
    words = ["train", "--pictures", str(data / "pictures"), "--shrink", "1", "--batch", "2", "--steps", "6", "--every"]
    module["main"]([*words, "3", "--out", str(tmp_path / "whole")])
    save, states = module["save"], []

    def stop(*words) -> None:
        save(*words)
        states.append(words[3])
        if len(states) == 1:
            raise KeyboardInterrupt

    module["train"].__globals__["save"] = stop
    with pytest.raises(KeyboardInterrupt):
        module["main"]([*words, "3", "--out", str(tmp_path / "parts")])
    module["main"]([*words, "3", "--out", str(tmp_path / "parts")])
    assert states == [3, 6]
    nets = [module["Autoencoder"]() for _ in range(2)]
    for net, out in zip(nets, ("whole", "parts"), strict=True):
        module["load"](tmp_path / out / "autoencoder.safetensors", net)
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_super_resolution_goes_on_where_it_was_stopped(data: Path, tmp_path: Path) -> None:
    module = runpy.run_path(str(FOLDER / "super_resolution.py"))
    words = ["--objective", "pgn", "--pictures", str(data / "pictures"), "--pgn", str(data / "pgn.safetensors")]
    words += ["--every", "1"]
    for out, steps in (("whole", (3,)), ("parts", (1, 3))):
        for count in steps:
            module["main"]([*words, "--out", str(tmp_path / out), "--steps", str(count)])
    nets = [module["build"]() for _ in range(2)]
    for net, out in zip(nets, ("whole", "parts"), strict=True):
        assert module["load"](tmp_path / out / "pgn.safetensors", net)[0] == 3
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
