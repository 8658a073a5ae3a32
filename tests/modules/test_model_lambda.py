"""Per-sample lambda through windows, maps of lambda, and whole networks in channels_last."""

import copy

import pytest
import torch
from torch import nn

import tunable_ops
from tests.modules.networks import DTYPE, Net, Picture, assert_equal, draw, perturb, plain_net, point, rows


class Windows(nn.Module):
    """Network with attention-like windows: a convolution, then a linear layer and a convolution within windows."""

    def __init__(self, channels=4, window=4):
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.mix = nn.Linear(channels, channels)
        self.local = nn.Conv2d(channels, channels, 3, padding=1)
        self.pair = nn.Linear(channels // 2, channels // 2)
        self.tail = nn.Conv2d(channels, 3, 1)
        self.window = window

    def forward(self, x):
        x = self.head(x)
        b, c, h, w = x.shape
        n = self.window
        x = x.view(b, c, h // n, n, w // n, n).permute(0, 2, 4, 3, 5, 1).reshape(-1, n * n, c)  # [windows of b, n*n, c]
        x = self.mix(x)
        x = self.local(x.transpose(1, 2).reshape(-1, c, n, n)).flatten(2).transpose(1, 2)
        heads = (
            x.reshape(len(x), n * n, 2, c // 2).transpose(1, 2).reshape(-1, n * n, c // 2)
        )  # [heads of windows of b]
        x = self.pair(heads).reshape(len(x), 2, n * n, c // 2).transpose(1, 2).reshape(len(x), n * n, c)
        x = x.view(b, h // n, w // n, n, n, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return self.tail(x)


@pytest.mark.parametrize("options", [{}, {"tuning": "identity"}, {"domain": "box"}], ids=str)
def test_a_per_sample_lambda_meets_windows_and_heads(options):
    net = tunable_ops.convert(plain_net(Windows), 2, **options)
    perturb(net)
    x, lam = draw(3, 3, 8, 12), point("box", 2, 3)
    assert_equal(net(x, lam), torch.cat(list(rows(net, x, lam))))
    folds = rows(lambda one, row: tunable_ops.fold(net, row)(one), x, lam)
    assert_equal(net(x, lam), torch.cat(list(folds)))
    lam.requires_grad_()
    net(x, lam).square().sum().backward()
    whole = lam.grad.clone()
    lam.grad = None
    torch.stack([net(x[b : b + 1], lam[b]).square().sum() for b in range(3)]).sum().backward()
    assert_equal(whole, lam.grad)


class Reshape(nn.Module):
    """Pass a layer an input with another leading size."""

    def __init__(self, reshape, layer):
        super().__init__()
        self.reshape, self.layer = reshape, layer

    def forward(self, x):
        return self.layer(self.reshape(x))


@pytest.mark.parametrize(
    ("reshape", "size"),
    [(lambda x: x[:2], 2), (lambda x: x.reshape(4, -1, 3)[:4], 4), (lambda x: x.mean(0, keepdim=True), 1)],
    ids=["fewer", "no-multiple", "one"],
)
def test_another_leading_size_is_a_named_error(reshape, size):
    net = tunable_ops.convert(Reshape(reshape, nn.Linear(3, 3)).to(DTYPE), 2)
    x = draw(3, 4, 3)
    assert net(x, [0.3, 0.7]).isfinite().all()
    with pytest.raises(
        ValueError, match=rf"^TunableLinear [a-z0-9.]+: lam must fit the input's leading size {size}: .*got B = 3"
    ):
        net(x, point("simplex", 2, 3))


def test_a_map_for_windows_is_a_named_error():
    """Each window would see the whole map."""
    net = tunable_ops.convert(plain_net(Windows), 2, on_map="mean")
    lam = torch.full((3, 2, 8, 8), 0.5, dtype=DTYPE)
    with pytest.raises(
        ValueError, match=r"^TunableConv2d [a-z0-9.]+: lam must not be a map for a layer that sees parts of a sam"
    ):
        net(draw(3, 3, 8, 8), lam)


def test_an_unbatched_picture():
    net = tunable_ops.convert(plain_net(Picture), 2)
    perturb(net)
    x = draw(1, 3, 8, 8)
    assert_equal(net(x[0], [0.3, 0.7]), net(x, [0.3, 0.7])[0])
    with pytest.raises(ValueError, match=r"^tunable_conv2d: alpha must be \[P\] for an unbatched input"):
        net(x[0], point("simplex", 2, 3))


@pytest.mark.parametrize("options", [{}, {"tuning": "identity"}, {"domain": "box"}, {"num_kernels": 3}], ids=str)
def test_a_constant_map_equals_a_shared_lambda(options):
    net = tunable_ops.convert(plain_net(Picture), 2, **options)
    perturb(net)
    x, lam = draw(2, 3, 8, 8), point("box", 2)
    for size in ((8, 8), (16, 24), (1, 1), (4, 4)):
        constant = lam.view(1, 2, 1, 1).expand(2, 2, *size)
        assert_equal(net(x, constant), net(x, lam))
        assert_equal(net(x, constant[:1]), net(x, lam))
    each = point("box", 2, 2)
    assert_equal(net(x, each[..., None, None].expand(2, 2, 8, 8)), net(x, each))


def test_a_map_acts_where_it_is():
    """With two corners side by side, each half equals the output at its corner, away from the seam."""
    net = tunable_ops.convert(plain_net(Picture), 2)
    perturb(net)
    x, lam = draw(1, 3, 8, 32), torch.zeros(1, 2, 8, 32, dtype=DTYPE)
    lam[:, 0, :, :16], lam[:, 1, :, 16:] = 1, 1
    out = net(x, lam)
    assert_equal(out[..., :10], net(x, [1, 0])[..., :10])
    assert_equal(out[..., 22:], net(x, [0, 1])[..., 22:])
    assert not torch.allclose(out[..., :16], net(x, [1, 0])[..., :16])


def test_a_map_is_averaged_down_to_each_layers_grid():
    net = tunable_ops.convert(nn.Sequential(nn.Conv2d(1, 1, 2, stride=2), nn.Conv2d(1, 1, 2, stride=2)).to(DTYPE), 2)
    perturb(net)
    x, lam = draw(1, 1, 8, 8), point("simplex", 2, 1, 8, 8).movedim(-1, 1)
    first, second = net.network
    half = first(x, nn.functional.avg_pool2d(lam, 2))
    assert_equal(net(x, lam), second(half, nn.functional.avg_pool2d(lam, 4)))


def test_layers_without_a_grid_refuse_a_map_or_take_its_mean():
    x, lam = draw(2, 3, 8, 8), point("simplex", 2, 2, 8, 8).movedim(-1, 1)
    plain = plain_net()
    with pytest.raises(ValueError, match=r"^blocks.0.beta: lam must not be a map .* on_map='mean'"):
        tunable_ops.convert(plain, 2)(x, lam)
    net = tunable_ops.convert(plain, 2, on_map="mean")
    perturb(net)
    mean = lam.mean((2, 3))
    for layer in net.layers:  # if the convolutions do not differ, only the mean has an effect
        if type(layer).__name__.startswith("TunableConv"):
            layer.weight.data[:] = layer.weight.data[:1]
            layer.tuning.weight.data[:] = 0.5
            layer.tuning.bias.data[:] = 0
            if layer.bias is not None:
                layer.bias.data[:] = layer.bias.data[:1]
    assert_equal(net(x, lam), net(x, mean))


def test_a_map_for_another_batch_is_a_named_error():
    net = tunable_ops.convert(plain_net(Picture), 2)
    with pytest.raises(
        ValueError, match=r"^TunableConv2d [a-z0-9.]+: lam must fit the input's leading size 2.*got B = 3"
    ):
        net(draw(2, 3, 8, 8), torch.full((3, 2, 8, 8), 0.5, dtype=DTYPE))
    with pytest.raises(
        ValueError, match=r"^TunableConv2d [a-z0-9.]+: lam must not be a map for a layer without a grid of 1 dim"
    ):
        net(draw(2, 3, 8, 8), torch.full((2, 2, 8), 0.5, dtype=DTYPE))


def test_gradients_of_a_map():
    net = tunable_ops.convert(plain_net(Picture, channels=2), 2)
    x = draw(1, 3, 4, 4)
    lam = point("simplex", 2, 1, 4, 4).movedim(-1, 1).requires_grad_()
    torch.autograd.gradcheck(lambda lam: net(x, lam), lam, fast_mode=True)


@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("kind", [Picture, Net])
def test_channels_last_of_a_whole_network(kind, domain):
    net = tunable_ops.convert(plain_net(kind), 2, domain=domain)
    perturb(net)
    x = draw(2, 3, 8, 8)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    formats = []
    for layer in last.layers:
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.dim() == 5:
            assert weight.permute(0, 1, 3, 4, 2).is_contiguous()  # physical [P, O, kh, kw, C]
            formats.append(weight.stride())
    assert len(formats) > 4
    given = x.to(memory_format=torch.channels_last)
    seen = []
    for layer in last.layers:
        if type(layer).__name__.startswith("TunableConv"):
            layer.register_forward_hook(
                lambda module, args, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    for lam in (point(domain, 2), point(domain, 2, 2)):
        out = last(given, lam)
        assert_equal(out, net(x, lam))
        if kind is Picture:
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert not out.is_contiguous()
    assert seen
    assert all(seen)  # every layer kept the format
    out.square().sum().backward()
    net(x, lam).square().sum().backward()
    for a, b in zip(last.parameters(), net.parameters(), strict=True):
        assert_equal(a.grad, b.grad, 1e-9)
    state = last.state_dict()
    net.load_state_dict(state)
    assert_equal(net(x, lam), last(given, lam))
    folded = tunable_ops.fold(last, point(domain, 2))
    assert folded.head.weight.is_contiguous(memory_format=torch.channels_last)
    assert_equal(folded(given), last(given, point(domain, 2)))


def test_channels_last_of_a_map():
    net = tunable_ops.convert(plain_net(Picture), 2)
    perturb(net)
    x, lam = draw(2, 3, 8, 8), point("simplex", 2, 2, 8, 8).movedim(-1, 1)
    expected = net(x, lam)
    net.to(memory_format=torch.channels_last)
    out = net(x.to(memory_format=torch.channels_last), lam)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_equal(out, expected)
