"""examples/knob: published denoisers with a knob, with made-up weights for a few steps, and with the real ones."""

import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from tunable_ops import cli, fold, load_knob, models
from tunable_ops.images import read_image, write_image
from tunable_ops.serialization import load, read_weights, write_file
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import Degradation, Noise
from tunable_ops.train.evaluate import degraded_pictures, evaluate

FOLDER = Path(__file__).parents[2] / "examples" / "knob"
DATA = os.environ.get("TUNABLE_OPS_DATA")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the examples")
needs_weights = pytest.mark.skipif(not DATA, reason="TUNABLE_OPS_DATA is not set: no published weights at hand")


def program(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / name))


def small() -> models.DnCNN:
    """A DnCNN whose taps and biases all do something."""
    torch.manual_seed(0)
    net = models.DnCNN(channels=1, features=5, depth=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, and weights of the published shapes and of a small network's."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for name in "ab":
        write_image(torch.rand(3, 26, 31), folder / "pictures" / f"{name}.png")
    made = {"dncnn": models.DnCNN(channels=1), "ffdnet": models.FFDNet(), "small": small()}
    for name, net in made.items():
        write_file(folder / f"{name}.safetensors", net.state_dict(), {}, kind="weights", version=1)
    return folder


@pytest.mark.parametrize("name", ["dncnn", "ffdnet"])
def test_a_conversion_computes_what_the_network_did(name: str, data: Path, capsys: pytest.CaptureFixture) -> None:
    program("published.py")["main"]([name, str(data / f"{name}.safetensors"), str(data / "pictures")])
    plain, *knob, last = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in knob] == [["knob", "0"], ["knob", "0.5"], ["knob", "1"]]
    assert {line.split("mean")[1] for line in knob} == {plain.split("mean")[1]}
    assert float(last.split()[-1]) < 1e-5


