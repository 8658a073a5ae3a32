"""TunableModel under activation checkpointing, torch.func, torch.compile and torch.export."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import tunable_ops
from tests.modules.networks import DTYPE, Net, Picture, assert_equal, draw, perturb, plain_net, point
from tunable_ops.modules import frame as frames


class Checkpointed(nn.Module):
    """Recompute blocks in the backward pass by the given checkpoint function."""

    def __init__(self, checkpoint, **options):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 1)) for _ in range(2)
        )
        self.gamma = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.checkpoint, self.options = checkpoint, options

    def block(self, block, x):
        return x + self.gamma * block(x)

    def forward(self, x):
        x = self.head(x)
        for block in self.blocks:
            x = (
                self.block(block, x)
                if self.checkpoint is None
                else self.checkpoint(self.block, block, x, **self.options)
            )
        return x


def checkpointed(*arguments, **options):
    torch.manual_seed(0)
    net = tunable_ops.convert(Checkpointed(*arguments, **options).to(DTYPE), 2)
    perturb(net)
    return net


def gradients(net, x, lam):
    """Return the gradients of the input, lambda and every parameter."""
    x, lam = x.clone().requires_grad_(), lam.clone().requires_grad_()
    out = net(x, lam)
    grads = torch.autograd.grad(out.square().sum(), [x, lam, *net.parameters()])
    return [out, *grads]


@pytest.mark.parametrize("batch", [(), (2,)], ids=["shared", "per-sample"])
def test_checkpointing_gives_the_same_gradients(batch):
    x, lam = draw(2, 3, 5, 5), point("simplex", 2, *batch)
    plain, saved = gradients(checkpointed(None), x, lam), gradients(checkpointed(tunable_ops.checkpoint), x, lam)
    for a, b in zip(saved, plain, strict=True):
        assert_equal(a, b)
    assert frames.current() is None


def test_checkpointing_gives_the_same_gradients_of_a_map():
    class Convolutions(Checkpointed):
        def block(self, block, x):
            return x + block(x)

    x, lam = draw(2, 3, 5, 5), point("simplex", 2, 2, 5, 5).movedim(-1, 1)
    results = []
    for function in (None, tunable_ops.checkpoint):
        torch.manual_seed(0)
        net = tunable_ops.convert(Convolutions(function).to(DTYPE), 2, parameters=())
        del net.network.gamma
        perturb(net)
        results.append(gradients(net, x, lam))
    for a, b in zip(*results, strict=True):
        assert_equal(a, b)


def test_checkpointing_really_recomputes():
    net, calls = checkpointed(tunable_ops.checkpoint), []
    net.network.blocks[0][0].register_forward_hook(lambda *args: calls.append(frames.current() is not None))
    out = net(draw(2, 3, 5, 5), [0.3, 0.7])
    assert calls == [True]
    out.sum().backward()
    assert calls == [True, True]


def test_the_recomputation_of_two_calls_keeps_them_apart():
    net, x = checkpointed(tunable_ops.checkpoint), draw(2, 3, 5, 5)
    a, b = point("simplex", 2, seed=1), point("simplex", 2, seed=2)
    together = torch.autograd.grad((net(x, a) * net(x, b)).sum(), list(net.parameters()))
    plain = checkpointed(None)
    expected = torch.autograd.grad((plain(x, a) * plain(x, b)).sum(), list(plain.parameters()))
    for got, wanted in zip(together, expected, strict=True):
        assert_equal(got, wanted)


def test_torchs_own_checkpointing_raises_the_named_error():
    net = checkpointed(torch_checkpoint, use_reentrant=False)
    out = net(draw(2, 3, 5, 5), [0.3, 0.7])
    with pytest.raises(RuntimeError, match=r"lam must be given outside.*got None.*use tunable_ops\.checkpoint"):
        out.sum().backward()
    assert frames.current() is None


def test_reentrant_checkpointing_is_refused():
    net = checkpointed(tunable_ops.checkpoint, use_reentrant=True)
    with pytest.raises(ValueError, match=r"^checkpoint: use_reentrant must be False; got True"):
        net(draw(2, 3, 5, 5), [0.3, 0.7])


def test_checkpointing_outside_a_model_is_torchs():
    layer = nn.Linear(3, 3).to(DTYPE)
    x = draw(2, 3).requires_grad_()
    tunable_ops.checkpoint(layer, x).sum().backward()
    assert_equal(x.grad, layer.weight.sum(0).expand(2, 3))


def test_checkpointing_restores_the_lambda_of_an_error():
    def fail(block, x):
        raise KeyError("here")

    net = checkpointed(lambda function, *args: tunable_ops.checkpoint(fail, *args))
    with pytest.raises(KeyError):
        net(draw(2, 3, 5, 5), [0.3, 0.7])
    assert frames.current() is None


# torch.func


def test_functional_call():
    net, x, lam = tunable_ops.convert(plain_net(), 2), draw(2, 3, 8, 8), point("simplex", 2)
    moved = copy.deepcopy(net)
    perturb(moved)
    state = {name: value.detach() for name, value in moved.state_dict().items()}
    assert_equal(torch.func.functional_call(net, state, (x, lam)), moved(x, lam))
    assert not torch.allclose(net(x, lam), moved(x, lam))


@pytest.mark.parametrize("kind", [Net, Picture])
def test_func_grad_of_lambda_and_parameters(kind):
    net, x, lam = tunable_ops.convert(plain_net(kind), 2), draw(2, 3, 8, 8), point("simplex", 2)
    perturb(net)
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(parameters, lam):
        return torch.func.functional_call(net, parameters, (x, lam)).square().sum()

    got, got_lam = torch.func.grad(loss, argnums=(0, 1))(parameters, lam)
    _, _, *expected = gradients(net, x, lam)
    for grad, wanted in zip([got_lam, *got.values()], expected, strict=True):
        assert_equal(grad, wanted)


def test_vmap_over_lambda():
    net, x, lam = tunable_ops.convert(plain_net(Picture), 2), draw(2, 3, 8, 8), point("simplex", 2, 3)
    perturb(net)
    swept = torch.func.vmap(lambda row: net(x, row))(lam)
    assert_equal(swept, torch.stack([net(x, row) for row in lam]))
    per_sample = torch.func.vmap(torch.func.grad(lambda row: net(x, row).square().sum()))(lam)
    expected = torch.stack([gradients(net, x, row)[2] for row in lam])
    assert_equal(per_sample, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_vmap_over_lambda_in_single_precision(layout):
    """The choice of a backend asked for the memory format of the second layer's input, which vmap refuses."""
    torch.manual_seed(0)
    net = tunable_ops.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)), 2)
    perturb(net)
    x = torch.randn(2, 3, 8, 8).to(memory_format=layout)
    lam = torch.rand(3, 2)
    swept = torch.func.vmap(lambda row: net(x, row))(lam)
    torch.testing.assert_close(swept, torch.stack([net(x, row) for row in lam]))
    each = torch.func.vmap(lambda picture: net(picture[None], lam[0])[0])(x)
    torch.testing.assert_close(each, net(x, lam[0]))


