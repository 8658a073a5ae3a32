"""convert: a fresh conversion computes what the network did, and keeps its structure, ties, hooks and modes."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import tunable_ops
from tests.modules.networks import DTYPE, Net, Picture, assert_equal, draw, perturb, plain_net, point, rows
from tunable_ops.modules import TunableLayer

OPTIONS = {
    "simplex": {"num_params": 2},
    "identity": {"num_params": 3, "tuning": "identity"},
    "P4-p2": {"num_params": 2, "num_kernels": 4},
    "box": {"num_params": 2, "domain": "box"},
    "P5-p2-box": {"num_params": 2, "num_kernels": 5, "domain": "box"},
    "p1-box": {"num_params": 1, "domain": "box"},
}


@pytest.mark.parametrize("kind", [Net, Picture])
@pytest.mark.parametrize("options", OPTIONS)
def test_fresh_conversion_and_fold_equal_the_network(options, kind):
    plain, x = plain_net(kind), draw(3, 3, 8, 8)
    before = copy.deepcopy(plain.state_dict())
    net = tunable_ops.convert(plain, **OPTIONS[options])
    domain, p = net.spec.domain, net.spec.num_params
    with torch.no_grad():
        expected = plain(x)
        for seed in range(3):
            lam = point(domain, p, seed=seed)
            assert_equal(net(x, lam), expected)
            assert_equal(net(x, point(domain, p, 3, seed=seed)), expected)
            folded = tunable_ops.fold(net, lam)
            assert type(folded) is kind
            assert_equal(folded(x), expected)
            assert repr(folded) == repr(plain)
            assert list(folded.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not any(isinstance(module, TunableLayer) for module in plain.modules())


@pytest.mark.parametrize("kind", [Net, Picture])
@pytest.mark.parametrize("options", OPTIONS)
def test_fold_of_a_trained_conversion_equals_running_it(options, kind):
    net, x = tunable_ops.convert(plain_net(kind), **OPTIONS[options]), draw(3, 3, 8, 8)
    perturb(net)
    lam = point(net.spec.domain, net.spec.num_params, 3)
    with torch.no_grad():
        runs = [net(x, row) for row in lam]
        assert not torch.allclose(runs[0], runs[1])
        for row, run in zip(lam, runs, strict=True):
            assert_equal(tunable_ops.fold(net, row)(x), run)
        each = rows(lambda one, row: tunable_ops.fold(net, row)(one), x, lam)
        assert_equal(net(x, lam), torch.cat(list(each)))


def test_layers_that_are_made():
    net = tunable_ops.convert(plain_net(), 2)
    kinds = Counter(type(layer).__name__ for layer in net.layers)
    assert kinds == {"TunableConv2d": 6, "TunableConvTranspose2d": 1, "TunableLinear": 1, "ParameterBlend": 3}
    assert isinstance(net.network.blocks[0].norm, nn.BatchNorm2d)
    assert net.network.blocks[0].note == "kept"


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear])
def test_a_single_layer_is_a_network(kind):
    plain = kind(3, 3).to(DTYPE) if kind is nn.Linear else kind(3, 3, 2).to(DTYPE)
    x = draw(2, 3, *[4] * (plain.weight.dim() - 2))
    net = tunable_ops.convert(plain, 2)
    assert_equal(net(x, [0.3, 0.7]), plain(x))
    folded = tunable_ops.fold(net, [0.3, 0.7])
    assert type(folded) is kind
    assert_equal(folded(x), plain(x))


class Tied(nn.Module):
    """A convolution used twice, two that share a weight, two that share a bias, and plain references in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.first
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.third = nn.Conv2d(3, 3, 1)
        self.third.bias = self.first.bias
        self.fourth = nn.Conv2d(3, 3, 1)
        self.fifth = nn.Conv2d(3, 3, 1)
        self.fifth.weight, self.fifth.bias = self.fourth.weight, self.second.bias
        self.beta = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.child = nn.Module()
        self.child.beta = self.beta
        self.order = [self.first, self.second, self.third, self.fourth, self.fifth]
        self.by_name = {"again": self.again}

    def forward(self, x):
        for conv in self.order:
            x = conv(x).tanh()
        return self.by_name["again"](x) * self.beta + self.child.beta


