"""Layers: module, function and torch's layer with the folded kernel give the same results."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tunable_ops
from tests.modules.networks import DTYPE, assert_equal, draw, perturb, point

LAYERS = {
    "conv1d": (tunable_ops.TunableConv1d, nn.Conv1d, (11,)),
    "conv2d": (tunable_ops.TunableConv2d, nn.Conv2d, (9, 8)),
    "conv3d": (tunable_ops.TunableConv3d, nn.Conv3d, (6, 5, 7)),
}
GEOMETRIES = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 2, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "no-bias": {"kernel_size": 1, "bias": False},
    "same": {"kernel_size": 4, "padding": "same"},
    "same-dilated": {"kernel_size": 2, "padding": "same", "dilation": 3},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
    "reflect-same": {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 2, "padding_mode": "replicate", "dilation": 2},
    "replicate-valid": {"kernel_size": 3, "padding": "valid", "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "bias": False},
    "circular-same": {"kernel_size": 2, "padding": "same", "padding_mode": "circular"},
}
PHIS = {
    "affine": {"num_params": 2},
    "identity": {"num_params": 3, "tuning": "identity"},
    "box": {"num_params": 2, "domain": "box"},
    "P4-p2": {"num_params": 2, "num_kernels": 4},
    "P2-p3": {"num_params": 3, "num_kernels": 2},
    "P4-p2-box": {"num_params": 2, "num_kernels": 4, "domain": "box"},
    "P1-p2": {"num_params": 2, "num_kernels": 1},
}


def folded_by_hand(layer, plain, lam):
    """Return torch's layer with the kernel that the formula gives."""
    alpha = phi_by_hand(layer.tuning, lam)
    state = {"weight": torch.einsum("p,p...->...", alpha, layer.weight)}
    if layer.bias is not None:
        state["bias"] = alpha @ layer.bias
    plain = plain.to(DTYPE)
    plain.load_state_dict(state)
    return plain


def phi_by_hand(tuning, lam):
    if tuning.tuning == "identity":
        return lam
    alpha = (tuning.weight * lam).sum(1) + tuning.bias
    return torch.cat([torch.ones(1, dtype=DTYPE), alpha]) if tuning.domain == "box" else alpha


def check(layer, plain, x):
    """Compare a module with torch's layer and with `fold`, for a shared and a per-sample lambda."""
    domain, p = layer.tuning.domain, layer.tuning.num_params
    perturb(layer)
    lam = point(domain, p)
    expected = folded_by_hand(layer, plain, lam)
    assert_equal(layer(x, lam), expected(x))
    assert_equal(layer(x, lam[None]), expected(x))
    folded = tunable_ops.fold(layer, lam)
    assert type(folded) is type(plain)
    assert repr(folded) == repr(plain)
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert_equal(folded(x), expected(x))
    each = point(domain, p, len(x), seed=1)
    per_sample = [folded_by_hand(layer, plain, each[b])(x[b : b + 1]) for b in range(len(x))]
    assert_equal(layer(x, each), torch.cat(per_sample))
    return lam


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # by torch's layer
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", LAYERS)
def test_convolution_equals_torch(kind, geometry):
    tunable, plain, size = LAYERS[kind]
    arguments = GEOMETRIES[geometry]
    layer = tunable(4, 6, **arguments, num_params=2, dtype=DTYPE)
    lam = check(layer, plain(4, 6, **arguments), draw(2, 4, *size))
    sample = draw(4, *size, seed=2)  # unbatched
    assert_equal(layer(sample, lam), tunable_ops.fold(layer, lam)(sample))


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d", "transposed", "linear"])
def test_every_phi(kind, phi):
    if kind == "linear":
        layer = tunable_ops.TunableLinear(5, 3, dtype=DTYPE, **PHIS[phi])
        check(layer, nn.Linear(5, 3), draw(4, 2, 5))
    elif kind == "transposed":
        layer = tunable_ops.TunableConvTranspose2d(4, 6, 3, dtype=DTYPE, **PHIS[phi])
        check(layer, nn.ConvTranspose2d(4, 6, 3), draw(2, 4, 5, 4))
    else:
        tunable, plain, size = LAYERS[kind]
        check(tunable(4, 6, 3, padding=1, dtype=DTYPE, **PHIS[phi]), plain(4, 6, 3, padding=1), draw(2, 4, *size))


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (2, 3), "stride": (2, 3)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
        {"kernel_size": 3, "groups": 2, "bias": False},
        {"kernel_size": 2, "dilation": 3, "output_padding": (2, 0)},
        {"kernel_size": 1, "stride": 4, "output_padding": 3, "groups": 2},
    ],
    ids=str,
)
def test_transposed_convolution_equals_torch(arguments):
    layer = tunable_ops.TunableConvTranspose2d(4, 6, **arguments, num_params=2, dtype=DTYPE)
    lam = check(layer, nn.ConvTranspose2d(4, 6, **arguments), draw(2, 4, 5, 7))
    sample = draw(4, 5, 7, seed=2)
    assert_equal(layer(sample, lam), tunable_ops.fold(layer, lam)(sample))


