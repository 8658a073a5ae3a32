"""Style objectives in the trainer: pictures from files, one shared content, checked configurations."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunable_ops import losses
from tunable_ops.images import write_image
from tunable_ops.models import StyleNet
from tunable_ops.serialization import load
from tunable_ops.train import MODEL, Config, load_config, train
from tunable_ops.train.build import build_criterion, style_picture


@pytest.fixture
def styles(pictures: Path, make_config: Callable[..., Config]) -> Callable[..., Config]:
    """A configuration with two style pictures and features drawn at random."""

    def build(**changes: dict) -> Config:
        objectives = [
            {"name": name, "loss": "style", "picture": str(pictures / f"{index}.png")}
            for index, name in enumerate(("dots", "lines"))
        ]
        arguments = {"width": 2, "num_blocks": [0, 1, 0]}
        sections = {
            "model": {"name": "stylenet", "arguments": arguments},
            "tuning": {"names": ["dots", "lines"]},
            "objectives": objectives,
            "style": {"size": 16, "layers": ["relu1_2"], "content_layer": "relu2_1", "weights": "random"},
            "data": {"crop": 12, "batch": 2},
            "degradation": {"noise": None},
        }
        return make_config(**{**sections, **changes})

    return build


def test_a_style_network_trains_and_loads(styles, tmp_path: Path) -> None:
    torch.manual_seed(0)  # of the features
    config = styles(optim={"steps": 12, "lr": 1e-2, "warmup": 1})
    outcome = train(config, tmp_path / "run", progress=False)
    assert outcome.finished and outcome.scores == []
    net = load(tmp_path / "run" / MODEL)
    assert isinstance(net.network, StyleNet)
    assert net.spec.names == ("dots", "lines")
    x = torch.rand(1, 3, 9, 10)
    assert (net(x, [1.0, 0.0]) - net(x, [0.0, 1.0])).abs().max() > 1e-4


def test_the_criterion_is_that_of_the_configuration(styles) -> None:
    config = styles()
    config = Config.model_validate(
        {**config.model_dump(), "style": {**config.style.model_dump(), "content": 0.25, "smooth": 0.5, "pool": "max"}}
    )
    criterion = build_criterion(config)
    assert isinstance(criterion, losses.StyleTransfer)
    assert criterion.names == ("dots", "lines")
    assert (criterion.content, criterion.smooth, criterion.content_layer) == (0.25, 0.5, "relu2_1")
    assert criterion.features.layers == ("relu1_2", "relu2_1")


def test_style_pictures_are_resized_by_their_shorter_side(tmp_path: Path) -> None:
    write_image(torch.full((3, 30, 50), 0.5), tmp_path / "a.png")
    picture = style_picture(str(tmp_path / "a.png"), 60)
    assert picture.shape == (1, 3, 60, 100)
    assert (picture - 128 / 255).abs().max() < 0.01
    assert min(style_picture("skimage:brick.png", 32).shape[2:]) == 32
    with pytest.raises(ValueError, match=r"images: path must be a readable image; got 'nowhere.jpg'"):
        style_picture("nowhere.jpg", 32)


def test_the_packaged_configuration_is_complete() -> None:
    config = load_config("style", ["style.weights=random", "style.size=32", "style.layers=['relu1_2', 'relu3_3']"])
    assert config.model.name == "stylenet" and config.trains_styles
    assert len(build_criterion(config).names) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objectives.0.loss=mse"],
            "objectives.picture must be given for the loss 'style' and no other; got 'skimage:",
        ),
        (["objectives.0={name = 'a', loss = 'style'}"], "and no other; got None for the loss 'style' of 'a'"),
        (["objectives.0={name = 'a'}"], "objectives must all be styles over one target where one is; got a: mse"),
        (["objectives.1.target=input"], "objectives must all be styles over one target where one is"),
        (["objectives.0.arguments={eps = 1}"], "objectives.arguments must be empty for the loss 'style'"),
        (["validation.every=5"], "validation.every must be 0 for styles"),
    ],
)
def test_configurations_that_do_not_go_together(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config("style", overrides)
    assert message in str(caught.value)


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TUNABLE_OPS_DATA", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="VGG16Features: could not find the weights of vgg16"):
        build_criterion(load_config("style"))
