"""Knobs of the degradation, objectives on features, and weights to start from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunable_ops import losses, models, pretrained, serialization
from tunable_ops.images import write_image
from tunable_ops.knob_files import fingerprint
from tunable_ops.modules import TunableModel
from tunable_ops.modules.fold import base_network
from tunable_ops.train import load_config, train
from tunable_ops.train.build import build_criterion, build_network, build_sampler, objective_weights
from tunable_ops.train.data import Batches, Photographs, find_training_files, grey
from tunable_ops.train.degradations import Blur, Degradation, Noise, degrade, gaussian_blur
from tunable_ops.train.seeding import generator

BOX = {"domain": "box", "names": ["denoise", "deblur"]}
FIXED = [{"name": "clean", "follows": False}]


def test_blur_and_noise_follow_their_own_knobs() -> None:
    clean = torch.rand(2, 3, 24, 20)
    config = Degradation(blur=Blur(levels=[0, 2]), noise=Noise(levels=[51, 0], floor=1))
    lam = torch.tensor([[0.0, 0.5], [1.0, 1.0]])
    found = degrade(clean, config, generator(0), lam)
    torch.testing.assert_close(found.noiseless, gaussian_blur(clean, torch.tensor([1.0, 2.0])))
    noise = 255 * (found.input - found.noiseless).flatten(1).std(1)
    torch.testing.assert_close(noise, torch.tensor([1.0, 52.0]), rtol=0.08, atol=0)
    with pytest.raises(ValueError, match=r"lam must have one value for each of the blur levels .*; got none"):
        degrade(clean, config, generator(0))


def test_an_objective_of_constant_weight(make_config) -> None:
    """Its weight is 1 at every lambda; the sampler draws as many values as there are knobs."""
    config = make_config(tuning=BOX, objectives=FIXED, degradation={"blur": {"levels": [1, 1]}})
    assert (config.num_params, config.param_names) == (2, ["denoise", "deblur"])
    lam = torch.tensor([[0.3, 0.0], [0.0, 0.0]])
    assert objective_weights(config.objectives, config.param_names, lam).tolist() == [[1.0], [1.0]]
    batch = Batches(Photographs(find_training_files(config.data.source), 16), config, build_sampler(config))[0]
    assert batch.lam.shape == (4, 2)
    output, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    total, _ = build_criterion(config)(
        output, {"clean": target}, objective_weights(config.objectives, config.param_names, lam)
    )
    torch.testing.assert_close(total, (output - target).square().mean())


def test_objectives_that_follow_stand_first(make_config) -> None:
    """(lambda_1, 1), and the second knob belongs to the blur alone."""
    objectives = [{"name": "clean"}, {"name": "smooth", "loss": "tv", "follows": False}]
    config = make_config(objectives=objectives, tuning=BOX, degradation={"blur": {"levels": [0, 1]}})
    weights = objective_weights(config.objectives, config.param_names, torch.tensor([0.25, 0.75]))
    assert weights.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        (
            {"validation": {"degradation": {"noise": {"levels": [1]}}}},
            "validation.degradation.noise.levels must have one entry per tuning parameter, 2",
        ),
        ({"objectives": FIXED, "tuning": BOX}, r"tuning.names must name knobs that move .*; got \['denoise', 'deblur'"),
        (
            {"objectives": FIXED, "tuning": {"names": ["a"]}, "degradation": {"noise": {"levels": [9]}}},
            'tuning.domain must be "box" for a single knob',
        ),
        ({"degradation": {"noise": {"floor": 3}}}, "degradation.noise.floor must come with levels; got 3.0"),
        (
            {"objectives": [{"name": "a", "follows": False}, {"name": "b"}]},
            "do not follow the lambda of their place must stand last",
        ),
        ({"objectives": FIXED, "tuning": {"names": None}}, "tuning.names must have one entry per objective, 1, or mo"),
        ({"objectives": FIXED, "tuning": BOX, "degradation": {"blur": {"levels": [1]}}}, "degradation.blur.levels mus"),
        ({"tuning": {"names": ["a", "b", "c"]}}, "tuning.names must have one entry per objective, 2, or more"),
        (
            {"objectives": [{"name": "a"}, {"name": "b", "follows": False}], "tuning": {"kind": "dni"}},
            "not at all for phases",
        ),
    ],
)
def test_bad_configuration(make_config, sections: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_config(**sections)


def test_a_run_with_two_knobs(make_config, tmp_path: Path) -> None:
    noise = {"blur": {"levels": [0, 1]}, "noise": {"levels": [25, 0], "floor": 1}}
    config = make_config(tuning=BOX, objectives=FIXED, degradation=noise)
    outcome = train(config, tmp_path / "run", progress=False)
    net = serialization.load(tmp_path / "run" / "model.safetensors")
    assert outcome.finished and net.spec.names == ("denoise", "deblur") and net.spec.domain == "box"


@pytest.mark.parametrize("loss", ["perceptual", "perceptual_gradient"])
def test_objectives_on_features(make_config, tmp_path: Path, loss: str) -> None:
    """The layers, pools and files of the configuration reach the class; the predicted gradient is the PGN's."""
    arguments: dict = {}
    if loss == "perceptual":
        features = losses.VGG16Features(["relu1_1"], weights="random")
        save_file({k: v.contiguous() for k, v in features.state_dict().items()}, tmp_path / "vgg.safetensors")
        arguments = {"layers": ["relu1_1"], "weights": str(tmp_path / "vgg.safetensors")}
    objectives = [{"name": "clean"}, {"name": "seen", "loss": loss, "scale": 0.5, "arguments": arguments}]
    criterion = build_criterion(make_config(objectives=objectives))
    x, y = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32)
    total, _ = criterion(x, {"clean": y, "seen": y}, torch.tensor([0.0, 1.0]))
    (found,) = torch.autograd.grad(total, x)
    if loss == "perceptual":
        plain = losses.Perceptual("vgg16", ["relu1_1"], weights=arguments["weights"])
        (wanted,) = torch.autograd.grad(0.5 * plain(x, y).sum(), x)
    else:
        from tunable_ops.losses.pgn import PGN

        wanted = 0.5 * PGN.pretrained().gradient(x.detach(), y)
    torch.testing.assert_close(found, wanted)


