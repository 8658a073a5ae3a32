"""SwinIR: published sizes and names, attention against explicit loops, heads, and its conversion."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tunable_ops.ops.flops  # noqa: F401  (the formulas of the tunable operators)
from tunable_ops import convert, fold, models
from tunable_ops.models import SwinIR
from tunable_ops.models.swinir import SwinBlock, WindowAttention, reflect_to_multiple, relative_position_index
from tunable_ops.modules import TunableConv2d, TunableLinear, TunableModel
from tunable_ops.modules.tunable_parameter import ParameterBlend
from tunable_ops.serialization import load, save

TABLES = ("*.relative_position_bias_table",)
SMALL: dict[str, Any] = {"img_size": 8, "embed_dim": 6, "depths": [2], "num_heads": [3], "window_size": 4}
LIGHT: dict[str, Any] = {"embed_dim": 60, "depths": (6,) * 4, "num_heads": (6,) * 4, "upsampler": "pixelshuffledirect"}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small(**arguments: Any) -> SwinIR:
    """Return a small network in float64 and evaluation mode, its weights large enough for attention to matter."""
    net = SwinIR(**{**SMALL, **arguments}).double().eval()
    for name, parameter in net.named_parameters():
        if "conv" not in name and "upsample" not in name:
            nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.5)
    return net


def trained(**arguments: Any) -> TunableModel:
    """Return a small tunable network whose kernels differ."""
    net = convert(small(**arguments), num_params=2, parameters=TABLES)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


# ---- published facts


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({}, 11_504_163),
        ({"in_chans": 1}, 11_497_681),
        ({"upsampler": "pixelshuffle", "upscale": 2}, 11_752_487),
        ({"upsampler": "pixelshuffle", "upscale": 4}, 11_900_199),
        # the paper's 878K, 886K and 897K leave out the position tables: 24 blocks, 225 offsets, 6 heads
        ({**LIGHT, "upscale": 2}, 877_752 + 24 * 225 * 6),
        ({**LIGHT, "upscale": 3}, 885_867 + 24 * 225 * 6),
        ({**LIGHT, "upscale": 4}, 897_228 + 24 * 225 * 6),
    ],
)
def test_sizes(arguments: dict, parameters: int) -> None:
    with torch.device("meta"):
        assert count(SwinIR(**arguments)) == parameters


def test_work() -> None:
    """Multiply-adds at 64 x 64 pixels, counted by hand: 36 blocks per pixel, then the convolutions."""
    c, n = 180, 64
    block = c * 3 * c + 2 * n * c + c * c + 2 * c * 2 * c  # qkv, attention, proj, MLP
    convolutions = 9 * (3 * c + 6 * c * c + c * c + c * 3)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        SwinIR()(torch.empty(1, 3, 64, 64))
    assert counter.get_total_flops() / 2 == 64**2 * (36 * block + convolutions) == 50_018_549_760


def test_tunable_size_and_layers() -> None:
    with torch.device("meta"):
        net = convert(SwinIR(), num_params=2, tuning="identity", parameters=TABLES)
    kinds = [type(layer) for layer in net.layers]
    assert (kinds.count(TunableLinear), kinds.count(TunableConv2d), kinds.count(ParameterBlend)) == (36 * 4, 9, 36)
    static = sum(p.numel() for name, p in net.named_parameters() if "norm" in name)
    assert static == 2 * 180 * (2 * 36 + 2)
    assert count(net) == 2 * (11_504_163 - static) + static


def test_keys_and_shapes_are_those_of_published_weights() -> None:
    with torch.device("meta"):
        state = SwinIR(upsampler="pixelshuffle", upscale=4, img_size=48).state_dict()
    block = {
        "norm1.weight": (180,),
        "attn.relative_position_bias_table": (225, 6),
        "attn.relative_position_index": (64, 64),
        "attn.qkv.weight": (540, 180),
        "attn.qkv.bias": (540,),
        "attn.proj.weight": (180, 180),
        "norm2.bias": (180,),
        "mlp.fc1.weight": (360, 180),
        "mlp.fc2.bias": (180,),
    }
    expected = {
        "conv_first.weight": (180, 3, 3, 3),
        "patch_embed.norm.weight": (180,),
        **{f"layers.5.residual_group.blocks.4.{key}": shape for key, shape in block.items()},
        "layers.0.residual_group.blocks.1.attn_mask": (36, 64, 64),
        "layers.0.conv.weight": (180, 180, 3, 3),
        "norm.bias": (180,),
        "conv_after_body.weight": (180, 180, 3, 3),
        "conv_before_upsample.0.weight": (64, 180, 3, 3),
        "upsample.0.weight": (256, 64, 3, 3),
        "upsample.2.bias": (256,),
        "conv_last.weight": (3, 64, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert not any(name.startswith("layers.0.residual_group.blocks.0.attn_mask") for name in state)
    # 14 tensors per block, and a mask in every second one; the groups' convolutions; 2 norms, 7 other convolutions
    assert len(state) == 36 * 14 + 18 + 6 * 2 + 2 * 2 + 6 * 2


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, {"conv_last": (3, 6, 3, 3)}),
        ({"upsampler": "pixelshuffledirect", "upscale": 3}, {"upsample.0": (27, 6, 3, 3)}),
        ({"upsampler": "pixelshuffle", "upscale": 3}, {"upsample.0": (576, 64, 3, 3)}),
        ({"upsampler": "nearest+conv", "upscale": 2}, {"conv_up1": (64, 64, 3, 3), "conv_hr": (64, 64, 3, 3)}),
        ({"upsampler": "nearest+conv", "upscale": 4}, {"conv_up2": (64, 64, 3, 3), "conv_last": (3, 64, 3, 3)}),
        (
            {"embed_dim": 12, "resi_connection": "3conv"},
            {"layers.0.conv.0": (3, 12, 3, 3), "layers.0.conv.2": (3, 3, 1, 1), "conv_after_body.4": (12, 3, 3, 3)},
        ),
    ],
)
def test_keys_of_the_variants(arguments: dict, names: dict) -> None:
    net = SwinIR(**{**SMALL, **arguments})
    state = net.state_dict()
    assert {name: tuple(state[f"{name}.weight"].shape) for name in names} == names
    scale = arguments.get("upscale", 1)
    assert net(torch.rand(1, 3, 5, 9)).shape == (1, 3, 5 * scale, 9 * scale)


# ---- the formulas


def test_position_index_by_hand() -> None:
    assert relative_position_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def explicit_block(block: SwinBlock, x: Tensor) -> Tensor:
    """Compute a block pixel by pixel; the positions of windows and borders decide which pixels attend to which."""
    attn, w, shift = block.attn, block.window, block.shift
    height, width, dim = x.shape[1:]
    d = dim // attn.heads
    normed = F.layer_norm(x, (dim,), block.norm1.weight, block.norm1.bias)
    q, k, v = F.linear(normed, attn.qkv.weight, attn.qkv.bias).split(dim, dim=-1)
    out = torch.zeros_like(x)
    pixels = [(i, j) for i in range(height) for j in range(width)]

    def window(p: tuple[int, int]) -> tuple[int, ...]:
        """Return the window of a position: windows start at `shift`, and the strips before it are separate windows."""
        return tuple((n - shift) // w for n in p)

    def place(p: tuple[int, int]) -> tuple[int, int]:
        i, j = ((n - shift) % w for n in p)
        return i, j

    for p in pixels:
        seen = [o for o in pixels if window(o) == window(p)]
        for head in range(attn.heads):
            part = slice(head * d, head * d + d)
            scores = []
            for o in seen:
                (py, px), (oy, ox) = place(p), place(o)
                row = (py - oy + w - 1) * (2 * w - 1) + px - ox + w - 1
                scores.append(
                    (q[:, p[0], p[1], part] * k[:, o[0], o[1], part]).sum(-1) / d**0.5
                    + attn.relative_position_bias_table[row, head]
                )
            weights = torch.stack(scores, dim=-1).softmax(-1)  # [B, pixels seen]
            values = torch.stack([v[:, o[0], o[1], part] for o in seen], dim=1)
            out[:, p[0], p[1], part] = (weights.unsqueeze(-1) * values).sum(1)
    y = x + F.linear(out, attn.proj.weight, attn.proj.bias)
    z = F.layer_norm(y, (dim,), block.norm2.weight, block.norm2.bias)
    return y + F.linear(F.gelu(F.linear(z, block.mlp.fc1.weight, block.mlp.fc1.bias)), *block.mlp.fc2.parameters())


@pytest.mark.parametrize("size", [(8, 8), (4, 8)])
@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_block_against_loops(index: int, size: tuple[int, int]) -> None:
    """Cover the mask of the constructor's size, a mask for another size, and a window that touches all borders."""
    block = small().layers[0].residual_group.blocks[index]
    assert block.shift == 2 * index
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), explicit_block(block, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("upsampler", ["", "pixelshuffle", "pixelshuffledirect", "nearest+conv"])
@torch.no_grad()
def test_ends_against_the_formula(upsampler: str) -> None:
    scale = 2 if upsampler else 1
    net = small(upsampler=upsampler, upscale=scale, img_range=2.0)
    s, x = net.state_dict(), torch.rand(2, 3, 8, 4, dtype=torch.float64)
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).double().view(1, 3, 1, 1)

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], padding=1)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), (6,), s[f"{name}.weight"], s[f"{name}.bias"])

    centred = (x - mean) * 2
    first = conv("conv_first", centred)
    tokens = norm("patch_embed.norm", first)
    blocks = net.layers[0].residual_group.blocks
    body = tokens.movedim(-1, 1) + conv("layers.0.conv", blocks[1](blocks[0](tokens)).movedim(-1, 1))
    out = first + conv("conv_after_body", norm("norm", body).movedim(-1, 1))
    if upsampler == "":
        out = centred + conv("conv_last", out)
    elif upsampler == "pixelshuffledirect":
        out = F.pixel_shuffle(conv("upsample.0", out), 2)
    else:
        out = F.leaky_relu(conv("conv_before_upsample.0", out), 0.01)
        if upsampler == "pixelshuffle":
            out = F.pixel_shuffle(conv("upsample.0", out), 2)
        else:
            out = F.leaky_relu(conv("conv_up1", out.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
            out = F.leaky_relu(conv("conv_hr", out), 0.2)
        out = conv("conv_last", out)
    torch.testing.assert_close(net(x), out / 2 + mean, rtol=0, atol=1e-7)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_samples() -> None:
    block = SwinBlock(4, 2, 4, 0, 8, drop_path=0.25, img_size=4)
    torch.manual_seed(0)
    dropped = block._drop(torch.ones(4000, 1, 2, 4))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped.flatten(1).std(1) == 0).all()
    assert dropped.mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(block.eval()._drop(dropped), dropped)
    assert [b.drop_path for b in SwinIR(**SMALL).layers[0].residual_group.blocks] == pytest.approx([0, 0.1])


# ---- sizes


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 11])
def test_reflection_reaches_any_multiple(size: int) -> None:
    x = torch.arange(size, dtype=torch.float32).view(1, 1, 1, size).expand(1, 1, 3, size)
    out = reflect_to_multiple(x, 8)
    side = -(-size // 8) * 8
    assert out.shape == (1, 1, 8, side)
    if side - size < size:
        assert torch.equal(out[..., :3, :], F.pad(x[0], (0, side - size), mode="reflect")[None])
    else:
        mirrored = ([*range(size), *range(size - 2, 0, -1)] or [0]) * side
        assert out[0, 0, 0].tolist() == mirrored[:side]


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 12)])
@torch.no_grad()
def test_any_size_is_reflected_and_cropped(size: tuple[int, int]) -> None:
    net = small()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    whole = net(reflect_to_multiple(x, 4))
    torch.testing.assert_close(net(x), whole[..., : size[0], : size[1]], rtol=0, atol=1e-12)


