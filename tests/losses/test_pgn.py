"""Perceptual gradient networks: the networks, the closed form of the field, and the file."""

import math

import pytest
import torch

from tunable_ops import losses
from tunable_ops.losses.pgn import PGN

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def pair(batch: int = 2, height: int = 33, width: int = 22) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, 3, height, width), torch.rand(batch, 3, height, width)


@pytest.fixture(scope="module")
def unet() -> PGN:
    torch.manual_seed(0)
    return PGN("unet").requires_grad_(False).eval()


@pytest.mark.parametrize(
    "name, millions, within",
    [
        ("resnet4", 1.34, 5e-3),
        ("resnet6", 1.93, 5e-3),
        ("resnet8", 2.52, 5e-3),
        ("unet", 1.81, 5e-3),
        ("unet_published", 1.77, 5e-3),
    ],
)
def test_parameters_and_operations(name, millions, within) -> None:
    with torch.device("meta"):
        pgn = PGN(name).eval()
    assert abs(sum(p.numel() for p in pgn.parameters()) / 1e6 - millions) <= within
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        pgn(*(torch.empty(1, 3, 224, 224, device="meta") for _ in "xy"))
    macs = {"resnet4": 19.7, "resnet6": 27.1, "resnet8": 34.5, "unet": 1.8, "unet_published": 1.94}[name]
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=0.06)


def test_the_published_unet_has_its_layers() -> None:
    """Widths and strides of stages and skips; depthwise 5x5 without biases; shortcuts where the stride is 2."""
    net = PGN("unet_published").eval().net
    x, shapes = torch.rand(1, 6, 64, 96), []
    stages = [x]
    for step in net.down:
        stages.append(step(stages[-1]))
    for skip, stage in zip(net.skips, stages, strict=True):
        shapes.append(tuple(skip(stage).shape[1:]))
        assert (skip(stage) >= 0).all()
    sizes = [(64, 64, 96), (64, 32, 48), (64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)]
    assert shapes == sizes and [tuple(stage.shape[1:]) for stage in stages[1:]] == sizes[1:]
    assert [step[1].out_channels for step in net.up] == [512, 256, 256, 128, 64]
    large = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (5, 5)]
    assert len(large) == 8 and all(m.groups == m.in_channels and m.bias is None for m in large)
    ones = [block.shortcut for block in net.down[2:]]
    assert [(m.kernel_size, m.stride, m.bias) for m in ones] == [((1, 1), (2, 2), None)] * 3
    block = net.down[2]
    halves = torch.relu(block.second(torch.relu(block.first(stages[2]))) + block.shortcut(stages[2]))
    torch.testing.assert_close(stages[3], halves)


def test_ten_times_fewer_operations_than_a_gradient_of_vgg19() -> None:
    with torch.device("meta"):
        pgn, loss = PGN("unet").eval(), losses.Perceptual("vgg19", weights="random")
    x, y = (torch.empty(1, 3, 224, 224, device="meta", requires_grad=k == 0) for k in range(2))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as small:
        pgn.gradient(x, y)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as large:
        loss(x, y).sum().backward()
    assert large.get_total_flops() > 10 * small.get_total_flops()


@pytest.mark.parametrize("name, s", [("unet", 0.048), ("unet_published", 0.048), ("resnet4", 0.025)])
def test_the_field_is_the_gradient_of_the_distance_to_the_proxy(name, s) -> None:
    pgn = PGN(name).eval()
    with torch.no_grad():
        pgn.net.last.weight.mul_(30)
    x, y = pair()
    x.requires_grad_()
    target = pgn.proxy_target(x, y).detach()
    distance = ((((x - MEAN) / STD) - (target - MEAN) / STD) ** 2).mean((1, 2, 3)) / s
    (wanted,) = torch.autograd.grad(distance.sum(), x)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(pgn.gradient(x, y), wanted, rtol=1e-4, atol=1e-6)
    field, value = pgn.objective(x, y)
    torch.testing.assert_close(field, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value, distance.detach())
    torch.testing.assert_close(pgn.true_proxy(x.detach(), field), target, rtol=0, atol=1e-5)