def test_transposed_output_that_only_output_padding_makes_possible():
    arguments = {"kernel_size": 2, "stride": 2, "padding": 1, "output_padding": 1}
    layer = tunable_ops.TunableConvTranspose2d(2, 3, **arguments, num_params=2, dtype=DTYPE)
    check(layer, nn.ConvTranspose2d(2, 3, **arguments), draw(2, 2, 1, 1))


def test_transposed_output_size():
    arguments = {"kernel_size": 3, "stride": 3, "padding": 1, "output_padding": 1}
    layer = tunable_ops.TunableConvTranspose2d(4, 6, **arguments, num_params=2, dtype=DTYPE)
    lam, x = point("simplex", 2), draw(2, 4, 5, 7)
    plain = tunable_ops.fold(layer, lam)
    for size in [(13, 19), (14, 21), (2, 6, 15, 20), torch.Size([15, 19])]:
        assert_equal(layer(x, lam, output_size=size), plain(x, output_size=list(size)))
    for size in [(12, 19), (16, 19), (13,), ()]:
        with pytest.raises(ValueError, match=r"^TunableConvTranspose2d: output_size must be \[13, 19\].*got \["):
            layer(x, lam, output_size=size)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_torch(bias):
    layer = tunable_ops.TunableLinear(5, 3, bias, num_params=2, dtype=DTYPE)
    for shape in [(4, 5), (2, 3, 5), (2, 3, 4, 5)]:
        lam = check(layer, nn.Linear(5, 3, bias), draw(*shape))
    vector = draw(5, seed=2)
    assert_equal(layer(vector, lam), tunable_ops.fold(layer, lam)(vector))


def test_module_equals_function():
    x, lam = draw(2, 4, 9, 8), point("simplex", 2, 2)
    layer = tunable_ops.TunableConv2d(4, 6, 3, 2, 1, 1, 2, num_params=2, dtype=DTYPE)
    out = tunable_ops.tunable_conv2d(x, layer.weight, layer.bias, layer.tuning(lam), 2, 1, 1, 2)
    assert torch.equal(layer(x, lam), out)
    layer = tunable_ops.TunableConv1d(4, 6, 3, num_params=2, dtype=DTYPE)
    out = tunable_ops.tunable_conv1d(x[..., 0], layer.weight, layer.bias, layer.tuning(lam))
    assert torch.equal(layer(x[..., 0], lam), out)
    layer = tunable_ops.TunableConv3d(4, 6, 1, num_params=2, dtype=DTYPE)
    out = tunable_ops.tunable_conv3d(x[..., None], layer.weight, layer.bias, layer.tuning(lam))
    assert torch.equal(layer(x[..., None], lam), out)
    layer = tunable_ops.TunableConvTranspose2d(4, 6, 3, 2, 1, 1, 2, num_params=2, dtype=DTYPE)
    out = tunable_ops.tunable_conv_transpose2d(x, layer.weight, layer.bias, layer.tuning(lam), 2, 1, 1, 2)
    assert torch.equal(layer(x, lam), out)
    layer = tunable_ops.TunableLinear(8, 3, num_params=2, dtype=DTYPE)
    out = tunable_ops.tunable_linear(x, layer.weight, layer.bias, layer.tuning(lam))
    assert torch.equal(layer(x, lam), out)
    layer = tunable_ops.TunableParameter(draw(3, 4), num_params=2)
    assert torch.equal(layer(lam), tunable_ops.tunable_parameter(layer.weight, layer.tuning(lam)))


