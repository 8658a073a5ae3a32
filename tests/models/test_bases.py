"""Published networks made tunable on the box: at lambda = 0 each of them is the network that it was, bit for bit."""

import pytest
import torch
from torch import Tensor, nn

import tunable_ops
from tests.models.published import NEEDS_WEIGHTS, weights
from tunable_ops import models
from tunable_ops.tiles import apply_tiled

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NETWORKS = {
    "carn": lambda: models.CARN(scale=2, features=16, groups=4),
    "ffdnet": lambda: models.FFDNet(features=16, depth=4),
    "imdn": lambda: models.IMDN(scale=2, features=16, blocks=2),
    "rlfn": lambda: models.RLFN(scale=2, features=10, hidden=12, attention=4, blocks=2),
}
PUBLISHED = {
    "carn": (lambda: models.CARN(scale=4), "carn_m"),
    "ffdnet": (models.FFDNet, "ffdnet_color"),
    "imdn": (models.IMDN, "imdn_x4"),
    "rlfn": (models.RLFN, "rlfn_x4"),
}


def trained(plain: nn.Module, num_params: int = 1) -> tunable_ops.TunableModel:
    """Make a network tunable on the box, with new kernels as a training might leave them."""
    net = tunable_ops.convert(plain.eval(), num_params, domain="box")
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in net.layers:
            for stack in (layer.weight, layer.bias):
                noise = torch.randn(stack[1:].shape, generator=source)
                stack[1:] = 0.3 * stack[:1].abs().mean() * noise
    return net


