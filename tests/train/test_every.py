"""Objectives of a configuration that are computed at some steps only or on crops, or corrected there."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunable_ops.images import write_image
from tunable_ops.losses import PGN, Corrected, Cropped, MultiLoss, Perceptual, VGG16Features
from tunable_ops.train import MODEL, STATE, Config, train
from tunable_ops.train.build import build_criterion, named_files
from tunable_ops.train.distributed import Process
from tunable_ops.train.log import LOG
from tunable_ops.train.restoration import Restoration

LAYERS = ["relu1_1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A picture, random weights of VGG16's first layer, and a PGN that knows nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("every")
    (folder / "pictures").mkdir()
    write_image(torch.rand(3, 40, 36), folder / "pictures" / "a.png")
    net = VGG16Features(LAYERS, weights="random")
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "vgg.safetensors")
    PGN("unet").save(folder / "pgn.safetensors")
    return folder


def objective(data: Path, kind: str) -> dict:
    exact = {"network": "vgg16", "layers": LAYERS, "weights": str(data / "vgg.safetensors")}
    if kind == "sparse":
        return {"name": "look", "loss": "perceptual", "scale": 0.1, "every": 3, "arguments": exact}
    if kind == "crop":
        return {"name": "look", "loss": "perceptual", "scale": 0.1, "crop": 8, "arguments": exact}
    return {
        "name": "look",
        "loss": "perceptual_gradient",
        **({"crop": 8} if kind == "corrected on crops" else {"every": 3}),
        "arguments": {"path": str(data / "pgn.safetensors")},
        "correct_with": {"loss": "perceptual", "arguments": exact},
    }


def config(data: Path, kind: str) -> Config:
    return Config.model_validate(
        {
            "model": {"name": "dncnn", "arguments": {"features": 4, "depth": 3}},
            "data": {"source": str(data / "pictures"), "crop": 16, "batch": 2},
            "objectives": [{"name": "exact", "loss": "mse"}, objective(data, kind)],
            "optim": {"steps": 8, "warmup": 0},
            "log": {"every": 4, "tensorboard": False},
            "checkpoints": {"every": 100},
            "validation": {"every": 0},
            "compute": {"device": "cpu", "precision": "fp32"},
        }
    )


@pytest.mark.parametrize("kind", ["sparse", "corrected", "crop", "corrected on crops"])
def test_stopped_between_two_computed_steps_and_resumed_to_the_same_bits(data: Path, tmp_path: Path, kind: str) -> None:
    run = config(data, kind)
    train(run, tmp_path / "one", progress=False)
    train(run, tmp_path / "two", stop_at=4, progress=False)  # the next computed one is step 6
    train(run, tmp_path / "two", resume=True, progress=False)
    for file in (MODEL, STATE):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    lines = [json.loads(line) for line in (tmp_path / "one" / LOG).read_text().splitlines()]
    values = [line["loss/look"] for line in lines]  # that of a correction may be negative
    assert all(math.isfinite(value) if "corrected" in kind else value > 0 for value in values)
    key, was, now = ("crop", 8, 6) if "crop" in kind else ("every", 3, 2)
    other = run.model_copy(update={"objectives": [run.objectives[0], run.objectives[1].model_copy(update={key: now})]})
    with pytest.raises(ValueError, match=rf"got objectives\.1\.{key} was {was}, is {now}"):
        train(other, tmp_path / "two", resume=True, progress=False)


def test_what_a_correction_has_fitted_is_kept(data: Path, tmp_path: Path) -> None:
    run = config(data, "corrected on crops")
    here = Process(0, 1, torch.device("cpu"))
    task = Restoration(run, here)
    assert task.counters() == {"look": [0.0, 0.0, 0.0]}
    for step in range(3):
        task.loss(task.batches[step], step)
    kept = task.counters()
    assert all(number != 0 for number in kept["look"])
    other = Restoration(run, here)
    other.restore(json.loads(json.dumps(kept)))
    assert other.counters() == kept
    other.restore({})  # as states of before have it
    assert other.counters() == {"look": [0.0, 0.0, 0.0]}


def test_the_log_has_the_mean_over_the_steps_that_computed_it(data: Path, tmp_path: Path) -> None:
    run = config(data, "sparse")
    train(run.model_copy(update={"log": run.log.model_copy(update={"every": 1})}), tmp_path / "each", progress=False)
    each = [json.loads(line) for line in (tmp_path / "each" / LOG).read_text().splitlines()]
    assert [line["step"] for line in each if "loss/look" in line] == [1, 4, 7]
    train(run, tmp_path / "four", progress=False)
    first = json.loads((tmp_path / "four" / LOG).read_text().splitlines()[0])
    wanted = (each[0]["loss/look"] + each[3]["loss/look"]) / 2
    assert first["loss/look"] == pytest.approx(wanted, rel=1e-4)


def test_the_criterion_is_as_configured(data: Path) -> None:
    criterion = build_criterion(config(data, "corrected"))
    assert isinstance(criterion, MultiLoss) and criterion.every == {"exact": 1, "look": 3}
    look = criterion.objectives["look"]
    assert isinstance(look, Corrected) and look.crop is None
    look = build_criterion(config(data, "corrected on crops")).objectives["look"]
    assert isinstance(look, Corrected) and look.crop == 8
    look = build_criterion(config(data, "crop")).objectives["look"]
    assert isinstance(look, Cropped) and look.side == 8 and isinstance(look.loss, Perceptual)
    assert {"objectives.1.arguments.path", "objectives.1.correct_with.arguments.weights"} <= named_files(
        config(data, "corrected")
    ).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "objectives.1.every must be valid; got 0"),
        ({"loss": "adversarial", "every": 2}, "objectives.every must be 1 for the loss 'adversarial'; got 2"),
        ({"correct_with": {}, "every": 4}, "objectives.correct_with must be left out for a loss other than"),
        (
            {"loss": "perceptual_gradient", "correct_with": {}},
            "objectives.every must be above 1, or crop given, with correct_with",
        ),
        ({"crop": 0}, "objectives.1.crop must be valid; got 0"),
        ({"crop": 65}, "objectives.crop must be at most data.crop, 64; got 65 for 'look'"),
        ({"loss": "adversarial", "crop": 32}, "objectives.crop must be left out for the loss 'adversarial'; got 32"),
        (
            {"loss": "perceptual_gradient", "every": 2, "correct_with": {"loss": "l1"}},
            "correct_with.loss must be valid",
        ),
    ],
)
def test_bad_configurations_are_named(data: Path, changes: dict, message: str) -> None:
    from tunable_ops.train.sections import validate

    tree = {"objectives": [{"name": "exact"}, {"name": "look", "loss": "mse", **changes}]}
    with pytest.raises(ValueError, match=message):
        validate(Config, tree)


def test_arguments_of_the_correction_are_checked(data: Path) -> None:
    run = config(data, "corrected")
    wrong = run.objectives[1].model_copy(
        update={"correct_with": run.objectives[1].correct_with.model_copy(update={"arguments": {"colour": 1}})}
    )
    with pytest.raises(ValueError, match=r"train: arguments of perceptual must be among .* got 'colour' in .*'look'"):
        build_criterion(run.model_copy(update={"objectives": [run.objectives[0], wrong]}))


@pytest.mark.parametrize("kind", ["sparse", "corrected", "crop", "corrected on crops"])
def test_crops_too_small_for_the_features_are_named(data: Path, kind: str) -> None:
    tree = config(data, kind).model_dump()
    exact = tree["objectives"][1]["correct_with"] or tree["objectives"][1]
    exact["arguments"].update(layers=["relu5_1"], weights="random")  # has a value from 16 pixels on
    key = "objectives" if "crop" in kind else "data"
    (tree["objectives"][1] if key == "objectives" else tree["data"])["crop"] = 16
    build_criterion(Config.model_validate(tree))
    (tree["objectives"][1] if key == "objectives" else tree["data"])["crop"] = 15
    with pytest.raises(ValueError, match=rf"train: {key}.crop must be at least 16 for the features .*'look'; got 15"):
        build_criterion(Config.model_validate(tree))
