"""LambdaPlanes: entries of lambda as inputs of a network, on every path, and beside tunable layers."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import (
    LambdaPlanes,
    LiveFold,
    TunableModel,
    convert,
    fold,
    freeze_all_but_new,
    optimizer_groups,
    serialization,
)
from tunable_ops.models import FFDNet
from tunable_ops.tiles import apply_tiled


def plain_net(entry: int = 0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        LambdaPlanes([entry], [2.0]), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, stride=2, padding=1)
    ).eval()


def tunable(entry: int = 0) -> TunableModel:
    """A network with two knobs, the first of which it reads itself, and a trained-looking kernel for the other."""
    return trained(convert(plain_net(entry), 2, domain="box", names=["sigma", "texture"]))


def trained(net: TunableModel) -> TunableModel:
    with torch.no_grad():
        for layer in net.layers:
            layer.weight[1:] = 0.1 * torch.randn(layer.weight[1:].shape, generator=torch.Generator().manual_seed(1))
    return net


def by_hand(net: TunableModel, x: Tensor, sigma: Tensor, texture: float) -> Tensor:
    """Compute `plain_net` with the planes `sigma` [B, 1, H, W] and blended kernels."""
    out = torch.cat((x, 0.5 * sigma), 1)
    for layer, stride in zip(net.layers, (1, 2), strict=True):
        weight, bias = (stack[0] + texture * stack[1] for stack in (layer.weight, layer.bias))
        out = F.conv2d(out.relu() if stride == 2 else out, weight, bias, stride, padding=1)
    return out


def planes(values: list[float], x: Tensor) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(len(x), 1, *x.shape[2:])


@torch.no_grad()
def test_one_lambda_per_sample_and_map() -> None:
    net, x = tunable(), torch.rand(2, 3, 8, 6)
    assert all(layer.tuning.num_kernels == 2 for layer in net.layers)
    torch.testing.assert_close(net(x, [0.4, 0.7]), by_hand(net, x, planes([0.4], x), 0.7))
    torch.testing.assert_close(net(x, [[0.4, 0.7]]), by_hand(net, x, planes([0.4], x), 0.7))
    out = net(x, torch.tensor([[0.4, 0.7], [0.9, 0.1]]))
    for b, lam in enumerate(([0.4, 0.7], [0.9, 0.1])):
        torch.testing.assert_close(out[b : b + 1], net(x[b : b + 1], lam), atol=1e-6, rtol=1e-5)
    # a map of twice the size is averaged down to the picture's grid
    lam = torch.rand(2, 2, 16, 12)
    lam[:, 1] = 0.3
    small = F.avg_pool2d(lam, 2)[:, :1]
    torch.testing.assert_close(net(x, lam), by_hand(net, x, small, 0.3), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        net(x, lam[:1]), by_hand(net, x, small[:1].expand(2, -1, -1, -1), 0.3), atol=1e-6, rtol=1e-5
    )


@torch.no_grad()
def test_a_batch_of_windows_and_other_dimensions() -> None:
    net = TunableModel(LambdaPlanes([2, 0], [1.0, 0.1]), 3, domain="box")
    out = net(torch.zeros(4, 1, 2), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert out.shape == (4, 3, 2)
    assert out[:, 1:, 0].tolist() == [[3.0, 10.0], [3.0, 10.0], [6.0, 40.0], [6.0, 40.0]]
    assert net(torch.zeros(0, 1, 2, 3, 4), [0.0, 0.0, 0.0]).shape == (0, 3, 2, 3, 4)
    half = net(torch.zeros(1, 1, 2, dtype=torch.bfloat16), [1.0, 2.0, 3.0])
    assert half.dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fold_live_fold_and_tiles(layout: torch.memory_format) -> None:
    net = tunable().to(memory_format=layout)
    x = torch.rand(1, 3, 16, 12).contiguous(memory_format=layout)
    expected = net(x, [0.4, 0.7])
    folded = fold(net, [0.4, 0.7])
    assert torch.equal(folded(x), expected)
    assert type(folded[1]) is nn.Conv2d
    assert folded.state_dict()["0.values"].tolist() == pytest.approx([0.2])
    assert net.network[0].values is None  # the source still follows
    live = LiveFold(net)
    address = live.network[0].values.data_ptr()
    live.set([0.4, 0.7])
    assert live.network[0].values.data_ptr() == address
    assert torch.equal(live(x), expected)
    assert torch.equal(copy.deepcopy(live)(x), expected)
    whole = apply_tiled(lambda part: F.interpolate(net(part, [0.4, 0.7]), scale_factor=2), x, tile=8, overlap=4)
    same = apply_tiled(lambda part: F.interpolate(folded(part), scale_factor=2), x, tile=8, overlap=4)
    assert torch.equal(whole, same)


def test_the_planes_alone_leave_the_kernels_at_the_base() -> None:
    """phi has no column for what the network reads: at texture 0 the kernels are the plain ones at every sigma."""
    net = tunable()
    for layer in net.layers:
        assert layer.tuning.weight.tolist() == [[0.0, 1.0]]
        assert layer.tuning.bias.tolist() == [0.0]
    plain = plain_net()
    for lam in ([0.0, 0.0], [0.3, 0.0], [-1.7, 0.0]):
        folded = fold(net, lam).state_dict()
        assert all(torch.equal(value, folded[name]) for name, value in plain.state_dict().items())
    # the entry that is read may stand anywhere
    assert [layer.tuning.weight.tolist() for layer in tunable(1).layers] == [[[1.0, 0.0]]] * 2


def test_a_number_of_kernels_that_is_given_stands() -> None:
    net = convert(plain_net(), 2, domain="box", num_kernels=3)
    assert all(layer.tuning.weight.tolist() == [[1.0, 0.0], [0.0, 1.0]] for layer in net.layers)


@torch.no_grad()
def test_a_network_that_reads_all_of_lambda(tmp_path: Path) -> None:
    net, x = convert(plain_net(), 1, domain="box", names=["sigma"]), torch.rand(1, 3, 8, 6)
    assert net.layers == ()
    assert not torch.equal(net(x, [0.2]), net(x, [0.8]))
    assert torch.equal(fold(net, [0.8])(x), net(x, [0.8]))
    serialization.save(net, tmp_path / "net.safetensors", architecture="own", arguments={})
    loaded = serialization.load(tmp_path / "net.safetensors", plain_net())
    assert torch.equal(loaded(x, [0.8]), net(x, [0.8]))


@torch.no_grad()
def test_checkpoints_tunable_and_folded(tmp_path: Path) -> None:
    arguments = {"features": 4, "depth": 3, "knob": 0}
    net = trained(convert(FFDNet(**arguments).eval(), 2, domain="box", names=["sigma", "texture"]))
    x, file = torch.rand(1, 3, 9, 8), tmp_path / "net.safetensors"
    serialization.save(net, file, architecture="ffdnet", arguments=arguments)
    assert torch.equal(serialization.load(file)(x, [0.4, 0.7]), net(x, [0.4, 0.7]))
    serialization.save(fold(net, [0.4, 0.7]), file, architecture="ffdnet", arguments=arguments)
    assert torch.equal(serialization.load_folded(file)(x), net(x, [0.4, 0.7]))
    again = FFDNet(**arguments)
    again.load_state_dict(fold(net, [0.4, 0.7]).state_dict())
    assert torch.equal(again(x), net(x, [0.4, 0.7]))


def test_gradients_reach_lambda_and_freezing_keeps_the_base() -> None:
    net, x = tunable(), torch.rand(2, 3, 8, 6)
    lam = torch.tensor([[0.4, 0.7], [0.9, 0.1]], requires_grad=True)
    net(x, lam).square().mean().backward()
    assert lam.grad is not None and (lam.grad != 0).all()
    plain = plain_net()
    net = convert(plain, 2, domain="box")
    freeze_all_but_new(net)
    optimizer = torch.optim.AdamW(optimizer_groups(net), lr=0.1)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in net.parameters() if p.requires_grad
    }
    for _ in range(2):
        optimizer.zero_grad()
        net(x, torch.rand(2, 2)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        folded = fold(net, [0.6, 0.0]).state_dict()
        assert all(torch.equal(value, folded[name]) for name, value in plain.state_dict().items())
        assert not torch.equal(fold(net, [0.6, 1.0])(x), fold(net, [0.6, 0.0])(x))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_compile_and_export(batch: tuple[int, ...]) -> None:
    net, x = tunable(), torch.rand(2, 3, 8, 6)
    lam = torch.tensor([0.4, 0.7]).expand(*batch, 2).contiguous()
    with torch.no_grad():
        expected = net(x, lam)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, lam), expected)
        program = torch.export.export(net, (x, torch.zeros_like(lam))).module()
        torch.testing.assert_close(program(x, lam), expected)  # lambda is an input, not a constant


@torch.no_grad()
def test_ffdnet_with_its_level_as_a_knob() -> None:
    """It is FFDNet at the level that lambda says in units of 255, bit for bit, for one lambda and folded."""
    plain = FFDNet(features=8, depth=4).eval()
    reading = FFDNet(features=8, depth=4, knob=1).eval()
    reading.load_state_dict(plain.state_dict())  # the same keys
    net = trained(convert(reading, 2, domain="box", names=["texture", "sigma"], ranges=[(0, 1), (0, 50)]))
    x = torch.rand(2, 3, 9, 7)
    for sigma in (0, *range(1, 50, 6), 12.3, 50):
        level = sigma / 255
        assert torch.equal(net(x, [0.0, sigma]), plain(x, level))
        assert torch.equal(fold(net, [0.0, sigma])(x), plain(x, level))
        assert torch.equal(LiveFold(net, [0.0, sigma])(x), plain(x, level))
    rows = torch.tensor([[0.0, 15.0], [0.0, 40.0]])
    expected = plain(x, rows[:, 1] / 255)
    torch.testing.assert_close(net(x, rows), expected, atol=1e-6, rtol=1e-5)
    # what a call says itself comes first, inside and outside
    assert torch.equal(net(x, [0.0, 40.0], 0.1), plain(x, 0.1))
    assert torch.equal(reading(x, 0.1), plain(x, 0.1))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"LambdaPlanes: entries must be different positions from 0; got \[1, 1\]"):
        LambdaPlanes([1, 1])
    with pytest.raises(ValueError, match=r"LambdaPlanes: entries must be different positions from 0; got \[\]"):
        LambdaPlanes([])
    with pytest.raises(TypeError, match=r"LambdaPlanes: entries must be ints; got \[0\.5\]"):
        LambdaPlanes([0.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"LambdaPlanes: divisors must hold one positive number per entry, 1; got \[1"):
        LambdaPlanes([0], [1.0, 2.0])
    with pytest.raises(TypeError, match=r"LambdaPlanes: divisors must be numbers; got \['1'\]"):
        LambdaPlanes([0], ["1"])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="LambdaPlanes: lam must come from the forward of a TunableModel"):
        plain_net()(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"must read entries of lambda below num_params = 2; got \[2\]"):
        convert(plain_net(2), 2, domain="box")
    net = tunable()
    with pytest.raises(ValueError, match=r"LambdaPlanes: lam must fit the input's leading size 4: .*; got B = 3"):
        net(torch.rand(4, 3, 4, 4), torch.rand(3, 2))
    flat = TunableModel(LambdaPlanes([0]), 1, domain="box")
    with pytest.raises(ValueError, match=r"lam must not be a map for an input that holds parts .*; got B = 2"):
        flat(torch.zeros(4, 1, 2, 2), torch.rand(2, 1, 2, 2))
    with pytest.raises(ValueError, match="LambdaPlanes: lam must be a map of 1 dimensions for this input; got 2"):
        flat(torch.rand(1, 3, 4), torch.rand(1, 1, 4, 4))
    with pytest.raises(TypeError, match=r"FFDNet: sigma must be a number or a tensor where no knob .*; got None"):
        FFDNet(features=4, depth=2)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="FFDNet: knob must be at least 0; got -1"):
        FFDNet(knob=-1)
    with pytest.raises(ValueError, match=r"LambdaPlanes: divisors must hold one positive number .*; got \[0\]"):
        LambdaPlanes([0], [0])
