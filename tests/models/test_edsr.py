"""EDSR: published sizes and names, the formula, scales, and its conversion."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import convert, fold, models
from tunable_ops.models import EDSR
from tunable_ops.modules import TunableConv2d, TunableModel
from tunable_ops.serialization import load, save

SMALL: dict[str, Any] = {"num_blocks": 2, "features": 5}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def trained(**arguments: Any) -> TunableModel:
    """Return a small tunable network in float64 whose kernels differ."""
    net = convert(EDSR(**{**SMALL, **arguments}).double(), num_params=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net


def test_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        assert count(EDSR(scale=1, body_conv=False)) == 1_185_219
        assert repr(EDSR(scale=2)).startswith("EDSR(\n  scale=2, centred=False, img_range=1.0\n")
        assert count(EDSR()) == 1_222_147
        # 64 -> 256 in every doubling
        step = 64 * 256 * 9 + 256
        assert count(EDSR(scale=2)) == 1_222_147 + step
        assert count(EDSR(scale=4)) == 1_222_147 + 2 * step
        tunable = convert(EDSR(scale=1, body_conv=False), num_params=2, tuning="identity")
    assert count(tunable) == 2 * 1_185_219
    assert len(tunable.layers) == 34
    assert all(isinstance(layer, TunableConv2d) for layer in tunable.layers)


def test_keys_and_shapes_are_those_of_basicsr() -> None:
    with torch.device("meta"):
        state = EDSR(scale=4, mean=(0.4488, 0.4371, 0.4040), img_range=255).state_dict()
    expected = {
        "conv_first.weight": (64, 3, 3, 3),
        "body.0.conv1.weight": (64, 64, 3, 3),
        "body.15.conv2.bias": (64,),
        "conv_after_body.weight": (64, 64, 3, 3),
        "upsample.0.weight": (256, 64, 3, 3),
        "upsample.2.bias": (256,),
        "conv_last.weight": (3, 64, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert len(state) == 2 * (1 + 32 + 1 + 2 + 1)


@pytest.mark.parametrize("body_conv", [True, False])
@pytest.mark.parametrize("scale", [1, 2])
def test_against_the_formula(scale: int, body_conv: bool) -> None:
    net = EDSR(scale, **SMALL, res_scale=0.3, body_conv=body_conv, mean=(0.1, 0.2, 0.3), img_range=2).double()
    s, x = net.state_dict(), torch.rand(2, 3, 6, 7, dtype=torch.float64)
    mean = net.mean
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.1, 0.2, 0.3]).double(), rtol=0, atol=1e-7)

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], padding=1)

    first = out = conv("conv_first", (x - mean) * 2)
    for i in range(2):
        out = out + 0.3 * conv(f"body.{i}.conv2", conv(f"body.{i}.conv1", out).clamp(min=0))
    out = first + (conv("conv_after_body", out) if body_conv else out)
    if scale == 2:
        values = conv("upsample.0", out)
        out = values.new_zeros(2, 5, 12, 14)
        for i in range(2):
            for j in range(2):
                out[:, :, i::2, j::2] = values[:, 2 * i + j :: 4]
    torch.testing.assert_close(net(x), conv("conv_last", out) / 2 + mean, rtol=0, atol=1e-12)


def test_one_mean_for_all_channels() -> None:
    x = torch.rand(1, 1, 4, 5)
    net = EDSR(**SMALL, img_channel=1, mean=0.5)
    other = EDSR(**SMALL, img_channel=1)
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), other(x - 0.5) + 0.5)


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (37, 45)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_output_sizes(scale: int, size: tuple[int, int]) -> None:
    plain = EDSR(scale, num_blocks=1, features=4)
    assert plain(torch.rand(2, 3, *size)).shape == (2, 3, scale * size[0], scale * size[1])
    net = convert(plain, num_params=2)
    lam = [[0.2, 0.8], [1, 0]]
    assert net(torch.rand(2, 3, *size), lam).shape == (2, 3, scale * size[0], scale * size[1])


def test_empty_batch() -> None:
    assert EDSR(2, **SMALL)(torch.rand(0, 3, 4, 5)).shape == (0, 3, 8, 10)


@pytest.mark.parametrize(
    ("domain", "lams"),
    [("simplex", [[0.3, 0.7], [1.0, 0.0]]), ("box", [[1.0, 1.0], [0.2, 0.9]])],
)
@pytest.mark.parametrize("scale", [1, 4])
def test_convert_keeps_the_function(scale: int, domain: str, lams: list) -> None:
    plain = EDSR(scale, **SMALL).double()
    net = convert(plain, num_params=2, domain=domain)
    x = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    for lam in (lams, lams[0]):
        torch.testing.assert_close(net(x, lam), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1, 2])
def test_per_sample_lambda_is_one_lambda_at_a_time(scale: int) -> None:
    net = trained(scale=scale)
    x = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    lam = torch.tensor([[0.9, 0.1], [0.0, 1.0]], dtype=torch.float64)
    together = net(x, lam)
    for b in range(2):
        torch.testing.assert_close(together[b : b + 1], net(x[b : b + 1], lam[b]), rtol=0, atol=1e-12)
    assert (net(x, lam[0]) - net(x, lam[1])).abs().max() > 1e-3


def test_every_kernel_gets_a_gradient() -> None:
    net = trained(scale=2)
    lam = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    net(torch.rand(2, 3, 4, 5, dtype=torch.float64), lam).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_fold_gives_the_class_back() -> None:
    net = trained(scale=2, mean=0.4)
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    folded = fold(net, [0.3, 0.7])
    assert type(folded) is EDSR
    torch.testing.assert_close(folded(x), net(x, [0.3, 0.7]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("tunable", [False, True])
def test_layouts_stay_and_agree(tunable: bool, scale: int) -> None:
    net: nn.Module = trained(scale=scale) if tunable else EDSR(scale, **SMALL).double()
    lam = ([[0.2, 0.8], [0.7, 0.3]],) if tunable else ()
    x = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    plain = net(x, *lam)
    last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), *lam)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-12)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"scale": 3}, ValueError, "EDSR: scale must be 1, 2 or 4; got 3"),
        ({"scale": 0}, ValueError, "EDSR: scale must be 1, 2 or 4; got 0"),
        ({"scale": 8}, ValueError, "EDSR: scale must be 1, 2 or 4; got 8"),
        ({"scale": 2.0}, TypeError, "EDSR: scale must be an int; got 2.0"),
        ({"scale": True}, TypeError, "EDSR: scale must be an int; got True"),
        ({"num_blocks": 0}, ValueError, "EDSR: num_blocks must be at least 1; got 0"),
        ({"features": "64"}, TypeError, "EDSR: features must be an int; got '64'"),
        ({"res_scale": "0.1"}, TypeError, "EDSR: res_scale must be a number; got '0.1'"),
        ({"body_conv": "no"}, TypeError, "EDSR: body_conv must be a bool; got 'no'"),
        ({"img_range": 0}, ValueError, "EDSR: img_range must be positive; got 0"),
        ({"mean": (0.5, 0.5)}, ValueError, r"EDSR: mean must be one number or 3 of them; got \[0.5, 0.5\]"),
        ({"mean": "grey"}, TypeError, "EDSR: mean must be a number or a list or tuple of numbers; got 'grey'"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        EDSR(**arguments)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8)])
def test_bad_input_names_the_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"EDSR: x must be \[B, 3, H, W\]; got \[") as caught:
        EDSR(**SMALL)(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_checkpoint_by_name(tmp_path: Path) -> None:
    arguments = {**SMALL, "scale": 2, "mean": [0.4488, 0.4371, 0.4040]}
    net = convert(models.build("edsr", **arguments), num_params=2)
    save(net, tmp_path / "n.safetensors", architecture="edsr", arguments=arguments)
    loaded = load(tmp_path / "n.safetensors")
    assert type(loaded.network) is EDSR
    x = torch.rand(1, 3, 5, 6)
    assert torch.equal(loaded(x, [0.1, 0.9]), net(x, [0.1, 0.9]))


def test_training_configuration_by_name() -> None:
    from tunable_ops.train.build import build_network
    from tunable_ops.train.config import load_config

    net = build_network(load_config("demo", ["model.name=edsr", "model.arguments={num_blocks = 1, features = 4}"]))
    assert isinstance(net, TunableModel) and isinstance(net.network, EDSR)
    assert net.network.channels == 3
