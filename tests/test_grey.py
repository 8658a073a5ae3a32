"""tunable_ops.grey: what is grey, no tint, and the lambda at which a network for colour takes off grey noise."""

import math
from types import SimpleNamespace

import pytest
import torch

from tunable_ops import convert, grey, models, pretrained
from tunable_ops.modules import LambdaSpec
from tunable_ops.tiles import apply_tiled


def test_what_is_grey() -> None:
    one = torch.rand(1, 4, 5)
    three = one.repeat(3, 1, 1)
    assert grey.is_grey(one) and grey.is_grey(three) and grey.is_grey(one.expand(3, -1, -1))
    assert torch.equal(grey.as_grey(three), one) and torch.equal(grey.as_grey(one), one)
    for channel in range(3):
        coloured = three.clone()
        coloured[channel, 2, 3] += 1 / 65535
        assert not grey.is_grey(coloured)
    with pytest.raises(ValueError, match="as_grey: picture must be grey"):
        grey.as_grey(coloured)
    for bad in (torch.rand(2, 4, 5), torch.rand(4, 5), torch.rand(1, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"grey: picture must be \[1 or 3, H, W\]; got \["):
            grey.is_grey(bad)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_output_is_the_mean_of_the_channels_tiled_too(scale: int) -> None:
    gains = torch.tensor([0.5, 1.0, 1.8]).view(3, 1, 1)
    seen = []

    def tinting(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[1])
        return (x * gains).repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    x = torch.rand(2, 1, 40, 50)
    want = 1.1 * x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    torch.testing.assert_close(grey.on_grey(tinting)(x), want)
    torch.testing.assert_close(apply_tiled(grey.on_grey(tinting), x, tile=32, overlap=8), want)
    assert set(seen) == {3}


def test_a_network_of_one_channel_gets_the_picture_as_it_is() -> None:
    x = torch.rand(1, 1, 4, 5)
    assert torch.equal(grey.on_grey(lambda part: part + 1, channels=1)(x), x + 1)
    assert grey.on_grey(lambda part: part.double())(x).dtype == torch.float64
    with pytest.raises(ValueError, match="on_grey: channels must be 1 or 3; got 4"):
        grey.on_grey(lambda part: part, channels=4)
    with pytest.raises(ValueError, match=r"on_grey: picture must be \[B, 1, H, W\]; got \[1, 3, 4, 5\]"):
        grey.on_grey(lambda part: part)(x.expand(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"on_grey: function must return \[B, 1 or 3, H, W\]; got \[1, 6, 4, 5\]"):
        grey.on_grey(lambda part: part.repeat(1, 2, 1, 1))(x)


def test_the_knob_is_set_on_the_box_alone() -> None:
    box = LambdaSpec.create(3, "box", ("grey", "sigma", "sharp"))
    assert grey.set_knob(box, (0.0, 0.5, 0.2)) == (1.0, 0.5, 0.2)
    assert grey.set_knob(box, (0.0, 0.5, 0.2), grey=False) == (0.0, 0.5, 0.2)
    simplex = LambdaSpec.create(2, "simplex", ("grey", "sharp"))  # a weight of that name
    assert grey.set_knob(simplex, (0.0, 1.0)) == (0.0, 1.0)
    assert grey.set_knob(LambdaSpec.create(1, "box", ("sigma",)), (0.5,)) == (0.5,)


def net(names=("denoise", "sharp"), levels=(50.0, 0.0), floor=0.0, domain="box", channels=3, **data):
    noise = {"levels": None if levels is None else list(levels), "floor": floor}
    return SimpleNamespace(
        spec=LambdaSpec.create(len(names), domain, names),
        network=SimpleNamespace(channels=channels),
        notes={"config": {"degradation": {"noise": noise}, "data": data}},
    )


@pytest.mark.parametrize("floor", [0.0, 25.0])
def test_a_noise_level_is_multiplied_by_the_root_of_three(floor: float) -> None:
    found = grey.grey_lambda(net(floor=floor), (0.4, 0.3))
    assert found[1] == 0.3
    assert 50 * found[0] + floor == pytest.approx(math.sqrt(3) * (50 * 0.4 + floor))
    two = grey.grey_lambda(net(levels=(20.0, 30.0), floor=5.0), (0.4, 0.3))
    assert 20 * two[0] + 30 * two[1] + 5 == pytest.approx(math.sqrt(3) * (20 * 0.4 + 30 * 0.3 + 5))


@pytest.mark.parametrize(
    "other",
    [
        net(levels=None),
        net(levels=(0.0, 0.0)),
        net(domain="simplex"),
        net(channels=1),
        net(grey=0.5),
        SimpleNamespace(spec=LambdaSpec.create(2, "box"), network=None, notes={}),
        SimpleNamespace(spec=LambdaSpec.create(2, "box"), network=None, notes={"config": {"degradation": None}}),
    ],
)
def test_other_networks_get_lambda_as_it_is(other: SimpleNamespace) -> None:
    assert grey.grey_lambda(other, (0.4, 0.6)) == (0.4, 0.6)


def test_a_network_with_the_knob_gets_no_other_level() -> None:
    assert grey.grey_lambda(net(names=("denoise", "grey")), (0.4, 0.0)) == (0.4, 1.0)


def test_the_notes_may_give_another_factor() -> None:
    other = net(floor=25.0)
    other.notes["grey_noise"] = 1.65
    found = grey.grey_lambda(other, (0.4, 0.3))
    assert found[1] == 0.3 and 50 * found[0] + 25 == pytest.approx(1.65 * (50 * 0.4 + 25))
    shipped = pretrained.load("denoise")
    assert grey.grey_lambda(shipped, (20.0, 0.4)) == pytest.approx((33.0, 0.4))


def test_the_shipped_denoiser_serves_grey_noise() -> None:
    """The noise of a grey picture is the same on three channels: it looked much stronger to the network than it is."""
    shipped = pretrained.load("denoise")
    ramp = torch.linspace(0.2, 0.8, 96).expand(1, 1, 96, 96)
    clean = torch.where((torch.arange(96) // 12 % 2 == 0).view(-1, 1), ramp, 1 - ramp)
    errors = {}
    for sigma in (15, 25, 50):
        noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        for name, lam in (("plain", (sigma, 0.0)), ("grey", grey.grey_lambda(shipped, (sigma, 0.0)))):
            with torch.no_grad():
                output = grey.on_grey(lambda x, lam=lam: shipped(x, lam))(noisy)
            errors[name] = 10 * math.log10(float((output - clean).square().mean()))
        assert errors["grey"] < errors["plain"] - 4, (sigma, errors)


def test_a_converted_network_of_one_channel_runs_tiled() -> None:
    plain = models.build("dncnn", channels=1, features=4, depth=3)
    tunable = convert(plain, num_params=2, domain="box", names=("denoise", "grey"))
    x = torch.rand(1, 1, 40, 40)
    lam = grey.grey_lambda(tunable, (0.5, 0.0))
    with torch.no_grad():
        torch.testing.assert_close(
            apply_tiled(grey.on_grey(lambda part: tunable(part, lam), channels=1), x, tile=32, overlap=16),
            tunable(x, lam),
        )
