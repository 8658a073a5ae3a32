"""The task "perceptual_gradient": what a step does, resuming, resets, validation, and the command line."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunable_ops.cli import main
from tunable_ops.images import write_image
from tunable_ops.losses import VGG16Features
from tunable_ops.losses.pgn import PGN
from tunable_ops.losses.reduction import value_and_gradient
from tunable_ops.serialization import write_file
from tunable_ops.train import MODEL, STATE, PGNConfig, load_config, train
from tunable_ops.train.agreement import CHANGES, agreement
from tunable_ops.train.distributed import Process
from tunable_ops.train.log import LOG
from tunable_ops.train.perceptual_gradient import PerceptualGradient, RunningClip
from tunable_ops.train.state import FORMAT
from tunable_ops.train.toys import LOST, PATIENCE, Autoencoder, Toy

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
    """A run small enough for a test."""
    return PGNConfig.model_validate(
        {
            "loss": {"network": "vgg16", "layers": LAYERS, "weights": str(data / "vgg.safetensors")},
            "data": {"source": str(data / "pictures"), "crop": 16, "batch": 2},
            "optim": {"steps": 6},
            "ema": {"decay": 0.9},
            "log": {"every": 2, "tensorboard": False},
            "checkpoints": {"every": 3},
            "compute": {"device": "cpu"},
        }
    )


def changed(config: PGNConfig, **sections: dict) -> PGNConfig:
    """The configuration with some keys of some sections replaced."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    )


