"""The gate of whole networks: it passes the networks, and sees a wrong kernel inside a block."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from tunable_ops.bench import measure, network_gate, networks

import tunable_ops
from tunable_ops import models

FAST = measure.Settings(rounds=3, min_call=1e-4, budget=0.01)


class _WrongGradient(torch.autograd.Function):
    """The identity, whose gradient is a tenth too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 1.1 * grad


def no_fault(net: Any) -> None:
    """Leave the network as it is."""


def wrong_value(net: Any) -> None:
    net.network.encoders[0][0].conv2.register_forward_hook(lambda module, inputs, output: 1.1 * output)


def wrong_gradient(net: Any) -> None:
    net.network.middle_blks[0].conv3.register_forward_hook(lambda m, i, output: _WrongGradient.apply(output))


def first_kernel_alone(net: Any) -> None:
    """A blend that ignores alpha: no fault while all kernels are equal."""
    layer = net.network.encoders[0][0].conv4

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        first = {name: parameter[0] for name, parameter in module.named_parameters() if "tuning" not in name}
        return torch.nn.functional.conv2d(inputs[0], first["weight"], first["bias"])

    layer.register_forward_hook(hook)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}
    monkeypatch.setitem(networks.BUILDERS, "nafnet", lambda: models.NAFNet(**sizes))


def statuses(case: networks.NetworkCase, fault: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The statuses with a fault in the converted network; no row is timed."""
    convert = tunable_ops.convert

    def faulty(*args: Any, **kwargs: Any) -> Any:
        net = convert(*args, **kwargs)
        fault(net)
        return net

    monkeypatch.setattr(networks.tunable_ops, "convert", faulty)
    monkeypatch.setattr(networks, "timed", lambda variants, *_: {name: {"status": "ok"} for name in variants})
    return networks.measure(case, "cpu", FAST)["providers"]


@pytest.mark.parametrize("autocast", [None, "bf16"])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_networks_pass(direction: str, autocast: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = statuses(networks.NetworkCase("nafnet", 8, 2, direction, autocast=autocast), no_fault, monkeypatch)
    wrong = {name: result for name, result in found.items() if result["status"] not in ("ok", "unsupported")}
    assert wrong == {}
    assert found["tunable"]["status"] == found["tunable-per-sample"]["status"] == "ok"


@pytest.mark.parametrize("fault", [wrong_value, wrong_gradient, first_kernel_alone], ids=lambda f: f.__name__)
@pytest.mark.parametrize("autocast", [None, "bf16"])
def test_a_wrong_kernel_inside_a_block_is_not_timed(
    fault: Any, autocast: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = statuses(networks.NetworkCase("nafnet", 8, 2, "both", autocast=autocast), fault, monkeypatch)
    assert {result["status"] for result in found.values()} == {"wrong"}
    assert all("rms error" in result["reason"] for result in found.values())


@pytest.mark.parametrize("fault", [wrong_value, wrong_gradient], ids=lambda f: f.__name__)
def test_a_fault_of_the_accelerated_network_is_not_timed(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = tunable_ops.accelerate

    def faulty(net: Any) -> Any:
        fault(SimpleNamespace(network=net))
        return accelerate(net)

    monkeypatch.setattr(tunable_ops, "accelerate", faulty)
    row = networks.measure(networks.NetworkCase("nafnet", 16, 2, "both"), "cpu", FAST)
    assert {p["status"] for p in row["providers"].values()} == {"wrong"}
    assert all("accelerated: rms error of " in p["reason"] for p in row["providers"].values())


def test_gradients_are_compared_where_they_are_smooth() -> None:
    """An error of rounding decides on which side of ReLU's kink a value lies; a gradient then differs as a whole."""
    x = torch.tensor([1e-7, -1e-7])
    kinked = [torch.func.grad(lambda v: torch.nn.functional.relu(v).sum())(sign * x) for sign in (1, -1)]
    assert not torch.allclose(*kinked, atol=0.5)
    with network_gate.smooth():
        layers = (torch.nn.functional.relu, torch.nn.ReLU(inplace=True))
        for layer in layers:
            found = [torch.func.grad(lambda v, layer=layer: layer(1 * v).sum())(sign * x) for sign in (1, -1)]
            torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
            assert found[0].sum() > 0.5
    assert torch.equal(torch.nn.functional.relu(torch.tensor([-1.0])), torch.zeros(1))


def test_a_fresh_network_would_hide_it() -> None:
    """Scales of zero leave nothing of the blocks: what the gate has to move first."""
    net = models.NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        net.encoders[0][0].conv2.weight.zero_()
        assert torch.equal(net(x), before)
        network_gate.randomise(net)
        after = net(x)
        net.encoders[0][0].conv2.weight.normal_()
        assert not torch.allclose(net(x), after, rtol=1e-3)
    constant = [n for n, p in net.named_parameters() if p.numel() > 1 and bool((p == p.flatten()[0]).all())]
    assert constant == []


def test_the_definition_names_every_parameter() -> None:
    plain = models.NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    network_gate.randomise(plain)
    net = tunable_ops.convert(plain, num_params=2)
    network_gate.spread(net)
    x, lam = torch.rand(2, 3, 8, 8), torch.rand(2, 2)
    with torch.no_grad():
        for each in (lam, lam[0]):
            defined = network_gate.defined(plain, dict(net.named_parameters()), x, each)
            torch.testing.assert_close(net(x, each), defined, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tunable_ops.fold(net, lam[0])(x), defined, rtol=1e-4, atol=1e-4)
