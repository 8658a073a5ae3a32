"""DnCNN and the registry of architectures."""

import math
import os
from pathlib import Path

import pytest
import torch

from tunable_ops import models
from tunable_ops.models import DnCNN


def test_keys_are_those_of_published_weights() -> None:
    net = DnCNN(channels=1, features=4, depth=4)
    assert sorted(net.state_dict()) == sorted(f"model.{i}.{part}" for i in (0, 2, 4, 6) for part in ("weight", "bias"))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (9, 6), (5, 11)])
@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_any_size_keeps_its_shape(size: tuple[int, int], downscale: int) -> None:
    net = DnCNN(channels=3, features=4, depth=3, downscale=downscale)
    assert net(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("downscale", [2, 4])
def test_padding_does_not_change_what_lies_inside(downscale: int) -> None:
    """Away from the border, an odd size must give the same as the even size around it."""
    torch.manual_seed(0)
    net = DnCNN(channels=1, features=6, depth=2, downscale=downscale, mean=0.5).double()
    torch.nn.init.normal_(net.model[2].weight)
    x = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    whole, cut = net(x), net(x[..., :31, :29])
    assert torch.equal(whole[..., :16, :16], cut[..., :16, :16]) or torch.allclose(
        whole[..., :16, :16], cut[..., :16, :16], rtol=0, atol=1e-12
    )


def test_residual_and_mean_against_the_formula() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 6, 5)
    for residual in (True, False):
        net = DnCNN(channels=1, features=4, depth=3, residual=residual, mean=0.25)
        chain = net.model(x - 0.25)
        expected = x - chain if residual else 0.25 + chain
        torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


def test_downscale_against_explicit_blocks() -> None:
    torch.manual_seed(0)
    net = DnCNN(channels=2, features=4, depth=2, downscale=2)
    x = torch.rand(1, 2, 4, 6)
    blocks = torch.stack([x[:, c, i::2, j::2] for c in range(2) for i in range(2) for j in range(2)], dim=1)
    out = net.model(blocks)
    back = torch.zeros_like(x)
    for k in range(8):
        c, i, j = k // 4, (k // 2) % 2, k % 2
        back[:, c, i::2, j::2] = out[:, k]
    torch.testing.assert_close(net(x), x - back, rtol=0, atol=0)


def test_fresh_network_keeps_signals_alive_and_starts_near_the_input() -> None:
    torch.manual_seed(0)
    net = DnCNN(channels=3, features=32, depth=12, mean=0.5)
    x = torch.rand(1, 3, 16, 16)
    change = (net(x) - x).square().mean().sqrt()
    assert 1e-3 < change < 0.1, float(change)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"depth": 1}, ValueError, "DnCNN: depth must be at least 2; got 1"),
        ({"features": 0}, ValueError, "DnCNN: features must be at least 1; got 0"),
        ({"downscale": 1.5}, TypeError, "DnCNN: downscale must be an int; got 1.5"),
        ({"channels": True}, TypeError, "DnCNN: channels must be an int; got True"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DnCNN(**arguments)


def test_bad_input_names_the_channels() -> None:
    with pytest.raises(ValueError, match=r"DnCNN: x must be \[B, 3, H, W\]; got \[1, 1, 8, 8\]"):
        DnCNN(features=4, depth=2)(torch.zeros(1, 1, 8, 8))


def test_build_knows_its_names_and_arguments() -> None:
    net = models.build("dncnn", features=5, depth=3)
    assert isinstance(net, DnCNN)
    assert net.model[0].out_channels == 5
    with pytest.raises(ValueError, match=r"models: name must be one of .*dncnn, edsr.*; got 'dncn'"):
        models.build("dncn")
    with pytest.raises(ValueError, match=r"got 'feature'; did you mean 'features'\?"):
        models.build("dncnn", feature=5)


def test_published_weights_denoise_as_published() -> None:
    """Measure dncnn_gray_sigma25 on three pictures of set12; the noise differs from that of the published run."""
    from safetensors.torch import load_file

    from tunable_ops.images import read_image

    root = os.environ.get("TUNABLE_OPS_DATA")
    if not root:
        pytest.skip("TUNABLE_OPS_DATA is not set: no published weights at hand")
    net = DnCNN(channels=1).eval().to(memory_format=torch.channels_last)
    net.load_state_dict(load_file(Path(root) / "weights" / "dncnn_gray_sigma25.safetensors"))
    files = sorted((Path(root) / "images" / "test" / "set12").iterdir())[:3]
    for file, published in zip(files, (30.21, 33.11, 30.83), strict=True):
        clean = read_image(file)[:1].unsqueeze(0)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            output = net((clean + noise * 25 / 255).contiguous(memory_format=torch.channels_last))
        psnr = -10 * math.log10((output - clean).square().mean())
        assert abs(psnr - published) < 0.15, (file.name, psnr, published)