def test_biases_that_grow_with_the_noise_bring_it_to_the_known_level() -> None:
    plain = small().double()
    net = program("dncnn_knob.py")["with_knob"](plain, scaled=True)
    x = torch.rand(2, 1, 9, 8, dtype=torch.float64)
    for lam in (0.0, 0.4, 1.0):
        torch.testing.assert_close(net(x, [lam]), (1 + lam) * plain(x / (1 + lam)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("start", ["zero", "biases"])
def test_training_leaves_level_0_as_it_was(
    start: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["train", str(data / "small.safetensors"), str(data / "pictures"), "--out", str(tmp_path), "--start", start]
    program("dncnn_knob.py")["main"]([*words, "--steps", "3", "--crop", "12", "--batch", "2"])
    said = capsys.readouterr().out
    assert "fold at 0: the published weights, every bit" in said and "fold at 1: DnCNN, its weights load" in said
    plain, net = small(), load(tmp_path / "model.safetensors")
    count = sum(p.numel() for p in plain.parameters())
    assert f"{count:,} of {sum(p.numel() for p in net.parameters()):,} parameters trained" in said
    for key, value in fold(net, [0.0]).state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key
    untrained = fold(program("dncnn_knob.py")["with_knob"](plain, scaled=start == "biases"), [1.0]).state_dict()
    for key, value in fold(net, [1.0]).state_dict().items():
        assert not torch.equal(value, untrained[key]), key


def test_scores_and_strip(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = program("dncnn_knob.py")
    words = ["train", str(data / "small.safetensors"), str(data / "pictures"), "--out", str(tmp_path)]
    module["main"]([*words, "--steps", "1", "--crop", "12", "--batch", "1"])
    model = str(tmp_path / "model.safetensors")
    capsys.readouterr()
    module["main"](["score", model, str(data / "pictures"), "--sigma", "25", "50"])
    said = capsys.readouterr().out
    rows = {line.split(" | ")[0][2:]: line.rstrip(" |").split(" | ")[1:] for line in said.splitlines() if "| " in line}
    assert rows["sigma"] == ["25", "50"]
    knobs = ["scaled biases, no training", "trained kernels"]
    assert list(rows)[2:] == ["noisy input", "published", *knobs, "the same, left at 1"]
    assert all(rows[row][0] == rows["published"][0] for row in knobs)
    assert rows["trained kernels"][1] == rows["the same, left at 1"][1]
    module["main"](["strip", model, "--part", "0", "0", "24", "--out", str(tmp_path / "s.png")])
    drawn = read_image(tmp_path / "s.png")
    assert drawn.shape[2] > 7 * 24 and drawn.shape[1] > 2 * 24


@needs_weights
@pytest.mark.slow
def test_published_dncnn_keeps_its_figures() -> None:
    """The draw of the noise moves a picture of 256x256 by some hundredths of a dB."""
    module, folder = program("published.py"), Path(str(DATA))
    plain = module["NETWORKS"]["dncnn"]().eval()
    weights = folder / "weights" / "dncnn_gray_sigma25.safetensors"
    module["serialization"].fill(weights, plain, module["serialization"].read_weights(weights)[0])
    found, largest = module["compare"](plain, held_out(str(folder / "images" / "test" / "set12"))[:3], 25.0)
    assert largest < 1e-5
    for name, values in found.items():
        assert values == pytest.approx([30.21, 33.11, 30.83], abs=0.15), name


@needs_weights
@pytest.mark.slow
def test_the_knob_helps_before_any_training() -> None:
    folder = Path(str(DATA))
    plain = models.DnCNN(channels=1).eval()
    module, weights = program("dncnn_knob.py"), folder / "weights" / "dncnn_gray_sigma25.safetensors"
    plain.load_state_dict(module["serialization"].read_weights(weights)[0])
    pictures = [(name, clean[:1]) for name, clean in held_out(str(folder / "images" / "test" / "set12"))[:2]]
    pairs = degraded_pictures(pictures, Degradation(noise=Noise(sigma=(50.0, 50.0))), seed=0)
    scores = evaluate(module["with_knob"](plain, scaled=True), pairs, [[0.0], [1.0]])
    before, after = ([score.psnr for score in scores if score.lam == lam] for lam in ((0.0,), (1.0,)))
    assert all(b + 9 < a for b, a in zip(before, after, strict=True)), (before, after)


TEXTURE = {
    "dncnn": (lambda: models.DnCNN(channels=1), "dncnn_gray_sigma25", 1, 89_000),
    "imdn": (models.IMDN, "imdn_x4", 3, 175_500),
}


@needs_weights
@pytest.mark.parametrize("name", TEXTURE)
def test_one_command_trains_a_knob_that_leaves_the_published_network_at_0(
    name: str, data: Path, tmp_path: Path
) -> None:
    """Two steps of the configuration as it ships: bit for bit the published network, in a file of some 100 KB."""
    make, file, channels, size = TEXTURE[name]
    weights = Path(str(DATA)) / "weights" / f"{file}.safetensors"
    changes = {
        "model.weights": weights,
        "data.source": data / "pictures",
        "data.crop": 24,
        "optim.steps": 2,
        "optim.warmup": 1,
        "objectives.1.arguments.weights": "random",
    }
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    assert cli.main(["train", str(FOLDER / f"{name}_texture.toml"), *words, "--out", str(run), "--quiet"]) == 0
    plain = make().eval()
    plain.load_state_dict(read_weights(weights)[0])
    net, x = load_knob(plain, run / "knob.safetensors"), torch.rand(1, channels, 24, 20)
    with torch.no_grad():
        assert torch.equal(net(x, [0.0]), plain(x)) and not torch.equal(net(x, [1.0]), plain(x))
    folded = fold(net, [0.0]).state_dict()
    assert all(torch.equal(value, folded[key]) for key, value in plain.state_dict().items())
    assert abs((run / "knob.safetensors").stat().st_size - size) < 2_000  # paths are in its notes
