"""A model in a graph: lambda as numbers under torch.compile, and traces of torch.jit."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import tunable_ops

BOX = {"domain": "box", "names": ["sigma", "blur"], "ranges": [(0, 50), (0, 2)], "defaults": [25, 1]}
ONE = {"domain": "box", "names": ["sigma"], "ranges": [(0, 50)], "defaults": [25]}


def network(num_params, **options):
    """A small network in evaluation mode whose kernels differ."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    net = tunable_ops.convert(plain, num_params, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return net


FORMS = {
    "list": (2, BOX, lambda k: [5.0 * k, 0.2 * k]),
    "tuple": (2, BOX, lambda k: (5.0 * k, 0.2 * k)),
    "integers": (2, BOX, lambda k: [4 * k + 3, 2]),
    "on the simplex": (2, {}, lambda k: [k / 10, 1 - k / 10]),
    "number": (1, ONE, lambda k: 4.0 * k),
    "name": (2, BOX, lambda k: {"sigma": 5.0 * k}),
    "names": (2, BOX, lambda k: {"blur": 0.2 * k, "sigma": 5.0 * k}),
    "name on the simplex": (3, {}, lambda k: {"lambda0": k / 10}),
    "name with a tensor": (2, BOX, lambda k: {"sigma": torch.tensor([5.0 * k, 2.0])}),
    "per sample": (2, BOX, lambda k: [[5.0 * k, 0.2 * k], [1.0 * k, 0.1 * k]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_ten_positions_compile_twice_at_most(form):
    """Numbers as constants compiled anew at every position, and then failed at the limit."""
    num_params, options, position = FORMS[form]
    net, x = network(num_params, **options), torch.randn(2, 3, 6, 6)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    with torch.no_grad():
        for k in range(10):
            torch.testing.assert_close(compiled(x, position(k)), net(x, position(k)), rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


def test_compiled_without_lambda():
    net, x = network(2, **BOX), torch.randn(2, 3, 6, 6)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x, [25.0, 1.0]))


def traced(net, x, lam):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net, (x, lam))


@pytest.mark.parametrize("options", [BOX, {}], ids=["box", "simplex"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "called"])
def test_a_trace_computes_what_eager_does(fresh, grad, options):
    """The trace of a network that had not been called recorded what its first call keeps for later ones."""
    net, x = network(2, **options), torch.randn(4, 3, 6, 6)
    lams = torch.rand(6, 2).softmax(1)
    with torch.set_grad_enabled(grad):
        if not fresh:
            net(x, lams[0])
        shared, single, each = (traced(net, x, lam) for lam in (lams[0], lams[:1], lams[:4]))
        for trace in (shared, single):
            assert torch.equal(trace(x, lams[5]), net(x, lams[5]))
            assert torch.equal(trace(x, lams[5:]), net(x, lams[5]))
        assert torch.equal(each(x, lams[1:5]), net(x, lams[1:5]))


def test_a_trace_for_one_lambda_refuses_one_per_sample():
    """A trace made with [1, p] took the first row of [B, p] for all samples."""
    net, x = network(2, **BOX), torch.randn(4, 3, 6, 6)
    for lam in (torch.tensor([25.0, 1.0]), torch.tensor([[25.0, 1.0]])):
        with pytest.raises(RuntimeError, match=r"shape '\[2\]' is invalid for input of size 8"):
            traced(net, x, lam)(x, torch.rand(4, 2))
    for lam in (torch.tensor([25.0, 1.0]), torch.tensor([[25.0, 1.0]])):
        with pytest.raises(RuntimeError):
            traced(net, x, torch.rand(4, 2))(x, lam)


class Scaled(nn.Module):
    """A network with a residual scale of its own, beside layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.beta = nn.Parameter(torch.rand(1, 3, 1, 1))

    def forward(self, x):
        return x + self.beta * self.conv(x)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_tunable_parameters_are_traced(grad, split):
    """torch.jit.trace reads every attribute of a module, outside its forward: the blend asked for lambda."""
    torch.manual_seed(0)
    net, x = tunable_ops.convert(Scaled(), 2, domain="box"), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    if split:
        tunable_ops.split_base(net)
    one, other = torch.rand(2), torch.rand(2)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(traced(net, x, one)(x, other), net(x, other))
    with pytest.raises(RuntimeError, match="beta: lam must be given"):
        _ = net.network.beta  # nobody else is given the stack


@pytest.mark.parametrize("batched", [False, True])
def test_arrays_of_numpy_are_compiled(batched):
    """Only lists, numbers and tensors were: an array was taken for a number."""
    net, x = network(2, **BOX), torch.randn(2, 3, 6, 6)
    lam = np.array([[25.0, 1.0], [5.0, 0.5]] if batched else [25.0, 1.0])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, lam), net(x, lam))