@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (1, 4, 1, 1), (2, 3, 4, 5)], ids=str)
def test_parameter_shapes(shape):
    lam, each = point("simplex", 2), point("simplex", 2, 3)
    layer = tunable_ops.TunableParameter(draw(*shape), num_params=2)
    assert_equal(layer(lam), draw(*shape))  # fresh: the tensor it was made from
    perturb(layer)
    alpha = layer.tuning(lam)
    assert_equal(layer(lam), alpha[0] * layer.weight[0] + alpha[1] * layer.weight[1])
    folded = tunable_ops.fold(layer, lam)
    assert torch.equal(folded(), folded.weight)
    assert_equal(folded(), layer(lam))
    if len(shape) < 2:
        with pytest.raises(ValueError, match=r"^TunableParameter: lam must be \[p\] for a tensor of shape \["):
            layer(each)
        return
    blended = layer(each)
    rest = shape[1:] if shape[0] == 1 else shape
    assert blended.shape == (3, *rest)
    assert_equal(blended, torch.stack([layer(row).reshape(rest) for row in each]))


def test_parameter_table_is_indexed_behind_the_batch():
    table, index = tunable_ops.TunableParameter(draw(9, 2), num_params=2), torch.tensor([[0, 3], [8, 1]])
    perturb(table)
    lam = point("simplex", 2, 3)
    taken = table(lam)[..., index, :]
    assert taken.shape == (3, 2, 2, 2)
    assert_equal(taken[1], table(lam[1])[..., index, :])


@pytest.mark.parametrize("tuning", ["affine", "identity"])
def test_lambda_as_numbers_or_tensor(tuning):
    layer = tunable_ops.TunableConv2d(2, 3, 3, num_params=2, tuning=tuning)
    x = draw(2, 2, 5, 5, dtype=torch.float32)
    expected = layer(x, torch.tensor([0.25, 0.75]))
    for lam in (
        [0.25, 0.75],
        (0.25, 0.75),
        [[0.25, 0.75]],
        [[0.25, 0.75]] * 2,
        torch.tensor([[0.25, 0.75]]),
        torch.tensor([0.25, 0.75], dtype=DTYPE),
        torch.tensor([0.25, 0.75], dtype=torch.float16),
        torch.tensor([[0.25, 0.75]] * 2).numpy(),
    ):
        assert_equal(layer(x, lam), expected, 1e-6)
    assert layer(x, [1, 0]).dtype == torch.float32


@pytest.mark.parametrize("kind", LAYERS)
def test_map_of_lambda(kind):
    """A map of any size is averaged down to the output's grid, where each pixel has its own blend."""
    tunable, _, size = LAYERS[kind]
    layer = tunable(4, 6, 3, stride=2, padding=1, num_params=2, dtype=DTYPE)
    perturb(layer)
    x = draw(2, 4, *size)
    grid = layer(x, [0.5, 0.5]).shape[2:]
    lam = point("simplex", 2, 2, *(2 * n for n in grid)).movedim(-1, 1)
    pooled = getattr(F, f"avg_pool{len(grid)}d")(lam, 2)
    alpha = torch.einsum("Pp,bp...->bP...", layer.tuning.weight, pooled)
    alpha = alpha + layer.tuning.bias.view(1, -1, *[1] * len(grid))
    kernels = [tunable_ops.fold(layer, row) for row in ([1.0, 0.0], [0.0, 1.0])]
    with torch.no_grad():
        for index, kernel in enumerate(kernels):
            kernel.weight.copy_(layer.weight[index])
            kernel.bias.copy_(layer.bias[index])
    expected = alpha[:, :1] * kernels[0](x) + alpha[:, 1:] * kernels[1](x)
    assert_equal(layer(x, lam), expected)
    constant = torch.tensor([0.3, 0.7], dtype=DTYPE).view(1, 2, *[1] * len(grid)).expand(2, 2, *size)
    assert_equal(layer(x, constant), layer(x, [0.3, 0.7]), 1e-6)
    one = constant[:1]  # one map for the batch
    assert_equal(layer(x, one), layer(x, [0.3, 0.7]), 1e-6)


