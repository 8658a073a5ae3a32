"""One blend for a whole network: it equals layers that blend by themselves, and is dropped where it would be wrong."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tunable_ops
from tests.modules.networks import DTYPE, Net, assert_equal, draw, perturb, plain_net, point
from tunable_ops.modules import frame as frames
from tunable_ops.modules import kernel_stacks, network_blend


class Odd(nn.Module):
    """Layers that are easy to get wrong: even kernels with padding="same", 1-D, 3-D, tied, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 4, (2, 4), padding="same", padding_mode="circular")
        self.even = nn.Conv2d(4, 4, (4, 3), padding="same", dilation=(1, 2), groups=2, bias=False)
        self.twin = nn.Conv2d(4, 4, (4, 3), padding="same", dilation=(1, 2), groups=2, bias=False)
        self.twin.weight = self.even.weight
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.volume = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))
        self.gamma = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twin(self.even(self.same(x)).tanh()) * self.gamma
        x = self.volume(self.up(self.up(x))[:, :, None])[:, :, 0] * self.gamma
        return self.line(self.line(x.flatten(2)).tanh())


def model(kind: type[nn.Module] = Odd, **options: object) -> tunable_ops.TunableModel:
    torch.manual_seed(0)
    net = tunable_ops.convert(plain_net(kind), 2, parameters=("gamma", "*.beta"), **options)
    perturb(net)
    return net


def run(net: nn.Module, x: Tensor, lam: Tensor) -> list[Tensor | None]:
    """Return the output and the gradients of input, lambda and every parameter, or None."""
    x, lam = x.clone().requires_grad_(), lam.clone().requires_grad_()
    out = net(x, lam)
    leaves = [x, lam, *(p for p in net.parameters() if p.requires_grad)]
    return [out, *torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)]


def alone(net: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor, lam: Tensor) -> list[Tensor | None]:
    """Return the same with every layer blending by itself."""
    with monkeypatch.context() as patch:
        patch.setattr(network_blend, "modes", lambda device_type: None)
        return run(net, x, lam)


