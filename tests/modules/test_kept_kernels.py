"""Transformed kernels that layers keep: the same bits with and without, after every way to change a kernel."""

import copy
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tunable_ops
from tunable_ops import backends, functional
from tunable_ops.modules.accelerate import FilteredConv2d

pytestmark = pytest.mark.skipif(
    backends.unavailable_reason("tunable_conv2d", "cpp") is not None, reason="needs the compiled operators"
)
LAST = torch.channels_last
Change = Callable[[nn.Conv2d], object]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = tunable_ops.remember_transforms(True)
    yield
    tunable_ops.remember_transforms(before)


def layer(taps: int = 3, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 64, taps, padding=taps // 2, **options)
    return tunable_ops.accelerate(plain)  # type: ignore[return-value]


def picture(size: int = 24) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 64, size, size + 1).to(memory_format=LAST)


def nbytes(net: nn.Module) -> int:
    """Return what the layers of a network keep."""
    kept = [vars(module).get("_kept") for module in net.modules()]
    return sum(each.nbytes for each in kept if each is not None)


def without(net: nn.Module, *args: Any) -> Tensor:
    """Return the output without anything kept."""
    before = tunable_ops.remember_transforms(False)
    try:
        with torch.no_grad():
            output: Tensor = net(*args)
    finally:
        tunable_ops.remember_transforms(before)
    return output


def keeping(net: nn.Module, *args: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = net(*args)
    return output


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"bias": False}, {"taps": 5}], ids=str)
def test_the_same_bits(options: dict[str, Any], last: bool) -> None:
    net, x = layer(**options), picture()
    net = net.to(memory_format=LAST) if last else net  # type: ignore[call-overload]
    expected = without(net, x)
    assert nbytes(net) == 0
    assert torch.equal(keeping(net, x), expected)
    points = 36 * 64 * 64 // net.groups
    assert 4 * points < nbytes(net) <= 1.1 * 4 * (points + net.weight.numel())
    assert all(torch.equal(keeping(net, x), expected) for _ in range(2))
    with torch.inference_mode():
        assert torch.equal(net(x), expected)


def swap_data(net: nn.Conv2d) -> None:
    net.weight.data = 2 * net.weight.data


def swap_data_twice(net: nn.Conv2d) -> None:
    """The second tensor may lie where the first one was."""
    for _ in range(2):
        net.weight.data = 3 * net.weight.data.clone()


def write_by_numpy(net: nn.Conv2d) -> None:
    net.weight.detach().numpy()[-1, -1, -1, -1] += 1


def step(net: nn.Conv2d) -> None:
    with torch.enable_grad():
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        net(picture()).square().mean().backward()
        optimiser.step()


def fused_step(net: nn.Conv2d) -> None:
    with torch.enable_grad():
        optimiser = torch.optim.Adam(net.parameters(), 0.1, fused=True)
        net(picture()).square().mean().backward()
        optimiser.step()


def replace(net: nn.Conv2d) -> None:
    net.weight = nn.Parameter(-net.weight.detach())


CHANGES: dict[str, Change] = {
    "in place": lambda net: net.weight.mul_(2),
    "of one value": lambda net: net.weight[47, 63, 2, 2].add_(1),
    "of the sign of a zero": lambda net: net.weight.zero_().neg_(),
    "of a view": lambda net: net.weight[3].zero_(),
    "by .data": lambda net: net.weight.data.mul_(2),
    "by numpy": write_by_numpy,
    "of .data": swap_data,
    "of .data twice": swap_data_twice,
    "by load_state_dict": lambda net: net.load_state_dict({k: 2 * v for k, v in net.state_dict().items()}),
    "by assignment": lambda net: net.load_state_dict({k: 2 * v for k, v in net.state_dict().items()}, assign=True),
    "by a step": step,
    "by a fused step": fused_step,
    "for another parameter": replace,
    "of the bias": lambda net: net.bias.add_(1),  # type: ignore[union-attr]
    "of the layout": lambda net: swap_layout(net),
    "of padding": lambda net: setattr(net, "padding", (0, 2)),
    "of the algorithm": lambda net: tunable_ops.set_algorithm("winograd2"),
    "of the algorithm to direct": lambda net: tunable_ops.set_algorithm("direct"),
}


