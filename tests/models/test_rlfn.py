"""RLFN: its published keys, formula, sizes, errors and figure."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.published import NEEDS_WEIGHTS, set5, weights
from tunable_ops.models import RLFN


def test_keys_and_parameters_are_those_of_the_published_weights() -> None:
    net = RLFN()
    assert sum(p.numel() for p in net.parameters()) == 317_218
    block = ["c1_r", "c2_r", "c3_r", "c5", *(f"esa.{name}" for name in ("conv1", "conv_f", "conv2", "conv3", "conv4"))]
    layers = ["fea_conv", "LR_conv", "upsampler.0", *(f"B{i}.{layer}" for i in range(1, 5) for layer in block)]
    assert sorted(net.state_dict()) == sorted(f"{layer}.{p}" for layer in layers for p in ("weight", "bias"))


def test_formula() -> None:
    """Compute the network from its weights, in the published order of operations."""
    net = RLFN(scale=2, features=5, hidden=6, attention=3, blocks=2, channels=2).double()
    x, state = torch.rand(2, 2, 17, 21, dtype=torch.float64), net.state_dict()

    def conv(t: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return F.conv2d(t, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def leaky(t: torch.Tensor) -> torch.Tensor:
        return torch.where(t > 0, t, 0.05 * t)

    first = out = conv(255 * x, "fea_conv", padding=1)
    for b in ("B1", "B2"):
        inner = out
        for name in ("c1_r", "c2_r", "c3_r"):
            inner = leaky(conv(inner, f"{b}.{name}", padding=1))
        out = conv(inner + out, f"{b}.c5")
        narrow = conv(out, f"{b}.esa.conv1")
        small = F.max_pool2d(conv(narrow, f"{b}.esa.conv2", stride=2), 7, 3)
        mask = F.interpolate(conv(small, f"{b}.esa.conv3", padding=1), size=(17, 21), mode="bilinear")
        mask = conv(mask + conv(narrow, f"{b}.esa.conv_f"), f"{b}.esa.conv4")
        out = out / (1 + torch.exp(-mask))
    out = conv(conv(out, "LR_conv", padding=1) + first, "upsampler.0", padding=1)
    torch.testing.assert_close(net(x), F.pixel_shuffle(out, 2) / 255)


@pytest.mark.parametrize("size", [(15, 15), (15, 40), (33, 16)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_sizes(size: tuple[int, int], scale: int) -> None:
    out = RLFN(scale=scale, features=4, hidden=4, attention=2, blocks=1)(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])


def test_errors() -> None:
    with pytest.raises(ValueError, match="RLFN: blocks must be at least 1; got 0"):
        RLFN(blocks=0)
    with pytest.raises(TypeError, match="RLFN: scale must be an int; got '4'"):
        RLFN(scale="4")  # type: ignore[arg-type]
    net = RLFN(features=4, hidden=4, attention=2, blocks=1)
    with pytest.raises(ValueError, match=r"RLFN: x must be \[B, 3, H, W\]; got \[1, 1, 20, 20\]"):
        net(torch.zeros(1, 1, 20, 20))
    with pytest.raises(ValueError, match=r"RLFN: x must have at least 15 x 15 pixels.*; got \[1, 3, 14, 20\]"):
        net(torch.zeros(1, 3, 14, 20))


@NEEDS_WEIGHTS
@pytest.mark.slow
def test_published_figure() -> None:
    net = RLFN().eval()
    net.load_state_dict(weights("rlfn_x4"))
    assert set5(net, 4) == pytest.approx(32.10, abs=0.006)
