"""CARN-M: its published keys, formula, sizes, errors and figures."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.published import NEEDS_WEIGHTS, set5, weights
from tunable_ops import convert
from tunable_ops.models import CARN


def test_keys_and_parameters_are_those_of_the_published_weights() -> None:
    net = CARN()
    assert sum(p.numel() for p in net.parameters()) == 414_811
    gathers = ["c1.body.0", "c2.body.0", "c3.body.0"]
    block = ["b1.body.0", "b1.body.2", "b1.body.4", *gathers]
    layers = ["entry", "exit", "sub_mean.shifter", "add_mean.shifter", *gathers]
    layers += [f"{b}.{name}" for b in ("b1", "b2", "b3") for name in block]
    layers += [f"upsample.{name}" for name in ("up2.body.0", "up3.body.0", "up4.body.0", "up4.body.3")]
    assert sorted(net.state_dict()) == sorted(f"{layer}.{p}" for layer in layers for p in ("weight", "bias"))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_formula(scale: int) -> None:
    """Compute the network from its weights, in the published order of operations."""
    net = CARN(scale=scale, features=8, groups=2).double()
    x, state = torch.rand(2, 3, 5, 6, dtype=torch.float64), net.state_dict()
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).double().view(3, 1, 1)

    def conv(t: torch.Tensor, name: str) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        groups = t.shape[1] // weight.shape[1]
        return F.conv2d(t, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)

    def unit(t: torch.Tensor, name: str) -> torch.Tensor:
        out = conv(t, f"{name}.body.0").relu()
        return (conv(conv(out, f"{name}.body.2").relu(), f"{name}.body.4") + t).relu()

    def block(t: torch.Tensor, name: str) -> torch.Tensor:
        out, parts = t, [t]
        for i in (1, 2, 3):
            parts.append(unit(out, f"{name}.b1"))
            out = conv(torch.cat(parts, 1), f"{name}.c{i}.body.0").relu()
        return out

    out = conv(x - mean, "entry")
    parts = [out]
    for i in (1, 2, 3):
        parts.append(block(out, f"b{i}"))
        out = conv(torch.cat(parts, 1), f"c{i}.body.0").relu()
    for i, factor in enumerate((2, 2) if scale == 4 else (scale,)):
        out = F.pixel_shuffle(conv(out, f"upsample.up{scale}.body.{3 * i}").relu(), factor)
    torch.testing.assert_close(net(x), conv(out, "exit") + mean, atol=1e-7, rtol=1e-6)  # the means are float32


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 5)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sizes(size: tuple[int, int], scale: int) -> None:
    out = CARN(scale=scale, features=4, groups=1)(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])


def test_the_means_are_constants() -> None:
    """They are neither trained nor made tunable, and `convert` has nothing to warn of."""
    net = convert(CARN(features=8), 1, domain="box", exclude=["upsample.up3.*", "upsample.up4.*"])
    assert isinstance(net.network, CARN)
    assert type(net.network.sub_mean.shifter) is type(CARN(features=8).sub_mean.shifter)
    assert not net.network.sub_mean.shifter.weight.requires_grad
    assert len(net.layers) == 1 + 3 * 6 + 3 + 1 + 1  # entry, blocks, gathers, up2, exit


def test_errors() -> None:
    with pytest.raises(ValueError, match="CARN: scale must be 2, 3 or 4; got 5"):
        CARN(scale=5)
    with pytest.raises(ValueError, match="CARN: features must be a multiple of groups = 4; got 6"):
        CARN(features=6)
    with pytest.raises(TypeError, match="CARN: groups must be an int; got None"):
        CARN(groups=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"CARN: x must be \[B, 3, H, W\]; got \[1, 1, 4, 4\]"):
        CARN(features=4)(torch.zeros(1, 1, 4, 4))


@NEEDS_WEIGHTS
@pytest.mark.slow
@pytest.mark.parametrize("scale, published", [(2, 37.68), (4, 31.88)])
def test_published_figures(scale: int, published: float) -> None:
    net = CARN(scale=scale).eval()
    net.load_state_dict(weights("carn_m"))
    assert set5(net, scale) == pytest.approx(published, abs=0.006)