def test_empty_batch() -> None:
    assert small()(torch.rand(0, 3, 8, 8, dtype=torch.float64)).shape == (0, 3, 8, 8)


def test_layouts_agree() -> None:
    net, lam = trained(), [[0.2, 0.8], [0.7, 0.3]]
    x = torch.rand(2, 3, 8, 7, dtype=torch.float64)
    plain = net(x, lam)
    last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), lam)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-12)


# ---- tunable


def test_convert_keeps_the_function() -> None:
    plain = small()
    net = convert(plain, num_params=2, parameters=TABLES)
    x = torch.rand(2, 3, 7, 9, dtype=torch.float64)
    lam = torch.tensor([[0.3, 0.7], [1.0, 0.0]], dtype=torch.float64)
    for choice in (lam, lam[0]):
        torch.testing.assert_close(net(x, choice), plain(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(4, 4), (7, 9)])
def test_per_sample_lambda_is_one_lambda_at_a_time(size: tuple[int, int]) -> None:
    net = trained()
    x = torch.rand(3, 3, *size, dtype=torch.float64)
    lam = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    together = net(x, lam)
    for b in range(3):
        alone = net(x[b : b + 1], lam[b])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-11)
        torch.testing.assert_close(net(x[b : b + 1], lam[b : b + 1]), alone, rtol=0, atol=1e-11)
    assert (net(x[:1], lam[0]) - net(x[:1], lam[2])).abs().max() > 1e-3