def test_map_of_lambda_for_the_transposed_convolution():
    layer = tunable_ops.TunableConvTranspose2d(4, 6, 2, stride=2, num_params=2, dtype=DTYPE)
    perturb(layer)
    x, lam = draw(2, 4, 3, 4), torch.zeros(2, 2, 6, 8, dtype=DTYPE)
    lam[:, 0, :, :4], lam[:, 1, :, 4:] = 1, 1  # left half one corner, right half the other
    out = layer(x, lam)
    assert_equal(out[..., :4], layer(x, [1, 0])[..., :4])
    assert_equal(out[..., 4:], layer(x, [0, 1])[..., 4:])


def test_layers_without_a_grid_refuse_a_map():
    lam = torch.full((2, 2, 4, 4), 0.5)
    linear, scale = (
        tunable_ops.TunableLinear(5, 3, num_params=2),
        tunable_ops.TunableParameter(draw(2, 2), num_params=2),
    )
    conv = tunable_ops.TunableConv1d(3, 3, 1, num_params=2)
    for name, call in {
        "TunableLinear": lambda: linear(torch.zeros(2, 5), lam),
        "TunableParameter": lambda: scale(lam),
        "TunableConv1d": lambda: conv(torch.zeros(2, 3, 4), lam),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: lam must not be a map for a layer without a grid of 2 dim"):
            call()


@pytest.mark.parametrize("phi", ["affine", "identity", "box"])
def test_gradients_reach_everything(phi):
    layer = tunable_ops.TunableConv2d(2, 3, 3, dtype=DTYPE, **PHIS[phi])
    perturb(layer)
    names = [name for name, _ in layer.named_parameters()]
    p = layer.tuning.num_params

    def run(x, lam, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, lam))

    inputs = [draw(2, 2, 4, 4), point(layer.tuning.domain, p, 2), *layer.parameters()]
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    torch.autograd.gradcheck(run, inputs)
    torch.autograd.gradgradcheck(run, inputs)


MISFITS = {
    "conv1d": (tunable_ops.TunableConv1d, (3, 4, 3), (2, 1, 9), "3 channels in dimension -2, the layer's in_channels"),
    "conv2d": (
        tunable_ops.TunableConv2d,
        (3, 4, 3),
        (2, 1, 9, 8),
        "3 channels in dimension -3, the layer's in_channels",
    ),
    "conv3d": (tunable_ops.TunableConv3d, (3, 4, 3), (2, 1, 6, 5, 7), "3 channels in dimension -4, the layer's in_ch"),
    "transposed": (tunable_ops.TunableConvTranspose2d, (3, 4, 3), (2, 1, 9, 8), "3 channels in dimension -3, the lay"),
    "linear": (tunable_ops.TunableLinear, (3, 4), (2, 1), "3 channels in dimension -1, the layer's in_features"),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", MISFITS)
def test_an_input_that_does_not_fit_is_the_inputs_fault(name, rows, grad):
    """The operator, which knows no layer, would name its weight."""
    kind, arguments, shape, text = MISFITS[name]
    layer = kind(*arguments, num_params=2)
    plain = nn.Sequential(nn.Identity(), layer.plain())
    lam = torch.tensor([0.5, 0.5]) if rows == 1 else torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    for call, title in ((layer, kind.__name__), (tunable_ops.convert(plain, 2), f"{kind.__name__} 1")):
        with torch.set_grad_enabled(grad):
            with pytest.raises(ValueError, match=f"^{title}: input must have {text}.*; got 1, in shape") as caught:
                call(torch.zeros(shape), lam)
            assert str(caught.value).endswith(str(list(shape)))
            fits = [n if n != 1 else 3 for n in shape]
            with pytest.raises(TypeError, match=f"^{title}: input must be of a floating-point type; got torch.uint8$"):
                call(torch.zeros(fits, dtype=torch.uint8), lam)
            assert call(torch.zeros(fits), lam).shape[0] == 2