def calls(function: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of stacks that are blended for the whole network while `function` runs."""
    found: list[int] = []
    functional = kernel_stacks.functional
    real, in_place = functional.tunable_parameters, functional.blend_in_place()

    def counted(blend: Callable[..., object]) -> Callable[..., object]:
        return lambda stacks, *a, **k: found.append(len(stacks)) or blend(stacks, *a, **k)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "tunable_parameters", counted(real))
        if in_place is not None:
            patch.setattr(functional, "blend_in_place", lambda: counted(in_place))
        function()
    return sum(found)


@pytest.mark.parametrize("limit", [1, 4 << 20], ids=["groups-of-one", "one-group"])
@pytest.mark.parametrize("options", [{}, {"tuning": "identity"}, {"domain": "box"}], ids=str)
@pytest.mark.parametrize("kind", [Odd, Net])
def test_equal_to_layers_by_themselves(
    kind: type[nn.Module], options: dict[str, object], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(network_blend.GROUP_BYTES, "cpu", limit)
    net, x, lam = model(kind, **options), draw(2, 3, 8, 8), point("simplex", 2)
    expected = alone(net, monkeypatch, x, lam)
    for values in (lam, lam[None]):
        for got, wanted in zip(run(net, x, values), expected, strict=True):
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                assert_equal(got.view(wanted.shape), wanted)
    assert any(grad is None for grad in expected) == (kind is Odd)  # the layer that is not used
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_equal(net(x, lam), expected[0])


def test_tied_stacks_are_blended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = model(), draw(1, 3, 8, 8)
    stacks = {id(part) for layer in net.layers for parts in layer.kernel_stacks().parts() for part in parts}
    assert calls(lambda: net(x, [0.3, 0.7]), monkeypatch) == len(stacks)


@pytest.mark.parametrize("frozen", [False, True])
def test_split_stacks(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, lam = model(domain="box"), draw(2, 3, 8, 8), point("box", 2)
    before = net(x, lam)
    (tunable_ops.freeze_base if frozen else tunable_ops.split_base)(net)
    for got, wanted in zip(run(net, x, lam), alone(net, monkeypatch, x, lam), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            assert_equal(got, wanted)
    assert_equal(net(x, lam), before)


def change_in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.stack("weight").mul_(2)


def replace(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(2 * layer.stack("weight").detach())


@pytest.mark.parametrize("change", [change_in_place, replace])
@pytest.mark.parametrize("owner", ["even", "same"])
def test_hooks_that_alter_kernels(change: Callable[..., None], owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook belongs to a layer, or to one that runs after the network's blend."""
    results = []
    for together in (True, False):
        net, x, lam = model(), draw(1, 3, 8, 8), torch.tensor([0.3, 0.7], dtype=DTYPE)
        before = net(x, lam)
        getattr(net.network, owner).register_forward_pre_hook(lambda *a, net=net: change(net.network.even))
        results.append(net(x, lam) if together else alone(net, monkeypatch, x, lam)[0])
    assert_equal(results[0], results[1])
    assert not torch.allclose(results[0], before)


def test_a_parametrisation_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, lam = model(), draw(2, 3, 8, 8), point("simplex", 2)
    nn.utils.parametrizations.weight_norm(net.network.line)
    for got, wanted in zip(run(net, x, lam), alone(net, monkeypatch, x, lam), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            assert_equal(got, wanted)


class Mixed(nn.Module):
    """Change modes in the middle of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(x)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            x = self.second(x.float())
        return self.third(x)


def test_modes_that_change_in_the_network() -> None:
    """A blend serves calls in the modes it was made in; layers called in others blend by themselves."""
    net = tunable_ops.convert(Mixed(), 2)
    perturb(net)
    x = draw(1, 3, 4, 4, dtype=torch.float32)
    net(x, [0.3, 0.7]).sum().backward()
    grads = [getattr(net.network, name).weight.grad is not None for name in ("first", "second", "third")]
    assert grads == [False, True, True]
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x, [0.3, 0.7]).dtype == torch.bfloat16


@pytest.mark.parametrize("gradients", [False, True])
def test_autocast_rounds_the_blend_once(gradients: bool) -> None:
    net = tunable_ops.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), 2)
    perturb(net)
    layer, lam = net.network[0], torch.tensor([0.3, 0.7])
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
        out = net(draw(1, 3, 5, 5, dtype=torch.float32), lam)
        alphas, bias = layer.tuning(lam), layer.bias
        kernel = (alphas[0] * layer.weight[0] + alphas[1] * layer.weight[1]).bfloat16()
        shift = (alphas[0] * bias[0] + alphas[1] * bias[1]).bfloat16()
        expected = nn.functional.conv2d(draw(1, 3, 5, 5, dtype=torch.float32).bfloat16(), kernel, shift)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    if gradients:
        out.float().sum().backward()
        assert layer.weight.grad.dtype == torch.float32


def test_a_blend_is_forgotten_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = model(), draw(1, 3, 8, 8)
    kept: list[int] = []
    net.network.line.register_forward_hook(lambda *a: kept.append(len(frames.current().blend.blended)))
    with torch.no_grad():
        net(x, [0.3, 0.7])
        assert kept[-1] == 0  # layers blended when they ran
        monkeypatch.setattr(kernel_stacks.functional, "blend_in_place", lambda: None)
        net(x, [0.3, 0.7])
    assert kept[-1] == 1  # of the layer that is not used
    net(x, [0.3, 0.7])
    assert kept[-1] == len(net.layers)


def test_channels_last_stays() -> None:
    net = tunable_ops.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), 2)
    net = net.to(memory_format=torch.channels_last)
    plan = network_blend.BlendPlan([layer.kernel_stacks() for layer in net.layers], "cpu")
    blend = frames.Frame(torch.tensor([0.3, 0.7]), [layer.tuning for layer in net.layers], plan).blend
    assert blend is not None
    for layer in net.layers:
        kernel, _ = blend.take(layer) or ()
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert not kernel.is_contiguous()
    assert net(torch.rand(1, 3, 8, 8), [0.3, 0.7]).is_contiguous(memory_format=torch.channels_last)


def test_blending_first_is_decided_once_per_dtype_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, repeating the decision in every call would be slow."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(kernel_stacks.functional, "blends_first", lambda *a: asked.append(a[1:]) or len(asked) > 1)
    layer = tunable_ops.TunableConv2d(4, 4, 3, stride=2, groups=2, num_params=2, domain="box")
    stacks = layer.kernel_stacks()
    for dtype, expected in ((torch.float32, False), (torch.bfloat16, True), (torch.float32, False)):
        assert stacks.blends_first(layer.weight, dtype) is expected
    assert asked == [(3, torch.float32, (2, 2), 2), (3, torch.bfloat16, (2, 2), 2)]
    layer.to(memory_format=torch.channels_last)
    assert stacks.blends_first(layer.weight, torch.float32)
    linear = tunable_ops.TunableLinear(4, 4, num_params=2)
    assert linear.kernel_stacks().blends_first(linear.weight, torch.float32)
    assert len(asked) == 3


def test_memory_of_a_training_step() -> None:
    """At most 1.05 times that of the plain network, plus the P kernels and their gradients."""
    from tunable_ops.bench.step import peak_bytes

    plain = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(8)))
    net, x, lam = tunable_ops.convert(plain, 2), torch.rand(1, 32, 16, 16), torch.tensor([0.5, 0.5])

    def step(call: Callable[[], Tensor], module: nn.Module) -> int:
        parameters = list(module.parameters())
        return peak_bytes(lambda: list(torch.autograd.grad(call().square().mean(), parameters)), "cpu")

    kernels = sum(p.numel() * p.element_size() for p in net.parameters())
    assert step(lambda: net(x, lam), net) <= 1.05 * (step(lambda: plain(x), plain) + 2 * kernels)


def test_the_graph_keeps_one_operator_per_layer() -> None:
    net, x = tunable_ops.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), 2), torch.rand(1, 3, 8, 8)
    program = torch.export.export(net, (x, torch.tensor([0.5, 0.5])))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("tunable_ops.tunable_conv2d_torch.default") == 2
    assert not any("tunable_parameters" in target for target in targets)


class TwoConvolutions(nn.Module):
    """Call `between` after the first layer, which on a CPU blends the whole network."""

    def __init__(self, between=lambda net: None) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.between(self)
        return self.b(x)


def test_checkpointing_without_gradients_leaves_the_others_theirs() -> None:
    class Net(TwoConvolutions):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = tunable_ops.checkpoint(self.a, x)
            return self.b(x)

    net = tunable_ops.convert(Net(), num_params=2)
    net(torch.rand(1, 2, 3, 3), [0.3, 0.7]).sum().backward()
    assert net.network.b.weight.grad is not None
    assert net.network.b.tuning.weight.grad is not None


def test_gradients_that_the_network_turns_on_reach_phi() -> None:
    class Net(TwoConvolutions):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return super().forward(x)

    net = tunable_ops.convert(Net(), num_params=2)
    with torch.no_grad():
        y = net(torch.rand(1, 2, 3, 3), [0.3, 0.7])
    y.sum().backward()
    assert net.network.a.tuning.weight.grad is not None


def test_a_stack_replaced_by_data_during_the_call() -> None:
    def replace(network: nn.Module) -> None:
        for name in ("weight", "bias"):
            stack = network.b.stack(name)
            stack.data = torch.zeros_like(stack)

    net = tunable_ops.convert(TwoConvolutions(replace), num_params=2)
    assert net(torch.rand(1, 2, 3, 3), [0.3, 0.7]).abs().max() == 0


def test_what_the_caller_does_to_a_tunable_parameter_is_its_own() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.s = tunable_ops.TunableParameter(torch.ones(1), num_params=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.s().mul_(2) * x + self.s().mul_(2) * x

    net = tunable_ops.TunableModel(Net(), num_params=2)
    assert net(torch.ones(1), [0.3, 0.7]).item() == pytest.approx(4)


def test_batched_gradients() -> None:
    net = tunable_ops.convert(TwoConvolutions(), num_params=2)
    x = torch.rand(1, 2, 2, 2)

    def outputs(weight: Tensor) -> Tensor:
        return net(x, weight)

    lam = torch.tensor([0.3, 0.7])
    batched = torch.autograd.functional.jacobian(outputs, lam, vectorize=True)
    torch.testing.assert_close(batched, torch.autograd.functional.jacobian(outputs, lam), atol=1e-6, rtol=1e-5)


def test_a_repeated_lambda_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = model(), draw(1, 3, 8, 8)
    net.remember = True

    def call(lam: list[float]) -> Tensor:
        with torch.no_grad():
            return net(x, lam)

    all_stacks = calls(lambda: call([0.3, 0.7]), monkeypatch)
    expected = call([0.3, 0.7])  # the second call keeps the kernels
    assert all_stacks > 0
    assert calls(lambda: assert_equal(call([0.3, 0.7]), expected), monkeypatch) == 0
    # Another lambda, changed kernels and a changed phi are seen.
    assert calls(lambda: call([0.5, 0.5]), monkeypatch) == all_stacks
    for parameter in (net.network.same.stack("weight"), net.network.even.tuning.bias):
        for _ in range(3):
            call([0.3, 0.7])
        before = call([0.3, 0.7])
        with torch.no_grad():
            parameter.add_(0.1)
        after = call([0.3, 0.7])
        assert not torch.equal(before, after)
        assert_equal(after, alone(net, monkeypatch, x, torch.tensor([0.3, 0.7], dtype=DTYPE))[0].detach())
    # Calls with gradients and other modes have blends of their own.
    assert net(x, [0.3, 0.7]).requires_grad
    with torch.inference_mode():
        assert_equal(net(x, [0.3, 0.7]), after)


def test_another_thread_in_the_middle_does_not_mix_kernels_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads with lambdas of their own: the kernels of one were kept under the alphas of the other."""
    net = model()
    net.remember = True
    x, first, second = draw(1, 3, 8, 8), [0.25, 0.75], [0.75, 0.25]
    with torch.no_grad():
        net.remember = False
        expected = net(x, second)
        net.remember = True
        net(x, first)
        real = network_blend.NetworkBlend.finish

        def interrupted(blend: network_blend.NetworkBlend) -> None:
            monkeypatch.setattr(network_blend.NetworkBlend, "finish", real)
            real(blend)
            net(x, second)  # another thread, while the first makes what it will keep

        monkeypatch.setattr(network_blend.NetworkBlend, "finish", interrupted)
        net(x, first)
        for _ in range(3):
            torch.testing.assert_close(net(x, second), expected)


def test_nothing_is_remembered_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes through `.data` would not be seen."""
    net, x = model(), draw(1, 3, 8, 8)
    with torch.no_grad():
        counts = [calls(lambda: net(x, [0.3, 0.7]), monkeypatch) for _ in range(3)]
    assert counts[0] > 0 and counts == counts[:1] * 3


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_is_remembered_is_not_traced_or_copied() -> None:
    net, x = model(), draw(1, 3, 8, 8)
    net.remember = True
    lam = torch.tensor([0.3, 0.7], dtype=DTYPE)
    with torch.no_grad():
        for _ in range(3):
            net(x, lam)
        traced = torch.jit.trace(net, (x, lam), check_trace=False)
        other = torch.tensor([0.9, 0.1], dtype=DTYPE)
        assert_equal(traced(x, other), net(x, other))
        assert_equal(copy.deepcopy(net)(x, lam), net(x, lam))
