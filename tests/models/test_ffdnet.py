"""FFDNet: its formula, sizes, errors and published figures."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tunable_ops import convert
from tunable_ops.models import FFDNet
from tunable_ops.serialization import fill
from tunable_ops.train.data import held_out

DATA = os.environ.get("TUNABLE_OPS_DATA")


def test_keys_and_parameters_are_those_of_the_published_weights() -> None:
    net = FFDNet()
    assert sorted(net.state_dict()) == sorted(f"model.{i}.{p}" for i in range(0, 24, 2) for p in ("weight", "bias"))
    assert net.model[0].weight.shape == (96, 13, 3, 3)
    assert sum(p.numel() for p in net.parameters()) == 852_108


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (9, 6)])
def test_formula_and_sizes(size: tuple[int, int]) -> None:
    net, x = FFDNet(channels=2, features=4, depth=3), torch.rand(2, 2, *size)
    out = net(x, torch.tensor([0.1, 0.3]))
    rows, columns = [torch.arange(n + n % 2).clamp(max=n - 1) for n in size]
    padded = x[..., rows, :][..., columns]
    blocks = torch.stack([padded[:, c, i::2, j::2] for c in range(2) for i in range(2) for j in range(2)], dim=1)
    level = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1).expand(-1, 1, *blocks.shape[-2:])
    chain, expected = net.model(torch.cat((blocks, level), 1)), torch.zeros_like(padded)
    for k in range(8):
        expected[:, k // 4, (k // 2) % 2 :: 2, k % 2 :: 2] = chain[:, k]
    torch.testing.assert_close(out, expected[..., : size[0], : size[1]], atol=1e-6, rtol=1e-5)
    # a number and a constant map give the same
    torch.testing.assert_close(net(x, torch.full((2, 1, *size), 0.2)), net(x, 0.2), atol=1e-6, rtol=1e-5)


def test_takes_its_level_beside_lambda() -> None:
    net, x = FFDNet(features=4, depth=3), torch.rand(2, 3, 6, 5)
    tunable = convert(net, num_params=2)
    torch.testing.assert_close(tunable(x, [0.3, 0.7], 0.1), net(x, 0.1), atol=1e-6, rtol=1e-5)


def test_a_skip_is_nothing_until_it_is_trained() -> None:
    """Published weights do not have it; they fill the rest."""
    published, x = FFDNet(features=4, depth=3), torch.rand(2, 3, 7, 6)
    net = FFDNet(features=4, depth=3, skip=True)
    fill("published", net, published.state_dict())
    assert not net.skip.weight.any()
    assert torch.equal(net(x, 0.1), published(x, 0.1))
    torch.nn.init.dirac_(net.skip.weight)
    torch.testing.assert_close(net(x, 0.1), published(x, 0.1) + x)
    assert published.added == ()
    with pytest.raises(ValueError, match=r"1 missing \(model.0.weight\)"):
        fill("published", net, {k: v for k, v in published.state_dict().items() if k != "model.0.weight"})
    with pytest.raises(ValueError, match=r"1 unknown \(skip.weight\)"):
        fill("with a skip", published, net.state_dict())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"depth": 1}, ValueError, "FFDNet: depth must be at least 2; got 1"),
        ({"features": 1.5}, TypeError, "FFDNet: features must be an int; got 1.5"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        FFDNet(**arguments)


def test_bad_input() -> None:
    net = FFDNet(features=4, depth=2)
    with pytest.raises(ValueError, match=r"x must be \[B, 3, H, W\]; got \[1, 1, 4, 4\]"):
        net(torch.zeros(1, 1, 4, 4), 0.1)
    with pytest.raises(ValueError, match=r"sigma must be a number, \[2\] or \[2, 1, 4, 4\]; got \[3\]"):
        net(torch.zeros(2, 3, 4, 4), torch.zeros(3))


@pytest.mark.skipif(not DATA, reason="TUNABLE_OPS_DATA is not set")
@pytest.mark.slow
@pytest.mark.parametrize("sigma, published", [(15, 33.88), (25, 31.21), (50, 27.95)])
def test_published_figures(sigma: int, published: float) -> None:
    """Measure PSNR on all of cbsd68 with the noise of the published test, the same draw for every picture.

    The tolerance covers other draws: at sigma 15 three of them gave 33.857, 33.868 and 33.879 dB.
    """
    from safetensors.torch import load_file

    net = FFDNet().eval().to(memory_format=torch.channels_last)
    net.load_state_dict(load_file(Path(DATA) / "weights" / "ffdnet_color.safetensors"))
    values = []
    with torch.no_grad():
        for _, clean in held_out(str(Path(DATA) / "images" / "test" / "cbsd68")):
            noise = np.random.RandomState(0).normal(0, sigma / 255, (*clean.shape[1:], 3))
            noisy = clean + torch.from_numpy(noise).float().permute(2, 0, 1)
            error = (net(noisy[None], sigma / 255)[0].clamp(0, 1) * 255).round() / 255 - clean
            values.append(float(-10 * error.square().mean().log10()))
    assert len(values) == 68
    assert sum(values) / len(values) == pytest.approx(published, abs=0.03)
