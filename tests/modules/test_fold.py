"""fold and LiveFold: plain networks, unchanged addresses after `set`, copies, moves and bad lambdas."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import tunable_ops
from tests.modules.networks import DTYPE, Net, Picture, assert_equal, draw, perturb, plain_net, point


def model(kind=Net, **options):
    net = tunable_ops.convert(plain_net(kind), 2, **options)
    perturb(net)
    return net


def addresses(module):
    return [t.data_ptr() for t in [*module.parameters(), *module.buffers()]]


# Lambdas that have no single kernel, or no kernel at all.
BAD_LAMBDAS = [
    (torch.full((2, 2), 0.5), ValueError, r"lam must be \[p\], one lambda for all samples; got shape \[2, 2\]"),
    (torch.full((0, 2), 0.5), ValueError, r"lam must be \[p\], one lambda for all samples; got shape \[0, 2\]"),
    (torch.full((1, 2, 4, 4), 0.5), ValueError, r"lam must be \[p\], one lambda for all samples; got shape \[1, 2, 4"),
    ([0.5, math.nan], ValueError, r"lam must be finite; got \[0.5, nan\]"),
    ([0.5, -math.inf], ValueError, r"lam must be finite; got \[0.5, -inf\]"),
    ([0.5], ValueError, r"lam must hold p = 2 values.*got shape \[1\]"),
    ([0.2, 0.3, 0.5], ValueError, r"lam must hold p = 2 values.*got shape \[3\]"),
    (0.5, ValueError, r"lam must hold p = 2 values.*got shape \[\]"),
    ("ab", TypeError, "lam must be numbers or a Tensor; got 'ab'"),
    (torch.tensor([1, 0]), TypeError, "lam must be floating point; got torch.int64"),
]


@pytest.mark.parametrize(("lam", "error", "text"), BAD_LAMBDAS, ids=lambda v: str(v)[:30].replace("\n", ""))
def test_bad_lambda(lam, error, text):
    net = model(Picture)
    with pytest.raises(error, match=f"^fold: {text}"):
        tunable_ops.fold(net, lam)
    with pytest.raises(error, match=f"^fold: {text}"):
        tunable_ops.fold(net.network.head, lam)
    live = tunable_ops.LiveFold(net, [0.3, 0.7])
    before = [p.clone() for p in live.parameters()]
    with pytest.raises(error, match=f"^LiveFold.set: {text}"):
        live.set(lam)
    assert all(map(torch.equal, before, live.parameters()))
    assert live.lam.tolist() == [0.3, 0.7]


def test_bad_networks():
    for net in (nn.Conv2d(3, 3, 1), model().network, "net", None):
        with pytest.raises(TypeError, match=r"^fold: net must be a TunableModel or a tunable layer; got "):
            tunable_ops.fold(net, [0.5, 0.5])
        with pytest.raises(TypeError, match=r"^LiveFold: net must be a TunableModel; got "):
            tunable_ops.LiveFold(net)


def test_lambda_as_it_comes():
    net, x = model(Picture), draw(2, 3, 8, 8)
    expected = net(x, [0.3, 0.7])
    for lam in (
        (0.3, 0.7),
        [[0.3, 0.7]],
        torch.tensor([0.3, 0.7], dtype=DTYPE),
        torch.tensor([[0.3, 0.7]], dtype=DTYPE),
    ):
        assert_equal(tunable_ops.fold(net, lam)(x), expected)
    needs_grad = torch.tensor([0.3, 0.7], dtype=DTYPE, requires_grad=True)
    folded = tunable_ops.fold(net, needs_grad)
    assert all(p.is_leaf and p.requires_grad for p in folded.parameters())


def test_a_fold_is_plain_and_stands_alone():
    net, x = model(), draw(2, 3, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folded = tunable_ops.fold(net, [0.3, 0.7])
    kinds = {type(module).__module__.split(".")[0] for module in folded.modules()}
    assert kinds == {"torch", "tests"}
    assert not {id(t) for t in folded.parameters()} & {id(t) for t in net.parameters()}
    assert not set(addresses(folded)) & set(addresses(net))
    assert not any(hasattr(module, "parametrizations") for module in folded.modules())
    optimiser = torch.optim.SGD(folded.parameters(), 0.1)
    folded(x).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_fold_can_be_pickled_whole():
    folded, x = tunable_ops.fold(model(Picture), [0.3, 0.7]), draw(2, 3, 8, 8)
    file = io.BytesIO()
    torch.save(folded, file)
    file.seek(0)
    assert_equal(torch.load(file, weights_only=False)(x), folded(x), 0)


def test_a_fold_loads_into_the_plain_network():
    net, x = model(), draw(2, 3, 8, 8)
    plain = plain_net()
    plain.load_state_dict(tunable_ops.fold(net, [0.3, 0.7]).state_dict())
    assert_equal(plain(x), net(x, [0.3, 0.7]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fold_blends_in_single_precision_and_rounds_once(dtype):
    net = model(Picture).to(dtype)
    folded = tunable_ops.fold(net, [0.3, 0.7])
    assert {p.dtype for p in folded.parameters()} == {dtype}
    stack = net.network.head.weight.float()
    alpha = net.network.head.tuning(torch.tensor([0.3, 0.7]))
    assert torch.equal(folded.head.weight, (alpha[0] * stack[0] + alpha[1] * stack[1]).to(dtype))
    x = draw(2, 3, 8, 8, dtype=dtype)
    assert_equal(folded(x), net(x, [0.3, 0.7]), 0)


def test_corners_of_fresh_layers():
    """At a corner of the simplex with identity tuning, the folded kernel equals the corner's, bit by bit."""
    layer = tunable_ops.TunableConv2d(3, 4, 3, num_params=2, tuning="identity")
    for corner in range(2):
        folded = tunable_ops.fold(layer, [1.0 - corner, float(corner)])
        assert torch.equal(folded.weight, layer.weight[corner])
        assert torch.equal(folded.bias, layer.bias[corner])


