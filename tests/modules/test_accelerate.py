"""accelerate: plain networks with their 3x3 layers through the C++ operator, and the layers of a TunableModel."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tunable_ops
from tests.comparison import assert_agrees
from tunable_ops import backends, functional
from tunable_ops.modules.accelerate import FilteredConv2d

needs_cpp = pytest.mark.skipif(
    backends.unavailable_reason("tunable_conv2d", "cpp") is not None, reason="needs the compiled operators"
)
LAST = torch.channels_last


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.Conv2d(32, 32, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(32, 32, 3, padding=2, padding_mode="reflect"),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.Conv2d(48, 48, 1),
        nn.Conv2d(48, 20, 3, padding=(0, 2)),
    ).to(memory_format=LAST)  # type: ignore[call-overload, no-any-return]


def picture() -> Tensor:
    return torch.rand(2, 3, 40, 36).to(memory_format=LAST)


def outputs_and_gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = net(leaf)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [leaf, *net.parameters()], grad)]


def test_which_layers() -> None:
    net = tunable_ops.accelerate(network())
    found = [i for i, module in enumerate(net) if type(module) is FilteredConv2d]  # type: ignore[arg-type, var-annotated]
    assert found == [2, 3, 4, 7]
    with pytest.raises(TypeError, match="net must be a module; got list"):
        tunable_ops.accelerate([])  # type: ignore[arg-type]


@needs_cpp
def test_outputs_and_gradients_agree_and_exact_are_torchs() -> None:
    plain, x = network(), picture()
    net = tunable_ops.accelerate(copy.deepcopy(plain))
    base = outputs_and_gradients(plain, x)
    ref = outputs_and_gradients(copy.deepcopy(plain).double(), x.double())
    out = outputs_and_gradients(net, x)
    assert not torch.equal(out[0], base[0])
    for o, r, b in zip(out, ref, base, strict=True):
        assert_agrees(o, r, b, winograd=True)
        assert o.is_contiguous(memory_format=LAST) or o.dim() != 4
    with tunable_ops.exact():
        assert all(torch.equal(o, b) for o, b in zip(outputs_and_gradients(net, x), base, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: (net.double(), x.double()),
        lambda net, x: (net.bfloat16(), x.bfloat16()),
        lambda net, x: (net.to(memory_format=torch.contiguous_format), x.contiguous()),
        lambda net, x: (net, x[0]),
        lambda net, x: (net, x[:0]),
        lambda net, x: (torch.compile(net, backend="eager", fullgraph=True), x),
        lambda net, x: (torch.jit.trace(net, x), x),
    ],
    ids=["fp64", "bf16", "contiguous", "unbatched", "empty", "compile", "trace"],
)
def test_other_calls_are_torchs(change: Any) -> None:
    (plain, _), x = change(network(), picture()), picture()
    net, x = change(tunable_ops.accelerate(network()), x)
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))


@needs_cpp
@pytest.mark.parametrize(("channels", "size"), [(64, (16, 16)), (320, (16, 20))])
@pytest.mark.parametrize("kept", [True, False])
def test_pytorch_serves_calls_of_few_pixels(channels: int, size: tuple[int, int], kept: bool) -> None:
    """They start at 256 pixels or as many as there are channels, whether a gradient is wanted or not."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=LAST).requires_grad_(False)
    layer = tunable_ops.accelerate(copy.deepcopy(plain))
    before = tunable_ops.remember_transforms(kept)
    try:
        for height, is_torchs in ((size[0], False), (size[0] - 1, True)):
            x = torch.rand(1, channels, height, size[1]).contiguous(memory_format=LAST)
            out = layer(x)
            assert torch.equal(out, plain(x)) == is_torchs
            assert torch.equal(out, layer(x.clone(memory_format=torch.preserve_format).requires_grad_()))
    finally:
        tunable_ops.remember_transforms(before)


@needs_cpp
def test_copies_pickles_and_state_dicts() -> None:
    net, x = tunable_ops.accelerate(network()), picture()
    with torch.no_grad():
        expected = net(x)
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
            assert torch.equal(other(x), expected)
        plain = network()
        plain.load_state_dict(net.state_dict())
        for parameter in net.parameters():
            parameter.mul_(2)  # an optimiser's step
        plain.load_state_dict(net.state_dict())
        with tunable_ops.exact():
            assert torch.equal(net(x), plain(x))
        torch.testing.assert_close(net(x), plain(x))


@needs_cpp
def test_a_folded_network_and_a_model() -> None:
    net = tunable_ops.convert(network(), 2)
    with torch.no_grad():
        for layer in net.layers:
            for parameter in layer.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
    x, lam = picture(), [0.3, 0.7]
    live = tunable_ops.LiveFold(net, lam)
    with torch.no_grad():
        with tunable_ops.exact():
            expected = live(x)
        tunable_ops.accelerate(live)
        for y in (live(x), net(x, lam)):
            assert not torch.equal(y, expected)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        live.set([0.9, 0.1])
        torch.testing.assert_close(live(x), net(x, [0.9, 0.1]), rtol=1e-4, atol=1e-5)


def test_an_accelerated_network_is_converted() -> None:
    plain = network()
    tunable, expected = (tunable_ops.convert(n, 2) for n in (tunable_ops.accelerate(copy.deepcopy(plain)), plain))
    assert [type(m) for m in tunable.modules()] == [type(m) for m in expected.modules()]
    x = picture()
    torch.testing.assert_close(tunable(x, [0.3, 0.7]), plain(x), rtol=1e-4, atol=1e-5)
    assert not [m for m in tunable_ops.fold(tunable, [0.3, 0.7]).modules() if isinstance(m, FilteredConv2d)]


@needs_cpp
def test_second_order() -> None:
    x = torch.randn(1, 16, 48, 48).to(memory_format=LAST).requires_grad_()
    kernel = torch.randn(32, 16, 3, 3).requires_grad_()
    grads = []
    for function in (functional.conv2d, nn.functional.conv2d):
        (grad,) = torch.autograd.grad(function(x, kernel, None, padding=1).square().sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(grad.square().sum(), [x, kernel]))
    for mine, torchs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-3, atol=1e-3 * torchs.abs().max().item())
