"""Parameter cosine: against gradients of a sum computed in one piece, its errors, and the command."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tunable_ops import convert, fold, models, serialization
from tunable_ops.cli import main
from tunable_ops.images import write_image
from tunable_ops.losses import Perceptual, VGG16Features
from tunable_ops.losses.pgn import PGN
from tunable_ops.losses.reduction import value_and_gradient
from tunable_ops.train.parameter_cosine import NOISE, crops, enlargement, parameter_cosine, trained_toy

LAYERS = ["relu1_1", "relu2_1"]


@pytest.fixture(scope="module")
def loss() -> Perceptual:
    torch.manual_seed(0)
    return Perceptual("vgg16", LAYERS, weights="random", bounded=False)


@pytest.fixture
def pictures() -> list[Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [torch.rand(3, 20, 24, generator=draws), torch.rand(3, 17, 16, generator=draws)]


class Exact(PGN):
    """Predicts the true gradient times a factor."""

    def __init__(self, loss: Perceptual, factor: float) -> None:
        super().__init__("unet", bounded=False)
        self._truth, self.factor = (loss,), factor

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return self.factor * value_and_gradient(self._truth[0], x, y)[1]


def flat(value: Tensor, net: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()))]).double()


def test_it_is_the_cosine_of_summed_gradients(loss: Perceptual, pictures: list[Tensor]) -> None:
    torch.manual_seed(3)
    pgn = PGN("unet", bounded=False).eval()
    net = models.DnCNN(features=6, depth=3, mean=0.5)
    pairs = [pair for pair, _ in zip(crops(pictures, 16, 1), range(4), strict=False)]
    found = parameter_cosine(pgn, loss, net, iter(pairs), [1, 4])
    assert list(found) == [1, 4]
    for count, row in found.items():
        x, y = (torch.cat([pair[k] for pair in pairs[:count]]) for k in (0, 1))
        true = flat(loss(net(x), y).sum(), net)
        squares = flat((net(x) - y).square().sum(), net)
        predicted = flat((net(x) * pgn.gradient(net(x).detach(), y)).sum(), net)
        wanted = [
            float(nn.functional.cosine_similarity(a, b, dim=0))
            for a, b in ((true, predicted), (true, squares), (predicted, squares))
        ] + [float(predicted.norm() / true.norm())]
        assert list(row[:4]) == pytest.approx(wanted, rel=1e-3, abs=1e-3) and row.corrected is None
    assert all(p.requires_grad for p in net.parameters())


def test_an_exact_prediction_and_its_opposite(loss: Perceptual, pictures: list[Tensor]) -> None:
    net = models.DnCNN(features=4, depth=2).requires_grad_(False)
    for factor in (0.5, -2.0):
        row = parameter_cosine(Exact(loss, factor), loss, net, crops(pictures, 16, 1), [2])[2]
        assert row.predicted == pytest.approx(1 if factor > 0 else -1, abs=1e-6)
        assert row.ratio == pytest.approx(abs(factor), rel=1e-5)
        assert row.bias == pytest.approx(row.squares * (1 if factor > 0 else -1), abs=1e-6)
    assert not any(p.requires_grad for p in net.parameters())  # as it was


def test_what_is_corrected_comes_nearer_with_every_crop(loss: Perceptual, pictures: list[Tensor]) -> None:
    torch.manual_seed(3)
    pgn, net = PGN("unet", bounded=False).eval(), models.DnCNN(features=6, depth=3, mean=0.5)
    found = parameter_cosine(pgn, loss, net, crops(pictures, 16, 1), [2, 40], correct_on=8)
    assert found[40].corrected > max(found[2].corrected, found[40].predicted)
    again = parameter_cosine(pgn, loss, net, crops(pictures, 16, 1), [2, 40], correct_on=8)
    assert found == again
    whole = parameter_cosine(pgn, loss, net, crops(pictures, 16, 1), [2], correct_on=16)[2]
    assert whole.corrected == pytest.approx(1, abs=1e-5)  # corrected everywhere
    assert all(p.requires_grad for p in pgn.parameters())  # as it was


def test_batches_count_their_samples(loss: Perceptual, pictures: list[Tensor]) -> None:
    pgn, net = PGN("unet", bounded=False).eval(), models.DnCNN(features=4, depth=2)
    pairs = [pair for pair, _ in zip(crops(pictures, 16, 1), range(4), strict=False)]
    together = tuple(torch.cat([pair[k] for pair in pairs]) for k in (0, 1))
    one = parameter_cosine(pgn, loss, net, iter(pairs), [4])[4]
    whole = parameter_cosine(pgn, loss, net, iter([together]), [4])[4]
    assert list(one[:4]) == pytest.approx(list(whole[:4]), rel=1e-3)


def test_crops(pictures: list[Tensor]) -> None:
    small, y = next(crops(pictures, 16, 4))
    assert small.shape == (1, 3, 4, 4) and y.shape == (1, 3, 16, 16)
    noisy, again = next(crops(pictures, 16, 1))
    assert torch.equal(again, y)
    assert float((noisy - again).std()) == pytest.approx(NOISE, rel=0.2)
    assert not torch.equal(next(crops(pictures, 16, 1, seed=1))[1], y)
    with pytest.raises(ValueError, match="pictures must have sides of 18 or more; got one of 16"):
        crops(pictures, 18, 1)
    with pytest.raises(ValueError, match="crop must be a multiple of the enlargement, 3; got 16"):
        crops(pictures, 16, 3)


def test_enlargement() -> None:
    assert enlargement(models.DnCNN(features=4, depth=2)) == 1
    assert enlargement(models.EDSR(scale=2, num_blocks=1, features=4)) == 2
    with pytest.raises(ValueError, match=r"net must return RGB pictures; got \[1, 1, 32, 32\] from thin"):
        enlargement(nn.Conv2d(3, 1, 1), "thin")


def test_a_toy_learns(pictures: list[Tensor]) -> None:
    source, y = next(crops(pictures, 16, 1))
    young, old = trained_toy(1, pictures, 16, steps=0), trained_toy(1, pictures, 16, steps=40)
    assert (old(source) - y).square().mean() < (young(source) - y).square().mean()


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).detach()


class Overwritten(Detached):
    """Changes in place what its backward needs."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.conv(x))
        z = y * y
        y.zero_()
        return z


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (Detached(), "net must be differentiable in its parameters; got mine, whose output has no gradient"),
        (Overwritten(), "net must be differentiable in its parameters; got mine, of which torch says: .*inplace"),
        (nn.Identity(), "net must have parameters; got mine without any"),
        (nn.Conv2d(3, 3, 3), r"net must return pictures of the target's shape \[1, 3, 16, 16\]; got \[1, 3, 14, 14\]"),
    ],
)
def test_a_generator_that_does_not_fit_is_named(
    loss: Perceptual, pictures: list[Tensor], net: nn.Module, text: str
) -> None:
    pgn = PGN("unet", bounded=False).eval()
    with pytest.raises(ValueError, match=text):
        parameter_cosine(pgn, loss, net, crops(pictures, 16, 1), [1], "mine")


