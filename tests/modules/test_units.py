"""Lambda in its units: scales, every form that it may be given in, and what is outside the domain."""

import math
import warnings

import pytest
import torch
from torch import nn

import tunable_ops
from tunable_ops import LambdaSpec, LambdaWarning, LiveFold, fold
from tunable_ops.modules.read_lambda import read_lambda


def knob(**options):
    """A small converted network in evaluation mode whose kernels differ, with a knob in units of its own."""
    torch.manual_seed(0)
    net = tunable_ops.convert(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)), **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return net.eval()


def sigma(**options):
    return knob(**{"num_params": 1, "domain": "box", "names": ["sigma"], "ranges": [(0, 50)], "defaults": [25],
                   "units": ["of 255"], **options})  # fmt: skip


def two(**options):
    return knob(**{"num_params": 2, "domain": "box", "names": ["sigma", "blur"], "ranges": [(0, 50), (0, 2)],
                   "defaults": [25, 1], "units": ["of 255", "pixels"], **options})  # fmt: skip


def simplex(p=3):
    return knob(num_params=p, names=["a", "b", "c"][:p], defaults=[0.5, 0.3, 0.2][:p] if p == 3 else None)


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("ranges", "scales"),
    [([(0, 50)], (50.0,)), ([(0, 1)], (1.0,)), ([(-1, 1)], (1.0,)), ([(-4, 2)], (4.0,)), ([(5, 6)], (6.0,))],
)
def test_on_the_box_the_scale_is_the_largest_end(ranges, scales):
    assert LambdaSpec.create(1, "box", ranges=ranges).scales == scales


def test_on_the_simplex_scales_are_one():
    assert LambdaSpec.create(2, ranges=[(0, 1), (0, 2)]).scales == (1.0, 1.0)
    assert LambdaSpec.create(2).units == ("", "")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"units": "px"}, TypeError, "units must be a sequence of strings; got 'px'"),
        ({"units": [1, 2]}, TypeError, r"units must be a sequence of strings; got \[1, 2\]"),
        ({"units": ["px"]}, ValueError, r"units must hold one unit per parameter, 2; got \('px',\)"),
        ({"scales": [1]}, ValueError, r"scales must hold one entry per name, 2; got \(1.0,\)"),
        ({"scales": [1, 0]}, ValueError, r"scales must be positive and finite; got \(1.0, 0.0\)"),
        ({"scales": [1, math.inf]}, ValueError, r"scales must be positive and finite; got \(1.0, inf\)"),
        ({"scales": [2, 2], "domain": "simplex"}, ValueError, r"scales must be 1 on the simplex; got \(2.0, 2.0\)"),
    ],
)
def test_bad_units_and_scales(arguments, error, text):
    with pytest.raises(error, match=f"^LambdaSpec: {text}"):
        LambdaSpec.create(**{"num_params": 2, "domain": "box", **arguments})


def test_dictionaries_of_files_from_before_have_the_scale_one():
    values = LambdaSpec.create(1, "box", ["sigma"], [(0, 50)], [25], ["of 255"]).to_dict()
    assert (values["units"], values["scales"]) == (("of 255",), (50.0,))
    assert LambdaSpec.from_dict(values).scales == (50.0,)
    del values["units"], values["scales"]
    old = LambdaSpec.from_dict(values)
    assert (old.units, old.scales) == (("",), (1.0,))


def test_phi_gets_normalised_numbers(x):
    """A knob from 0 to 50 at 25 is one from 0 to 1 at 0.5."""
    net, plain = two(), two(ranges=None, defaults=[0, 0], units=None)
    for lam, unit in [([25.0, 0.5], [0.5, 0.25]), ([[0.0, 2.0], [50.0, 1.0]], [[0.0, 1.0], [1.0, 0.5]])]:
        assert torch.equal(net(x, lam), plain(x, unit))
        assert torch.equal(net(x, torch.tensor(lam)), plain(x, unit))
    field = torch.rand(2, 2, 6, 5)
    scale = torch.tensor([50.0, 2.0]).view(2, 1, 1)
    torch.testing.assert_close(net(x, field * scale), plain(x, field))


def test_a_layer_takes_what_phi_gets(x):
    net = sigma()
    layer = net.network[0]
    torch.testing.assert_close(layer(x, [0.5]), fold(net, [25.0])[0](x))
    assert torch.equal(layer(x, 0.5), layer(x, [0.5]))


