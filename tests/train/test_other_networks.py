"""A knob for a network that is none of this package: of an importable class, or of spandrel; and for grey pictures."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tunable_ops
from tests import spandrel_stand_in
from tunable_ops import cli, losses, models, serialization
from tunable_ops.images import read_image, write_image
from tunable_ops.knob_files import read_knob_metadata
from tunable_ops.models import zoo
from tunable_ops.train import MODEL, train
from tunable_ops.train.build import build_criterion, build_network
from tunable_ops.train.task import KNOB

KNOB_SECTIONS: dict[str, Any] = {
    "tuning": {"domain": "box", "freeze": True, "names": ["texture"], "rank": 2},
    "objectives": [{"name": "texture", "loss": "tv"}, {"name": "clean", "follows": False}],
}


class Own(nn.Module):
    """Somebody's denoiser, with a batch norm; grey if `inputs` is 1."""

    def __init__(self, width: int, inputs: int = 3) -> None:
        super().__init__()
        if inputs != 3:
            self.channels = inputs
        self.head, self.norm = nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)
        self.tail = nn.Conv2d(width, inputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(self.norm(self.head(x)).relu())


NAME = f"{__name__}:Own"


@pytest.fixture
def published(tmp_path: Path) -> tuple[Own, Path]:
    """Weights as they are published, with statistics that no picture of a test has."""
    torch.manual_seed(1)
    plain = Own(6).eval()
    plain.norm.running_mean.uniform_(-1, 1)
    plain.norm.running_var.uniform_(0.5, 2)
    save_file(plain.state_dict(), tmp_path / "own.safetensors")
    return plain, tmp_path / "own.safetensors"


def own(path: Path, **changes: Any) -> dict[str, Any]:
    """Return the sections of a training of a knob on `Own`."""
    return {**KNOB_SECTIONS, "model": {"name": NAME, "arguments": {"width": 6}, "weights": str(path), **changes}}


def test_one_command_trains_a_knob_for_a_class_of_ones_own(make_config, published, tmp_path: Path) -> None:
    """At 0 the published network bit for bit, its batch norm too; the knob alone brings the rest to others."""
    plain, weights = published
    outcome = train(make_config(**own(weights)), tmp_path / "run", progress=False)
    knob, x = tmp_path / "run" / KNOB, torch.rand(1, 3, 14, 17)
    net = tunable_ops.load_knob(plain, knob)
    with torch.no_grad():
        assert torch.equal(net(x, [0.0]), plain(x)) and not torch.equal(net(x, [1.0]), plain(x))
        torch.testing.assert_close(net(x, [1.0]), outcome.net(x, [1.0]), rtol=2e-3, atol=2e-3)  # half precision
    about = read_knob_metadata(knob)
    assert (about["architecture"], about["arguments"]) == (NAME, {"width": 6})
    folded = tunable_ops.fold(outcome.net, [0.0]).state_dict()
    assert all(torch.equal(value, folded[name]) for name, value in plain.state_dict().items())


def test_on_the_command_line(published, make_config, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A file never decides what is imported: --network must say it."""
    plain, weights = published
    train(make_config(**own(weights)), tmp_path / "run", progress=False)
    photo = write_image(torch.rand(3, 20, 24), tmp_path / "photo.png")
    words = ["apply", photo, "--model", weights, "--knob", tmp_path / "run" / KNOB, "--out", tmp_path / "o.png"]

    def run(*more: Any) -> tuple[int, str]:
        code = cli.main([str(word) for word in (*words, "--quiet", *more)])
        return code, capsys.readouterr().err

    code, err = run()
    assert code == 2 and "does not say how to build its base" in err and "--network package.module:Class" in err
    code, err = run("--network", NAME)
    assert code == 0, err
    expected = (plain(read_image(photo)[None])[0].clamp(0, 1) * 255).round()  # texture 0
    assert (read_image(tmp_path / "o.png") * 255 - expected).abs().max() <= 1
    for words in (
        ["apply", photo, "--model", tmp_path / "run" / MODEL, "--out", tmp_path / "p.png", "--quiet"],
        ["fold", tmp_path / "run" / MODEL, "--lam", "0.5", "--out", tmp_path / "folded.safetensors"],
        ["knob", tmp_path / "run" / MODEL, "--base", weights, "--out", tmp_path / "again.safetensors"],
    ):
        assert cli.main([str(word) for word in words]) == 2
        assert "on the command line --network" in capsys.readouterr().err
        assert cli.main([*(str(word) for word in words), "--network", NAME]) == 0, capsys.readouterr().err
    assert load_file(tmp_path / "again.safetensors").keys() == load_file(tmp_path / "run" / KNOB).keys()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nothing", "--network must be package.module:Class or an existing file; got 'nothing'"),
        ("nowhere_at_all:Net", "can be imported; got 'nowhere_at_all:Net': No module named 'nowhere_at_all'"),
        (f"{__name__}:Missing", "can be imported; got .*: module .* has no attribute 'Missing'"),
        ("torch.nn:Conv2d", "arguments must be those of torch.nn:Conv2d; got {'width': 6}: missing a required"),
    ],
)
def test_wrong_networks(make_config, published, tmp_path, capsys, option: str, message: str) -> None:
    train(make_config(**own(published[1])), tmp_path / "run", progress=False)
    photo = write_image(torch.rand(3, 20, 24), tmp_path / "photo.png")
    words = ["apply", photo, "--model", tmp_path / "run" / MODEL, "--network", option, "--out", tmp_path / "o.png"]
    assert cli.main([str(word) for word in words]) == 2
    assert re.search(message, err := capsys.readouterr().err), err


def test_weights_of_another_network_name_the_first_key(make_config, published, tmp_path: Path) -> None:
    _, weights = published
    with pytest.raises(
        ValueError, match=r"7 of another shape \(head.weight is \[6, 3, 3, 3\] in the file, \[5, 3, 3, 3"
    ):
        build_network(make_config(**own(weights, arguments={"width": 5})))
    tensors = {f"module.{name}": value for name, value in load_file(weights).items()}
    save_file(tensors, tmp_path / "prefixed.safetensors")
    with pytest.raises(ValueError, match=r"9 missing \(head.weight; .*\), 9 unknown \(module.head.bias; "):
        build_network(make_config(**own(tmp_path / "prefixed.safetensors")))


def test_channels_are_those_of_the_network(make_config, tmp_path: Path) -> None:
    grey = {"arguments": {"width": 6, "inputs": 1}, "weights": None}
    message = r"model.channels must be the attribute `channels` of the network \(3 where it has none\), 1; got 3"
    with pytest.raises(ValueError, match=message):
        build_network(make_config(**own(tmp_path, **grey)))
    config = make_config(**own(tmp_path, **grey, channels=1))
    assert train(config, tmp_path / "run", progress=False).finished


def test_a_network_of_spandrel(make_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    spandrel_stand_in.install(monkeypatch, spandrel_stand_in.enlarging)
    weights = tmp_path / "published.pth"
    weights.touch()
    sections = {
        **KNOB_SECTIONS,
        "model": {"name": "spandrel", "weights": str(weights), "arguments": {}},
        "degradation": {"noise": None, "downsample": {"factors": [2], "enlarge": False}},
        "data": {"crop": 16},
    }
    train(make_config(**sections), tmp_path / "run", stop_at=3, progress=False)
    train(make_config(**sections), tmp_path / "run", resume=True, progress=False)
    plain, x = zoo.load(weights).network, torch.rand(1, 3, 9, 6)
    net = tunable_ops.load_knob(plain, tmp_path / "run" / KNOB)
    with torch.no_grad():
        assert torch.equal(net(x, [0.0]), plain(x)) and not torch.equal(net(x, [1.0]), plain(x))
    photo = write_image(torch.rand(3, 20, 22), tmp_path / "photo.png")
    for model in (
        ["--model", weights, "--knob", tmp_path / "run" / KNOB],
        ["--model", tmp_path / "run" / MODEL, "--network", weights],
    ):
        words = ["apply", photo, *model, "--lam", "texture=0", "--out", tmp_path / "o.png", "--quiet"]
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
        expected = (plain(read_image(photo)[None])[0].clamp(0, 1) * 255).round()
        assert (read_image(tmp_path / "o.png") * 255 - expected).abs().max() <= 1
    out = tmp_path / "again.safetensors"
    words = ["knob", tmp_path / "run" / MODEL, "--base", weights, "--half", "--out", out]
    assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
    wanted = load_file(tmp_path / "run" / KNOB)
    assert all(torch.equal(value, wanted[name]) for name, value in load_file(out).items())


@pytest.mark.parametrize(
    ("model", "what"),
    [({}, "nothing in weights"), ({"weights": "x.pth", "arguments": {"scale": 4}}, r"the arguments {'scale': 4}")],
)
def test_spandrel_needs_a_file_and_no_arguments(make_config, model: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=rf'and no arguments for "spandrel"; got {what}'):
        make_config(model={"name": "spandrel", "arguments": {}, **model})


def test_a_checkpoint_imports_nothing(tmp_path: Path) -> None:
    """Whatever its architecture is called: a file of a stranger must not choose what runs."""
    net = tunable_ops.convert(Own(4).eval(), 1, domain="box")
    serialization.save(net, tmp_path / "x.safetensors", architecture=f"{NAME}", arguments={"width": 4})
    with pytest.raises(ValueError, match="checkpoint: architecture must be one of"):
        serialization.load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="models: name must be one of"):
        models.build(NAME, width=4)
    assert serialization.load(tmp_path / "x.safetensors", Own(4)).network.head is not None


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("torch.nn:", {}, ValueError, "that can be imported; got 'torch.nn:'"),
        (":Conv2d", {}, ValueError, "that can be imported; got ':Conv2d'"),
        ("torch:pi", {}, TypeError, "must stand for a class of networks; got 'torch:pi', float"),
        ("fractions:Fraction", {"numerator": 1}, TypeError, "must make an nn.Module; got .*, which made Fraction"),
        ("builtins:dict", {"a": 1}, ValueError, "arguments must be those of builtins:dict; got {'a': 1}: no signature"),
        (NAME, {"widht": 4}, ValueError, "arguments must be those of .*; got {'widht': 4}: missing a required"),
    ],
)
def test_bad_imports(name: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"models: .*{message}"):
        models.build_imported(name, **arguments)


def test_features_of_grey_pictures(make_config) -> None:
    """Those of the same picture on three channels; gradients flow."""
    config = make_config(
        model={"arguments": {"channels": 1, "depth": 3}},
        tuning={"domain": "box", "names": ["texture"]},
        objectives=[
            {
                "name": "look",
                "loss": "perceptual",
                "weight": {"texture": [0, 1]},
                "arguments": {"layers": ["relu1_2"], "weights": "random"},
            }
        ],
    )
    torch.manual_seed(0)
    criterion = build_criterion(config)
    output, target = torch.rand(2, 1, 24, 20, requires_grad=True), torch.rand(2, 1, 24, 20)
    total, _ = criterion(output, {"look": target}, torch.tensor([[1.0], [1.0]]))
    torch.manual_seed(0)
    perceptual = losses.Perceptual(network="vgg16", layers=["relu1_2"], weights="random", bounded=False)
    expected = perceptual(output.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1)).mean()
    torch.testing.assert_close(total, expected)
    (gradient,) = torch.autograd.grad(total, output)
    assert gradient.shape == output.shape and gradient.abs().max() > 0


def test_overwriting_a_run_removes_its_knob(make_config, published, tmp_path: Path) -> None:
    train(make_config(**own(published[1])), tmp_path / "run", progress=False)
    assert (tmp_path / "run" / KNOB).exists()
    train(make_config(), tmp_path / "run", overwrite=True, progress=False)
    assert not (tmp_path / "run" / KNOB).exists()