def level(plain: nn.Module) -> tuple[float, ...]:
    """Return the arguments after the picture."""
    return (25 / 255,) if isinstance(plain, models.FFDNet) else ()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_zero_is_the_base_bit_for_bit(name: str, layout: str) -> None:
    plain = NETWORKS[name]().eval().to(memory_format=LAYOUTS[layout])
    net = trained(plain).to(memory_format=LAYOUTS[layout])
    x = torch.rand(2, 3, 30, 34).contiguous(memory_format=LAYOUTS[layout])
    more = level(plain)
    with torch.no_grad():
        expected = plain(x, *more)
        assert not torch.equal(net(x, [1.0], *more), expected)
        assert torch.equal(net(x, [0.0], *more), expected)
        assert torch.equal(net(x, torch.zeros(1, 1), *more), expected)
        assert torch.equal(tunable_ops.fold(net, [0.0])(x, *more), expected)
        live = tunable_ops.LiveFold(net, [1.0])
        live.set([0.0])
        assert torch.equal(live(x, *more), expected)
        whole = apply_tiled(lambda part: plain(part, *more), x, tile=24, overlap=6)
        assert torch.equal(apply_tiled(lambda part: net(part, [0.0], *more), x, tile=24, overlap=6), whole)
    assert torch.equal(net(x, [0.0], *more), plain(x, *more))  # as recorded for gradients


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_kernels_at_zero_are_the_base(name: str) -> None:
    """Every entry of the state dict, in float32 and, rounded once, in half precision."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = NETWORKS[name]().to(dtype)
        folded = tunable_ops.fold(trained(plain, 2), [0.0, 0.0])
        assert type(folded) is type(plain)
        wanted, found = plain.state_dict(), folded.state_dict()
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[key], found[key]) for key in wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_zero_per_sample_is_the_base(name: str, layout: str) -> None:
    """The kernels are the base's, but convolutions with a kernel per sample may sum in another order.

    In contiguous tensors they are grouped ones, of another algorithm: they differ from the plain network's by
    rounding, as its own batches of other sizes do.
    """
    plain = NETWORKS[name]().eval().to(memory_format=LAYOUTS[layout])
    net = trained(plain).to(memory_format=LAYOUTS[layout])
    x = torch.rand(2, 3, 30, 34).contiguous(memory_format=LAYOUTS[layout])
    more = level(plain)
    with torch.no_grad():
        expected = plain(x, *more)
        for lam in (torch.zeros(2, 1), torch.zeros(2, 1, 30, 34), torch.zeros(1, 1, 3, 5)):
            torch.testing.assert_close(net(x, lam, *more), expected, rtol=1e-5, atol=2e-6)
        mixed = net(x, torch.tensor([[0.0], [1.0]]), *more)
        torch.testing.assert_close(mixed[0], expected[0], rtol=1e-5, atol=2e-6)
        assert not torch.allclose(mixed[1], expected[1], atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_with_base_and_phi_frozen_leaves_the_base(name: str) -> None:
    plain = NETWORKS[name]().eval()
    net = tunable_ops.convert(plain, 1, domain="box")
    tunable_ops.freeze_base(net)
    for layer in net.layers:
        layer.tuning.requires_grad_(False)
    optimizer = torch.optim.AdamW(tunable_ops.optimizer_groups(net, new={"lr": 1e-2}), weight_decay=0.1)
    x = torch.rand(2, 3, 16, 18)
    for _ in range(3):
        optimizer.zero_grad()
        net(x, torch.rand(2, 1), *level(plain)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(net(x, [0.0], *level(plain)), plain(x, *level(plain)))
        assert not torch.equal(net(x, [1.0], *level(plain)), plain(x, *level(plain)))


@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_and_exports_in_one_graph(name: str) -> None:
    plain = NETWORKS[name]().eval()
    net, x, more = trained(plain), torch.rand(1, 3, 16, 18), level(plain)
    with torch.no_grad():
        expected = net(x, [0.4], *more)
        found = torch.compile(net, backend="eager", fullgraph=True)(x, torch.tensor([0.4]), *more)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        program = torch.export.export(net, (x, torch.zeros(1), *more)).module()
        torch.testing.assert_close(program(x, torch.tensor([0.4]), *more), expected, rtol=1e-5, atol=1e-5)


@NEEDS_WEIGHTS
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_zero_is_the_published_network_bit_for_bit(name: str, layout: str) -> None:
    build, file = PUBLISHED[name]
    plain = build().eval()
    plain.load_state_dict(weights(file))
    plain.to(memory_format=LAYOUTS[layout])
    net = trained(plain).to(memory_format=LAYOUTS[layout])
    x = torch.rand(1, 3, 48, 41).contiguous(memory_format=LAYOUTS[layout])
    folded = tunable_ops.fold(net, [0.0])

    def same(function: object, out: Tensor) -> bool:
        return torch.equal(function(x, *level(plain)), out)  # type: ignore[operator]

    with torch.no_grad():
        expected = plain(x, *level(plain))
        assert torch.equal(net(x, [0.0], *level(plain)), expected)
        assert same(folded, expected)
        assert same(tunable_ops.LiveFold(net, [0.0]), expected)
    assert all(torch.equal(value, folded.state_dict()[key]) for key, value in weights(file).items())


@NEEDS_WEIGHTS
@pytest.mark.slow
def test_the_published_denoiser_with_its_level_as_a_knob() -> None:
    """At every position of `sigma` it is FFDNet while `texture` is 0, whatever its kernels are."""
    plain = models.FFDNet().eval()
    plain.load_state_dict(weights("ffdnet_color"))
    reading = models.FFDNet(knob=0).eval()
    reading.load_state_dict(weights("ffdnet_color"))
    net = tunable_ops.convert(reading, 2, domain="box", names=("sigma", "texture"), ranges=((0, 50), (0, 1)))
    source = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 48, 41)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight[1:] = 0.01 * torch.randn(layer.weight[1:].shape, generator=source)
        for sigma in range(0, 51, 5):
            expected = plain(x, sigma / 255)
            assert torch.equal(net(x, [sigma, 0]), expected)
            assert torch.equal(tunable_ops.fold(net, [sigma, 0])(x), expected)
        assert not torch.allclose(net(x, [25, 1]), net(x, [25, 0]), atol=1e-2)
