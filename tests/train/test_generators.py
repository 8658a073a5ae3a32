"""Generators as toys of a PGN's training: what leads them, their lives, the tangent's loss, resuming, the keys."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunable_ops import pretrained
from tunable_ops.images import write_image
from tunable_ops.losses import VGG16Features
from tunable_ops.losses.pgn import PGN
from tunable_ops.train import MODEL, STATE, PGNConfig, load_config, train
from tunable_ops.train.distributed import Process
from tunable_ops.train.generators import SCALE, Generator, build_generator, tangent
from tunable_ops.train.perceptual_gradient import PerceptualGradient
from tunable_ops.train.sections import validate

LAYERS = ["relu1_1", "relu2_1"]
HERE = Process(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("generators")
    (folder / "pictures").mkdir()
    write_image(torch.rand(3, 70, 66), folder / "pictures" / "a.png")
    net = VGG16Features(LAYERS, weights="random")
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "vgg.safetensors")
    return folder


def tree(data: Path, **toys: object) -> dict:
    return {
        "loss": {"network": "vgg16", "layers": LAYERS, "weights": str(data / "vgg.safetensors")},
        "terms": {"field": 0, "proxy": 0, "l1": 0, "relative": 1, "tangent": 0.01},
        "toys": {"generators": ["edsr_x4"], "autoencoders": 0, **toys},
        "data": {"source": str(data / "pictures"), "crop": 16, "batch": 2},
        "optim": {"steps": 6},
        "log": {"every": 2, "tensorboard": False},
        "checkpoints": {"every": 100},
        "compute": {"device": "cpu"},
    }


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"autoencoders": 1, "priors": 1, "others_every": 2},
        {"autoencoders": 1, "priors": 1, "others_every": 2, "distorted": 2},
    ],
)
def test_stopped_and_resumed_to_the_same_bits(data: Path, tmp_path: Path, monkeypatch, others: dict) -> None:
    monkeypatch.setattr("tunable_ops.train.generators.LIVES", (1, 3))  # so that generators begin anew within the run
    config = PGNConfig.model_validate(tree(data, **others))
    train(config, tmp_path / "one", progress=False)
    train(config, tmp_path / "two", stop_at=3, progress=False)
    train(config, tmp_path / "two", resume=True, progress=False)
    for file in (MODEL, STATE):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_relative_term_and_the_tangent_are_what_they_say(data: Path) -> None:
    config = PGNConfig.model_validate(tree(data))
    task = PerceptualGradient(config, HERE)
    y = torch.rand(2, 3, 16, 16)
    total, parts = task.loss(y, 0)
    driven = task.driven
    assert driven is not None
    ratio = [
        (d.norm() / t.norm()) ** 2
        for d, t in zip((driven.predicted - driven.true) * task.net.std, driven.true * task.net.std, strict=True)
    ]
    assert float(parts["relative"]) == pytest.approx(float(sum(ratio)) / 2, rel=1e-4)
    assert float(total.detach()) == pytest.approx(float(parts["relative"] + parts["tangent"]), rel=1e-5)
    assert "proxy" not in parts
    assert set(task.after_step(0)) == {"agreement/angle", "agreement/ratio", "agreement/parameters"}


def test_the_tangent_of_autoencoders_and_priors_has_its_own_weight(data: Path) -> None:
    config = tree(data, autoencoders=1, priors=1, others_every=2, distorted=1)
    config["terms"] |= {"relative": 0, "tangent": 0.5, "tangent_others": 0.25}
    task = PerceptualGradient(PGNConfig.model_validate(config), HERE)
    for step, weights in ((0, (0.5, 0.25, 0.25)), (1, (0.5,))):  # a generator, an autoencoder, a prior; a generator
        total, parts = task.loss(torch.rand(2, 3, 16, 16), step)
        assert task.driven is not None
        values = [float(found.value) for found in task.driven.tangents]
        wanted = sum(weight * value for weight, value in zip(weights, values, strict=True))
        assert float(total.detach()) == pytest.approx(wanted, rel=1e-5) == float(parts["tangent"])
        (gradient,) = torch.autograd.grad(total, next(task.net.parameters()))
        assert gradient.any()
        task.after_step(step)
    config["terms"] |= {"tangent": 0}
    task = PerceptualGradient(PGNConfig.model_validate(config), HERE)
    task.loss(torch.rand(2, 3, 16, 16), 0)
    assert task.driven is not None and len(task.driven.tangents) == 2


def test_every_ride_has_the_picture_that_it_was_made_of(data: Path) -> None:
    toys = {"autoencoders": 1, "priors": 1, "others_every": 2, "distorted": 2}
    task = PerceptualGradient(PGNConfig.model_validate(tree(data, **toys)), HERE)
    y = torch.rand(2, 3, 16, 16)
    for step, count in ((0, 2 + 2 + 2 + 1), (1, 2 + 2)):  # a generator, distorted ones, autoencoder and prior
        task.loss(y, step)
        driven = task.driven
        assert driven is not None and len(driven.y) == count
        of_y = [ride for ride in driven.rides if ride.toy is not None and len(ride.which) == 2]
        assert all(ride.which == [0, 1] for ride in of_y) and torch.equal(driven.y[:2], y)
        alone = [ride.which for ride in driven.rides if ride.toy is None]
        assert alone == [[2], [3]] and not torch.equal(driven.y[2], driven.y[3])
        task.after_step(step)


def test_a_picture_that_is_reached_does_not_decide_the_relative_error(data: Path) -> None:
    config = tree(data)
    config["terms"]["tangent"] = 0
    task = PerceptualGradient(PGNConfig.model_validate(config), HERE)
    y = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = torch.stack((y[0], 1 - y[1]))  # where x = y the true gradient is 0
    target = task.net(x, y)
    predicted = task.net.field(x, target)
    _, parts, true = task.terms(x, y, [0, 1], target, predicted)
    assert float(true[0].abs().max()) == 0
    squares = ((predicted - true) * task.net.std).square().flatten(1).sum(1)
    norm = (true[1] * task.net.std).square().sum()
    wanted = 0.5 * (squares[0] / (norm / 200) + squares[1] / norm)
    assert float(parts["relative"]) == pytest.approx(float(wanted), rel=1e-4)


def test_the_l1_term_ends(data: Path) -> None:
    config = tree(data)
    config["terms"] |= {"l1": 0.5, "l1_steps": 2, "tangent": 0}
    task = PerceptualGradient(PGNConfig.model_validate(config), HERE)
    parts = [task.loss(torch.rand(2, 3, 16, 16), step)[1] for step in (1, 2)]
    assert float(parts[0]["l1"]) > 0 and float(parts[1]["l1"]) == 0


def test_the_gradient_of_the_tangent_is_that_of_its_definition() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 3, 1)).double()
    output = net(torch.rand(2, 3, 6, 5, dtype=torch.float64))
    true, field = torch.randn_like(output), torch.randn_like(output, requires_grad=True)

    def pulled(g: torch.Tensor) -> torch.Tensor:  # J^T g, with a graph to g
        grads = torch.autograd.grad(output, list(net.parameters()), g, create_graph=True)
        return torch.cat([each.flatten() for each in grads])

    a, b = pulled(field), pulled(true)
    value = (a - b).square().sum() / (a.square().sum() + b.square().sum()).detach()
    (wanted,) = torch.autograd.grad(value, field)
    found = tangent(output, net, field, true)
    torch.testing.assert_close(found.value, value.detach())
    torch.testing.assert_close(found.gradient, wanted)
    torch.testing.assert_close(found.cosine, torch.cosine_similarity(a, b, 0).detach())
    same = tangent(output, net, true, true)
    assert float(same.value) == 0 and float(same.cosine) == pytest.approx(1) and not same.gradient.any()


def test_a_generator_follows_l1_and_the_field_by_lambda() -> None:
    torch.manual_seed(0)
    toy = Generator("edsr_x4", 0, 0, 1e-3, direct=1.0, l1=1.0)
    y, lam = torch.rand(2, 3, 16, 16), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    x = toy.output(y, lam).detach().requires_grad_()
    field = torch.randn_like(x)
    loss = lam[:, 0] * (x - y).abs().flatten(1).mean(1) + lam[:, 1] * SCALE * (x * field).flatten(1).sum(1)
    (wanted,) = torch.autograd.grad(loss.mean(), x)
    torch.testing.assert_close(toy.pull(x, y, lam, field), wanted)
    alone = Generator("edsr_x4", 0, 0, 1e-3, direct=0.0, l1=0.0)
    torch.testing.assert_close(alone.pull(x, y, lam, field), lam[:, 1, None, None, None] * SCALE * field / 2)
    assert toy.direct and not alone.direct
    lams = toy.draw(64, 3)
    assert torch.equal(lams, toy.draw(64, 3)) and not torch.equal(lams, toy.draw(64, 4))
    torch.testing.assert_close(lams.sum(1), torch.ones(64))


def test_lives_end_and_are_drawn_anew(monkeypatch) -> None:
    monkeypatch.setattr("tunable_ops.train.generators.LIVES", (2, 2))
    toy = Generator("edsr_x4", 1, 0, 1e-3, direct=0.5, l1=0.5)
    leaders = []
    for _ in range(40):
        leaders.append(toy.direct)
        for _ in range(3):
            toy.watch(0.1, 0.0)
    assert toy.resets == 40 and 8 < sum(leaders) < 32
    toy.watch(float("nan"), 0.0)
    assert toy.resets == 41


@pytest.mark.parametrize(("kind", "size"), [("edsr_x4", 4), ("rlfn_x4", 15)])
def test_a_fresh_generator_is_the_plain_network_at_every_lambda(kind: str, size: int) -> None:
    net = build_generator(kind)
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        ends = [net(x, torch.tensor(lam)) for lam in ([1.0, 0.0], [0.3, 0.7])]
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
        if kind == "edsr_x4":
            bicubic = torch.nn.functional.interpolate(x, scale_factor=4, mode="bicubic")
            torch.testing.assert_close(ends[0], bicubic, rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(ends[0], pretrained.load_base(kind)(x), rtol=1e-4, atol=1e-5)


def test_a_start_is_taken_over_and_checked(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = PGN("unet")
    first.save(tmp_path / "a.safetensors")
    start = {**tree(data), "start": str(tmp_path / "a.safetensors")}
    task = PerceptualGradient(PGNConfig.model_validate(start), HERE)
    wanted = PGN.load(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in task.net.state_dict().items())
    assert "start" in task.files
    with pytest.raises(ValueError, match="train: start must hold the network 'resnet4'; got 'unet' in 'shipped'"):
        PerceptualGradient(PGNConfig.model_validate({**start, "start": "shipped", "network": "resnet4"}), HERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"toys": {"autoencoders": 0}}, "toys must have autoencoders, priors, generators or distorted; got none"),
        (
            {"toys": {"others_every": 2}},
            "toys.others_every must be 1 without toys.generators and toys.distorted; got 2",
        ),
        ({"terms": {"tangent": 1}}, "terms.tangent must be 0 without toys.generators; got 1"),
        (
            {"terms": {"tangent_others": 1}, "toys": {"autoencoders": 0, "generators": ["edsr_x4"]}},
            "terms.tangent_others must be 0 without toys.autoencoders and toys.priors; got 1",
        ),
        ({"terms": {"field": 0, "proxy": 0, "l1": 0}}, "terms must have a weight above 0; got none"),
        (
            {"toys": {"generators": ["rlfn_x4"]}, "data": {"crop": 48}},
            "data.crop must be a multiple of 4 and at least 60 for the generator rlfn_x4; got 48",
        ),
        ({"toys": {"generators": ["carn"]}}, "toys.generators.0 must be valid; got 'carn'"),
        ({"toys": {"direct": 1.5}}, "toys.direct must be valid; got 1.5"),
    ],
)
def test_bad_configurations_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(PGNConfig, {"task": "perceptual_gradient", **changes})


def test_the_packaged_configuration_is_right() -> None:
    config = load_config("pgn_unet_vgg16_small")
    assert config.toys.generators and config.toys.distorted and config.terms.relative and not config.terms.proxy