def test_jacobian_and_forward_mode_over_lambda():
    net, x, lam = tunable_ops.convert(plain_net(Picture), 2), draw(1, 3, 4, 4), point("simplex", 2)
    perturb(net)
    jacobian = torch.func.jacrev(lambda row: net(x, row).mean((2, 3)))(lam)
    assert_equal(torch.func.jacfwd(lambda row: net(x, row).mean((2, 3)))(lam), jacobian)


@pytest.mark.parametrize("batch", [(), (2,)], ids=["shared", "per-sample"])
def test_second_order_through_the_model(batch):
    net, x = tunable_ops.convert(plain_net(Picture, channels=2), 2), draw(2, 3, 4, 4)
    perturb(net)
    for module in net.network.mid:
        if isinstance(module, nn.ReLU):
            module.forward = torch.tanh  # smooth
    lam = point("simplex", 2, *batch).requires_grad_()
    torch.autograd.gradgradcheck(lambda lam: net(x, lam).square(), lam, fast_mode=True)
    # A penalty on the input gradient, as in adversarial training.
    x.requires_grad_()
    (slope,) = torch.autograd.grad(net(x, lam).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# torch.compile


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """Compiler backend that counts compilations and traces like aot_eager."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


class Flat(nn.Sequential):
    """No transposed convolution: with a lambda per sample it loops over the batch, so the graph specialises on it."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 3, stride=2))


@pytest.mark.parametrize("batch", [(), (2,)], ids=["shared", "per-sample"])
@pytest.mark.parametrize("kind", [Net, Picture])
def test_compile_forward_backward_and_no_recompilation(kind, batch):
    net = tunable_ops.convert(plain_net(kind), 2, domain="box" if kind is Net else "simplex")
    perturb(net)
    counter, x = Counter(), draw(2, 3, 8, 8)
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for seed in range(3):
        lam = point("simplex", 2, *batch, seed=seed)
        for a, b in zip(gradients(compiled, x, lam), gradients(net, x, lam), strict=True):
            assert_equal(a, b)
    assert counter.count == 1
    assert frames.current() is None


def test_compile_with_a_map_channels_last_and_autocast():
    net = tunable_ops.convert(Flat(), 2).to(memory_format=torch.channels_last)
    perturb(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = draw(2, 3, 8, 8, dtype=torch.float32).to(memory_format=torch.channels_last)
    for lam in (torch.tensor([0.3, 0.7]), point("simplex", 2, 2, 8, 8).float().movedim(-1, 1)):
        out = compiled(x, lam)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_equal(out, net(x, lam), 1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert_equal(compiled(x, lam).float(), net(x, lam).float(), 0.1)


def test_compile_with_numbers_for_lambda():
    net, x = tunable_ops.convert(Flat().to(DTYPE), 2), draw(2, 3, 8, 8)
    perturb(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for lam in ([0.3, 0.7], [0.6, 0.4]):
        assert_equal(compiled(x, lam), net(x, lam))


@pytest.mark.parametrize("per_sample", [False, True])
def test_compile_with_another_batch_and_size(per_sample):
    net = tunable_ops.convert(Flat().to(DTYPE), 2)
    perturb(net)
    counter = Counter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for seed, (batch, height, width) in enumerate([(2, 8, 8), (3, 12, 10), (4, 16, 6), (5, 10, 14)]):
        x, lam = draw(batch, 3, height, width), point("simplex", 2, *[batch] * per_sample, seed=seed)
        assert_equal(compiled(x, lam), net(x, lam))
    assert counter.count == 2  # once static, once with dynamic sizes


class Broken(nn.Module):
    """Break the graph in the middle of the network, once in a loop over blocks."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.gamma = nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x):
        x = self.head(x)
        for block in self.blocks:
            torch._dynamo.graph_break()
            x = block(x).tanh()
        return x * self.gamma


@pytest.mark.parametrize("batch", [(), (2,)], ids=["shared", "per-sample"])
def test_compile_of_a_network_that_breaks_the_graph(batch):
    """Lambda must still be available after the break, in compiled and in eager code."""
    net, x = tunable_ops.convert(Broken().to(DTYPE), 2), draw(2, 3, 4, 4)
    perturb(net)
    compiled = torch.compile(net, backend="aot_eager")
    for seed in range(3):
        lam = point("simplex", 2, *batch, seed=seed)
        for a, b in zip(gradients(compiled, x, lam), gradients(net, x, lam), strict=True):
            assert_equal(a, b)
        assert frames.current() is None


def test_compiled_in_threads():
    net, x = tunable_ops.convert(Flat().to(DTYPE), 2), draw(2, 3, 8, 8)
    perturb(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    lam = point("simplex", 2, 2)
    compiled(x, lam[0])
    results = [None, None]

    def work(index):
        for _ in range(10):
            results[index] = compiled(x, lam[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, row in zip(results, lam, strict=True):
        assert_equal(result, net(x, row))


def test_compile_with_checkpointing():
    net, x, lam = checkpointed(tunable_ops.checkpoint), draw(2, 3, 5, 5), point("simplex", 2)
    compiled = torch.compile(net, backend="aot_eager")
    for a, b in zip(gradients(compiled, x, lam), gradients(net, x, lam), strict=True):
        assert_equal(a, b)


def test_compile_of_a_layer_and_of_a_fold():
    layer, x = tunable_ops.TunableConv2d(3, 4, 3, num_params=2, dtype=DTYPE), draw(2, 3, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(x, point("simplex", 2)), layer(x, point("simplex", 2)))
    live = tunable_ops.LiveFold(tunable_ops.convert(plain_net(Picture), 2))
    compiled = torch.compile(live, fullgraph=True, backend="aot_eager")
    for lam in ([0.3, 0.7], [1.0, 0.0]):
        live.set(lam)
        assert_equal(compiled(x), live.network(x))


@pytest.mark.slow
def test_compile_with_inductor():
    net, x = tunable_ops.convert(Picture(), 2), draw(2, 3, 8, 8, dtype=torch.float32)
    perturb(net)
    compiled = torch.compile(net, fullgraph=True)
    for seed in range(2):
        lam = point("simplex", 2, seed=seed).float()
        for a, b in zip(gradients(compiled, x, lam), gradients(net, x, lam), strict=True):
            assert_equal(a, b, 1e-3)


# torch.export


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # push and pop
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["shared", "per-sample"])
def test_export(batch, strict):
    net, x = tunable_ops.convert(plain_net(Picture), 2), draw(2, 3, 8, 8)
    perturb(net)
    program = torch.export.export(net, (x, point("simplex", 2, *batch)), strict=strict)
    for seed in range(2):  # lambda is an input of the graph
        lam = point("simplex", 2, *batch, seed=seed)
        assert_equal(program.module()(x, lam), net(x, lam))
    assert frames.current() is None
