"""TunableModel: how lambda reaches the layers, threads, nesting, errors, a single product for phi, copies, state."""

import copy
import io
import math
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tunable_ops
from tests.modules.networks import DTYPE, Net, Picture, assert_equal, draw, perturb, plain_net, point
from tunable_ops.modules import TunableLinear, TunableModel
from tunable_ops.modules import frame as frames


def model(kind=Net, **options):
    net = tunable_ops.convert(plain_net(kind), options.pop("num_params", 2), **options)
    perturb(net)
    return net


def frame_of(net, lam):
    return frames.Frame(lam, [layer.tuning for layer in net.layers])


class Wait(nn.Module):
    """Block every thread in the middle of the network until all have arrived."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier

    def forward(self, x):
        self.barrier.wait(timeout=20)
        return x


def test_threads_see_their_own_lambda():
    barrier = threading.Barrier(3)
    x, lam = draw(2, 3, 8, 8), point("simplex", 2, 3)
    net = model(Picture)
    expected = [net(x, row).detach() for row in lam]
    net.network.mid.add_module("wait", Wait(barrier))
    results = [None] * 3

    def work(index):
        with torch.no_grad():
            for _ in range(5):
                results[index] = net(x, lam[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        assert_equal(result, wanted, 0)
    assert frames.current() is None


class Nested(nn.Module):
    """Layers before and after a tunable model whose lambda has another length."""

    def __init__(self, inner):
        super().__init__()
        self.before = TunableLinear(4, 4, num_params=2, dtype=DTYPE)
        self.inner = inner
        self.after = TunableLinear(4, 4, num_params=2, dtype=DTYPE)

    def forward(self, x, inner_lam):
        return self.after(self.inner(self.before(x), inner_lam))


def test_nested_models():
    inner = tunable_ops.convert(nn.Linear(4, 4).to(DTYPE), 3, domain="box")
    net = TunableModel(Nested(inner), num_params=2)
    perturb(net)
    assert [type(layer) for layer in net.layers] == [TunableLinear] * 2
    assert len(inner.layers) == 1
    x, lam, inner_lam = draw(5, 4), point("simplex", 2), point("box", 3)
    # the last bit of alpha depends on the size of the matrix product: one layer's, or all layers'
    by_hand = net.network.after(inner(net.network.before(x, lam), inner_lam), lam)
    assert_equal(net(x, lam, inner_lam), by_hand)
    folded = tunable_ops.fold(net, lam)  # the inner model stays tunable
    assert_equal(folded(x, inner_lam), by_hand)


def test_nested_models_with_own_parameters():
    """Folding the outer model must leave the inner model's blended parameters alone."""

    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.last = TunableLinear(5, 4, num_params=2, dtype=DTYPE)

        def forward(self, x, inner_lam):
            return self.last(self.inner(x, inner_lam))

    net = TunableModel(Outer(model(num_params=3)), num_params=2)
    x, lam, inner_lam = draw(2, 3, 8, 8), point("simplex", 2), point("simplex", 3)
    assert_equal(tunable_ops.fold(net, lam)(x, inner_lam), net(x, lam, inner_lam))


