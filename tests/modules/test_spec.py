"""LambdaSpec: defaults, checks, membership, dictionaries and errors."""

import json
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import tunable_ops
from tunable_ops import LambdaSpec
from tunable_ops.modules.spec import lambda_warnings_off


def test_what_is_not_given_is_filled_in():
    spec = LambdaSpec.create(3)
    assert spec.names == ("lambda0", "lambda1", "lambda2")
    assert spec.ranges == ((0.0, 1.0),) * 3
    assert spec.defaults == pytest.approx((1 / 3,) * 3)
    assert spec.domain == "simplex"
    assert spec.num_params == 3
    box = LambdaSpec.create(2, "box")
    assert box.defaults == (0.0, 0.0)
    assert LambdaSpec.create(2, "box", ranges=[(1, 2), (-3, -1)]).defaults == (1.0, -1.0)  # nearest to 0


def test_what_is_given_is_kept():
    spec = LambdaSpec.create(2, "box", ["noise", "blur"], [[0, 2], (0.5, 1)], torch.tensor([1.0, 0.75]))
    assert spec == LambdaSpec(("noise", "blur"), ((0.0, 2.0), (0.5, 1.0)), (1.0, 0.75), "box")
    with pytest.raises(AttributeError):
        spec.domain = "simplex"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_params": 0}, ValueError, "num_params must be a positive int; got 0"),
        ({"num_params": True}, ValueError, "num_params must be a positive int; got True"),
        ({"num_params": 2.0}, ValueError, "num_params must be a positive int; got 2.0"),
        ({"domain": "ball"}, ValueError, r"domain must be one of \('simplex', 'box'\); got 'ball'"),
        ({"names": ["a"]}, ValueError, r"names must hold one name per parameter, 2; got \('a',\)"),
        ({"names": ["a", "a"]}, ValueError, r"names must differ from each other; got \('a', 'a'\)"),
        ({"names": "ab"}, TypeError, "names must be a sequence of strings; got 'ab'"),
        ({"names": [1, 2]}, TypeError, r"names must be a sequence of strings; got \[1, 2\]"),
        ({"ranges": [(0, 1)]}, ValueError, r"ranges must hold one entry per name, 2; got \(\(0.0, 1.0\),\)"),
        ({"ranges": [(0, 1), (1, 1)]}, ValueError, r"ranges must be finite .* low < high; got \(1.0, 1.0\)"),
        ({"ranges": [(0, 1), (2, 1)]}, ValueError, r"ranges must be finite .* low < high; got \(2.0, 1.0\)"),
        ({"ranges": [(0, 1), (0, math.nan)]}, ValueError, r"ranges must be finite .* low < high; got \(0.0, nan\)"),
        ({"ranges": [(0, 1), (0, math.inf)]}, ValueError, r"ranges must be finite .* low < high; got \(0.0, inf\)"),
        ({"ranges": [(0, 1), (0, 1, 2)]}, TypeError, r"ranges must be pairs \(low, high\) of numbers; got"),
        ({"ranges": [0, 1]}, TypeError, r"ranges must be pairs \(low, high\) of numbers; got \[0, 1\]"),
        ({"ranges": [("a", "b"), (0, 1)]}, TypeError, r"ranges must be pairs \(low, high\) of numbers; got"),
        ({"defaults": [0.5]}, ValueError, r"defaults must hold one entry per name, 2; got \(0.5,\)"),
        ({"defaults": [0.5, math.nan]}, ValueError, r"defaults must be finite; got \(0.5, nan\)"),
        ({"defaults": ["a", 0.5]}, TypeError, r"defaults must be numbers; got \['a', 0.5\]"),
        ({"defaults": 0.5}, TypeError, "defaults must be numbers; got 0.5"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=f"^LambdaSpec: {text}"):
        LambdaSpec.create(**{"num_params": 2, **arguments})


def test_no_names():
    with pytest.raises(ValueError, match=r"^LambdaSpec: names must hold at least one name; got \(\)"):
        LambdaSpec((), (), ())


