"""Kernels that layers blend when they run: the same values, and nothing of one call shows in another."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tunable_ops
from tests.modules.networks import DTYPE, assert_equal, draw, perturb
from tests.modules.test_network_blend import TwoConvolutions, alone, calls, model, replace
from tunable_ops.modules import kernel_stacks


def without_workspace(net: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor, lam: list[float]) -> Tensor:
    """Return the output of layers that are blended in groups."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(kernel_stacks.functional, "blend_in_place", lambda: None)
        return net(x, lam)


@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_nafnet_has_the_same_bits_either_way(batch: int, remember: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = tunable_ops.models.NAFNet(width=4, middle_blk_num=1, enc_blk_nums=(1,), dec_blk_nums=(1,))
    net = tunable_ops.convert(plain.to(memory_format=torch.channels_last), 2)
    perturb(net)
    x = torch.rand(batch, 3, 8, 6).contiguous(memory_format=torch.channels_last)
    for lam in ([0.3, 0.7], [0.3, 0.7], [0.3, 0.7], [0.9, 0.1]):
        net.remember = False
        expected = without_workspace(net, monkeypatch, x, lam)
        net.remember = remember
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(net(x, lam), expected)


def test_the_model_runs_inside_itself_and_in_threads() -> None:
    """Calls that overlap have kernels of their own."""
    x, lams = torch.rand(1, 2, 3, 3), ([0.3, 0.7], [0.8, 0.2])
    inner: list[Tensor] = []

    def again(network: nn.Module) -> None:
        network.between = lambda _: None
        thread = threading.Thread(target=lambda: inner.append(torch.no_grad()(net)(x, lams[1])))
        thread.start()
        thread.join()
        inner.append(net(x, lams[1]))

    net = tunable_ops.convert(TwoConvolutions(), num_params=2)
    perturb(net)
    with torch.no_grad():
        expected = [net(x, lam) for lam in lams]
        net.network.between = again
        assert torch.equal(net(x, lams[0]), expected[0])
        assert len(inner) == 2 and all(torch.equal(got, expected[1]) for got in inner)


class _Keeps(nn.Module):
    """Keep and write to what its attribute reads as."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 2, 1, 1))
        self.a = nn.Conv2d(2, 2, 1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma
        self.seen.append(gamma)
        return self.a(x) * gamma.mul_(2) * self.gamma


@pytest.mark.parametrize("remember", [False, True])
def test_what_an_attribute_reads_as_may_be_kept_and_written_to(remember: bool) -> None:
    """A blend that is remembered was written to by the network, and wrong in the next call."""
    net, x = tunable_ops.convert(_Keeps(), 2, parameters=("gamma",)), torch.rand(1, 2, 3, 3)
    perturb(net)
    with torch.no_grad():
        first = net(x, [0.3, 0.7])
        seen = net.network.seen[0].clone()
        net.remember = remember
        for lam in ([0.3, 0.7], [0.3, 0.7], [0.3, 0.7], [0.9, 0.1], [0.3, 0.7]):
            got = net(x, lam)
        torch.testing.assert_close(got, first)
        assert torch.equal(net.network.seen[0], seen)


def test_a_stack_of_another_shape_at_the_same_address() -> None:
    net, x = tunable_ops.convert(nn.Sequential(nn.Conv2d(2, 4, 1)), 2), torch.rand(1, 2, 3, 3)
    perturb(net)
    with torch.no_grad():
        whole = net(x, [0.3, 0.7])
        for name in ("weight", "bias"):
            stack = net.network[0].stack(name)
            stack.data = stack.data[:, :3]
        torch.testing.assert_close(net(x, [0.3, 0.7]), whole[:, :3])


def test_replaced_stacks_are_blended_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = model(), draw(1, 3, 8, 8)
    with torch.no_grad():
        number = calls(lambda: net(x, [0.3, 0.7]), monkeypatch)
        replace(net.network.same)
        home = net.network.parametrizations.gamma
        home.original = nn.Parameter(2 * home.original.detach())
        for _ in range(2):
            got = net(x, [0.3, 0.7])
        assert calls(lambda: net(x, [0.3, 0.7]), monkeypatch) == number
    assert_equal(got, alone(net, monkeypatch, x, torch.tensor([0.3, 0.7], dtype=DTYPE))[0].detach())


class _Borrows(nn.Module):
    """Run its own layer with other kernels, as hypernetworks do."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1)
        self.borrowed: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.func.functional_call(self.a, self.borrowed, x))


def test_kept_kernels_are_not_those_of_borrowed_stacks() -> None:
    net, x, lam = tunable_ops.convert(_Borrows(), 2), torch.rand(1, 2, 3, 3), [0.3, 0.7]
    perturb(net)
    net.network.borrowed = {"weight": torch.rand_like(net.network.a.stack("weight"))}
    with torch.no_grad():
        expected = net(x, lam)
        net.remember = True
        for _ in range(4):
            torch.testing.assert_close(net(x, lam), expected)


def _set_padding(net: nn.Module) -> None:
    net.network[0].padding_mode = "circular"


def _write_to_bias(net: nn.Module) -> None:
    net.network[0].stack("bias").add_(1)


def _move_data(net: nn.Module) -> None:
    stack = net.network[0].stack("weight")
    stack.data = 2 * stack.data


@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("change", [replace, _set_padding, _write_to_bias, _move_data])
def test_what_changes_between_calls_shows_in_the_next(change: Callable[..., None], remember: bool) -> None:
    net = tunable_ops.convert(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)), 2)
    x, lam = torch.rand(1, 2, 4, 5), [0.3, 0.7]
    perturb(net)
    net.remember = remember
    with torch.no_grad():
        for _ in range(3):
            before = net(x, lam)
        change(net.network[0] if change is replace else net)
        after = net(x, lam)
        expected = copy.deepcopy(net)(x, lam)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, expected)


def test_a_hook_on_what_computes_an_attribute_shows_in_every_call() -> None:
    """Also in the second call with a lambda, which makes the blends that are kept."""
    net, x = tunable_ops.convert(_Keeps(), 2, parameters=("gamma",)), torch.rand(1, 2, 3, 3)
    perturb(net)
    net.remember = True
    with torch.no_grad():
        plain = net(x, [0.3, 0.7])
        net.network.parametrizations.gamma.register_forward_hook(lambda module, inputs, value: 2 * value)
        hooked = [net(x, [0.6, 0.4]) for _ in range(4)]
        net.remember = False
        expected = net(x, [0.6, 0.4])
    assert not torch.allclose(expected, plain)
    for each in hooked:
        torch.testing.assert_close(each, expected)


def test_a_hook_on_what_computes_an_attribute_shows_in_the_next_call() -> None:
    net, x = tunable_ops.convert(_Keeps(), 2, parameters=("gamma",)), torch.rand(1, 2, 3, 3)
    perturb(net)
    net.remember = True
    with torch.no_grad():
        for _ in range(3):
            before = net(x, [0.3, 0.7])
        hook = net.network.parametrizations.gamma.register_forward_hook(lambda module, inputs, value: 2 * value)
        doubled = net(x, [0.3, 0.7])
        hook.remove()
        after = net(x, [0.3, 0.7])
    assert not torch.allclose(doubled, before)
    torch.testing.assert_close(after, before)