def test_unknown_arguments_of_a_feature_loss(make_config) -> None:
    objectives = [{"name": "clean"}, {"name": "seen", "loss": "perceptual", "arguments": {"depth": 3}}]
    with pytest.raises(
        ValueError, match=r"arguments of perceptual must be among \(network, layers, pool, .*; got 'depth'"
    ):
        build_criterion(make_config(objectives=objectives))


@pytest.mark.parametrize("kind", ["bare", "plain", "tunable"])
def test_weights_to_start_from(make_config, tmp_path: Path, kind: str) -> None:
    """Weights of others, a plain checkpoint and a tunable one: the run begins as what the file holds."""
    arguments = {"features": 8, "depth": 3, "mean": 0.5}
    plain, file = models.build("dncnn", **arguments).eval(), tmp_path / "start.safetensors"
    x = torch.rand(1, 3, 12, 12)
    if kind == "bare":
        save_file(plain.state_dict(), file)
    elif kind == "plain":
        serialization.save(plain, file, architecture="dncnn", arguments=arguments)
    else:
        net = build_network(make_config(seed=5))
        assert isinstance(net, TunableModel)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.01 * torch.rand_like(parameter))
        serialization.save(net, file, architecture="dncnn", arguments=arguments)
    start = build_network(make_config(model={"weights": str(file)}))
    expected = net(x, [0.3, 0.7]) if kind == "tunable" else plain(x)
    torch.testing.assert_close(start(x, [0.3, 0.7]), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network(make_config, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file(models.build("dncnn", features=8, depth=4).state_dict(), file)
    with pytest.raises(ValueError, match=r"tensors must fit the architecture; got 2 unknown \(model.6.bias; model"):
        build_network(make_config(model={"weights": str(file)}))
    missing = make_config(model={"weights": str(tmp_path / "none")})
    with pytest.raises(FileNotFoundError, match="checkpoint: path must exist"):
        build_network(missing)
    build_network(missing, fresh=False)  # a run that is resumed has its own


def test_a_tunable_start_of_another_kind(make_config, tmp_path: Path) -> None:
    """Equal shapes are not enough: knobs in another order would be other knobs."""
    net, file = build_network(make_config()), tmp_path / "start.safetensors"
    serialization.save(net, file, architecture="dncnn", arguments={"features": 8, "depth": 3, "mean": 0.5})
    build_network(make_config(model={"weights": str(file)}))
    swapped = make_config(model={"weights": str(file)}, tuning={"names": ["keep", "denoise"]})
    with pytest.raises(ValueError, match=r"train: model.weights must hold the network .*, whose conversion is"):
        build_network(swapped)
    other = make_config(model={"weights": str(file), "arguments": {"features": 8, "depth": 3, "mean": 0.0}})
    with pytest.raises(ValueError, match=r"train: model.weights must hold the network .*, whose arguments is"):
        build_network(other)


def test_a_grey_network_trains_on_grey_pictures(make_config, tmp_path: Path) -> None:
    config = make_config(model={"arguments": {"features": 8, "depth": 3, "channels": 1}}, validation={"every": 6})
    config = config.model_copy(
        update={"validation": config.validation.model_copy(update={"source": config.data.source})}
    )
    outcome = train(config, tmp_path / "run", progress=False)
    assert outcome.finished and outcome.scores
    picture = torch.rand(2, 3, 4, 5)
    expected = 0.299 * picture[:, 0] + 0.587 * picture[:, 1] + 0.114 * picture[:, 2]
    torch.testing.assert_close(grey(picture)[:, 0], expected)


def test_the_plain_network_stays_at_zero(make_config, tmp_path: Path) -> None:
    """base_lr = phi_lr = 0: bit for bit at lambda = 0, and something else at 1."""
    optim = {"base_lr": 0, "phi_lr": 0}
    noise = {"noise": {"levels": [25, 9], "floor": 25}}
    config = make_config(tuning=BOX, objectives=FIXED, degradation=noise, optim=optim)
    before = build_network(config).eval().to(memory_format=torch.channels_last)  # as the trainer has it
    after = train(config, tmp_path / "run", progress=False).net
    x = torch.rand(1, 3, 20, 20)
    assert torch.equal(before(x, [0.0, 0.0]), after(x, [0.0, 0.0]))
    assert not torch.equal(before(x, [1.0, 0.0]), after(x, [1.0, 0.0]))


@pytest.mark.parametrize("task", ["denoise", "denoise_deblur", "super_resolution_x2", "super_resolution_x4"])
def test_every_task_trains(tmp_path: Path, task: str) -> None:
    """Two steps of each configuration that ships, on small pictures and without the features' weights."""
    (tmp_path / "pictures").mkdir()
    write_image(torch.rand(3, 64, 70), tmp_path / "pictures" / "0.png")  # RLFN needs small pictures of 15 pixels
    overrides = [f"data.source={tmp_path / 'pictures'}", "data.crop=64", "optim.steps=2", "log.tensorboard=false"]
    if task != "denoise_deblur":
        overrides += ["objectives.1.loss=mse", "objectives.1.arguments={}"]
    outcome = train(load_config(task, overrides), tmp_path / "run", progress=False)
    assert outcome.finished and outcome.step == 2
    found = fingerprint(base_network(outcome.net))  # it starts from the base that ships, by its name, and keeps it
    wanted = fingerprint(pretrained.load_base(task))
    assert {layer: found[layer] for layer in wanted} == wanted and set(found) <= {*wanted, "skip"}