def test_position_tables_alone_reach_the_output() -> None:
    net = convert(small(), num_params=2, include=[], parameters=TABLES)
    assert all(isinstance(layer, ParameterBlend) for layer in net.layers)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, WindowAttention):
                stack = module.parametrizations.relative_position_bias_table.original
                stack.add_(torch.randn_like(stack))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    first, second = net(x, [[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(first, net(x, [1.0, 0.0])[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(second, net(x, [0.0, 1.0])[1], rtol=0, atol=1e-11)
    assert (net(x, [1.0, 0.0]) - net(x, [0.0, 1.0])).abs().max() > 1e-3


def test_every_kernel_gets_a_gradient() -> None:
    """The exception is the bias of the keys, which the softmax removes."""
    net = trained()
    lam = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    net(torch.rand(2, 3, 8, 8, dtype=torch.float64), lam).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_fold_gives_the_class_back() -> None:
    net = trained(upsampler="pixelshuffle", upscale=2)
    x, lam = torch.rand(2, 3, 7, 9, dtype=torch.float64), [0.3, 0.7]
    folded = fold(net, lam)
    assert type(folded) is SwinIR
    assert folded.state_dict().keys() == small(upsampler="pixelshuffle", upscale=2).state_dict().keys()
    torch.testing.assert_close(folded(x), net(x, lam), rtol=0, atol=1e-11)


# ---- arguments, registry


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"embed_dim": 0}, ValueError, "SwinIR: embed_dim must be at least 1; got 0"),
        ({"window_size": 8.0}, TypeError, "SwinIR: window_size must be an int; got 8.0"),
        ({"depths": 6}, TypeError, "SwinIR: depths must be a list or tuple of ints; got 6"),
        ({"depths": [2, 0]}, ValueError, r"SwinIR: depths\[1\] must be at least 1; got 0"),
        ({"depths": [2, 2]}, ValueError, r"num_heads must have as many entries as depths; got \[3\] for \[2, 2\]"),
        ({"num_heads": [4]}, ValueError, "SwinIR: embed_dim must be a multiple of num_heads, 4; got 6"),
        ({"img_size": 10}, ValueError, "SwinIR: img_size must be a multiple of window_size, 4; got 10"),
        ({"drop_path_rate": 1.0}, ValueError, r"SwinIR: drop_path_rate must lie in \[0, 1\); got 1.0"),
        ({"img_range": 0}, ValueError, "SwinIR: img_range must be positive; got 0"),
        ({"mlp_ratio": "2"}, TypeError, "SwinIR: mlp_ratio must be a number; got '2'"),
        ({"upsampler": "shuffle"}, ValueError, "SwinIR: upsampler must be one of '', 'pixelshuffle', .* got 'shuffle'"),
        ({"upscale": 2}, ValueError, "SwinIR: upscale must be one of 1 for upsampler ''; got 2"),
        ({"resi_connection": "2conv"}, ValueError, "SwinIR: resi_connection must be '1conv' or '3conv'; got '2conv'"),
        ({"mean": 0.5}, TypeError, "SwinIR: mean must be a list or tuple of numbers; got 0.5"),
        ({"mean": [0.5]}, ValueError, r"SwinIR: mean must be 3 numbers; got \[0.5\]"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SwinIR(**{**SMALL, **arguments})


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_bad_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"SwinIR: x must be \[B, 3, H, W\], H and W >= 1; got \[") as caught:
        small()(torch.zeros(shape, dtype=torch.float64))
    assert str(list(shape)) in str(caught.value)


def test_checkpoint_by_name(tmp_path: Path) -> None:
    net = convert(models.build("swinir", **SMALL), num_params=2, parameters=TABLES).eval()
    save(net, tmp_path / "n.safetensors", architecture="swinir", arguments=SMALL)
    loaded = load(tmp_path / "n.safetensors")
    assert type(loaded.network) is SwinIR
    x, lam = torch.rand(2, 3, 5, 6), [[0.1, 0.9], [0.5, 0.5]]
    assert torch.equal(loaded(x, lam), net(x, lam))


def test_training_configuration_by_name() -> None:
    from tunable_ops.train.build import build_network
    from tunable_ops.train.config import load_config

    arguments = "{img_size = 8, embed_dim = 6, depths = [2], num_heads = [3], window_size = 4}"
    overrides = ["model.name=swinir", f"model.arguments={arguments}", f"tuning.parameters={list(TABLES)}"]
    net = build_network(load_config("demo", overrides))
    assert isinstance(net, TunableModel) and isinstance(net.network, SwinIR)
    assert sum(isinstance(layer, ParameterBlend) for layer in net.layers) == 2
