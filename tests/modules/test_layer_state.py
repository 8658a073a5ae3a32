"""Layers: initialisation, repr, copies, state, changes of dtype, format and device, and bad arguments."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import tunable_ops
from tests.modules.networks import DTYPE, assert_equal, draw, perturb, point
from tunable_ops.modules import Tuning, tunable_conv

LAYERS = {
    "conv1d": (lambda **k: tunable_ops.TunableConv1d(4, 6, 3, **k), (2, 4, 9)),
    "conv2d": (lambda **k: tunable_ops.TunableConv2d(4, 6, 3, **k), (2, 4, 9, 8)),
    "conv3d": (lambda **k: tunable_ops.TunableConv3d(4, 6, 3, **k), (2, 4, 5, 6, 7)),
    "transposed": (lambda **k: tunable_ops.TunableConvTranspose2d(4, 6, 3, **k), (2, 4, 5, 7)),
    "linear": (lambda **k: tunable_ops.TunableLinear(4, 6, **k), (2, 3, 4)),
}


@pytest.mark.parametrize(
    ("tunable", "plain"),
    [
        (tunable_ops.TunableConv2d(64, 96, 3, num_params=3), nn.Conv2d(64, 96, 3)),
        (tunable_ops.TunableConv2d(64, 64, 5, groups=16, num_params=2), nn.Conv2d(64, 64, 5, groups=16)),
        (tunable_ops.TunableConv1d(96, 128, 5, num_params=2, domain="box"), nn.Conv1d(96, 128, 5)),
        (tunable_ops.TunableConv3d(16, 32, 3, num_params=2), nn.Conv3d(16, 32, 3)),
        (tunable_ops.TunableConvTranspose2d(64, 32, 4, num_params=2), nn.ConvTranspose2d(64, 32, 4)),
        (tunable_ops.TunableLinear(128, 256, num_params=4), nn.Linear(128, 256)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_every_kernel_starts_as_torchs_layer_does(tunable, plain):
    """With the fan-in of the whole stack, weights would be too small by sqrt(P*O)."""
    for name in ("weight", "bias"):
        stack, one = getattr(tunable, name), getattr(plain, name)
        bound = one.abs().max().item()  # both are uniform in +-1/sqrt(fan-in)
        for kernel in stack:
            slack = 5 / math.sqrt(kernel.numel())
            assert kernel.std().item() == pytest.approx(one.std().item(), rel=slack)
            assert kernel.abs().max().item() == pytest.approx(bound, rel=slack)
        for a in range(len(stack)):
            for b in range(a):
                assert not torch.equal(stack[a], stack[b])


def test_kernels_start_as_torchs_layer_does_to_the_bit():
    torch.manual_seed(3)
    layer = tunable_ops.TunableConv2d(4, 6, 3, num_params=2, tuning="identity")
    layer.reset_parameters()
    torch.manual_seed(3)
    tunable_ops.TunableConv2d(4, 6, 3, num_params=2, tuning="identity")
    plain = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    assert all(torch.equal(layer.weight[p], plain[p].weight) for p in range(2))
    assert all(torch.equal(layer.bias[p], plain[p].bias) for p in range(2))


def test_phi_starts_as_the_identity_where_it_fits():
    tuning = Tuning(3)
    assert torch.equal(tuning.weight, torch.eye(3))
    assert torch.equal(tuning.bias, torch.zeros(3))
    box = Tuning(3, domain="box")
    assert box.num_kernels == 4
    assert torch.equal(box.weight, torch.eye(3))
    assert_equal(box(torch.tensor([0.2, 0.4, 0.9])), torch.tensor([1.0, 0.2, 0.4, 0.9]))


@pytest.mark.parametrize(("p", "kernels"), [(2, 3), (3, 2), (2, 1), (1, 4)])
def test_phi_starts_with_columns_that_sum_to_one(p, kernels):
    tuning = Tuning(p, kernels)
    assert tuning.weight.shape == (kernels, p)
    assert_equal(tuning.weight.sum(0), torch.ones(p), 1e-6)
    assert torch.equal(tuning.bias, torch.zeros(kernels))
    assert_equal(tuning(point("simplex", p).float()).sum(), torch.tensor(1.0), 1e-6)
    if kernels > 1:
        assert (tuning.weight.diff(dim=0).abs() > 1e-4).all(), "kernels that start alike stay alike"


def test_the_constant_of_the_box_is_not_trained():
    layer = tunable_ops.TunableConv2d(2, 3, 3, num_params=2, domain="box")
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (3, 3, 2, 3, 3),
        "bias": (3, 3),
        "tuning.weight": (2, 2),
        "tuning.bias": (2,),
    }
    perturb(layer)
    assert layer.tuning(torch.rand(5, 2))[:, 0].tolist() == [1.0] * 5


def test_identity_has_no_parameters():
    tuning = Tuning(3, tuning="identity")
    assert not list(tuning.parameters())
    lam = torch.rand(4, 3)
    assert torch.equal(tuning(lam), lam)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            tunable_ops.TunableConv2d(4, 6, (3, 1), stride=2, padding=1, num_params=2),
            "TunableConv2d(\n  4, 6, kernel_size=(3, 1), stride=(2, 2), padding=(1, 1), num_kernels=2\n"
            "  (tuning): Tuning(2, 2, tuning='affine', domain='simplex')\n)",
        ),
        (
            tunable_ops.TunableConv1d(
                4, 6, 3, padding="same", dilation=2, groups=2, bias=False, padding_mode="reflect", num_params=3
            ),
            "TunableConv1d(\n  4, 6, kernel_size=(3,), stride=(1,), padding='same', dilation=(2,), groups=2, "
            "bias=False, padding_mode='reflect', num_kernels=3\n"
            "  (tuning): Tuning(3, 3, tuning='affine', domain='simplex')\n)",
        ),
        (
            tunable_ops.TunableConvTranspose2d(4, 6, 3, stride=2, output_padding=1, num_params=2, domain="box"),
            "TunableConvTranspose2d(\n  4, 6, kernel_size=(3, 3), stride=(2, 2), output_padding=(1, 1), num_kernels=3\n"
            "  (tuning): Tuning(2, 3, tuning='affine', domain='box')\n)",
        ),
        (
            tunable_ops.TunableLinear(4, 6, bias=False, num_params=2, tuning="identity"),
            "TunableLinear(\n  in_features=4, out_features=6, bias=False, num_kernels=2\n"
            "  (tuning): Tuning(2, 2, tuning='identity', domain='simplex')\n)",
        ),
        (
            tunable_ops.TunableParameter(torch.zeros(2, 5), num_params=2, num_kernels=3),
            "TunableParameter(\n  shape=[2, 5], num_kernels=3\n"
            "  (tuning): Tuning(2, 3, tuning='affine', domain='simplex')\n)",
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_repr(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize("kind", LAYERS)
def test_deepcopy_stands_alone(kind):
    make, shape = LAYERS[kind]
    layer = make(num_params=2, dtype=DTYPE)
    x, lam = draw(*shape), point("simplex", 2)
    before = layer(x, lam)
    other = copy.deepcopy(layer)
    assert_equal(other(x, lam), before, 0)
    perturb(other)
    assert_equal(layer(x, lam), before, 0)
    assert not torch.allclose(other(x, lam), before)


@pytest.mark.parametrize("kind", LAYERS)
def test_state_dict_is_plain_tensors_and_round_trips(kind):
    make, shape = LAYERS[kind]
    layer = make(num_params=2, dtype=DTYPE)
    perturb(layer)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "tuning.weight", "tuning.bias"]
    assert all(type(value) is torch.Tensor for value in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = make(num_params=2, dtype=DTYPE)
    other.load_state_dict(torch.load(file, weights_only=True))
    x, lam = draw(*shape), point("simplex", 2)
    assert torch.equal(other(x, lam), layer(x, lam))


@pytest.mark.parametrize("kind", LAYERS)
def test_moves_of_dtype(kind):
    make, shape = LAYERS[kind]
    layer = make(num_params=2)
    lam = [0.3, 0.7]
    expected = layer.double()(draw(*shape), lam)
    assert expected.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        moved = copy.deepcopy(layer).to(dtype)
        out = moved(draw(*shape, dtype=dtype), lam)
        assert out.dtype == dtype
        assert_equal(out.double(), expected, tolerance)
        alpha = moved.tuning(torch.tensor(lam))
        assert alpha.dtype == torch.float32  # also for parameters in low precision
        lam_of_its_own = moved(draw(*shape, dtype=dtype), torch.tensor(lam, dtype=torch.float64))
        assert torch.equal(lam_of_its_own, out)


@pytest.mark.parametrize("tuning", ["affine", "identity"])
@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_leaves_alpha_alone(kind, tuning, monkeypatch):
    make, shape = LAYERS[kind]
    layer = make(num_params=2, tuning=tuning)
    x, lam = draw(*shape, dtype=torch.float32), torch.tensor([0.3, 0.7])
    seen = []
    name = {"transposed": "conv_transpose2d"}.get(kind, kind)
    original = getattr(tunable_ops.functional, f"tunable_{name}")

    def spy(input, weight, bias, alpha, *args, **kwargs):
        seen.append(alpha)
        return original(input, weight, bias, alpha, *args, **kwargs)

    monkeypatch.setattr(tunable_ops.functional, f"tunable_{name}", spy)
    for ndim, operator in list(tunable_conv._OPERATORS.items()):
        if operator is original:
            monkeypatch.setitem(tunable_conv._OPERATORS, ndim, spy)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, lam)
    assert out.dtype == torch.bfloat16
    assert [alpha.dtype for alpha in seen] == [torch.float32]
    assert torch.equal(seen[0], layer.tuning(lam))
    assert_equal(out.float(), layer(x, lam), 3e-2)


@pytest.mark.parametrize("kind", LAYERS)
def test_meta_construction_and_materialisation(kind):
    make, shape = LAYERS[kind]
    layer = make(num_params=2, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(draw(*shape, dtype=torch.float32), [0.5, 0.5]).isfinite().all()
    assert torch.equal(layer.tuning.weight, torch.eye(2))
    with torch.device("meta"):
        assert make(num_params=2).weight.device.type == "meta"


@pytest.mark.parametrize("kind", ["conv2d", "transposed"])
def test_channels_last_of_one_layer(kind):
    make, shape = LAYERS[kind]
    layer = make(num_params=2, dtype=DTYPE)
    perturb(layer)
    x, lam = draw(*shape), point("simplex", 2, 2)
    expected = layer(x, lam)
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in last.weight)
    assert last.weight.permute(0, 1, 3, 4, 2).is_contiguous()  # physical [P, O, kh, kw, C]
    out = last(x.contiguous(memory_format=torch.channels_last), lam)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_equal(out, expected)
    again = copy.deepcopy(last)
    assert again.weight.stride() == last.weight.stride()
    assert copy.deepcopy(last).half().weight.stride() == last.weight.stride()
    folded = tunable_ops.fold(last, lam[0])
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)
    back = last.to(memory_format=torch.contiguous_format)
    assert back.weight.is_contiguous()
    assert_equal(back(x, lam), expected)


def test_channels_last_leaves_other_layers_alone():
    layer = tunable_ops.TunableParameter(torch.zeros(3, 4, 5), num_params=2).to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous()
    layer = tunable_ops.TunableConv1d(3, 4, 5, num_params=2).to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous()


def test_a_layer_alone_needs_lambda():
    with pytest.raises(RuntimeError, match=r"^TunableConv2d: lam must be given outside a TunableModel.*got None"):
        tunable_ops.TunableConv2d(2, 3, 3, num_params=2)(torch.zeros(1, 2, 4, 4))


BAD_LAMBDAS = [
    ([0.5], ValueError, r"must hold p = 2 values.*got shape \[1\]"),
    ([0.2, 0.3, 0.5], ValueError, r"must hold p = 2 values.*got shape \[3\]"),
    (0.5, ValueError, r"must hold p = 2 values.*got shape \[\]"),
    (torch.zeros(2, 3), ValueError, r"must hold p = 2 values.*got shape \[2, 3\]"),
    ([0.5, math.nan], ValueError, r"must be finite; got \[0.5, nan\]"),
    (torch.tensor([0.5, math.inf]), ValueError, r"must be finite; got \[0.5, inf\]"),
    (torch.tensor([[0.5, 0.5], [0.0, math.nan]]), ValueError, r"must be finite; got \[\[0.5, 0.5\], \[0.0, nan\]\]"),
    ("ab", TypeError, r"must be numbers or a Tensor; got 'ab'"),
    ([0.5, None], TypeError, r"must be numbers or a Tensor; got \[0.5, None\]"),
    ([[0.5, 0.5], [0.5]], TypeError, r"must be numbers or a Tensor; got"),
    ({"a": 1}, TypeError, r"must be numbers or a Tensor; got"),
    (torch.tensor([1, 0]), TypeError, r"must be floating point; got torch.int64"),
    (torch.tensor([True, False]), TypeError, r"must be floating point; got torch.bool"),
    (torch.full((5, 2), 0.5), ValueError, r"must fit the input's leading size 3.*got B = 5"),
    (torch.full((2, 2), 0.5), ValueError, r"must fit the input's leading size 3.*got B = 2"),
    (torch.full((0, 2), 0.5), ValueError, r"must fit the input's leading size 3.*got B = 0"),
]


@pytest.mark.parametrize(("lam", "error", "text"), BAD_LAMBDAS, ids=lambda v: str(v)[:30].replace("\n", ""))
def test_bad_lambda(lam, error, text):
    layer = tunable_ops.TunableConv2d(2, 3, 3, num_params=2)
    with pytest.raises(error, match=rf"^TunableConv2d: lam {text}"):
        layer(torch.zeros(3, 2, 4, 4), lam)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_params": 0}, "tuning: num_params must be a positive int; got 0"),
        ({"num_params": 2.0}, "tuning: num_params must be a positive int; got 2.0"),
        ({"num_params": 2, "num_kernels": 0}, "tuning: num_kernels must be an int >= 1; got 0"),
        ({"num_params": 2, "num_kernels": 1, "domain": "box"}, "tuning: num_kernels must be an int >= 2; got 1"),
        ({"num_params": 2, "tuning": "softmax"}, r"tuning: tuning must be one of .*; got 'softmax'"),
        ({"num_params": 2, "domain": "ball"}, r"tuning: domain must be one of .*; got 'ball'"),
        ({"num_params": 2, "num_kernels": 3, "tuning": "identity"}, "tuning: num_kernels must equal num_params"),
        (
            {"num_params": 2, "tuning": "identity", "domain": "box"},
            "tuning: tuning must be 'affine' on the box, .*; got",
        ),
        ({"num_params": 2, "groups": 3}, "TunableConv2d: groups must divide in_channels and out_channels; got 3"),
        ({"num_params": 2, "groups": 0}, "TunableConv2d: groups must be a positive int; got 0"),
        ({"num_params": 2, "padding": -1}, "TunableConv2d: padding must be at least 0; got -1"),
        ({"num_params": 2, "padding": "full"}, "TunableConv2d: padding must be ints, 'same' or 'valid'; got 'full'"),
        ({"num_params": 2, "padding": "same", "stride": 2}, "TunableConv2d: padding must not be 'same' with a stride"),
        ({"num_params": 2, "stride": (1, 2, 3)}, r"TunableConv2d: stride must be an int or 2 ints; got \(1, 2, 3\)"),
        ({"num_params": 2, "dilation": 0}, "TunableConv2d: dilation must be at least 1; got 0"),
        ({"num_params": 2, "padding_mode": "mirror"}, r"TunableConv2d: padding_mode must be one of .*got 'mirror'"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        tunable_ops.TunableConv2d(4, 4, 3, **arguments)


def test_bad_sizes_and_values():
    with pytest.raises(ValueError, match=r"^TunableConv2d: in_channels must be a positive int; got 0"):
        tunable_ops.TunableConv2d(0, 4, 3, num_params=2)
    with pytest.raises(TypeError, match=r"^TunableConv2d: kernel_size must be an int or 2 ints; got 'big'"):
        tunable_ops.TunableConv2d(4, 4, "big", num_params=2)
    with pytest.raises(ValueError, match=r"^TunableConvTranspose2d: padding_mode must be one of \('zeros',\)"):
        tunable_ops.TunableConvTranspose2d(4, 4, 3, padding_mode="reflect", num_params=2)
    with pytest.raises(ValueError, match=r"^TunableLinear: out_features must be a positive int; got -1"):
        tunable_ops.TunableLinear(4, -1, num_params=2)
    with pytest.raises(TypeError, match=r"^TunableParameter: value must be a floating-point Tensor; got list"):
        tunable_ops.TunableParameter([1.0], num_params=2)
    with pytest.raises(TypeError, match=r"^TunableParameter: value must be a floating-point Tensor; got"):
        tunable_ops.TunableParameter(torch.zeros(2, dtype=torch.int64), num_params=2)