@pytest.mark.parametrize("options", OPTIONS)
def test_ties_are_kept(options):
    plain, x = Tied().to(DTYPE), draw(2, 3, 5, 5)
    net = tunable_ops.convert(plain, **OPTIONS[options])
    inner = net.network
    assert inner.first is inner.again is inner.order[0] is inner.by_name["again"]
    assert inner.first.weight is inner.second.weight
    assert inner.first.weight is not inner.third.weight
    assert inner.first.bias is inner.third.bias
    assert inner.fifth.weight is inner.fourth.weight
    assert inner.fifth.bias is inner.second.bias
    for a, b in (("first", "second"), ("first", "third"), ("fourth", "fifth"), ("second", "fifth")):
        assert getattr(inner, a).tuning is getattr(inner, b).tuning, (a, b)  # one stack, one phi
    assert inner.parametrizations.beta.original is inner.child.parametrizations.beta.original
    assert len(list(net.parameters())) == len({id(p) for p in net.parameters()})
    domain, p = net.spec.domain, net.spec.num_params
    assert_equal(net(x, point(domain, p)), plain(x))
    perturb(net)
    lam = point(domain, p, seed=1)
    folded = tunable_ops.fold(net, lam)
    assert folded.first is folded.again is folded.order[0]
    assert folded.first.weight is folded.second.weight
    assert folded.fifth.bias is folded.second.bias
    assert folded.beta is folded.child.beta
    assert len(list(folded.parameters())) == len(list(plain.parameters()))
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert_equal(folded(x), net(x, lam))


class Hooked(nn.Module):
    """Network with hooks that are functions and hooks that are its methods, which record what the layers see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 2)
        self.seen, self.grads = [], []
        self.conv.register_forward_hook(self.keep)
        self.conv.register_forward_hook(self.fail_safe, always_call=True)
        self.conv.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        self.linear.register_forward_hook(lambda module, args, kwargs, output: output + 1, with_kwargs=True)
        self.linear.register_full_backward_hook(self.keep_grads)

    def keep(self, module, args, output):
        self.seen.append(tuple(output.shape))

    def fail_safe(self, module, args, output):
        self.seen.append("always")

    def keep_grads(self, module, grad_input, grad_output):
        self.grads.append(grad_input[0].shape)

    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))


def test_hooks_move_to_the_layer_that_takes_the_place():
    plain, x = Hooked().to(DTYPE), draw(2, 3, 5, 5)
    net = tunable_ops.convert(plain, 2)
    expected = plain(x)
    assert plain.seen == [(2, 4, 3, 3), "always"]
    out = net(x, [0.3, 0.7])
    assert_equal(out, expected)
    assert net.network.seen == plain.seen  # its own list: the bound method was rebound to the copy
    assert len(plain.seen) == 2
    out.sum().backward()
    assert net.network.grads == [torch.Size([2, 4])]
    assert plain.grads == []
    folded = tunable_ops.fold(net, [0.3, 0.7])
    folded.seen.clear()
    assert_equal(folded(x), expected)
    assert folded.seen == [(2, 4, 3, 3), "always"]
    assert len(net.network.seen) == 2
    with pytest.raises(ValueError):
        net(x[:, :1], [0.3, 0.7])
    assert net.network.seen[2:] == ["always"]


def test_mode_and_requires_grad_are_kept():
    plain = plain_net().train()
    plain.blocks[0].eval()
    plain.head.weight.requires_grad_(False)
    plain.blocks[1].beta.requires_grad_(False)
    net = tunable_ops.convert(plain, 2)
    assert net.training
    modes = {name: module.training for name, module in plain.named_modules()}
    for copied in (net.network, tunable_ops.fold(net, [0.5, 0.5])):
        assert {name: module.training for name, module in copied.named_modules() if name in modes} == modes
    assert not any(module.training for module in net.network.blocks[0].modules())
    assert not any(module.training for module in tunable_ops.convert(plain.eval(), 2).modules())
    assert not net.network.head.weight.requires_grad
    assert net.network.head.bias.requires_grad
    assert not net.network.blocks[1].parametrizations.beta.original.requires_grad
    flags = {name: p.requires_grad for name, p in plain.named_parameters()}
    assert {name: p.requires_grad for name, p in tunable_ops.fold(net, [0.5, 0.5]).named_parameters()} == flags


def test_training_mode_of_batch_norm_and_its_statistics():
    """Running statistics belong to the converted network and change as in the plain one."""
    plain, x = plain_net().train(), draw(4, 3, 8, 8)
    net = tunable_ops.convert(plain, 2)
    assert_equal(net(x, [0.3, 0.7]), plain(x))
    moved = tunable_ops.fold(net, [0.3, 0.7]).blocks[0].norm
    assert_equal(moved.running_mean, plain.blocks[0].norm.running_mean)
    assert moved.num_batches_tracked == 1


def test_format_dtype_and_device_are_kept():
    plain = Picture().to(torch.bfloat16).to(memory_format=torch.channels_last)
    net = tunable_ops.convert(plain, 2)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    for layer in net.layers:
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in layer.weight)
    for parameter in tunable_ops.fold(net, [0.5, 0.5]).parameters():
        assert parameter.dim() < 4 or parameter.is_contiguous(memory_format=torch.channels_last)
    with torch.device("meta"):
        on_meta = Picture()
    assert {p.device.type for p in tunable_ops.convert(on_meta, 2).parameters()} == {"meta"}


def test_convert_twice():
    """A plain network can be converted again; a conversion cannot."""
    plain, x = plain_net(), draw(2, 3, 8, 8)
    first, second = tunable_ops.convert(plain, 2), tunable_ops.convert(plain, 3, domain="box")
    perturb(first)
    assert_equal(second(x, [0.1, 0.2, 0.3]), plain(x))
    for again, kind in ((first, "TunableModel at ''"), (first.network, "TunableConv2d at 'head'")):
        with pytest.raises(ValueError, match=f"^convert: network must be plain; got {kind}"):
            tunable_ops.convert(again, 2)
    folded = tunable_ops.fold(first, [0.3, 0.7])  # a fold is plain
    assert_equal(tunable_ops.convert(folded, 2)(x, [0.5, 0.5]), folded(x))


class Weighted(nn.Module):
    """Module with its own parameters: some to be made tunable, one with a parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(4, 3))
        self.scale = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.kernel = nn.Parameter(torch.rand(3, 3, 1, 1))
        self.beta = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)
        parametrizations.weight_norm(self, "kernel")

    def forward(self, x, index):
        x = F.conv2d(x, self.kernel) * self.scale + self.beta
        return x + self.table[..., index, :].mean(-2)[..., None, None]