def test_check_returns_a_tensor():
    spec = LambdaSpec.create(2)
    assert spec.check([0, 1]).dtype == torch.float32
    for shape in [(2,), (1, 2), (5, 2), (0, 2), (3, 2, 4, 4)]:
        assert spec.check(torch.zeros(shape)).shape == shape
    lam = torch.zeros(2, requires_grad=True)
    assert spec.check(lam) is lam
    double = torch.zeros(2, dtype=torch.float64)
    assert spec.check(double, like=torch.zeros(1)).dtype == torch.float32
    assert spec.check(double, like=double).dtype == torch.float64
    assert spec.check([0.3, 0.7], like=double).tolist() == [0.3, 0.7]  # not rounded to fp32
    assert spec.check([0.3, 0.7], like=torch.zeros(1, device="meta")).device.type == "meta"


def test_values_outside_of_the_range_extrapolate():
    assert LambdaSpec.create(2).check([-1.0, 3.0]).tolist() == [-1.0, 3.0]


@pytest.mark.parametrize(
    ("lam", "error", "text"),
    [
        ([0.5], ValueError, r"lam must hold p = 2 values, \[p\], \[B, p\] or a map \[B, p, H, W\]; got shape \[1\]"),
        (torch.zeros(2, 3), ValueError, r"lam must hold p = 2 values.*got shape \[2, 3\]"),
        (torch.zeros(2, 3, 2, 2), ValueError, r"lam must hold p = 2 values.*got shape \[2, 3, 2, 2\]"),
        (0.5, ValueError, r"lam must hold p = 2 values.*got shape \[\]"),
        ([0.5, math.nan], ValueError, r"lam must be finite; got \[0.5, nan\]"),
        ("ab", TypeError, "lam must be numbers or a Tensor; got 'ab'"),
        (torch.tensor([1, 0]), TypeError, "lam must be floating point; got torch.int64"),
    ],
    ids=lambda v: str(v)[:40].replace("\n", ""),
)
def test_check_refuses(lam, error, text):
    spec = LambdaSpec.create(2)
    for call in (spec.check, spec.contains):
        with pytest.raises(error, match=f"^lambda: {text}"):
            call(lam)


def test_contains_on_the_simplex():
    spec = LambdaSpec.create(2)
    assert spec.contains([0.3, 0.7])
    assert spec.contains([[0.3, 0.7], [1.0, 0.0]])
    assert not spec.contains([0.3, 0.6])
    assert not spec.contains([1.2, -0.2])
    assert not spec.contains([[0.3, 0.7], [0.3, 0.6]])


def test_contains_on_the_box():
    spec = LambdaSpec.create(2, "box", ranges=[(0, 2), (-1, 1)])
    assert spec.contains([2.0, -1.0])
    assert not spec.contains([2.1, 0.0])
    assert not spec.contains([-1.0, 2.0])


def test_contains_a_map():
    """The parameters are the second dimension, not the last."""
    spec = LambdaSpec.create(2, "box", ranges=[(0, 1), (5, 6)])
    lam = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 5.5)], 1)
    assert spec.contains(lam)
    lam[1, 1, 2, 3] = 7
    assert not spec.contains(lam)


@pytest.mark.parametrize("domain", ["simplex", "box"])
def test_dictionaries_round_trip_through_json(domain):
    spec = LambdaSpec.create(2, domain, ["noise", "blur"], [(0, 2), (0.5, 1)], [1, 0.75])
    again = LambdaSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)


def test_dictionaries_that_lack_something():
    values = LambdaSpec.create(2).to_dict()
    del values["ranges"], values["domain"]
    with pytest.raises(
        ValueError, match=r"^LambdaSpec: values must hold \['domain', 'ranges'\]; got only \['defaults'"
    ):
        LambdaSpec.from_dict(values)


def test_the_spec_travels_with_the_model():
    net = tunable_ops.convert(torch.nn.Linear(3, 3), 2, names=["a", "b"], defaults=[0.25, 0.75])
    assert net.spec == LambdaSpec(("a", "b"), ((0.0, 1.0),) * 2, (0.25, 0.75), "simplex")


def test_warnings_are_off_in_one_thread_alone():
    spec = LambdaSpec.create(1, "box", ("noise",))
    with pytest.warns(tunable_ops.LambdaWarning), lambda_warnings_off(), ThreadPoolExecutor(1) as pool:
        pool.submit(spec.check, 2.0, warn=True).result()
    with warnings.catch_warnings(), lambda_warnings_off():
        warnings.simplefilter("error")
        spec.check(2.0, warn=True)
    with pytest.warns(tunable_ops.LambdaWarning, match="noise = 2 is outside the range"):
        spec.check(2.0, warn=True)
