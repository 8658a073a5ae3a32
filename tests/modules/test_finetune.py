"""load_plain, freeze_base, split_base, merge_base and optimizer_groups."""

import copy

import pytest
import torch
from torch import nn

import tunable_ops
from tests.modules.networks import DTYPE, Net, Picture, assert_equal, draw, perturb, plain_net, point
from tests.modules.test_convert import Tied

OPTIONS = {
    "simplex": {"num_params": 2},
    "identity": {"num_params": 3, "tuning": "identity"},
    "P4-p2": {"num_params": 2, "num_kernels": 4},
    "box": {"num_params": 2, "domain": "box"},
    "P4-p2-box": {"num_params": 2, "num_kernels": 4, "domain": "box"},
}


def model(kind=Net, domain="box", **options):
    net = tunable_ops.convert(plain_net(kind), 2, domain=domain, **options)
    perturb(net)
    return net


def stacks(net):
    """Return every stack by name, whole even if it is split."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


# load_plain


@pytest.mark.parametrize("kind", [Net, Picture])
@pytest.mark.parametrize("options", OPTIONS)
def test_load_plain_is_converting_the_network_with_these_weights(options, kind):
    torch.manual_seed(1)
    trained = plain_net(kind)
    perturb(trained)
    net, x = tunable_ops.convert(plain_net(kind), **OPTIONS[options]), draw(2, 3, 8, 8)
    state = trained.state_dict()
    tunable_ops.load_plain(net, state)
    for seed in range(2):
        lam = point(net.spec.domain, net.spec.num_params, seed=seed)
        assert_equal(net(x, lam), trained(x))
        assert_equal(tunable_ops.fold(net, lam)(x), trained(x))
    expected = tunable_ops.convert(trained, **OPTIONS[options]).state_dict()
    got = net.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in got if "tuning" not in name)
    assert not {v.data_ptr() for v in got.values()} & {v.data_ptr() for v in state.values()}


def test_load_plain_leaves_phi_alone_and_converts_dtypes():
    net = model(Picture)
    phi = {name: value.clone() for name, value in net.state_dict().items() if "tuning" in name}
    tunable_ops.load_plain(net, plain_net(Picture).float().state_dict())
    assert all(torch.equal(net.state_dict()[name], value) for name, value in phi.items())
    assert {p.dtype for p in net.parameters()} == {DTYPE}


def test_load_plain_into_a_split_model_and_a_partly_converted_one():
    plain, x = plain_net(), draw(2, 3, 8, 8)
    net = tunable_ops.convert(plain_net(), 2, domain="box", exclude=["head"])
    tunable_ops.freeze_base(net)
    tunable_ops.load_plain(net, plain.state_dict())
    assert_equal(net(x, [0.3, 0.9]), plain(x))


def test_load_plain_into_channels_last_and_ties():
    plain, x = plain_net(Picture), draw(2, 3, 8, 8)
    net = tunable_ops.convert(plain_net(Picture), 2).to(memory_format=torch.channels_last)
    strides = [p.stride() for p in net.parameters()]
    tunable_ops.load_plain(net, plain.state_dict())
    assert [p.stride() for p in net.parameters()] == strides
    assert_equal(net(x, [0.3, 0.7]), plain(x))
    torch.manual_seed(5)
    tied, x = Tied().to(DTYPE), draw(2, 3, 5, 5)
    net = tunable_ops.convert(Tied().to(DTYPE), 2, domain="box")
    tunable_ops.load_plain(net, tied.state_dict())
    assert_equal(net(x, [0.3, 0.7]), tied(x))


def test_load_plain_names_what_does_not_fit_and_loads_nothing():
    net = model()
    before = stacks(net)
    state = plain_net().state_dict()
    wrong = {
        "1 missing: head.weight": {k: v for k, v in state.items() if k != "head.weight"},
        "1 missing: gamma": {k: v for k, v in state.items() if k != "gamma"},
        "1 missing: blocks.0.norm.running_mean": {k: v for k, v in state.items() if k != "blocks.0.norm.running_mean"},
        "2 unexpected: extra, head.tuning.weight": {
            **state,
            "extra": torch.zeros(1),
            "head.tuning.weight": torch.eye(2),
        },
        "1 of another shape: tail.0.bias": {**state, "tail.0.bias": torch.zeros(5)},
        "1 of another shape: blocks.1.beta": {**state, "blocks.1.beta": torch.zeros(4)},
        f"{len(state)} missing: blocks.0.beta, blocks.0.conv1.bias, ": {},
    }
    for text, broken in wrong.items():
        with pytest.raises(ValueError, match=f"^load_plain: state must fit the plain network; got {text}"):
            tunable_ops.load_plain(net, broken)
    assert same(before, stacks(net))


def test_load_plain_refuses_other_types():
    with pytest.raises(TypeError, match=r"^load_plain: net must be a TunableModel; got Net"):
        tunable_ops.load_plain(plain_net(), {})
    for state in ("weights.pt", {"head.weight": 1}):
        with pytest.raises(TypeError, match=r"^load_plain: state must be a mapping of names to tensors; got"):
            tunable_ops.load_plain(model(), state)


# split_base, merge_base


def test_splitting_and_merging_change_no_value_and_no_name():
    net, x, lam = model(), draw(2, 3, 8, 8), point("box", 2, 2)
    expected, before, names = net(x, lam).detach(), stacks(net), [name for name, _ in net.named_parameters()]
    tunable_ops.split_base(net)
    assert_equal(net(x, lam), expected, 0)
    assert same(stacks(net), before)
    assert net.network.head.weight.shape == (3, 4, 3, 3, 3)
    split = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert split["network.head.parametrizations.weight.original0"] == (1, 4, 3, 3, 3)
    assert split["network.head.parametrizations.weight.original1"] == (2, 4, 3, 3, 3)
    tunable_ops.split_base(net)  # splitting again changes nothing
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == split
    tunable_ops.merge_base(net)
    assert_equal(net(x, lam), expected, 0)
    assert sorted(name for name, _ in net.named_parameters()) == sorted(names)
    assert same(stacks(net), before)
    assert type(net.network.head) is tunable_ops.TunableConv2d
    tunable_ops.merge_base(net)
    assert same(stacks(net), before)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
def test_split_kernels_keep_channels_last(kind):
    """Joined by torch.cat alone they became contiguous, which costs every call a change of layout."""
    layouts = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    net = tunable_ops.convert(nn.Sequential(kind(4, 5, 3)), 2, domain="box")
    net.to(memory_format=layouts[kind])
    (layer,) = net.layers
    strides = layer.stack("weight").stride()
    assert strides[2] == 1
    tunable_ops.split_base(net)
    assert layer.weight.stride() == net.state_dict()["network.0.weight"].stride() == strides
    assert all(part.stride()[2] == 1 for part in layer.parametrizations.weight.parameters())
    tunable_ops.merge_base(net)
    assert layer.weight.stride() == strides


@pytest.mark.parametrize(("source", "target"), [(False, True), (True, False), (True, True)])
def test_state_dicts_load_into_split_and_whole_models(source, target):
    first, second, x = model(), tunable_ops.convert(plain_net(), 2, domain="box"), draw(2, 3, 8, 8)
    for net, split in ((first, source), (second, target)):
        if split:
            tunable_ops.split_base(net)
    second.load_state_dict(first.state_dict())
    assert_equal(second(x, [0.3, 0.9]), first(x, [0.3, 0.9]), 0)
    inside = nn.ModuleDict({"model": second})  # a prefix, as wrappers for training add
    inside.load_state_dict(nn.ModuleDict({"model": first}).state_dict())
    assert set(inside.state_dict()) == {f"model.{name}" for name in first.state_dict()}
    with pytest.raises(RuntimeError, match="head"):
        second.load_state_dict({k: v for k, v in first.state_dict().items() if "head.weight" not in k})


def test_copies_of_a_split_model_stand_alone():
    """Deep copies share the class that torch makes for a split layer; merging one must not break the other."""
    net, x, lam = model(), draw(2, 3, 8, 8), [0.3, 0.9]
    tunable_ops.split_base(net)
    expected, before = net(x, lam).detach(), stacks(net)
    first, second = copy.deepcopy(net), copy.deepcopy(net)
    tunable_ops.merge_base(first)
    for each in (net, second, first):
        assert_equal(each(x, lam), expected, 0)
        assert same(stacks(each), before)
    tunable_ops.merge_base(net)
    tunable_ops.split_base(first)
    for each in (net, second, first):
        assert_equal(each(x, lam), expected, 0)
    perturb(second)
    assert_equal(net(x, lam), expected, 0)
    assert_equal(copy.deepcopy(first)(x, lam), expected, 0)
    assert_equal(tunable_ops.fold(second, lam)(x), second(x, lam))


def test_splitting_keeps_ties():
    plain, x = Tied().to(DTYPE), draw(2, 3, 5, 5)
    net = tunable_ops.convert(plain, 2, domain="box")
    perturb(net)
    expected, count = net(x, [0.3, 0.9]).detach(), len(list(net.parameters()))
    tunable_ops.split_base(net)
    inner = net.network
    for a, b, name in (("first", "second", "weight"), ("first", "third", "bias"), ("fourth", "fifth", "weight")):
        for part in ("original0", "original1"):
            lists = [getattr(inner, layer).parametrizations[name] for layer in (a, b)]
            assert getattr(lists[0], part) is getattr(lists[1], part)
    assert inner.parametrizations.beta.original1 is inner.child.parametrizations.beta.original1
    assert_equal(net(x, [0.3, 0.9]), expected, 0)
    perturb(net)
    moved = net(x, [0.3, 0.9]).detach()
    assert_equal(tunable_ops.fold(net, [0.3, 0.9])(x), moved)
    tunable_ops.merge_base(net)
    assert inner.first.weight is inner.second.weight
    assert inner.first.bias is inner.third.bias
    assert inner.parametrizations.beta.original is inner.child.parametrizations.beta.original
    assert len(list(net.parameters())) == count
    assert_equal(net(x, [0.3, 0.9]), moved, 0)


def test_splitting_keeps_requires_grad():
    net = model()
    net.requires_grad_(False)
    net.network.head.requires_grad_(True)
    before = [p.requires_grad for p in net.parameters()]
    tunable_ops.split_base(net)
    trainable = sorted(name for name, p in net.named_parameters() if p.requires_grad)
    assert trainable == sorted(
        f"network.head.{name}"
        for name in (
            *[f"parametrizations.{kind}.original{i}" for kind in ("weight", "bias") for i in range(2)],
            "tuning.weight",
            "tuning.bias",
        )
    )
    tunable_ops.merge_base(net)
    assert sorted(p.requires_grad for p in net.parameters()) == sorted(before)
    assert net.network.head.weight.requires_grad
    assert not net.network.tail[0].weight.requires_grad
    assert isinstance(net.network.tail[0].weight, nn.Parameter)


def test_gradients_of_split_stacks():
    net, x, lam = model(), draw(2, 3, 8, 8), point("box", 2, 2)
    net(x, lam).square().sum().backward()
    whole = net.network.head.weight.grad
    tunable_ops.split_base(net)
    net(x, lam).square().sum().backward()
    parts = net.network.head.parametrizations.weight
    assert_equal(torch.cat([parts.original0.grad, parts.original1.grad]), whole)


def test_channels_last_of_a_split_model():
    net, x, lam = model(Picture), draw(2, 3, 8, 8), [0.3, 0.9]
    expected = net(x, lam)
    tunable_ops.split_base(net)
    net.to(memory_format=torch.channels_last)
    out = net(x.to(memory_format=torch.channels_last), lam)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_equal(out, expected)
    tunable_ops.merge_base(net)
    assert_equal(net(x, lam), expected)


def test_on_the_simplex_there_is_no_base():
    for call in (
        tunable_ops.split_base,
        tunable_ops.freeze_base,
        lambda net: tunable_ops.optimizer_groups(net, base={}),
    ):
        with pytest.raises(ValueError, match=r"^split_base: net must be on the box; got domain 'simplex'"):
            call(model(domain="simplex"))
    for call in (tunable_ops.split_base, tunable_ops.merge_base, tunable_ops.freeze_base, tunable_ops.optimizer_groups):
        with pytest.raises(TypeError, match=r": net must be a TunableModel; got Net"):
            call(plain_net())


# freeze_base


def base_kernels(net):
    return {name: value[:1].clone() for name, value in stacks(net).items() if value.dim() and "tuning" not in name}


@pytest.mark.parametrize("whole", [True, False])
def test_a_frozen_base_does_not_move_under_weight_decay(whole):
    """A zero gradient would not be enough: AdamW decays parameters that have one and applies their momentum."""
    net, x = model(Picture), draw(2, 3, 8, 8)
    tunable_ops.freeze_base(net)
    before, base = stacks(net), base_kernels(net)
    groups = net.parameters() if whole else tunable_ops.optimizer_groups(net)
    optimiser = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    for seed in range(3):
        optimiser.zero_grad()
        net(x, point("box", 2, seed=seed)).square().sum().backward()
        optimiser.step()
    after = stacks(net)
    assert all(torch.equal(value, base_kernels(net)[name]) for name, value in base.items())
    for name, value in after.items():
        assert not torch.equal(value, before[name]), f"{name} did not train"


def test_at_the_origin_a_frozen_model_is_the_plain_network():
    plain, x = plain_net(Picture), draw(2, 3, 8, 8)
    net = tunable_ops.convert(plain, 2, domain="box")
    tunable_ops.freeze_base(net)
    optimiser = torch.optim.AdamW((p for n, p in net.named_parameters() if not n.endswith("tuning.bias")), 0.1)
    for seed in range(3):
        net(x, point("box", 2, seed=seed)).square().sum().backward()
        optimiser.step()
    assert_equal(net(x, [0.0, 0.0]), plain(x))
    assert not torch.allclose(net(x, [1.0, 0.0]), plain(x))


def test_unfreezing():
    net = model(Picture)
    tunable_ops.freeze_base(net)
    assert not net.network.head.parametrizations.weight.original0.requires_grad
    assert net.network.head.parametrizations.weight.original1.requires_grad
    tunable_ops.freeze_base(net, frozen=False)
    assert all(p.requires_grad for p in net.parameters())
    tunable_ops.freeze_base(net)
    tunable_ops.merge_base(net)
    assert all(p.requires_grad for p in net.parameters())


# optimizer_groups


@pytest.mark.parametrize("base", [None, {"lr": 1e-3}])
@pytest.mark.parametrize("kind", [Net, Picture, Tied])
def test_groups_hold_every_parameter_once(kind, base):
    plain = Tied().to(DTYPE) if kind is Tied else plain_net(kind)
    net = tunable_ops.convert(plain, 2, domain="box")
    perturb(net)
    options = {"new": {"lr": 0.1}, "phi": {"lr": 0.01, "weight_decay": 0.0}, "rest": {"lr": 0.2}}
    groups = tunable_ops.optimizer_groups(net, base=base, **options)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in net.parameters()}
    by_name = {group["name"]: group for group in groups}
    assert list(by_name) == (["base"] if base else []) + ["new", "phi"] + (["rest"] if kind is Net else [])
    for name, wanted in {**options, "base": base or {}}.items():
        if name in by_name:
            assert {key: by_name[name][key] for key in wanted} == wanted
    phi = {id(p) for layer in net.layers for p in layer.tuning.parameters()}
    assert {id(p) for p in by_name["phi"]["params"]} == phi
    if base:
        assert all(p.shape[0] == 1 for p in by_name["base"]["params"])
        assert all(p.shape[0] == 2 for p in by_name["new"]["params"])
    if kind is Net:
        norms = {id(p) for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        assert {id(p) for p in by_name["rest"]["params"]} == norms
    before = stacks(net)
    optimiser = torch.optim.AdamW(groups, lr=1e-4)
    x = draw(2, 3, 8, 8)
    net(x, point("box", 2, 2)).square().sum().backward()
    optimiser.step()
    assert [
        name for name, value in stacks(net).items() if torch.equal(value, before[name]) and "norm" not in name
    ] == []


def test_groups_on_the_simplex_and_without_phi():
    groups = tunable_ops.optimizer_groups(model(Picture, "simplex"))
    assert [group["name"] for group in groups] == ["new", "phi"]
    net = tunable_ops.convert(plain_net(Picture), 2, tuning="identity")
    groups = tunable_ops.optimizer_groups(net, new={"lr": 0.1})
    assert [(group["name"], group["lr"]) for group in groups] == [("new", 0.1)]


def test_groups_leave_out_what_is_frozen():
    net = model()
    tunable_ops.freeze_base(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    groups = tunable_ops.optimizer_groups(net)
    assert [group["name"] for group in groups] == ["new", "phi"]
    assert all(p.requires_grad for group in groups for p in group["params"])


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("key", ["params_ema", "params", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.module."])
def test_load_plain_takes_checkpoints_and_prefixed_names(key, prefix):
    net, other = model(), plain_net(Net)
    perturb(other)
    checkpoint = {"epoch": 3, "optimizer": {"state": {}}, key: prefixed(prefix, other.state_dict())}
    wanted = model()
    for target, state in ((wanted, other.state_dict()), (net, checkpoint)):
        tunable_ops.load_plain(target, state)
    assert same(stacks(net), stacks(wanted))


def test_load_plain_takes_the_average_over_training_first():
    net, other, average, wanted = model(), plain_net(), plain_net(), model()
    perturb(average, seed=1)
    tunable_ops.load_plain(net, {"params": other.state_dict(), "params_ema": average.state_dict()})
    tunable_ops.load_plain(wanted, average.state_dict())
    assert same(stacks(net), stacks(wanted))


def test_load_plain_leaves_prefixes_of_the_networks_own():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Conv2d(3, 3, 1)

    plain = Wrapped()
    for prefix in ("", "model.", "module."):
        net = tunable_ops.convert(plain, 2)
        with torch.no_grad():
            net.network.model.weight.zero_()
        tunable_ops.load_plain(net, prefixed(prefix, plain.state_dict()))
        assert torch.equal(net.network.model.weight[1], plain.model.weight)


def test_load_plain_names_what_a_checkpoint_holds_instead():
    for state, got in (
        ({"weights": {}, "epoch": 3}, "dict with a dict at 'weights'"),
        ({"model": plain_net()}, "dict with a Net at 'model'"),
        ({"params": {"head.weight": [1]}}, "dict with a list at 'head.weight'"),
    ):
        with pytest.raises(TypeError, match=f"got {got}. A checkpoint may hold it under params_ema, "):
            tunable_ops.load_plain(model(), state)
    state = {**prefixed("model.", plain_net().state_dict()), "loss.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.beta, "):
        tunable_ops.load_plain(model(), {"state_dict": state})