def test_own_parameters_by_pattern():
    plain, x, index = Weighted().to(DTYPE), draw(2, 3, 4, 4), torch.tensor([0, 3])
    net = tunable_ops.convert(plain, 2, parameters=("table", "*.scale", "*.gamma", "*.beta"))
    assert sorted(layer.name for layer in net.layers) == ["beta", "scale", "table"]
    expected = plain(x, index)
    assert_equal(net(x, [0.3, 0.7], index), expected)
    assert_equal(net(x, point("simplex", 2, 2), index=index), expected)
    perturb(net)
    lam = point("simplex", 2, 2, seed=1)
    each = rows(lambda one, row: tunable_ops.fold(net, row)(one, index), x, lam)
    assert_equal(net(x, lam, index), torch.cat(list(each)))
    folded = tunable_ops.fold(net, lam[0])
    assert sorted(folded.state_dict()) == sorted(plain.state_dict())
    assert parametrize.is_parametrized(folded, "kernel")
    assert_equal(plain(x, index), expected)  # torch shares a parametrised class between copies
    assert isinstance(plain.beta, nn.Parameter)
    assert_equal(net(x, lam[0], index), folded(x, index))


def test_tied_own_parameters_of_which_one_stays():
    plain = Tied().to(DTYPE)
    with pytest.warns(UserWarning, match=r"left alone: child\.beta"):
        net = tunable_ops.convert(plain, 2, parameters=("child.beta",))
    assert net.network.beta is net.network.child.beta


def test_own_parameters_in_a_list():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = nn.ParameterList(torch.rand(1, 3, 1, 1) for _ in range(3))
            self.conv = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            for scale in self.scales:
                x = x * scale
            return self.norm(self.conv(x * self.scales[1]))

    plain, x = Scales().to(DTYPE).eval(), draw(2, 3, 4, 4)
    net = tunable_ops.convert(plain, 2, parameters=("scales.*",))
    assert len(net.layers) == 4
    assert_equal(net(x, [0.3, 0.7]), plain(x))
    perturb(net)
    folded = tunable_ops.fold(net, [0.3, 0.7])
    assert_equal(folded(x), net(x, [0.3, 0.7]))
    assert list(folded.state_dict()) == list(plain.state_dict())
    net = tunable_ops.convert(plain, 2, parameters=("*",))  # not those of torch's layers, nor phi
    assert len(net.layers) == 4


def test_a_per_sample_lambda_for_a_vector_is_refused():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(3))
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) * self.gamma[:, None, None]

    net = tunable_ops.convert(Vector(), 2)
    net(torch.zeros(2, 3, 4, 4), [0.5, 0.5])
    with pytest.raises(ValueError, match=r"^gamma: lam must be \[p\] for a tensor of shape \[3\]"):
        net(torch.zeros(2, 3, 4, 4), torch.full((2, 2), 0.5))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear])
def test_activations_in_place(kind, per_sample):
    """Outputs of layers can be modified in place, which autograd refuses for a view returned by a Function."""
    layers = [kind(3, 3).to(DTYPE) if kind is nn.Linear else kind(3, 3, 1).to(DTYPE) for _ in range(2)]
    x = draw(4, 3, *[3] * (layers[0].weight.dim() - 2))
    results = []
    for inplace in (False, True):
        net = tunable_ops.convert(nn.Sequential(layers[0], nn.SiLU(inplace), layers[1], nn.ReLU(inplace)), 2)
        perturb(net)
        out = net(x, point("simplex", 2, *[4] * per_sample))
        results.append([out, *torch.autograd.grad(out.square().sum(), list(net.parameters()))])
    for a, b in zip(*results, strict=True):
        assert_equal(a, b)