class Recursive(nn.Module):
    """Run the whole model again, at another lambda, in the middle of its forward pass."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.again = []

    def forward(self, x, depth=0):
        x = self.first(x)
        if depth:
            x = self.again[0](x, [1.0, 0.0], depth=depth - 1)
        return self.second(x)


def test_reentrancy():
    net = tunable_ops.convert(Recursive().to(DTYPE), 2)
    perturb(net)
    net.network.again = [net]
    first, second = net.network.first, net.network.second
    x, a, b = draw(3, 4), [0.25, 0.75], [1.0, 0.0]
    inside = second(first(first(x, a), b), b)
    assert_equal(net(x, a, depth=1), second(inside, a))


def test_an_error_leaves_no_lambda_behind():
    net = model()
    with pytest.raises(ValueError):
        net(draw(2, 7, 8, 8), [0.5, 0.5])
    assert frames.current() is None
    outer = TunableModel(Nested(tunable_ops.convert(nn.Linear(4, 4).to(DTYPE), 3)), num_params=2)
    with pytest.raises(ValueError, match="must hold p = 3"):
        outer(draw(2, 4), [0.5, 0.5], [0.5, 0.5])
    assert frames.current() is None
    with pytest.raises(RuntimeError, match=r"^TunableConv2d head: lam must be given outside"):
        net.network(draw(2, 3, 8, 8))
    assert net(draw(2, 3, 8, 8), [0.5, 0.5]).isfinite().all()


def test_a_lambda_given_to_a_layer_goes_before_the_models():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = TunableLinear(4, 4, num_params=2, dtype=DTYPE)

        def forward(self, x):
            return self.layer(x) + self.layer(x, [1.0, 0.0])

    net, x = TunableModel(Fixed(), num_params=2), draw(3, 4)
    perturb(net)
    layer = net.network.layer
    assert_equal(net(x, [0.2, 0.8]), layer(x, [0.2, 0.8]) + layer(x, [1.0, 0.0]))


def test_one_network_in_two_models():
    """The second model takes over the layers; the first still computes the same."""
    net, x = model(), draw(2, 3, 8, 8)
    expected = net(x, [0.3, 0.7])
    other = TunableModel(nn.Sequential(nn.Identity(), nn.ModuleDict({"deep": net.network})["deep"]), num_params=2)
    assert_equal(other(x, [0.3, 0.7]), expected)
    assert_equal(net(x, [0.3, 0.7]), expected)


class Deep(nn.Sequential):
    def __init__(self, depth):
        super().__init__(*(nn.Conv2d(2, 2, 1) for _ in range(depth)))


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1]
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


# Views launch no kernels.
VIEWS = {
    "split.Tensor",
    "split_with_sizes",
    "view",
    "t",
    "select.int",
    "alias",
    "detach",
    "_unsafe_view",
    "unsqueeze",
    "slice.Tensor",
}


def launches(run):
    """Count the calls of every operator that launches a kernel."""
    with Count() as count, torch.no_grad():
        run()
    return {name: calls for name, calls in count.counts.items() if name not in VIEWS}


@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("batch", [(), (3,)], ids=["shared", "per-sample"])
def test_one_product_for_all_alphas(domain, batch):
    """The number of launches for phi must not grow with the number of layers."""
    lam, x = point(domain, 2, *batch).float(), draw(3, 2, 4, 4, dtype=torch.float32)
    phi, whole = [], []
    for depth in (2, 20):
        net = tunable_ops.convert(Deep(depth), 2, domain=domain)
        assert len(net.layers) == depth
        phi.append(launches(lambda net=net: frame_of(net, lam)))
        whole.append(launches(lambda net=net: net(x, lam)))
    assert phi[0] == phi[1]
    assert not any(name.startswith("tunable_parameters") for name in phi[0])
    products = [
        n for name, n in phi[0].items() if name.split(".")[0] in ("addmm", "mm", "addmv", "mv", "bmm", "linear")
    ]
    assert products == [1], phi[0]
    assert phi[0]["cat"] == 2  # the rows of phi, and its biases
    operator = "tunable_conv2d_torch" if batch else "convolution"
    assert whole[1].pop(operator) == 20
    assert whole[0].pop(operator) == 2
    assert whole[0] == whole[1]
    blends = [calls for name, calls in whole[0].items() if name.startswith("tunable_parameters")]
    assert blends == ([] if batch else [1])  # all kernels and biases


@pytest.mark.parametrize("options", [{}, {"tuning": "identity"}, {"domain": "box"}, {"num_kernels": 3}], ids=str)
def test_alphas_equal_those_of_the_layers(options):
    net = model(**options)
    for lam in (point("box", 2), point("box", 2, 3)):
        frame = frame_of(net, lam)
        for layer in net.layers:
            assert_equal(frame.alpha(layer, None, tuple), layer.tuning(lam))


def test_autocast_keeps_phi_in_single_precision():
    net = tunable_ops.convert(Picture(), 2)
    perturb(net)
    x, lam = draw(2, 3, 8, 8, dtype=torch.float32), torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    with torch.autocast("cpu", torch.bfloat16):
        alphas = frame_of(net, lam).alphas
        out = net(x, lam)
    assert alphas.dtype == torch.float32
    assert torch.equal(alphas, frame_of(net, lam).alphas)
    assert_equal(out.float(), net(x, lam), 0.1)


@pytest.mark.parametrize("options", [{}, {"tuning": "identity"}, {"domain": "box"}], ids=str)
def test_gradients_of_lambda(options):
    net = model(Picture, **options)
    x = draw(2, 3, 4, 4)
    for lam in (point("box", 2), point("box", 2, 2)):
        torch.autograd.gradcheck(lambda lam: net(x, lam), lam.requires_grad_(), fast_mode=True)


def test_deepcopy_stands_alone():
    net, x, lam = model(), draw(2, 3, 8, 8), [0.3, 0.7]
    expected = net(x, lam).detach()
    other = copy.deepcopy(net)
    assert other.spec == net.spec
    assert other.conversion == net.conversion
    assert not {id(p) for p in net.parameters()} & {id(p) for p in other.parameters()}
    assert {id(layer) for layer in other.layers} <= {id(m) for m in other.modules()}
    assert_equal(other(x, lam), expected, 0)
    perturb(other)
    assert_equal(net(x, lam), expected, 0)
    assert not torch.allclose(other(x, lam), expected)
    first = copy.deepcopy(net.network.head)  # a layer taken out of its model
    assert_equal(first(x, lam), net.network.head(x, lam), 0)


def test_folding_a_copy_leaves_the_original_its_parameters():
    """Deep copies share the class that torch makes for a parametrised module."""
    net, x, lam = model(), draw(2, 3, 8, 8), [0.3, 0.7]
    expected = net(x, lam).detach()
    copies = [copy.deepcopy(net) for _ in range(2)]
    tunable_ops.fold(copies[0], lam)
    tunable_ops.LiveFold(copies[1], lam)
    for each in (net, *copies):
        assert_equal(each(x, lam), expected, 0)
    first, second = tunable_ops.fold(net, lam), tunable_ops.fold(net, [1.0, 0.0])
    assert_equal(first(x), expected)
    assert_equal(second(x), net(x, [1.0, 0.0]))


def test_state_dict_round_trip():
    net, other, x = model(), tunable_ops.convert(plain_net(), 2), draw(2, 3, 8, 8)
    state = net.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    assert "network.head.weight" in state
    assert state["network.gamma" if "network.gamma" in state else "network.parametrizations.gamma.original"].dim() == 2
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(other(x, [0.3, 0.7]), net(x, [0.3, 0.7]), 0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        tunable_ops.convert(plain_net(), 3).load_state_dict(state)


def test_repr_names_lambda():
    net = tunable_ops.convert(Picture(), 2, names=["noise", "blur"])
    assert repr(net).startswith("TunableModel(\n  lam=['noise', 'blur'], domain='simplex'\n  (network): Picture(")


def test_arguments_pass_through():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, scale, *rest, shift=0, **more):
            return {"out": self.linear(x["in"]) * scale + shift, "rest": rest, "more": more}

    plain = Many().to(DTYPE)
    net, x = tunable_ops.convert(plain, 2), {"in": draw(3, 4)}
    result = net(x, [0.5, 0.5], 2.0, "a", "b", shift=1.0, name="c")
    assert_equal(result["out"], plain(x, 2.0, shift=1.0)["out"])
    assert result["rest"] == ("a", "b")
    assert result["more"] == {"name": "c"}


def test_a_size_given_second_to_a_transposed_convolution():
    """Networks pass output_size by position; with p = 2 it has the length of lambda."""

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(2, 2, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)

        def forward(self, x, size):
            return self.up(self.down(x), size)

    plain, x = Up().to(DTYPE), draw(2, 2, 6, 8)
    net = tunable_ops.convert(plain, 2)
    for size in ([6, 8], (6, 7), torch.Size([2, 2, 6, 8])):
        assert_equal(net(x, [0.3, 0.7], size), plain(x, list(size)))
    layer = net.network.up
    assert_equal(layer(plain.down(x), [1, 0]), layer(plain.down(x), [1.0, 0.0]), 0)  # outside: lambda


def test_bad_models():
    with pytest.raises(ValueError, match=r"^TunableModel: network must have a tunable layer; got Linear"):
        TunableModel(nn.Linear(3, 3), num_params=2)
    mixed = nn.Sequential(TunableLinear(3, 3, num_params=2), TunableLinear(3, 3, num_params=3))
    with pytest.raises(ValueError, match=r"^TunableModel: network must have layers of num_params = 2; got 3 in '1'"):
        TunableModel(mixed, num_params=2)
    with pytest.raises(ValueError, match=r"^TunableModel: on_map must be one of .*; got 'sum'"):
        TunableModel(mixed, num_params=2, on_map="sum")


@pytest.mark.parametrize(
    ("lam", "error", "text"),
    [
        ([0.5], ValueError, r"lam must hold p = 2 values.*got shape \[1\]"),
        ([0.2, 0.3, 0.5], ValueError, r"lam must hold p = 2 values.*got shape \[3\]"),
        (torch.zeros(4, 3), ValueError, r"lam must hold p = 2 values.*got shape \[4, 3\]"),
        ([math.nan, 0.5], ValueError, r"lam must be finite; got \[nan, 0.5\]"),
        (torch.tensor([0.5, -math.inf]), ValueError, r"lam must be finite; got \[0.5, -inf\]"),
        ("ab", TypeError, r"lam must be numbers or a Tensor; got 'ab'"),
        (torch.tensor([1, 0]), TypeError, r"lam must be floating point; got torch.int64"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bad_lambda(lam, error, text):
    with pytest.raises(error, match=f"^lambda: {text}"):
        model()(draw(2, 3, 8, 8), lam)
    assert frames.current() is None


def test_a_lambda_for_another_batch():
    with pytest.raises(
        ValueError, match=r"^TunableConv2d [a-z0-9.]+: lam must fit the input's leading size 2.*got B = 3"
    ):
        model()(draw(2, 3, 8, 8), point("simplex", 2, 3))


def test_an_empty_batch():
    net = model(Picture)
    for lam in (point("simplex", 2), point("simplex", 2, 0), point("simplex", 2, 1)):
        assert net(draw(0, 3, 8, 8), lam).shape == (0, 3, 8, 8)


def test_a_layer_in_inference_mode_leaves_the_others_their_gradients():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            with torch.inference_mode():
                self.first(x)
            return self.second(x)

    net = tunable_ops.convert(Half(), 2)
    lam = point("simplex", 2, 3).float().requires_grad_()
    net(draw(3, 3, 4, 4, dtype=torch.float32), lam).square().sum().backward()
    assert lam.grad is not None and net.network.second.tuning.weight.grad is not None
