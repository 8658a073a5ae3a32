"""New kernels of low rank: what they compute, in every layer, and that nothing else notices them."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import tunable_ops
from tests.modules.networks import DTYPE, Net, Picture, assert_equal, draw, perturb, plain_net, point, rows
from tests.modules.test_convert import Tied
from tunable_ops.modules.low_rank import BaseAndLowRank, saves_parameters

# Plain layer, input, rank; O and the rest of the kernel differ in all.
LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 5, padding=2), (2, 4, 9), 2),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), bias=False), (2, 4, 7, 8), 3),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 8), 2),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), (2, 6, 7, 8), 2),
    "conv3d": (nn.Conv3d(3, 5, (1, 2, 3)), (2, 3, 4, 5, 6), 2),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 5, 6), 2),
    "linear": (nn.Linear(7, 5), (2, 3, 7), 2),
}


def convert(plain, rank=1, num_params=2, **options):
    net = tunable_ops.convert(plain.eval(), num_params, domain="box", rank=rank, **options)
    perturb(net)
    return net


def factored(net):
    """Return every layer whose kernels have factors."""
    return [
        m
        for m in net.modules()
        if parametrize.is_parametrized(m, "weight") and isinstance(m.parametrizations.weight[0], BaseAndLowRank)
    ]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_computes_with_the_base_and_the_products(kind):
    """The definition, kernel by kernel: W + sum_j alpha_j U_j V_j, and full biases."""
    plain, shape, rank = LAYERS[kind]
    plain = copy.deepcopy(plain).to(DTYPE)
    net = convert(nn.Sequential(plain), rank, num_kernels=4)
    (layer,) = factored(net)
    base, u, v = layer.parametrizations.weight.parameters(recurse=False)
    kernel = plain.weight.shape
    assert base.shape == (1, *kernel) and u.shape == (3, kernel[0], rank)
    assert v.shape == (3, rank, math.prod(kernel[1:]))
    x, lam = draw(*shape), point("box", 2)
    alpha = layer.tuning(lam)
    expected = copy.deepcopy(plain)
    with torch.no_grad():
        products = [(u[j] @ v[j]).view(kernel) for j in range(3)]
        expected.weight.copy_(base[0] + sum(alpha[1 + j] * products[j] for j in range(3)))
        if plain.bias is not None:
            expected.bias.copy_(torch.einsum("p,po->o", alpha, layer.bias))
    assert_equal(net(x, lam), expected(x))
    assert_equal(tunable_ops.fold(net, lam)(x), expected(x))
    assert_equal(tunable_ops.LiveFold(net, lam)(x), expected(x))
    lams = point("box", 2, 2, seed=1)
    assert_equal(net(x, lams), torch.cat(list(rows(net, x, lams))))


@pytest.mark.parametrize("kind", [Net, Picture])
def test_a_fresh_conversion_is_the_network_bit_for_bit(kind):
    plain = plain_net(kind).float()
    net, x = tunable_ops.convert(plain, 2, domain="box", rank=1), draw(2, 3, 8, 8, dtype=torch.float32)
    assert len(factored(net)) >= 5
    for layer in factored(net):
        _, u, v = layer.parametrizations.weight.parameters(recurse=False)
        assert not u.any() and v.all()
    for lam in ([0.0, 0.0], [0.3, 0.9]):
        assert torch.equal(net(x, lam), plain(x))
        folded = tunable_ops.fold(net, lam).state_dict()
        assert all(torch.equal(value, folded[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    "rank, kernel, factors",
    [
        (3, (4, 30), True),
        (4, (4, 30), False),  # r = O
        (5, (30, 5), False),  # r = K
        (2, (4, 4), False),  # 2 (4 + 4) = 4 * 4 numbers: nothing saved
        (1, (4, 4), True),
        (1, (2, 2), False),
    ],
)
def test_full_rank_where_factors_save_nothing(rank, kernel, factors):
    assert saves_parameters(rank, kernel) is factors
    net = tunable_ops.convert(nn.Sequential(nn.Linear(kernel[1], kernel[0])), 1, domain="box", rank=rank)
    assert len(factored(net)) == factors
    assert factors or net.network[0].weight.shape == (2, *kernel)


def test_gradients_reach_base_and_factors():
    net = convert(nn.Sequential(nn.Conv2d(3, 4, 3)).to(DTYPE))
    (layer,) = factored(net)
    parts = list(layer.parametrizations.weight.parameters(recurse=False))
    x, lam = draw(1, 3, 5, 5), point("box", 2).requires_grad_()

    def run(base, u, v, lam):
        named = {f"network.0.parametrizations.weight.original{i}": p for i, p in enumerate((base, u, v))}
        return torch.func.functional_call(net, named, (x, lam))

    inputs = [p.detach().clone().requires_grad_() for p in parts] + [lam]
    assert torch.autograd.gradcheck(run, inputs)
    net(x, lam).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in parts)


def test_the_step_of_adam_on_fresh_factors_is_that_of_full_rank():
    """So that a learning rate carries over from one rank to another."""
    moved = {}
    for rank in (None, 1, 4, 16):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1))
        net = tunable_ops.convert(plain, 1, domain="box", rank=rank)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        (net(torch.randn(4, 32, 8, 8), [1.0]) - torch.randn(4, 32, 8, 8)).square().mean().backward()
        optimizer.step()
        moved[rank] = float(net.network[0].weight[1].detach().square().mean().sqrt())
    for rank in (1, 4, 16):
        assert 0.5 < moved[rank] / moved[None] < 2, moved


# Freezing, groups, splitting, plain weights


def test_freezing_and_groups():
    net = convert(plain_net())
    x, lam = draw(2, 3, 8, 8), point("box", 2)
    before = net(x, lam)
    tunable_ops.freeze_base(net)
    assert torch.equal(net(x, lam), before)
    groups = {g["name"]: g["params"] for g in tunable_ops.optimizer_groups(net)}
    assert "base" not in groups
    new = {id(p) for p in groups["new"]}
    for layer in factored(net):
        base, u, v = layer.parametrizations.weight.parameters(recurse=False)
        assert not base.requires_grad and {id(u), id(v)} <= new
    tunable_ops.freeze_base(net, False)
    groups = {g["name"]: g["params"] for g in tunable_ops.optimizer_groups(net, base={"lr": 0.0})}
    assert {id(layer.parametrizations.weight.original0) for layer in factored(net)} <= {id(p) for p in groups["base"]}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    tunable_ops.merge_base(net)
    assert len(factored(net)) >= 5 and torch.equal(net(x, lam), before)
    assert set(net.state_dict()) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_training_with_a_frozen_base_keeps_the_network_at_zero():
    plain = plain_net(Picture).float()
    net = tunable_ops.convert(plain, 1, domain="box", rank=1)
    tunable_ops.freeze_base(net)
    for layer in net.layers:
        layer.tuning.requires_grad_(False)
    x = draw(2, 3, 8, 8, dtype=torch.float32)
    optimizer = torch.optim.AdamW(tunable_ops.optimizer_groups(net), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (net(x, [1.0]) - 0.3 * x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    assert torch.equal(net(x, [0.0]), plain(x))
    assert not torch.allclose(net(x, [1.0]), plain(x))


def test_load_plain():
    trained = plain_net()
    perturb(trained, seed=5)
    net, x = convert(plain_net()), draw(2, 3, 8, 8)
    for tuning in (layer.tuning for layer in net.layers):
        tuning.reset_parameters()
    tunable_ops.load_plain(net, trained.state_dict())
    for lam in ([0.0, 0.0], [0.4, 0.8]):
        assert_equal(net(x, lam), trained(x))
    assert all(layer.parametrizations.weight.original2.any() for layer in factored(net))  # V stays: U can be trained


def test_tied_layers_share_their_factors():
    net = convert(Tied().to(DTYPE), rank=1)
    layers = factored(net)
    assert len(layers) >= 2
    parts = [[id(p) for p in layer.parametrizations.weight.parameters(recurse=False)] for layer in layers]
    assert any(parts[0] == other for other in parts[1:])


# What must not notice


def test_state_dict_copy_and_modes():
    net, fresh = convert(plain_net()), convert(plain_net())
    perturb(fresh, seed=3)
    x, lam = draw(2, 3, 8, 8), point("box", 2)
    with torch.no_grad():
        expected = net(x, lam)
        assert not torch.allclose(fresh(x, lam), expected)
        fresh.load_state_dict(net.state_dict())
        assert torch.equal(fresh(x, lam), expected)
        twin = copy.deepcopy(net)
        perturb(twin, seed=4)
        assert torch.equal(net(x, lam), expected) and not torch.allclose(twin(x, lam), expected)
    with torch.inference_mode():
        assert torch.equal(net(x, lam), expected)


def test_every_write_to_a_part_shows():
    """Averages of weights that write to `.data`, and fused optimisers, leave no trace in versions."""
    net = convert(plain_net(Picture), rank=1)
    (layer, *_) = factored(net)
    parts = list(layer.parametrizations.weight.parameters(recurse=False))
    x, lam = draw(2, 3, 8, 8), point("box", 2)
    outputs = []

    def run():
        with torch.no_grad():
            outputs.append(net(x, lam))
        assert_equal(outputs[-1], copy.deepcopy(net)(x, lam).detach())

    run()
    for part in parts:
        part.data.mul_(1.5)
        run()
    values = [part.detach().clone() for part in parts]
    for step in range(4):
        for part in parts:
            part.data = torch.empty(0, dtype=DTYPE)
        for part, value in zip(parts, values, strict=True):
            part.data = value * (2 + step)  # memory of the same address, as a rule
        run()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
    net(x, lam).sum().backward()
    optimizer.step()
    run()
    optimizer.zero_grad()
    with torch.no_grad():
        layer.weight.mul_(2)  # a write to the stack itself is forgotten
        assert torch.equal(net(x, lam), outputs[-1])
    net.to(torch.bfloat16).to(DTYPE)
    run()
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs))


def test_channels_last_reaches_every_kernel():
    net = convert(plain_net(Picture)).float().to(memory_format=torch.channels_last)
    for layer in factored(net):
        for context in (torch.enable_grad(), torch.no_grad()):
            with context:
                stack = layer.weight
            assert stack.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    x, lam = draw(2, 3, 8, 8, dtype=torch.float32), point("box", 2).float()
    expected = copy.deepcopy(net).to(memory_format=torch.contiguous_format)(x, lam)
    torch.testing.assert_close(net(x, lam), expected, rtol=1e-4, atol=1e-4)


def test_autocast_does_not_round_the_factors():
    net = convert(nn.Sequential(nn.Conv2d(8, 8, 3)), rank=2, num_params=1)
    (layer,) = factored(net)
    with torch.no_grad():
        plain = layer.weight.clone()
        for mode in (net.train(), net.eval()):
            with torch.autocast("cpu", torch.bfloat16):
                assert mode.network[0].weight.dtype == torch.float32
                assert torch.equal(mode.network[0].weight, plain)


@pytest.mark.parametrize("gradients", [False, True])
def test_compile(gradients):
    net = convert(plain_net(Picture)).float()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, lam = draw(2, 3, 8, 8, dtype=torch.float32), point("box", 2).float()
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(compiled(x, lam), net(x, lam), rtol=1e-4, atol=1e-4)


def test_export():
    net = convert(plain_net(Picture)).float().eval()
    x, lam = draw(2, 3, 8, 8, dtype=torch.float32), point("box", 2).float()
    program = torch.export.export(net, (x, lam))
    torch.testing.assert_close(program.module()(x, lam), net(x, lam), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank, values", [(1, 1), (2, 2), (3, 3)])
def test_setting_a_stack_keeps_its_best_approximation(rank, values):
    torch.manual_seed(0)
    stack = torch.randn(3, 4, 5, 3, 3, dtype=DTYPE)
    base, u, v = BaseAndLowRank(rank).right_inverse(stack)
    assert torch.equal(base[0], stack[0])
    kept = torch.linalg.matrix_norm(u @ v - stack[1:].flatten(2))
    lost = torch.linalg.svdvals(stack[1:].flatten(2))[:, values:].square().sum(1).sqrt()
    torch.testing.assert_close(kept, lost)


# Bad input


@pytest.mark.parametrize("rank", [0, -1, 1.0, "4", True])
def test_bad_ranks(rank):
    with pytest.raises(ValueError, match=r"convert: rank must be a positive int, or None for full rank; got "):
        tunable_ops.convert(nn.Sequential(nn.Linear(9, 9)), 1, domain="box", rank=rank)


def test_no_rank_on_the_simplex():
    with pytest.raises(ValueError, match=r"convert: rank must be None on the simplex.*got 2: use domain='box'"):
        tunable_ops.convert(nn.Sequential(nn.Linear(9, 9)), 2, rank=2)