def wild(contraction: float | None) -> PGN:
    """Return a network whose own target is far from y everywhere."""
    torch.manual_seed(3)
    pgn = PGN("unet", contraction=contraction).requires_grad_(False).eval()
    pgn.net.last.weight.mul_(30)
    return pgn


def test_a_contracted_target_lies_on_the_way_to_the_own_one_no_farther_from_y_than_it_may() -> None:
    x, y = pair(3)
    x[1], x[2] = y[1] + 1e-4, y[2]
    own, held = wild(None).proxy_target(x, y), wild(0.8).proxy_target(x, y)
    reach, away, kept = (((v - y) / STD).flatten(1).norm(dim=1) for v in (x, own, held))
    assert (away[1:] > 10 * reach[1:]).all()
    torch.testing.assert_close(kept, torch.minimum(0.8 * reach, away), rtol=1e-4, atol=1e-6)
    share = (kept / away)[:, None, None, None]
    torch.testing.assert_close(held, y + share * (own - y), rtol=0, atol=1e-6)
    assert wild(0.8).gradient(y, y).abs().max() == 0 < wild(None).gradient(y, y).abs().max()


def test_what_follows_a_contracted_field_comes_to_rest_at_y_alone() -> None:
    x, y = pair(2, 16, 16)
    for contraction in (0.8, None):
        pgn, moved = wild(contraction), x.clone()
        pgn.bounded = False
        rate = 0.25 * pgn.scale * STD.square().min() * moved[0].numel()  # half of the way to the target at most
        for _ in range(100):
            field = pgn.gradient(moved, y)
            if contraction:
                assert (((moved - y) * field).flatten(1).sum(1) >= 0).all()
            moved -= rate * field
        left = (moved - y).square().mean().sqrt()
        assert left < 1e-4 if contraction else left > 0.1


def test_gradients_of_a_contracted_target_are_finite_at_y() -> None:
    pgn = PGN("unet", contraction=0.5)
    x, y = pair(2)
    x[1] = y[1]
    pgn(x, y).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pgn.parameters())


@pytest.mark.parametrize("contraction", [0, -0.5, 1.5, math.nan])
def test_bad_contractions(contraction: float) -> None:
    with pytest.raises(ValueError, match=r"PGN: contraction must be in \(0, 1\] or None; got"):
        PGN("unet", contraction=contraction)


def test_the_proxy_target_has_the_published_range(unet: PGN) -> None:
    x, y = pair()
    low, high = MEAN - 1.1 * MEAN, MEAN + 1.1 * (1 - MEAN)
    target = unet.proxy_target(x, y)
    assert ((target > low) & (target < high)).all()
    still = PGN("unet").eval()
    torch.nn.init.zeros_(still.net.last.weight)
    torch.testing.assert_close(still.proxy_target(x, y), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["unet", "unet_published", "resnet4"])
@pytest.mark.parametrize("size", [(1, 1), (7, 40), (64, 65)], ids=str)
def test_any_size_and_no_mixing_of_samples(name, size) -> None:
    pgn = PGN(name).eval()
    x, y = pair(2, *size)
    found = pgn.gradient(x, y)
    assert found.shape == x.shape and not found.requires_grad
    alone = torch.cat([pgn.gradient(x[b : b + 1], y[b : b + 1]) for b in range(2)])
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))
    assert pgn.gradient(x[:0], y[:0]).shape == (0, 3, *size)


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda x, y: (2 * x, y), ValueError, r"PGN: x must lie in \[0, 1\]"),
        (lambda x, y: (x, y - 1), ValueError, r"PGN: y must lie in \[0, 1\]"),
        (lambda x, y: (x, y[..., :9]), ValueError, r"PGN: y must have x's shape \[2, 3, 33, 22\].*got \[2, 3, 33, 9\]"),
        (lambda x, y: (x[:, :1], y), ValueError, r"PGN: x must be RGB pictures"),
        (lambda x, y: (x.byte(), y), TypeError, r"PGN: x must be floating point"),
    ],
    ids=["x-range", "y-range", "sizes", "grey", "bytes"],
)
def test_bad_pictures(unet: PGN, change, error, text) -> None:
    with pytest.raises(error, match=text):
        unet.gradient(*change(*pair()))


