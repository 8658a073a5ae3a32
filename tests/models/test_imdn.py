"""IMDN: its published keys, formula, sizes, errors and figure."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.published import NEEDS_WEIGHTS, set5, weights
from tunable_ops.models import IMDN


def test_keys_and_parameters_are_those_of_the_published_weights() -> None:
    net = IMDN()
    assert sum(p.numel() for p in net.parameters()) == 893_936
    block = ["conv1.0", "conv2.0", "conv3.0", "conv4", "conv1x1"]
    layers = ["model.0", "model.1.sub.8", "model.2", *(f"model.1.sub.{i}.{name}" for i in range(8) for name in block)]
    assert sorted(net.state_dict()) == sorted(f"{layer}.{p}" for layer in layers for p in ("weight", "bias"))


def test_formula() -> None:
    """Compute the network from its weights, in the published order of operations."""
    net = IMDN(scale=3, features=8, blocks=2, channels=2).double()
    x, state = torch.rand(2, 2, 5, 6, dtype=torch.float64), net.state_dict()

    def conv(t: torch.Tensor, name: str) -> torch.Tensor:
        weight = state[f"model.{name}.weight"]
        return F.conv2d(t, weight, state[f"model.{name}.bias"], padding=weight.shape[-1] // 2)

    first = out = conv(x, "0")
    for block in ("1.sub.0", "1.sub.1"):
        kept, rest = [], out
        for name in ("conv1.0", "conv2.0", "conv3.0"):
            wide = conv(rest, f"{block}.{name}")
            part, rest = torch.where(wide > 0, wide, 0.05 * wide).split((2, 6), dim=1)
            kept.append(part)
        kept.append(conv(rest, f"{block}.conv4"))
        out = out + conv(torch.cat(kept, 1), f"{block}.conv1x1")
    expected = F.pixel_shuffle(conv(first + conv(out, "1.sub.2"), "2"), 3)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 5)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_sizes(size: tuple[int, int], scale: int) -> None:
    out = IMDN(scale=scale, features=4, blocks=1)(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])


def test_errors() -> None:
    with pytest.raises(ValueError, match="IMDN: features must be a multiple of 4; got 6"):
        IMDN(features=6)
    with pytest.raises(ValueError, match="IMDN: scale must be at least 1; got 0"):
        IMDN(scale=0)
    with pytest.raises(TypeError, match=r"IMDN: blocks must be an int; got 2\.0"):
        IMDN(blocks=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"IMDN: x must be \[B, 3, H, W\]; got \[3, 4, 4\]"):
        IMDN(features=4, blocks=1)(torch.zeros(3, 4, 4))


@NEEDS_WEIGHTS
@pytest.mark.slow
def test_published_figure() -> None:
    net = IMDN().eval()
    net.load_state_dict(weights("imdn_x4"))
    assert set5(net, 4) == pytest.approx(32.25, abs=0.006)
