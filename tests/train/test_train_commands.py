"""`tunable-ops train` and `tunable-ops demo`."""

import json
from pathlib import Path

import pytest
import torch

from tunable_ops.cli import main
from tunable_ops.images import read_image
from tunable_ops.serialization import load
from tunable_ops.train.trainer import Outcome

CONFIG = """
[model]
arguments = {{ features = 8, depth = 3 }}
[[objectives]]
name = "clean"
[[objectives]]
name = "noisy"
target = "input"
[data]
source = "{source}"
crop = 16
batch = 4
[optim]
steps = 3
[log]
tensorboard = false
"""
# small enough for a test, large enough to denoise
QUICK = ["--set", "model.arguments.features=16", "--set", "model.arguments.depth=4", "--set", "data.crop=48"]


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(CONFIG.format(source=pictures))
    return file


def test_train_then_resume(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", str(config), "--out", str(out), "--quiet", "--stop-at", "1"]) == 0
    assert "stopped at step 1 of 3" in capsys.readouterr().err
    assert main(["train", str(config), "--out", str(out), "--quiet", "--threads", "1", "--resume"]) == 0
    assert "model.safetensors: 3 steps done" in capsys.readouterr().out
    assert load(out / "model.safetensors").spec.names == ("clean", "noisy")
    assert main(["train", str(config), "--out", str(out), "--quiet"]) == 2
    assert "holds a run: resume it (--resume)" in capsys.readouterr().err
    assert main(["train", str(config), "--out", str(out), "--resume", "--quiet"]) == 0
    assert main(["train", str(config), "--out", str(out), "--resume", "--quiet", "--set", "seed=3"]) == 2
    assert "seed was 0, is 3" in capsys.readouterr().err


def test_overrides_reach_the_run(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--set", "optim.steps=2", "--set", 'tuning.names=["a", "b"]', "--quiet"]
    assert main(["train", str(config), "--out", str(out), *arguments]) == 0
    net = load(out / "model.safetensors")
    assert net.notes["step"] == 2
    assert net.spec.names == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere.toml"],
            "config: path must be a file or one of demo, denoise, denoise_deblur, pgn_unet",
        ),
        (["demo", "--set", "optim.setps=3"], "optim.setps must be a known key; got 'setps': did you mean optim.steps?"),
        (["demo", "--set", "data.source=/no/such/folder"], "images: path must be an existing file or folder"),
        (["demo", "--set", "model.name=dcnn"], "; got 'dcnn'"),
        (["demo", "--set", "model.arguments.feature=3"], "got 'feature'; did you mean 'features'?"),
        (["demo", "--threads", "0"], "--threads must be at least 1; got 0"),
        (["demo", "--stop-at", "0"], "--stop-at must be at least 1; got 0"),
        (["demo", "--set", "task=style"], "task must be one of restoration, perceptual_gradient; got 'style'"),
    ],
)
def test_errors_are_one_line(arguments: list, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments, "--out", str(tmp_path / "x"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_several_errors_have_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were pressed into one."""
    words = ["train", "demo", "--set", "optim.setps=3", "--set", "data.corp=8", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tunable-ops train: error: config: data.corp must be a known key")
    assert second.startswith("config: optim.setps must be a known key")


def test_a_stop_is_reported_and_resumed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from tunable_ops.train import trainer

    original = trainer._Run.advance

    def interrupted(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "advance", interrupted)
        assert main(["train", str(config), "--out", str(tmp_path / "x"), "--quiet"]) == 128 + signal.SIGTERM
    assert "stopped at step 1 of 3; --resume continues it" in capsys.readouterr().err
    assert main(["train", str(config), "--out", str(tmp_path / "x"), "--resume", "--quiet"]) == 0


def test_demo_writes_everything_and_fails_where_it_must(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps cannot denoise: all files are there, and the exit code says that the checks failed."""
    out = tmp_path / "demo"
    quick = [*QUICK, "--set", "validation.every=0", "--quiet", "--threads", "1"]
    assert main(["demo", "--out", str(out), "--steps", "3", "--compare-plain", *quick]) == 1
    text = capsys.readouterr().out
    assert "check failed: full denoising must gain 5 dB" in text
    assert sorted(file.name for file in out.glob("*.png")) == [
        "psnr.png",
        *(f"strip_{name}{which}.png" for name in ("astronaut", "chelsea", "coffee") for which in ("", "_pretrained")),
    ]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 3
    assert metrics["slider"] == [k / 8 for k in range(9)]
    assert set(metrics["psnr"]) == {"astronaut", "chelsea", "coffee", "mean"}
    assert all(len(values) == 9 for values in metrics["psnr"].values())
    assert metrics["psnr"]["mean"][4] == pytest.approx(
        sum(metrics["psnr"][name][4] for name in ("astronaut", "chelsea", "coffee")) / 3
    )
    assert 20 < metrics["psnr_noisy"]["mean"] < 21.5
    assert metrics["checks"]["gain_at_least_5_db"] is False
    assert metrics["plain"]["parameters"] < metrics["parameters"]
    shipped = metrics["pretrained"]["psnr"]  # its best position is the noise's own level
    assert max(shipped, key=shipped.get) == "25" and shipped["25"] > 29
    height, width = read_image(out / "strip_astronaut.png").shape[1:]
    assert width >= 7 * 256
    assert height > 256
    assert load(out / "model.safetensors").spec.names == ("denoise", "keep")

    (out / "mine.txt").write_text("not the demo's")
    stale = (out / "metrics.json").stat().st_mtime_ns
    assert main(["demo", "--out", str(out), "--steps", "2", *quick]) == 1
    assert "demo: replacing the earlier demo in" in capsys.readouterr().out
    assert (out / "metrics.json").stat().st_mtime_ns > stale
    assert (out / "mine.txt").exists()
    assert not (out / "plain").exists()


def test_checks_catch_a_slider_that_does_not_rise() -> None:
    """The exit code must follow the figures: seeded faults in otherwise good scores."""
    from tunable_ops.cli import demo
    from tunable_ops.modules import convert
    from tunable_ops.train import load_config
    from tunable_ops.train.evaluate import Score

    net = convert(torch.nn.Conv2d(1, 1, 1), num_params=2)
    config = load_config("demo")

    def checks(change: dict[int, float]) -> dict[str, bool]:
        found = []
        for name in ("a", "b"):
            found.append(Score(name, None, 20.0, 0.5))
            for k, w in enumerate(demo.SLIDER):
                extra = change.get(k, 0.0) if name == "b" else 0.0
                found.append(Score(name, (w, 1 - w), 20.0 + k + extra, 0.5))
        return demo._metrics(config, net, found)["checks"]

    assert checks({}) == {"rises": True, "gain_at_least_5_db": True}
    assert checks({4: 1.5}) == {"rises": False, "gain_at_least_5_db": True}
    assert checks({4: 1.0})["rises"] is False
    assert checks({8: -6.5})["gain_at_least_5_db"] is False


def test_demo_refuses_a_config_without_a_slider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "x"), "--set", "tuning.kind=none"]) == 2
    assert "must keep a tunable network" in capsys.readouterr().err


def test_demo_leaves_a_folder_alone_that_no_demo_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier version cleared it before anything else."""
    (tmp_path / "plain").mkdir()
    for name in ("model.safetensors", "plain/mine.txt"):
        (tmp_path / name).write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--steps", "1"]) == 2
    assert "--out must be a new folder or that of an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_text() == (tmp_path / "plain/mine.txt").read_text() == "mine"


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_bad_picture_is_named_and_the_rest_is_used(
    config: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    assert main(["train", str(config), "--out", str(tmp_path / "x"), "--quiet"]) == 0
    assert "broken.png" in capsys.readouterr().err
    for file in pictures.iterdir():
        file.write_bytes(b"no picture")
    assert main(["train", str(config), "--out", str(tmp_path / "y"), "--quiet"]) == 2
    assert "4 files, none of them usable" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_of_several_processes_one_says_how_it_ended(config, tmp_path, capsys, monkeypatch, finished):
    outcome = Outcome(torch.nn.Identity(), 3, finished)
    monkeypatch.setattr("tunable_ops.train.train", lambda *_, **__: outcome)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert main(["train", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("3 steps done" if finished else "stopped at step 3") == 1