def test_bad_network() -> None:
    with pytest.raises(ValueError, match=r"PGN: network must be one of resnet4, .*, unet, unet_published; got 'vgg'"):
        PGN("vgg")


def test_raw_outputs_pull_back_into_the_range(unet: PGN, tmp_path) -> None:
    unet.save(tmp_path / "p.safetensors")
    raw = PGN.load(tmp_path / "p.safetensors", bounded=False)
    x, y = torch.full((1, 3, 20, 20), 3.0), torch.rand(1, 3, 20, 20)
    assert (raw.gradient(x, y) > 0).all()
    assert (raw.gradient(-x, y) < 0).all()


def test_saved_and_loaded(unet: PGN, tmp_path) -> None:
    unet.save(tmp_path / "p.safetensors", notes={"step": 3})
    assert (tmp_path / "p.safetensors").stat().st_size < 8e6
    loaded = PGN.load(tmp_path / "p.safetensors")
    assert loaded.notes == {"step": 3} and loaded.name == "unet" and not loaded.training
    assert loaded.contraction is None
    x, y = pair()
    torch.testing.assert_close(loaded.proxy_target(x, y), unet.proxy_target(x, y), rtol=0, atol=5e-3)
    PGN("unet", contraction=0.7).save(tmp_path / "c.safetensors")
    assert PGN.load(tmp_path / "c.safetensors").contraction == 0.7
    with pytest.raises(FileNotFoundError):
        PGN.load(tmp_path / "none.safetensors")


def test_the_one_that_ships_is_small_and_names_the_pictures_that_it_saw() -> None:
    pgn = PGN.pretrained()
    assert pgn.name == "unet" and pgn.contraction == 0.8 and pgn.notes["config"]["loss.network"] == "vgg16"
    assert pgn.notes["licence"].startswith("Apache-2.0") and pgn.notes["pictures"]["count"] == 93
    assert "Tony Webster (CC-BY-2.0)" in pgn.notes["pictures"]["authors"]
    assert "/" not in str(pgn.notes["config"])
    x, y = pair(1, 64, 64)
    field = pgn.gradient(x, y)
    assert field.isfinite().all()
    assert math.isfinite(float(pgn.objective(x, y)[1]))


def test_as_an_objective_it_obeys_lambda_and_scales(unet: PGN) -> None:
    x, y = pair(3)
    x.requires_grad_()
    field = losses.PerceptualGradient(unet)
    criterion = losses.MultiLoss({"l1": losses.l1, "field": (field, 4.0)})
    lam = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]])
    total, terms = criterion(x, y, lam)
    (found,) = torch.autograd.grad(total, x)
    (of_l1,) = torch.autograd.grad(losses.l1(x, y).sum(), x)
    weights = lam[:, :, None, None, None]
    wanted = (weights[:, 0] * of_l1 + 4 * weights[:, 1] * unet.gradient(x, y)) / 3
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(terms["field"], unet.objective(x, y)[1].mean())
    assert not any(p.requires_grad for p in field.parameters()) and not field.train().pgn.training


class Wild:
    """Network whose field is not finite."""

    def objective(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(x, math.inf), torch.full((len(x),), math.inf)


def test_a_field_without_weight_does_not_spoil_the_others() -> None:
    x, y = pair()
    x.requires_grad_()
    criterion = losses.MultiLoss({"l1": losses.l1, "field": losses.PerceptualGradient(Wild())})
    total, _ = criterion(x, y, [1.0, 0.0])
    (found,) = torch.autograd.grad(total, x)
    (of_l1,) = torch.autograd.grad(losses.l1(x, y).mean(), x)
    assert torch.equal(found, of_l1)
