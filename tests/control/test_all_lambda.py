"""Knobs that are trained at all lambda: FiLM, planes, CResMD, low-rank kernels."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tunable_ops import LiveFold, TunableModel, control, fold, models, serialization
from tunable_ops.modules.fold import base_network

ARGUMENTS = {"scale": 1, "num_blocks": 2, "features": 12}
METHODS = {
    "film": ("film", {"hidden": 5}),
    "planes": ("planes", {}),
    "planes-extended": ("planes", {"borders": "extend"}),
    "planes-inside": ("planes", {"before": "body.1.conv1"}),
    "cresmd": ("cresmd", {"after": ["body.*.conv2", "conv_after_body"]}),
    "low_rank": ("low_rank", {"rank": 2}),
}
PLAIN_WHEN_FOLDED = ("film", "planes-extended", "cresmd", "low_rank")


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(1)
    return models.EDSR(**ARGUMENTS)


def attach(plain: nn.Module, method: str, num_params: int = 2, **more: object) -> TunableModel:
    name, arguments = METHODS[method]
    return control.attach(plain, name, num_params, **arguments, **more)


def moved(plain: nn.Module, method: str, num_params: int = 2, **more: object) -> TunableModel:
    """A network of which every parameter that is trained is away from its start."""
    net = attach(plain, method, num_params, **more)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return net


@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("method", METHODS)
def test_starts_as_the_plain_network(plain: nn.Module, method: str, domain: str) -> None:
    x, before = torch.rand(2, 3, 9, 8), copy.deepcopy(plain.state_dict())
    net = attach(plain, method, domain=domain)
    assert not isinstance(net, control.PhasedModel) and net.spec.domain == domain
    for lam in ([1.0, 0.0], [0.25, 0.75], [0.0, 1.0]) + (([0.0, 0.0], [1.0, 1.0]) if domain == "box" else ()):
        torch.testing.assert_close(net(x, lam), plain(x), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_every_trained_parameter_learns_from_the_first_or_second_step_on(plain: nn.Module, method: str) -> None:
    """At the start the new parameters, or those that multiply them, get gradients; then all do."""
    net, x = attach(plain, method), torch.rand(3, 3, 9, 8)
    lam = torch.tensor([[1.0, 0.0], [0.4, 0.6], [0.0, 1.0]])
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer, start = torch.optim.SGD(trained.values(), lr=1e-3), {n: p.detach().clone() for n, p in trained.items()}
    for _ in range(2):
        optimizer.zero_grad()
        (net(x, lam) - x).square().sum().backward()
        optimizer.step()
    assert [name for name, p in trained.items() if torch.equal(p, start[name])] == []


@pytest.mark.parametrize("method", METHODS)
def test_mixed_lambda_equals_one_by_one(plain: nn.Module, method: str) -> None:
    x, lam = torch.rand(3, 3, 9, 8), torch.tensor([[1.0, 0.0], [0.4, 0.6], [0.0, 1.0]])
    net = moved(plain, method)
    one_by_one = torch.cat([net(x[b : b + 1], lam[b]) for b in range(3)])
    torch.testing.assert_close(net(x, lam), one_by_one, atol=1e-5, rtol=1e-4)
    assert (net(x[:1], lam[0]) - net(x[:1], lam[2])).abs().max() > 1e-3
    assert net(x[:0], lam[0]).shape == (0, 3, 9, 8)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_mixed_lambda_are_the_sum_of_those_one_by_one(plain: nn.Module, method: str) -> None:
    net = moved(plain.double(), method)
    x = torch.rand(3, 3, 7, 6, dtype=torch.float64)
    lam = torch.tensor([[1.0, 0.0], [0.4, 0.6], [0.0, 1.0]], dtype=torch.float64).requires_grad_()
    wanted = [p for p in net.parameters() if p.requires_grad] + [lam]
    weight = torch.rand(3, 3, 7, 6, dtype=torch.float64)
    together = torch.autograd.grad((net(x, lam) * weight).sum(), wanted)
    apart = torch.autograd.grad(sum((net(x[b : b + 1], lam[b]) * weight[b]).sum() for b in range(3)), wanted)
    for found, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_folds_exactly(plain: nn.Module, method: str) -> None:
    """In float64, at the borders too, and to the plain network's own layers except for planes that stay."""
    x, lam = torch.rand(2, 3, 9, 8, dtype=torch.float64), [0.4, 0.6]
    net = moved(plain.double(), method).eval()
    folded = fold(net, lam)
    torch.testing.assert_close(folded(x), net(x, lam), atol=1e-12, rtol=1e-12)
    if method in PLAIN_WHEN_FOLDED:
        assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]
        assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in plain.parameters())
    else:
        assert sum(p.numel() for p in folded.parameters()) > sum(p.numel() for p in plain.parameters())
    live = LiveFold(net, lam)
    live.set([0.9, 0.1])
    torch.testing.assert_close(live(x), net(x, [0.9, 0.1]), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(folded(x), net(x, lam), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("domain", ["simplex", "box"])
def test_survives_a_checkpoint_and_a_copy(plain: nn.Module, method: str, domain: str, tmp_path) -> None:
    x, lam = torch.rand(2, 3, 9, 8), [0.4, 0.6]
    ranges = {"ranges": [(0, 50), (0, 1)], "units": ["of 255", ""]} if domain == "box" else {}
    net = moved(plain, method, names=["a", "b"], domain=domain, **ranges).eval()
    torch.testing.assert_close(copy.deepcopy(net)(x, lam), net(x, lam), atol=0, rtol=0)
    serialization.save(net, tmp_path / "a.safetensors", architecture="edsr", arguments=ARGUMENTS)
    loaded = serialization.load(tmp_path / "a.safetensors")
    assert loaded.spec == net.spec
    torch.testing.assert_close(loaded(x, lam), net(x, lam), atol=0, rtol=0)
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == frozen


@pytest.mark.parametrize("method", ["film", "planes", "planes-extended", "cresmd"])
def test_a_map_of_one_value_is_that_lambda(plain: nn.Module, method: str) -> None:
    net, x = moved(plain, method), torch.rand(2, 3, 9, 8)
    lam = torch.tensor([[0.4, 0.6], [1.0, 0.0]])
    torch.testing.assert_close(net(x, lam[..., None, None].expand(2, 2, 9, 8)), net(x, lam), atol=1e-5, rtol=1e-4)
    halves = torch.cat((lam[:1, :, None, None].expand(1, 2, 9, 4), lam[1:, :, None, None].expand(1, 2, 9, 4)), 3)
    assert (net(x[:1], halves) - net(x[:1], lam[0])).abs().max() > 1e-3


def test_film_is_its_formula() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    net = moved(nn.Sequential(conv), "film")
    first, _, last = net.network[0].modulation
    hidden = torch.relu(first.weight @ torch.tensor([0.3, 0.7]) + first.bias)
    scale, shift = (last.weight @ hidden + last.bias).chunk(2)
    own, x = net.network[0].conv, torch.rand(2, 3, 6, 5)
    wanted = (1 + scale)[:, None, None] * own(x) + shift[:, None, None]
    torch.testing.assert_close(net(x, [0.3, 0.7]), wanted, atol=1e-6, rtol=1e-5)


def test_cresmd_scales_the_residual() -> None:
    block = models.EDSR(scale=1, num_blocks=1, features=6).body
    net = control.attach(block, "cresmd", 2, after=["0.conv2"])
    linear = net.network[0].conv2.modulation
    nn.init.normal_(linear.weight)
    nn.init.normal_(linear.bias)
    x = torch.rand(2, 6, 7, 5)
    scale = 1 + linear.weight @ torch.tensor([0.3, 0.7]) + linear.bias
    torch.testing.assert_close(net(x, [0.3, 0.7]), x + scale[:, None, None] * (block(x) - x), atol=1e-5, rtol=1e-5)


def test_planes_are_further_channels_and_a_shift_of_the_bias_inside() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    net = moved(nn.Sequential(conv), "planes", domain="box", ranges=[(0, 50), (0, 1)])
    wide, x = net.network[0][1], torch.rand(2, 3, 6, 5)
    fields = torch.cat((x, torch.tensor([0.2, 0.7])[:, None, None].expand(2, 2, 6, 5)), 1)
    output = net(x, [10.0, 0.7])
    torch.testing.assert_close(output, wide(fields))
    shift = (wide.weight[:, 3:].sum((2, 3)) @ torch.tensor([0.2, 0.7]))[:, None, None]
    alone = nn.functional.conv2d(x, wide.weight[:, :3], wide.bias, padding=1)
    torch.testing.assert_close(output[..., 1:-1, 1:-1], (alone + shift)[..., 1:-1, 1:-1], atol=1e-5, rtol=1e-5)
    assert (output - alone - shift)[..., 0].abs().max() > 1e-3  # not at the borders


def test_low_rank_is_its_formula() -> None:
    torch.manual_seed(0)
    net = moved(nn.Sequential(nn.Conv2d(12, 12, 3, padding=1)), "low_rank")
    parts = net.network[0].parametrizations["weight"]
    base, u, v = parts.original0[0], parts.original1, parts.original2
    assert u.shape == (2, 12, 2) and v.shape == (2, 2, 108)
    weight = base + (0.3 * u[0] @ v[0] + 0.7 * u[1] @ v[1]).view_as(base)
    bias = net.network[0].bias
    x = torch.rand(2, 12, 6, 5)
    wanted = nn.functional.conv2d(x, weight, bias[0] + 0.3 * bias[1] + 0.7 * bias[2], padding=1)
    torch.testing.assert_close(net(x, [0.3, 0.7]), wanted, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for layer in net.layers for p in layer.tuning.parameters())


def test_shared_convolutions_stay_shared(plain: nn.Module) -> None:
    """A unit that a network applies twice has one modulation; two units that share a kernel have two."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = control.attach(nn.Sequential(conv, nn.ReLU(), conv), "film", 2, hidden=4)
    assert net.network[0] is net.network[2] and len(net.layers) == 1
    other = nn.Conv2d(3, 3, 3, padding=1)
    other.weight = conv.weight
    net = moved(nn.Sequential(conv, other), "film")
    assert net.network[0].conv.weight is net.network[1].conv.weight
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(fold(net, [0.4, 0.6])(x), net(x, [0.4, 0.6]), atol=1e-5, rtol=1e-5)


def test_a_convolution_without_bias_folds() -> None:
    net = moved(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), "film")
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(fold(net, [0.4, 0.6])(x), net(x, [0.4, 0.6]), atol=1e-5, rtol=1e-5)
    scaled = control.attach(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), "cresmd", after=["0"])
    nn.init.normal_(scaled.network[0].modulation.weight)
    folded = fold(scaled, [0.4, 0.6])
    assert folded[0].bias is None
    torch.testing.assert_close(folded(x), scaled(x, [0.4, 0.6]), atol=1e-5, rtol=1e-5)


def test_no_base_in_a_modulated_network(plain: nn.Module) -> None:
    with pytest.raises(ValueError, match="net must be blends of kernels alone, which have a base; got ModulatedConv2d"):
        base_network(attach(plain, "film", domain="box"))


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("film", {"hidden": 0}, "film: hidden must be a positive int; got 0"),
        ("film", {"after": ["body.9"]}, "film: after must match a module; got 'body.9'"),
        ("cresmd", {"after": ["body.0"]}, "cresmd: after must name convolutions; got 'body.0', a ResidualBlock"),
        ("planes", {"before": "body.0"}, "planes: before must name a Conv2d without groups; got 'body.0', a Residual"),
        ("planes", {"borders": "wide"}, "planes: borders must be one of zeros, extend; got 'wide'"),
        ("low_rank", {"rank": 0}, "rank must be a positive int"),
        ("low_rank", {"after": ["body.0"]}, "arguments of low_rank must be among .*; got 'after'"),
        ("film", {"domain": "ball"}, "domain must be one of"),
        ("film", {"num_params": 0}, "num_params must be a positive int; got 0"),
    ],
)
def test_bad_input(plain: nn.Module, method: str, arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        control.attach(plain, method, **arguments)


def test_bad_types(plain: nn.Module) -> None:
    for method, arguments in (("film", {}), ("planes", {}), ("cresmd", {"after": ["x"]})):
        with pytest.raises(TypeError, match=f"{method}: network must be an nn.Module; got str"):
            control.attach("edsr", method, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"cresmd: after must be a sequence of patterns; got the string 'body\.0'"):
        control.attach(plain, "cresmd", after="body.0")


def test_a_modulated_convolution_by_itself(plain: nn.Module) -> None:
    """One picture without a batch, lambda from the call; and fold of the layer alone."""
    layer = moved(plain, "film").network.conv_first
    x: Tensor = torch.rand(3, 6, 5)
    torch.testing.assert_close(layer(x, [0.4, 0.6]), layer(x[None], torch.tensor([[0.4, 0.6]]))[0])
    folded = fold(layer, [0.4, 0.6])
    assert type(folded) is nn.Conv2d
    torch.testing.assert_close(folded(x), layer(x, [0.4, 0.6]), atol=1e-6, rtol=1e-5)