ONE = [25.0, 25, [25.0], (25,), {"sigma": 25}, {"sigma": 25.0}, torch.tensor(25.0), torch.tensor([25.0]),
       torch.tensor([[25.0]]), {"sigma": torch.tensor(25.0)}, {"sigma": torch.tensor([25.0])}, None, {},
       torch.tensor([25.0], dtype=torch.float64)]  # fmt: skip


@pytest.mark.parametrize("lam", ONE, ids=str)
def test_every_form_of_one_knob(lam, x):
    net = sigma()
    want = net(x, torch.tensor([25.0]))
    assert torch.equal(net(x, lam), want)
    assert torch.equal(fold(net, lam)(x), fold(net, [25.0])(x))
    live = LiveFold(net, [3.0])
    live.set(lam)
    assert live.lam.tolist() == [25.0]
    assert torch.equal(live(x), fold(net, [25.0])(x))


def test_left_out_is_the_defaults(x):
    net = two()
    want = net(x, [25.0, 1.0])
    assert torch.equal(net(x), want)
    assert torch.equal(net(x, {"blur": 1}), want)
    assert torch.equal(LiveFold(net)(x), fold(net)(x))
    assert torch.equal(net(x, {"blur": 0.5}), net(x, [25.0, 0.5]))


def test_on_the_simplex_names_left_out_share_the_rest(x):
    net = simplex()
    assert net.spec.fill({"a": 0.5}) == (0.5, 0.3, 0.2)
    assert net.spec.fill({"a": 0.0}) == pytest.approx((0, 0.6, 0.4))
    assert torch.equal(net(x, {"a": 0.0}), net(x, [0.0, 0.6, 0.4]))
    each = net(x, {"a": torch.tensor([0.0, 1.0])})
    torch.testing.assert_close(each, net(x, [[0.0, 0.6, 0.4], [1.0, 0.0, 0.0]]))


