"""Training a PGN: what a step does, resuming, resets, and the command line."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunable_ops.cli import main
from tunable_ops.images import write_image
from tunable_ops.losses import Perceptual, VGG16Features
from tunable_ops.pgn import PGN
from tunable_ops.pgn.config import PGNConfig, load_pgn_config
from tunable_ops.pgn.evaluate import CHANGES
from tunable_ops.pgn.toys import LOST, PATIENCE, Autoencoder, Toy
from tunable_ops.pgn.trainer import LOG, MODEL, PGNTrainer, _Clip, agreement, true_gradient

LAYERS = ["relu1_1", "relu2_1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two smooth pictures and random weights of VGG16's first layers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pgn")
    (folder / "pictures").mkdir()
    for index in range(2):
        small = torch.rand(1, 3, 5, 6)
        picture = torch.nn.functional.interpolate(small, size=(40, 36), mode="bicubic")[0].clamp(0, 1)
        write_image(picture, folder / "pictures" / f"{index}.png")
    net = VGG16Features(LAYERS, weights="random")
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "vgg.safetensors")
    return folder


@pytest.fixture
def config(data: Path) -> PGNConfig:
    return PGNConfig.model_validate(
        {
            "loss": {"network": "vgg16", "layers": LAYERS, "weights": str(data / "vgg.safetensors")},
            "data": {"source": str(data / "pictures"), "crop": 16, "batch": 2},
            "optim": {"steps": 6, "ema": 0.9},
            "every": {"log": 2, "checkpoint": 3},
            "device": "cpu",
        }
    )


def test_agreement_is_angle_and_ratio() -> None:
    a = torch.tensor([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    angle, ratio = agreement(a, b)
    torch.testing.assert_close(angle, torch.tensor([0.0, 45.0, 180.0], dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(ratio, torch.tensor([3.0, math.sqrt(2), 0.5], dtype=torch.float64))


def test_clipping_follows_the_running_norm() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    clip = _Clip(5.0)
    weight.grad = torch.ones(4)
    assert clip([weight]) == pytest.approx(2) and clip.running == pytest.approx(2)
    weight.grad = torch.full((4,), 100.0)
    clip([weight])
    assert float(weight.grad.norm()) == pytest.approx(10, rel=1e-4)
    assert clip.running == pytest.approx(0.98 * 2 + 0.02 * 10, rel=1e-4)


def test_the_gradient_of_a_step_is_that_of_its_three_terms(config: PGNConfig, tmp_path: Path) -> None:
    trainer = PGNTrainer(config, tmp_path)
    x, y = torch.rand(4, 3, 24, 24), torch.rand(2, 3, 24, 24)
    pgn, loss, full = trainer.pgn, trainer.loss, y.repeat(2, 1, 1, 1)
    target = pgn(x, full)
    total, line, true = trainer._terms(x, y, [0, 1, 0, 1], target, pgn.field(x, target))
    found = torch.autograd.grad(total, list(pgn.parameters()))
    torch.testing.assert_close(true, true_gradient(loss, x, full)[0])
    target = pgn(x, full)
    error = (pgn.field(x, target) - true) * pgn.std
    wanted = 2**26 * (3 * 24 * 24 / (3 * 224 * 224)) ** 2 * error.square().mean()
    wanted = wanted + 0.2 * loss(target, full).mean() + 0.5 * ((target - full) / pgn.std).abs().mean()
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-5)
    assert line["field"] + line["proxy"] + line["l1"] == pytest.approx(float(wanted.detach()), rel=1e-4)
    for a, b in zip(found, torch.autograd.grad(wanted, list(pgn.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-6)


@pytest.mark.parametrize(
    ("toys", "priors", "dtype"), [(3, 0, "float32"), (1, 0, "float32"), (1, 2, "float32"), (1, 1, "bfloat16")]
)
def test_stopped_and_resumed_to_the_same_bits(
    config: PGNConfig, tmp_path: Path, monkeypatch, toys: int, priors: int, dtype: str
) -> None:
    monkeypatch.setattr("tunable_ops.pgn.toys.LIVES", (1, 2))  # so that image priors are reset within the run
    optim = config.optim.model_copy(update={"toys": toys, "priors": priors})
    config = config.model_copy(update={"optim": optim, "loss": config.loss.model_copy(update={"dtype": dtype})})
    PGNTrainer(config, tmp_path / "one").run()
    PGNTrainer(config, tmp_path / "two").run(stop_at=3)
    with pytest.raises(ValueError, match=r"pgn: out must be a new folder; got .*two', which holds a run"):
        PGNTrainer(config, tmp_path / "two")
    PGNTrainer(config, tmp_path / "two", resume=True).run()
    one, two = (PGN.load(tmp_path / name / MODEL).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    lines = [json.loads(line) for line in (tmp_path / "one" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(0 <= line["angle"] <= 180 and line["ratio"] > 0 for line in lines)
    assert all(count > 0 for count in lines[-1]["resets"][3:])
    longer = config.model_copy(update={"optim": config.optim.model_copy(update={"steps": 7})})
    assert PGNTrainer(longer, tmp_path / "two", resume=True).step == 6
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match=r"pgn: a resumed run must keep its configuration; got seed was 0, is 1"):
        PGNTrainer(other, tmp_path / "two", resume=True)


def test_a_signal_saves_and_stops(config: PGNConfig, tmp_path: Path, monkeypatch) -> None:
    trainer = PGNTrainer(config, tmp_path)
    advance = trainer.advance

    def interrupted() -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return advance()

    monkeypatch.setattr(trainer, "advance", interrupted)
    assert trainer.run() == signal.SIGTERM
    assert PGNTrainer(config, tmp_path, resume=True).step == 1


def test_training_turns_the_field_towards_the_true_gradient(config: PGNConfig, tmp_path: Path) -> None:
    optim = config.optim.model_copy(update={"steps": 60, "lr": 3e-3, "toys": 1})
    data = config.data.model_copy(update={"crop": 16, "batch": 1})
    config = config.model_copy(update={"optim": optim, "data": data})
    trainer = PGNTrainer(config, tmp_path)
    angles = [trainer.advance()["angle"] for _ in range(60)]
    assert sum(angles[-10:]) < 0.9 * sum(angles[:10])


def test_autoencoders_keep_the_size_and_are_reset() -> None:
    for depth in (1, 2, 3):
        assert Autoencoder(depth)(torch.rand(1, 3, 19, 26)).shape == (1, 3, 19, 26)
    toy = Toy(1, 1e-3)
    y = torch.rand(2, 3, 16, 16)
    first = float((toy.net(y) - y).detach().square().mean())
    for _ in range(30):
        x = toy.net(y)
        toy.step(x, x.detach() - y)
    assert float((toy.net(y) - y).detach().square().mean()) < first
    toy.watch(1.0, 0.0)
    for _ in range(PATIENCE + 1):
        toy.watch(1.0, 1.0)
    assert toy.resets == 0
    toy.watch(1.0, 0.0)
    assert toy.resets == 1 and toy.since == 0
    toy.watch(2 * LOST, 1.0)
    assert toy.resets == 2


def test_packaged_configs_are_right_and_mistakes_are_named() -> None:
    small = load_pgn_config("unet_vgg16_small")
    assert small.network == "unet" and small.loss.network == "vgg16"
    assert load_pgn_config("unet_vgg19").data.crop == 224
    with pytest.raises(ValueError, match=r"config: optim.stepz must be a known key; .*did you mean optim.steps\?"):
        load_pgn_config("unet_vgg16_small", ["optim.stepz=1"])
    with pytest.raises(FileNotFoundError, match="one of unet_vgg16_small, unet_vgg19"):
        load_pgn_config("nothing")


def test_the_commands(data: Path, tmp_path: Path, capsys) -> None:
    changes = {
        "loss.weights": data / "vgg.safetensors",
        "loss.layers": json.dumps(LAYERS),
        "data.source": data / "pictures",
        "data.crop": 16,
        "optim.steps": 3,
        "every.log": 1,
    }
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    assert main(["pgn", "train", "unet_vgg16_small", "--out", str(out), *words]) == 0
    assert "3 of 3 steps done" in capsys.readouterr().out
    words = ["--pictures", str(data / "pictures"), "--crop", "16", "--weights", str(data / "vgg.safetensors")]
    assert main(["pgn", "eval", str(out / MODEL), *words]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CHANGES)
    assert main(["pgn", "eval", str(out / MODEL), "--count", "0"]) == 2
    assert main(["pgn", "train", "nothing"]) == 2
    assert main(["pgn"]) == 2


def test_a_true_gradient_is_that_of_the_loss() -> None:
    loss = Perceptual("vgg16", LAYERS, weights="random", bounded=False)
    x, y = torch.rand(2, 3, 12, 12), torch.rand(2, 3, 12, 12)
    gradient, values = true_gradient(loss, x, y)
    torch.testing.assert_close(values, loss(x, y))
    step = 1e-3 * torch.randn_like(x)
    moved = (loss(x + step, y) - loss(x - step, y)) / 2
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), moved, rtol=0.1, atol=1e-4)