def lines(out: Path) -> list[dict[str, float]]:
    """The log of a run."""
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def test_agreement_is_angle_and_ratio() -> None:
    a = torch.tensor([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    angle, ratio = agreement(a, b)
    torch.testing.assert_close(angle, torch.tensor([0.0, 45.0, 180.0], dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(ratio, torch.tensor([3.0, math.sqrt(2), 0.5], dtype=torch.float64))


def test_clipping_follows_the_running_norm() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    clip = RunningClip(5.0)
    weight.grad = torch.ones(4)
    assert float(clip([weight])) == pytest.approx(2) and clip.running == pytest.approx(2)
    weight.grad = torch.full((4,), 100.0)
    clip([weight])
    assert float(weight.grad.norm()) == pytest.approx(10, rel=1e-4)
    assert clip.running == pytest.approx(0.98 * 2 + 0.02 * 10, rel=1e-4)


def test_the_gradient_of_a_step_is_that_of_its_three_terms(config: PGNConfig) -> None:
    task = PerceptualGradient(config, Process(0, 1, torch.device("cpu")))
    x, y = torch.rand(4, 3, 24, 24), torch.rand(2, 3, 24, 24)
    pgn, loss, full = task.net, task.criterion, y.repeat(2, 1, 1, 1)
    target = pgn(x, full)
    total, parts, true = task.terms(x, y, [0, 1, 0, 1], target, pgn.field(x, target))
    found = torch.autograd.grad(total, list(pgn.parameters()))
    torch.testing.assert_close(true, value_and_gradient(loss, x, full)[1])
    target = pgn(x, full)
    error = (pgn.field(x, target) - true) * pgn.std
    wanted = 2**26 * (3 * 24 * 24 / (3 * 224 * 224)) ** 2 * error.square().mean()
    wanted = wanted + 0.2 * loss(target, full).mean() + 0.5 * ((target - full) / pgn.std).abs().mean()
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-5)
    assert float(parts["field"] + parts["proxy"] + parts["l1"]) == pytest.approx(float(wanted.detach()), rel=1e-4)
    for a, b in zip(found, torch.autograd.grad(wanted, list(pgn.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-6)


@pytest.mark.parametrize(
    ("toys", "priors", "dtype"), [(3, 0, "float32"), (1, 0, "float32"), (1, 2, "float32"), (1, 1, "bfloat16")]
)
def test_stopped_and_resumed_to_the_same_bits(
    config: PGNConfig, tmp_path: Path, monkeypatch, toys: int, priors: int, dtype: str
) -> None:
    monkeypatch.setattr("tunable_ops.train.toys.LIVES", (1, 2))  # so that image priors are reset within the run
    config = changed(config, toys={"autoencoders": toys, "priors": priors}, loss={"dtype": dtype})
    assert train(config, tmp_path / "one", progress=False).finished
    train(config, tmp_path / "two", stop_at=3, progress=False)
    with pytest.raises(ValueError, match=r"train: out must be a new folder; got .*two', which holds a run"):
        train(config, tmp_path / "two", progress=False)
    train(config, tmp_path / "two", resume=True, progress=False)
    for file in (MODEL, STATE):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    log = lines(tmp_path / "one")
    assert [line["step"] for line in log] == [2, 4, 6]
    assert all(0 <= line["agreement/angle"] <= 180 and line["agreement/ratio"] > 0 for line in log)
    assert all(log[-1][f"toys/{3 + k} resets"] > 0 for k in range(priors))
    longer = train(changed(config, optim={"steps": 7}), tmp_path / "two", resume=True, progress=False)
    assert longer.step == 7
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match=r"train: a resumed run must keep its configuration; got seed was 0, is 1"):
        train(other, tmp_path / "two", resume=True, progress=False)


def test_a_signal_saves_and_stops(config: PGNConfig, tmp_path: Path, monkeypatch) -> None:
    loss = PerceptualGradient.loss

    def interrupted(self, batch, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch, step)

    monkeypatch.setattr(PerceptualGradient, "loss", interrupted)
    outcome = train(config, tmp_path, progress=False)
    assert (outcome.signal, outcome.step, outcome.finished) == (signal.SIGTERM, 1, False)


def test_a_state_of_before_is_named(config: PGNConfig, tmp_path: Path) -> None:
    for kind, message in (
        (FORMAT, r"version must be 2; got '1' in .*: finish the run with the version of the code that started it"),
        ("tunable_ops.pgn_training", f"must hold '{FORMAT}'"),
    ):
        write_file(tmp_path / STATE, {"x": torch.zeros(1)}, {}, kind=kind, version=1)
        with pytest.raises(ValueError, match=message):
            train(config, tmp_path, resume=True, progress=False)


def test_several_processes_are_refused(config: PGNConfig, tmp_path: Path, monkeypatch) -> None:
    from contextlib import nullcontext

    here = nullcontext(Process(0, 2, torch.device("cpu")))
    monkeypatch.setattr("tunable_ops.train.trainer.process", lambda device: here)
    with pytest.raises(ValueError, match="task 'perceptual_gradient' must run in one process; got 2"):
        train(config, tmp_path, progress=False)


def test_validation_measures_the_angles_and_touches_no_weight(config: PGNConfig, data: Path, tmp_path: Path) -> None:
    quiet = train(config, tmp_path / "quiet", progress=False)
    held_out = {"every": 4, "source": str(data / "pictures"), "crop": 16}
    outcome = train(changed(config, validation=held_out), tmp_path / "validated", progress=False)
    assert [name for name, _ in outcome.scores] == list(CHANGES)
    found = [line for line in lines(tmp_path / "validated") if "validation/angle half contrast" in line]
    assert [line["step"] for line in found] == [4, 6]
    assert found[-1]["validation/angle half contrast"] == pytest.approx(dict(outcome.scores)["half contrast"].angle)
    for a, b in zip(quiet.net.parameters(), outcome.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_validations_judge_by_the_loss_of_the_training(config: PGNConfig, data: Path, dtype: str) -> None:
    config = changed(config, loss={"weights": "random", "dtype": dtype})
    task = PerceptualGradient(config, Process(0, 1, torch.device("cpu")))
    pictures = [("a", torch.rand(3, 16, 16))]
    first = task.validate(task.net, pictures)
    assert task.validate(task.net, pictures) == first
    for ours, trained in zip(task.judge.parameters(), task.criterion.parameters(), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours.to(trained.dtype), trained)
    assert task.describe({"angle uniform noise": 61.04}) == "angle uniform noise: 61.0 degrees"


def test_training_turns_the_field_towards_the_true_gradient(config: PGNConfig, tmp_path: Path) -> None:
    sections = {"optim": {"steps": 60, "lr": 3e-3}, "toys": {"autoencoders": 1}, "data": {"batch": 1}}
    train(changed(config, **sections, log={"every": 1}), tmp_path, progress=False)
    angles = [line["agreement/angle"] for line in lines(tmp_path)]
    assert len(angles) == 60 and sum(angles[-10:]) < 0.9 * sum(angles[:10])


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
    small = load_config("pgn_unet_vgg16_small")
    assert small.network == "unet" and small.loss.network == "vgg16"
    assert load_config("pgn_unet_vgg19").data.crop == 224
    published = load_config("pgn_unet_published")
    assert published.network == "unet_published"
    pairs = published.data.batch * published.toys.autoencoders
    assert (pairs, published.optim.steps) == (48, 2140 * 512)
    with pytest.raises(ValueError, match=r"config: optim.stepz must be a known key; .*did you mean optim.steps\?"):
        load_config("pgn_unet_vgg16_small", ["optim.stepz=1"])
    with pytest.raises(FileNotFoundError, match=r"one of .*, pgn_unet_published, pgn_.*small, pgn_unet_vgg19, "):
        load_config("nothing")
    with pytest.raises(FileNotFoundError, match=r"got 'unet_vgg19'; did you mean 'pgn_unet_vgg19'\?"):
        load_config("unet_vgg19")


def test_a_section_given_in_part_keeps_the_other_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'task = "perceptual_gradient"\n[data]\nflips = false\n[validation]\nsource = "x"\n'
    )
    config = load_config(tmp_path / "c.toml")
    assert (config.data.crop, config.data.batch, config.data.rotations) == (224, 4, False)
    assert (config.validation.every, config.validation.crop) == (500, 128)
    assert load_config("pgn_unet_vgg16_small").data.rotations, "as the network that ships was trained"


def test_configurations_of_before_are_explained(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    text = (
        'network = "unet"\ndevice = "cpu"\n[optim]\ntoys = 1\ntoy_lr = 1e-3\npriors = 2\nema = 0.9\n[every]\nlog = 5\n'
    )
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r'config: task must be "perceptual_gradient" for .* with network; got nothing'
    ):
        load_config(file)
    with pytest.raises(ValueError) as caught:
        load_config(file, ["task=perceptual_gradient"])
    for old, new in {
        "device": "compute.device",
        "every": "log.every and checkpoints.every",
        "optim.ema": "ema.decay",
        "optim.priors": "toys.priors",
        "optim.toy_lr": "toys.lr",
        "optim.toys": "toys.autoencoders",
    }.items():
        name = old.rpartition(".")[2]
        assert f"config: {old} must be a known key; got {name!r}: it is now {new}" in str(caught.value).splitlines()


def test_the_commands(data: Path, tmp_path: Path, capsys) -> None:
    changes = {
        "loss.weights": data / "vgg.safetensors",
        "loss.layers": json.dumps(LAYERS),
        "data.source": data / "pictures",
        "data.crop": 16,
        "toys.generators": json.dumps(["edsr_x4"]),  # the other one wants larger crops
        "optim.steps": 3,
        "log.every": 1,
    }
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    assert main(["train", "pgn_unet_vgg16_small", "--quiet", "--out", str(out), *words]) == 0
    assert "model.safetensors: 3 steps done" in capsys.readouterr().out
    words = ["--pictures", str(data / "pictures"), "--crop", "16", "--weights", str(data / "vgg.safetensors")]
    assert main(["eval-gradient", str(out / MODEL), *words]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CHANGES)
    assert main(["eval-gradient", str(out / MODEL), "--count", "0"]) == 2
    assert main(["eval-gradient", str(tmp_path / "nothing")]) == 2
    capsys.readouterr()
    assert main(["pgn", "train", "unet_vgg19"]) == 2
    assert "the command 'pgn' is now called 'train'" in capsys.readouterr().err


def test_the_published_unet_trains_and_resumes(config: PGNConfig, tmp_path: Path) -> None:
    """With its batch norm: statistics travel in the state, and are averaged in what is delivered."""
    config = changed(config, data={"crop": 36}, optim={"steps": 3}).model_copy(update={"network": "unet_published"})
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "parts", stop_at=2, progress=False)
    train(config, tmp_path / "parts", resume=True, progress=False)
    whole, parts = (load_file(tmp_path / name / MODEL) for name in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    pgn = PGN.load(tmp_path / "whole" / MODEL)
    assert pgn.name == "unet_published" and float(pgn.net.down[0][1].running_mean.abs().max()) > 0


def test_an_automatic_dtype_is_kept(config: PGNConfig, tmp_path: Path, monkeypatch) -> None:
    config = changed(config, loss={"dtype": "auto"}, optim={"steps": 3})
    for name in ("x", "whole"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
        train(config, tmp_path / name, stop_at=1 if name == "x" else None, progress=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(ValueError, match=r"loss.dtype was 'bfloat16', is 'float32'"):
        train(changed(config, loss={"dtype": "float32"}), tmp_path / "x", resume=True, progress=False)
    train(config, tmp_path / "x", resume=True, progress=False)
    one, two = (load_file(tmp_path / name / STATE) for name in ("x", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_contraction_holds_in_training_and_comes_with_the_file(config: PGNConfig, tmp_path: Path) -> None:
    config = changed(config, optim={"steps": 2}).model_copy(update={"contraction": 0.6})
    train(config, tmp_path, progress=False)
    trained = PGN.load(tmp_path / MODEL)
    assert trained.contraction == 0.6 and trained.notes["config"]["contraction"] == 0.6
    y = torch.rand(1, 3, 16, 16)
    x = (y + 0.01 * torch.rand_like(y)).clamp(0, 1)
    distances = [(((v - y) / trained.std) ** 2).sum().sqrt() for v in (trained.proxy_target(x, y), x)]
    assert distances[0] <= 0.6001 * distances[1]
    with pytest.raises(ValueError, match="contraction"):
        PGNConfig.model_validate({"contraction": 1.5})
