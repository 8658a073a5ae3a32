"""NAFNet: published sizes and names, the block against its formula, and its conversion."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tunable_ops.ops.flops  # noqa: F401  (the formulas of the tunable operators)
from tunable_ops import convert, fold, models
from tunable_ops.models import NAFNet
from tunable_ops.models.nafnet import LayerNorm2d, NAFBlock
from tunable_ops.modules import TunableConv2d, TunableModel
from tunable_ops.modules.tunable_parameter import ParameterBlend
from tunable_ops.serialization import load, save

SMALL: dict[str, Any] = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1, 2], "dec_blk_nums": [1, 1]}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small(**arguments: Any) -> NAFNet:
    """Return a small network in float64 with random beta, gamma and norms, so that its blocks have an effect."""
    net = NAFNet(**{**SMALL, **arguments}).double()
    draw(net)
    return net


def draw(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if any(part in name for part in ("beta", "gamma", "norm")):
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.5)


def trained() -> TunableModel:
    """Return a small tunable network whose kernels differ."""
    net = convert(small(), num_params=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net


# ---- published facts


def test_size_and_work_are_the_published_ones() -> None:
    with torch.device("meta"):
        net = NAFNet()
        assert count(net) == 29_159_715
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 256, 256))
    assert round(counter.get_total_flops() / 2e9, 2) == 16.05


def test_tunable_size_and_work_are_the_published_ones() -> None:
    with torch.device("meta"):
        net = convert(NAFNet(), num_params=2, tuning="identity", parameters=("*.beta", "*.gamma"))
        assert count(net) == 58_280_006
        assert len(net.layers) == 298
        assert sum(isinstance(layer, TunableConv2d) for layer in net.layers) == 226
        assert sum(isinstance(layer, ParameterBlend) for layer in net.layers) == 72
        assert not any("norm" in name for name, layer in net.named_modules() if layer in net.layers)
        static = sum(p.numel() for name, p in net.named_parameters() if "norm" in name)
        assert count(net) == 2 * (29_159_715 - static) + static
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, 256, 256), torch.empty(2))
    work = counter.get_total_flops() / 2
    assert work == pytest.approx(16_045_035_520 + 2 * (29_159_715 - static), rel=1e-9)


def test_keys_and_shapes_are_those_of_published_weights() -> None:
    with torch.device("meta"):
        state = NAFNet().state_dict()
    expected = {
        "intro.weight": (32, 3, 3, 3),
        "ending.bias": (3,),
        "encoders.0.1.conv1.weight": (64, 32, 1, 1),
        "encoders.1.0.conv2.weight": (128, 1, 3, 3),
        "encoders.2.3.sca.1.weight": (128, 128, 1, 1),
        "encoders.3.7.beta": (1, 256, 1, 1),
        "downs.3.weight": (512, 256, 2, 2),
        "downs.0.bias": (64,),
        "middle_blks.11.conv3.weight": (512, 512, 1, 1),
        "middle_blks.0.gamma": (1, 512, 1, 1),
        "middle_blks.0.norm2.bias": (512,),
        "ups.0.0.weight": (1024, 512, 1, 1),
        "decoders.0.1.conv4.weight": (512, 256, 1, 1),
        "decoders.3.0.conv5.weight": (32, 32, 1, 1),
        "decoders.3.1.norm1.weight": (32,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert "ups.0.0.bias" not in state
    # 36 blocks of 18 tensors, 2 ends and 4 downs with biases, 4 ups without
    assert len(state) == 36 * 18 + 2 * 2 + 4 * 2 + 4


# ---- the formulas


def explicit_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mu = x.sum(1, keepdim=True) / x.shape[1]
    var = ((x - mu) ** 2).sum(1, keepdim=True) / x.shape[1]
    return (x - mu) / (var + 1e-6) ** 0.5 * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 1, 4, 4), (3, 8, 1, 1), (0, 4, 5, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_against_the_formula(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    norm = LayerNorm2d(shape[1]).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape, dtype=torch.float64).mul(3).add(1).contiguous(memory_format=layout)
    torch.testing.assert_close(norm(x), explicit_norm(x, norm.weight, norm.bias), rtol=0, atol=1e-12)
    sliced = torch.randn(*shape[:2], 2 * shape[2], shape[3], dtype=torch.float64)[:, :, ::2]
    torch.testing.assert_close(norm(sliced), explicit_norm(sliced, norm.weight, norm.bias), rtol=0, atol=1e-12)


def test_norm_divides_by_an_eps_of_1e_6_under_the_root() -> None:
    """A picture whose variance is eps is normalised to 1 / sqrt(2)."""
    x = torch.tensor([1e-3, -1e-3], dtype=torch.float64).view(1, 2, 1, 1)
    expected = torch.tensor([0.5**0.5, -(0.5**0.5)], dtype=torch.float64).view(1, 2, 1, 1)
    torch.testing.assert_close(LayerNorm2d(2).double()(x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_is_twice_differentiable(layout: torch.memory_format) -> None:
    norm = LayerNorm2d(3).double()
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (x, weight, bias))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))


def test_norm_does_not_copy_channels_last() -> None:
    norm = LayerNorm2d(6)
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = norm(x)
        torch.autograd.grad(y, (x, norm.weight, norm.bias), grad)
    names = {event.key for event in profile.key_averages()}
    assert "aten::native_layer_norm" in names
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}, names
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_norm_in_bf16_sums_in_fp32() -> None:
    x = torch.randn(2, 64, 3, 5).add(4).bfloat16()
    norm = LayerNorm2d(64).bfloat16()
    expected = explicit_norm(x.double(), torch.ones(64).double(), torch.zeros(64).double())
    error = (norm(x).double() - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() < 2**-7, float(error.max())


def test_block_against_the_formula() -> None:
    block = NAFBlock(3).double()
    draw(block)
    s, x = block.state_dict(), torch.randn(2, 3, 4, 5, dtype=torch.float64)

    def conv(name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], **options)

    y = conv("conv2", conv("conv1", explicit_norm(x, s["norm1.weight"], s["norm1.bias"])), padding=1, groups=6)
    y = y[:, :3] * y[:, 3:]
    y = conv("conv3", y * conv("sca.1", y.mean((2, 3), keepdim=True)))
    y = x + s["beta"] * y
    z = conv("conv4", explicit_norm(y, s["norm2.weight"], s["norm2.bias"]))
    z = y + s["gamma"] * conv("conv5", z[:, :3] * z[:, 3:])
    torch.testing.assert_close(block(x), z, rtol=0, atol=1e-12)


def test_levels_against_the_formula() -> None:
    """Two levels of different depth: each skip joins its own level, and the input is added at the end."""
    net = small()
    x = torch.rand(1, 3, 8, 12, dtype=torch.float64)
    top = net.encoders[0](net.intro(x))
    below = net.encoders[1](net.downs[0](top))
    out = net.middle_blks(net.downs[1](below))
    out = net.decoders[0](net.ups[0](out) + below)
    out = net.decoders[1](net.ups[1](out) + top)
    torch.testing.assert_close(net(x), x + net.ending(out), rtol=0, atol=1e-12)


def test_fresh_blocks_let_their_input_through() -> None:
    x = torch.rand(2, 5, 4, 6)
    torch.testing.assert_close(NAFBlock(5)(x), x, rtol=0, atol=0)


# ---- sizes and layouts


@pytest.mark.parametrize("size", [(1, 1), (37, 45), (8, 12), (9, 4)])
def test_any_size_is_padded_with_zeros_and_cropped(size: tuple[int, int]) -> None:
    net = small()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    out = net(x)
    assert out.shape == x.shape
    padded = torch.zeros(2, 3, *(-(-n // 4) * 4 for n in size), dtype=torch.float64)
    padded[..., : size[0], : size[1]] = x
    torch.testing.assert_close(out, net(padded)[..., : size[0], : size[1]], rtol=0, atol=1e-12)


def test_empty_batch_and_no_levels() -> None:
    assert small()(torch.rand(0, 3, 8, 8, dtype=torch.float64)).shape == (0, 3, 8, 8)
    flat = small(enc_blk_nums=(), dec_blk_nums=(), img_channel=1)
    assert flat(torch.rand(1, 1, 5, 3, dtype=torch.float64)).shape == (1, 1, 5, 3)


@pytest.mark.parametrize("tunable", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_layouts_stay_and_agree(tunable: bool, size: tuple[int, int]) -> None:
    net: nn.Module = trained() if tunable else small()
    lam = (torch.tensor([[0.2, 0.8], [0.7, 0.3]], dtype=torch.float64),) if tunable else ()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    seen: list[tuple[str, bool]] = []
    for name, module in net.named_modules():
        if isinstance(module, NAFBlock):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: seen.append((name, out.is_contiguous(memory_format=torch.channels_last)))
            )
    plain = net(x, *lam)
    seen.clear()
    last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), *lam)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-12)
    assert seen and all(kept for _, kept in seen), seen
    cropped = size != (8, 12)
    assert cropped or (plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last))


def test_autocast_keeps_close() -> None:
    net = trained().float()
    x, lam = torch.rand(2, 3, 8, 8), torch.tensor([[0.2, 0.8], [0.7, 0.3]])
    with torch.no_grad():
        exact = net(x, lam)
        with torch.autocast("cpu", torch.bfloat16):
            low = net(x, lam)
    assert (low.float() - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


# ---- tunable


@pytest.mark.parametrize("tuning", ["identity", "affine"])
def test_convert_keeps_the_function(tuning: str) -> None:
    plain = small()
    net = convert(plain, num_params=2, tuning=tuning)
    x = torch.rand(3, 3, 7, 9, dtype=torch.float64)
    lam = torch.rand(3, 1, dtype=torch.float64)
    lam = torch.cat([lam, 1 - lam], dim=1)
    for choice in (lam, lam[0]):
        torch.testing.assert_close(net(x, choice), plain(x), rtol=0, atol=1e-11)


def test_per_sample_lambda_is_one_lambda_at_a_time() -> None:
    net = trained()
    x = torch.rand(3, 3, 7, 9, dtype=torch.float64)
    lam = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    together = net(x, lam)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], net(x[b : b + 1], lam[b]), rtol=0, atol=1e-11)
    assert (net(x[:1], lam[0]) - net(x[:1], lam[2])).abs().max() > 1e-3


def test_every_kernel_gets_a_gradient_from_a_batch_of_lambdas() -> None:
    net = trained()
    lam = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64, requires_grad=True)
    net(torch.rand(2, 3, 6, 5, dtype=torch.float64), lam).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert lam.grad is not None and lam.grad.abs().min() > 0


def test_fold_gives_the_class_back() -> None:
    net = trained()
    x, lam = torch.rand(2, 3, 7, 9, dtype=torch.float64), [0.3, 0.7]
    folded = fold(net, lam)
    assert type(folded) is NAFNet
    assert {name: p.shape for name, p in folded.state_dict().items()} == {
        name: p.shape for name, p in small().state_dict().items()
    }
    torch.testing.assert_close(folded(x), net(x, lam), rtol=0, atol=1e-11)


def test_a_map_of_lambda_needs_the_mean_for_the_scales() -> None:
    net = convert(small(), num_params=2, on_map="mean")
    lam = torch.full((1, 2, 8, 8), 0.5, dtype=torch.float64)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x, lam), net(x, [0.5, 0.5]), rtol=0, atol=1e-11)


# ---- arguments, registry


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"width": 0}, ValueError, "NAFNet: width must be at least 1; got 0"),
        ({"width": 8.0}, TypeError, "NAFNet: width must be an int; got 8.0"),
        ({"img_channel": True}, TypeError, "NAFNet: img_channel must be an int; got True"),
        ({"middle_blk_num": -1}, ValueError, "NAFNet: middle_blk_num must be at least 0; got -1"),
        ({"enc_blk_nums": 2}, TypeError, "NAFNet: enc_blk_nums must be a list or tuple of ints; got 2"),
        ({"enc_blk_nums": (1, -2)}, ValueError, r"NAFNet: enc_blk_nums\[1\] must be at least 0; got -2"),
        (
            {"enc_blk_nums": (1, 1), "dec_blk_nums": (1,)},
            ValueError,
            r"NAFNet: dec_blk_nums must have as many entries as enc_blk_nums; got \[1\] for \[1, 1\]",
        ),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        NAFNet(**arguments)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8)])
def test_bad_input_names_the_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"NAFNet: x must be \[B, 3, H, W\]; got \[") as caught:
        small()(torch.zeros(shape, dtype=torch.float64))
    assert str(list(shape)) in str(caught.value)


def test_checkpoint_by_name(tmp_path: Path) -> None:
    net = convert(models.build("nafnet", **SMALL), num_params=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save(net, tmp_path / "n.safetensors", architecture="nafnet", arguments=SMALL)
    loaded = load(tmp_path / "n.safetensors")
    assert type(loaded.network) is NAFNet
    x, lam = torch.rand(2, 3, 5, 6), [[0.1, 0.9], [0.5, 0.5]]
    assert torch.equal(loaded(x, lam), net(x, lam))


def test_training_configuration_by_name() -> None:
    from tunable_ops.train.build import build_network
    from tunable_ops.train.config import load_config

    arguments = "{width = 4, middle_blk_num = 1, enc_blk_nums = [1], dec_blk_nums = [1]}"
    net = build_network(load_config("demo", ["model.name=nafnet", f"model.arguments={arguments}"]))
    assert isinstance(net, TunableModel) and isinstance(net.network, NAFNet)
    assert sum(isinstance(layer, ParameterBlend) for layer in net.layers) == 6