def swap_layout(net: nn.Conv2d) -> None:
    """The same values in memory, which mean another kernel."""
    memory = net.weight.data
    net.weight.data = memory.as_strided(memory.shape, memory.to(memory_format=LAST).stride())  # type: ignore[call-overload]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change(change: str) -> None:
    net, x = layer(), picture()
    before = keeping(net, x)
    assert nbytes(net)
    try:
        with torch.no_grad():
            CHANGES[change](net)
        after = keeping(net, x)
        assert torch.equal(after, without(net, x))
        assert change == "of the sign of a zero" or not torch.equal(after, before)
    finally:
        tunable_ops.set_algorithm("default")


def test_a_change_of_dtype_and_memory_format() -> None:
    net, x = layer(), picture()
    expected = keeping(net, x)
    net.double()
    assert nbytes(net) == 0
    keeping(net, x.double())
    net.float()
    assert torch.equal(keeping(net, x), expected) and nbytes(net)


def test_gradients_release_it_and_are_those_without() -> None:
    net, x = layer(), picture()
    keeping(net, x)
    grads = torch.autograd.grad(net(x).square().sum(), [*net.parameters()])
    assert nbytes(net) == 0
    tunable_ops.remember_transforms(False)
    expected = torch.autograd.grad(net(x).square().sum(), [*net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_a_frozen_layer_keeps_it_but_not_for_the_gradient_of_its_input() -> None:
    net, x = layer().requires_grad_(False), picture()
    expected = net(x)
    assert nbytes(net)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = net(leaf)
    assert torch.equal(y, expected) and y.requires_grad and nbytes(net) == 0


def test_large_pictures_and_the_setting_keep_nothing() -> None:
    net = layer()
    keeping(net, picture(48))
    assert nbytes(net) == 0
    assert tunable_ops.remember_transforms(False) is True
    keeping(net, picture())
    assert nbytes(net) == 0
    with pytest.raises(TypeError, match="enabled must be a bool; got int"):
        tunable_ops.remember_transforms(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("input", [picture().contiguous(), picture(256)], ids=["contiguous", "large"])
def test_every_call_with_gradients_or_the_setting_off_releases_it(input: Tensor) -> None:
    net = layer()
    for leave in (lambda: net(input), lambda: without(net, input)):
        keeping(net, picture())
        keeping(net, input)  # takes no filtering, but changes nothing
        assert nbytes(net)
        leave()
        assert not nbytes(net)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_defaults_of_new_tensors_are_not_those_of_calls(default: torch.dtype) -> None:
    net, before = layer(), torch.get_default_dtype()
    wanted = without(net, picture())
    x = picture()
    try:
        torch.set_default_dtype(default)
        assert torch.equal(keeping(net, x), wanted)
        with torch.device("meta"):
            assert torch.equal(keeping(net, x), wanted)
    finally:
        torch.set_default_dtype(before)


def test_copies_pickles_and_state_dicts_are_without_it() -> None:
    net, x = layer(), picture()
    file = io.BytesIO()
    torch.save(net, file)
    size = file.tell()
    expected = keeping(net, x)
    file = io.BytesIO()
    torch.save(net, file)
    assert file.tell() == size
    file.seek(0)
    for other in (copy.deepcopy(net), copy.copy(net), torch.load(file, weights_only=False)):
        assert type(other) is FilteredConv2d and nbytes(other) == 0
        assert torch.equal(keeping(other, x), expected)
    assert list(net.state_dict()) == ["weight", "bias"]
    with torch.no_grad():
        other.weight.mul_(2)
    assert torch.equal(keeping(net, x), expected)


def test_one_parameter_in_two_layers_and_a_parametrised_one() -> None:
    net, twin, x = layer(), layer(), picture()
    twin.weight = net.weight
    pair = nn.Sequential(net, nn.Conv2d(64, 64, 1), twin)
    assert torch.equal(keeping(pair, x), without(pair, x))
    nn.utils.parametrizations.weight_norm(net)
    keeping(net, x)
    with torch.no_grad():
        net.parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr, operator, index]
    assert torch.equal(keeping(net, x), without(net, x))


def test_graphs_and_modes_do_not_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = layer(), picture()
    used: list[bool] = []
    real = functional.KeptKernel.convolve
    monkeypatch.setattr(functional.KeptKernel, "convolve", lambda *a: used.append(True) or real(*a))
    with torch.no_grad():
        torch.jit.trace(net, x, check_trace=False)  # whose check calls the layer itself
        torch.compile(net, backend="eager")(x)
        torch.export.export(net, (x,))
        torch.func.vmap(net)(x[None])
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            net(x)
        with tunable_ops.exact():
            net(x)
        assert counter.get_total_flops() >= 2 * 9 * 64 * 64 * 24 * 25 and not used
        net(x)
    assert used


def test_threads() -> None:
    """Some read what is kept while others replace it."""
    nets, x = [layer(), layer()], picture()
    with torch.no_grad():
        nets[1].weight.mul_(-1)
    shared = functional.KeptKernel()
    expected = [without(net, x) for net in nets]
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(30):
                kernel, bias = nets[i].weight, nets[i].bias
                if not torch.equal(functional.conv2d(x, kernel, bias, padding=1, kept=shared), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and shared.nbytes


def model() -> tunable_ops.TunableModel:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 48, 5, padding=2))
    net = tunable_ops.convert(plain.to(memory_format=LAST), 2)  # type: ignore[call-overload]
    with torch.no_grad():
        for each in net.layers:
            for parameter in each.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
    return net


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets what a layer keeps after each call of one that may keep anything."""
    found: list[int] = []
    real = functional.KeptKernel.convolve

    def convolve(self: functional.KeptKernel, *args: Any) -> Tensor:
        output = real(self, *args)
        found.append(self.nbytes)
        return output

    monkeypatch.setattr(functional.KeptKernel, "convolve", convolve)
    return found


def test_a_model_that_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, found = model(), picture(), calls(monkeypatch)
    expected = {lam: without(net, x, lam) for lam in ((0.3, 0.7), (0.9, 0.1))}
    keeping(net, x, (0.3, 0.7))
    assert not found  # nothing is kept but where a model remembers
    net.remember = True
    for lam in [(0.3, 0.7)] * 4 + [(0.9, 0.1), (0.3, 0.7), (0.9, 0.1)] + [(0.9, 0.1)] * 3:
        assert torch.equal(keeping(net, x, lam), expected[lam])
    assert len(found) == 2 * (3 + 3) and all(found)  # the first call of each lambda in a row blends for itself alone
    with torch.no_grad():
        net.layers[0].stack("weight").mul_(2)  # type: ignore[attr-defined]
    keeping(net, x, (0.9, 0.1))  # finds stale blends, which layers then make by themselves, with other bits
    changed = without(net, x, (0.5, 0.5)), without(net, x, (0.9, 0.1))
    assert not torch.equal(changed[1], expected[0.9, 0.1])
    assert all(torch.equal(keeping(net, x, (0.9, 0.1)), changed[1]) for _ in range(3))


def test_a_live_fold() -> None:
    net, x = model(), picture()
    live = tunable_ops.accelerate(tunable_ops.LiveFold(net, [0.3, 0.7]))
    outputs = []
    for lam in ([0.3, 0.7], [0.9, 0.1], [0.3, 0.7]):
        live.set(lam)  # type: ignore[operator]
        for _ in range(2):
            outputs.append(keeping(live, x))
            assert torch.equal(outputs[-1], without(live, x))
            keeping(live, x)
            assert nbytes(live)
    assert torch.equal(outputs[0], outputs[-1]) and not torch.equal(outputs[0], outputs[2])