@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("kind", [Net, Picture])
def test_live_fold_blends_in_place(kind, domain):
    net, x = model(kind, domain=domain), draw(2, 3, 8, 8)
    live = tunable_ops.LiveFold(net)
    assert_equal(live(x), net(x, net.spec.defaults))
    before, ids = addresses(live), [id(p) for p in live.parameters()]
    for seed in range(3):
        lam = point(domain, 2, seed=seed)
        live.set(lam)
        assert addresses(live) == before
        assert [id(p) for p in live.parameters()] == ids
        assert_equal(live(x), net(x, lam))
        assert torch.equal(live.lam, lam)
    live.set([[0.3, 0.7]])
    assert_equal(live(x), net(x, [0.3, 0.7]))


def test_live_folds_state_dict_is_the_plain_one():
    net = model(domain="box")
    live = tunable_ops.LiveFold(net, [0.3, 0.7])
    plain = plain_net()
    assert set(live.network.state_dict()) == set(plain.state_dict())
    assert set(live.state_dict()) == {f"network.{name}" for name in plain.state_dict()}
    assert len(list(live.parameters())) == len(list(plain.parameters()))
    assert not any(p.requires_grad for p in live.parameters())
    plain.load_state_dict(live.network.state_dict())
    x = draw(2, 3, 8, 8)
    assert_equal(plain(x), live(x), 0)


def test_live_fold_follows_training():
    net, x = model(Picture), draw(2, 3, 8, 8)
    live = tunable_ops.LiveFold(net, [0.3, 0.7])
    old = live(x)
    perturb(net, seed=1)
    assert_equal(live(x), old, 0)
    live.set([0.3, 0.7])
    assert_equal(live(x), net(x, [0.3, 0.7]))


def test_live_fold_reads_a_model_whose_base_is_split():
    net, x = model(domain="box"), draw(2, 3, 8, 8)
    live = tunable_ops.LiveFold(net, [0.3, 0.7])
    expected = live(x)
    for change in (tunable_ops.split_base, tunable_ops.freeze_base, tunable_ops.merge_base):
        change(net)
        live.set([0.1, 0.9])
        live.set([0.3, 0.7])
        assert_equal(live(x), expected, 0)
        assert_equal(tunable_ops.fold(net, [0.3, 0.7])(x), expected, 0)


def test_live_fold_copies_stand_alone():
    net, x = model(), draw(2, 3, 8, 8)
    live = tunable_ops.LiveFold(net, [0.3, 0.7]).eval()
    other = copy.deepcopy(live)
    assert not set(addresses(live)) & set(addresses(other))
    assert_equal(other(x), live(x), 0)
    assert not other.training
    other.set([1.0, 0.0])
    assert_equal(live(x), net(x, [0.3, 0.7]))
    assert_equal(other(x), net(x, [1.0, 0.0]))
    perturb(net, seed=2)  # the copy has its own source network
    before = other(x)
    other.set([1.0, 0.0])
    assert_equal(other(x), before, 0)
    half = copy.deepcopy(live.half())
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_live_fold_moves():
    net = model(Picture)
    live = tunable_ops.LiveFold(net, [0.3, 0.7])
    x = draw(2, 3, 8, 8)
    live.to(memory_format=torch.channels_last)
    formats = [p.stride() for p in live.parameters()]
    live.set([1.0, 0.0])
    assert [p.stride() for p in live.parameters()] == formats
    assert_equal(live(x), net(x, [1.0, 0.0]))
    live.to(torch.float32)
    live.set([0.3, 0.7])
    assert {p.dtype for p in live.parameters()} == {torch.float32}
    assert_equal(live(x.float()).double(), net(x, [0.3, 0.7]), 1e-4)
    assert {p.dtype for p in net.parameters()} == {DTYPE}  # the source network is not changed


def test_live_fold_keeps_ties_and_arguments():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x, scale=1):
            return scale * self.second(self.first(x))

    net = tunable_ops.convert(Twice().to(DTYPE), 2)
    perturb(net)
    live = tunable_ops.LiveFold(net)
    assert live.network.first.weight is live.network.second.weight
    live.set([0.3, 0.7])
    x = draw(2, 3)
    assert_equal(live(x, scale=2), net(x, [0.3, 0.7], 2))


def test_live_fold_under_no_grad_and_inference_mode():
    net, x = model(Picture), draw(2, 3, 8, 8)
    live = tunable_ops.LiveFold(net)
    with torch.inference_mode():
        live.set([0.3, 0.7])
        assert_equal(live(x), net(x, [0.3, 0.7]))
    live.set([0.6, 0.4])
    assert_equal(live(x), net(x, [0.6, 0.4]))