def test_bad_counts(loss: Perceptual, pictures: list[Tensor]) -> None:
    pgn, net = PGN("unet", bounded=False).eval(), models.DnCNN(features=4, depth=2)
    for counts in ([], [0, 1], [4, 1]):
        with pytest.raises(ValueError, match="counts must rise from 1 or more"):
            parameter_cosine(pgn, loss, net, crops(pictures, 16, 1), counts)
    with pytest.raises(ValueError, match=r"pairs must meet the counts \[1, 3\]; got 1 samples"):
        parameter_cosine(pgn, loss, net, iter([next(crops(pictures, 16, 1))]), [1, 3])


def test_the_command(tmp_path: Path, pictures: list[Tensor], capsys) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(pictures):
        write_image(picture, folder / f"{index}.png")
    features = VGG16Features(LAYERS, weights="random")
    weights = tmp_path / "vgg.safetensors"
    save_file({k: v.contiguous() for k, v in features.state_dict().items()}, weights)
    PGN("unet").save(tmp_path / "pgn.safetensors", {"config": {"loss.network": "vgg16", "loss.layers": LAYERS}})
    arguments = {"features": 4, "depth": 2}
    net = convert(models.DnCNN(**arguments), 2, names=["a", "b"])
    about = {"architecture": "dncnn", "arguments": arguments}
    serialization.save(net, tmp_path / "net.safetensors", **about)
    serialization.save(fold(net), tmp_path / "plain.safetensors", **about)
    words = ["eval-gradient", str(tmp_path / "pgn.safetensors"), "--pictures", str(folder), "--weights", str(weights)]
    words += ["--crop", "16", "--crops", "5", "--generator"]
    assert main([*words, str(tmp_path / "net.safetensors"), "--lam", "0.3,0.7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-3:]] == [["net", "0.30-0.70", str(n)] for n in (1, 4, 5)]
    assert main([*words, str(tmp_path / "plain.safetensors")]) == 0
    plain = capsys.readouterr().out.splitlines()
    # a fresh conversion computes the same for every lambda
    assert [line.split()[3:] for line in lines[-3:]] == [line.split()[2:] for line in plain[-3:]]
    assert main([*words, str(tmp_path / "plain.safetensors"), "--lam", "1,0"]) == 2
    assert "--lam must be left out for a plain generator" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "nothing")]) == 2
    assert main([*words, str(tmp_path / "plain.safetensors"), "--correct-on", "8"]) == 0
    corrected = capsys.readouterr().out.splitlines()
    assert corrected[-4].endswith("true, corrected") and len(corrected[-1].split()) == len(plain[-1].split()) + 1
    assert main([*words, str(tmp_path / "plain.safetensors"), "--correct-on", "17"]) == 2
    assert "--correct-on must be from 1 to the crop's 16; got 17" in capsys.readouterr().err
    assert main([*words[:-1], "--correct-on", "8"]) == 2
    assert "--correct-on must be left out without --generator" in capsys.readouterr().err
    assert main([*words[:-1], "--lam", "1,0"]) == 2
    assert "--lam must be left out without --generator" in capsys.readouterr().err