def test_names_with_tensors(x):
    net = two()
    each = torch.tensor([10.0, 40.0])
    torch.testing.assert_close(net(x, {"sigma": each}), net(x, [[10.0, 1.0], [40.0, 1.0]]))
    field = 50 * torch.rand(2, 6, 5)
    want = net(x, torch.stack([field, torch.full_like(field, 0.5)], 1))
    torch.testing.assert_close(net(x, {"sigma": field, "blur": 0.5}), want)
    torch.testing.assert_close(net(x, {"sigma": field, "blur": torch.tensor([0.5, 0.5])}), want)
    grad = each.clone().requires_grad_()
    net(x, {"sigma": grad}).sum().backward()
    assert grad.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("lam", "error", "text"),
    [
        ({"sigm": 1}, ValueError, r"lam must name parameters of the network \(sigma, blur\); got 'sigm'; did you mean "
         "'sigma'"),
        ({3: 1}, ValueError, r"lam must name parameters of the network \(sigma, blur\); got 3$"),
        ({"sigma": "a"}, TypeError, "lam must hold numbers or tensors; got 'a' for 'sigma'"),
        ({"sigma": torch.tensor([1, 2])}, TypeError, "lam must be floating point; got torch.int64"),
        ({"sigma": math.nan}, ValueError, "lam must be finite; got"),
        ({"sigma": torch.zeros(2), "blur": torch.zeros(3)}, ValueError,
         r"lam must hold numbers, tensors \[B\] or maps of one size; got \[2\], \[3\]"),
        (25.0, ValueError, r"lam must hold p = 2 values, .*; got shape \[\]"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_bad_forms(lam, error, text, x):
    with pytest.raises(error, match=f"^lambda: {text}"):
        two()(x, lam)
    with pytest.raises(error, match=f"^fold: {text}"):
        fold(two(), lam)


OUTSIDE = [
    (two, [60.0, 1.0], "sigma = 60 of 255 is outside the range 0..50 of the training"),
    (two, torch.tensor([60.0, 1.0]), "sigma = 60 of 255 is outside"),
    (two, torch.tensor([[5.0, 1.0], [6.0, -1.0]]), "blur = -1 pixels is outside the range 0..2 of"),
    (two, {"blur": 2.5}, "blur = 2.5 pixels is outside"),
    (two, torch.full((2, 2, 6, 5), 3.0), "blur = 3 pixels is outside"),
    (simplex, [0.3, 0.3, 0.3], r"lambda must sum to 1 \(a, b, c\); got a sum of 0.9"),
    (simplex, torch.full((2, 3, 6, 5), 0.5), r"lambda must sum to 1 \(a, b, c\); got a sum of 1.5"),
    (simplex, [1.5, -0.5, 0.0], "a = 1.5 is outside the range 0..1 of"),
]


@pytest.mark.parametrize(("make", "lam", "text"), OUTSIDE, ids=lambda v: getattr(v, "__name__", str(v)[:24]))
def test_what_is_outside_warns(make, lam, text, x):
    with pytest.warns(LambdaWarning, match=text) as caught:
        make()(x, lam)
    assert {warning.filename for warning in caught} == {__file__}  # the caller's line, not one of torch's
    if not (isinstance(lam, torch.Tensor) and lam.dim() > 1):
        with pytest.warns(LambdaWarning, match=text):
            fold(make(), lam)
        with pytest.warns(LambdaWarning, match=text):
            LiveFold(make()).set(lam)


def silent(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


def test_what_is_inside_does_not_warn(x):
    net = simplex(3)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for lam in ([0.3, 0.3, 0.4], [1.0, 0.0, 0.0], [0.1, 0.2, 0.7]):
            silent(lambda lam=lam, dtype=dtype: net(x, torch.tensor(lam, dtype=dtype)))
    silent(lambda: net(x, torch.rand(2, 3, 6, 5).softmax(1)))
    silent(lambda: two()(x, [50.0, 2.0]))


def test_training_and_gradients_do_not_warn(x):
    net = two()
    far = torch.tensor([60.0, 1.0])
    silent(lambda: net(x, far.clone().requires_grad_()))
    net.train()
    silent(lambda: net(x, far))
    with pytest.warns(LambdaWarning, match="sigma = 60"):
        net(x, [60.0, 1.0])  # numbers come from a person


def test_transforms_do_not_warn(x):
    net = two()
    silent(lambda: torch.func.grad(lambda lam: net(x, lam).sum())(torch.tensor([60.0, 1.0])))


def test_each_message_is_given_once(x):
    net = two()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for value in (60.0, 60.0, 70.0):
            net(x, [value, 1.0])
    assert [str(warning.message)[:10] for warning in caught] == ["sigma = 60", "sigma = 70"]


def test_conversions_and_checkpoints_keep_units(tmp_path, x):
    from tunable_ops import models, serialization

    arguments = {"features": 4, "depth": 3}
    torch.manual_seed(0)
    net = tunable_ops.convert(models.build("dncnn", **arguments), 1, domain="box", ranges=[(0, 50)], units=["of 255"])
    assert net.conversion["units"] == ["of 255"]
    serialization.save(net.eval(), tmp_path / "net.safetensors", architecture="dncnn", arguments=arguments)
    again = serialization.load(tmp_path / "net.safetensors")
    assert again.spec == net.spec
    assert torch.equal(again(x, 20), net(x, 20))


def test_a_read_number_stays_what_it_is():
    assert read_lambda("layer", 0.5, 1).tolist() == [0.5]
    with pytest.raises(ValueError, match=r"^layer: lam must hold p = 2 values"):
        read_lambda("layer", 0.5, 2)


@pytest.mark.parametrize("value", ["25", None, [1.0, 2.0]])
@pytest.mark.parametrize("domain", ["box", "simplex"])
def test_named_values_that_are_no_numbers(domain, value):
    """On the simplex, where the others share the rest of 1, Python's own error of a sum came out."""
    spec = LambdaSpec.create(3, domain)
    with pytest.raises(TypeError, match=r"^net: lam must hold numbers or tensors; got .* for 'lambda1'"):
        spec.check({"lambda1": value}, op="net")


def test_lists_of_tensors_keep_gradients():
    """torch.as_tensor reads them as numbers: the gradient of lambda was lost."""
    net, x = two(), torch.randn(2, 3, 6, 6)
    sigma, other = torch.tensor(20.0, requires_grad=True), torch.tensor(1.0)
    net(x, [sigma, other]).sum().backward()
    wanted = torch.tensor([20.0, 1.0], requires_grad=True)
    net(x, wanted).sum().backward()
    torch.testing.assert_close(sigma.grad, wanted.grad[0])
    rows = [wanted.detach(), wanted.detach() / 2]
    torch.testing.assert_close(net(x, rows), net(x, torch.stack(rows)))


def test_a_large_map_with_nan_gives_a_short_message():
    with pytest.raises(
        ValueError, match=r"must be finite; got NaN or infinity among the values of shape \[1, 2, 9, 9\]$"
    ):
        LambdaSpec.create(2).check(torch.full((1, 2, 9, 9), math.nan))
