"""Networks that read the weights of their layers: the blend in a model's forward, or an error that names the layer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tunable_ops
from tests.modules.networks import DTYPE, assert_equal, draw, perturb, point


class Norm(nn.Module):
    """A convolution divided by the norm of its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) / self.c.weight.norm()


class Matmul(nn.Module):
    """Linear layers that are never called; bias and data are read too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3)) @ self.fc.weight.mT + self.fc.bias
        return F.linear(x, self.out.weight, self.out.bias) * self.out.weight.data.abs().max()


class Standardised(nn.Module):
    """A block that standardises the kernels of a plain layer (weight standardisation)."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        w = self.c.weight
        std, mean = torch.std_mean(w, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (w - mean) / (std + 1e-5), self.c.bias, self.c.stride, self.c.padding)


class Merged(nn.Module):
    """A block as of RepVGG, whose forward merges a 3x3, a 1x1 and the identity into one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.one = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()).reshape(-1, 1, 1, 1)
        identity = torch.zeros_like(self.three.weight)
        identity[range(3), range(3), 1, 1] = 1
        kernel = scale * self.three.weight + F.pad(self.one.weight, [1, 1, 1, 1]) + identity
        return F.conv2d(x, kernel, self.three.bias + self.one.bias, padding=1)


class Decoder(nn.Module):
    """A layer that is called, and read for the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.fc(x.mean((2, 3))).relu(), self.fc.weight.t())


KINDS = [Norm, Matmul, Standardised, Merged, Decoder]


def model(kind: type[nn.Module], domain: str = "simplex") -> tunable_ops.TunableModel:
    torch.manual_seed(0)
    net = tunable_ops.convert(kind().to(DTYPE).eval(), 2, domain=domain)
    perturb(net)
    return net


@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_reads_weights_computes_what_its_fold_does(kind: type[nn.Module], domain: str) -> None:
    torch.manual_seed(0)
    plain, x, lam = kind().to(DTYPE).eval(), draw(2, 3, 8, 8), point(domain, 2)
    net = tunable_ops.convert(plain, 2, domain=domain)
    assert_equal(net(x, lam), plain(x))
    perturb(net)
    wanted = tunable_ops.fold(net, lam)(x)
    assert not torch.allclose(wanted, plain(x))
    assert_equal(net(x, lam), wanted)
    assert_equal(net(x, lam.expand(1, 2)), wanted)
    with torch.inference_mode():
        assert_equal(net(x, lam), wanted)
    if domain == "box":
        tunable_ops.freeze_base(net)
        assert_equal(net(x, lam), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_in_graphs_and_transforms(kind: type[nn.Module]) -> None:
    net, x, lam = model(kind), draw(2, 3, 8, 8), point("simplex", 2)
    wanted = net(x, lam)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for each in (lam, lam.flip(0)):
            assert_equal(compiled(x, each), net(x, each))
    if kind is not Matmul:  # torch.export and vmap refuse to read `data` of whatever is computed
        assert_equal(torch.export.export(net, (x, lam)).module()(x, lam), wanted)
        assert_equal(torch.vmap(lambda each: net(x, each))(torch.stack([lam, lam]))[1], wanted)
    assert_equal(torch.func.functional_call(net, dict(net.named_parameters()), (x, lam)), wanted)
    assert_equal(copy.deepcopy(net)(x, lam), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_plain_network_at_the_blended_kernels(kind: type[nn.Module]) -> None:
    net, plain, x = model(kind), kind().to(DTYPE).eval(), draw(2, 3, 8, 8)
    lam = point("simplex", 2).requires_grad_()
    stacks = {n: p for n, p in net.network.named_parameters() if "tuning" not in n and not n.startswith("norm")}
    phi = {n: layer.tuning(lam) for n, layer in net.network.named_children() if n != "norm"}
    blends = {n: torch.einsum("p,p...->...", phi[n.split(".")[0]], stack) for n, stack in stacks.items()}
    rest = {n: p for n, p in net.network.named_parameters() if n.startswith("norm")}
    wanted = torch.func.functional_call(plain, {**blends, **rest, **dict(net.network.named_buffers())}, (x,))
    inputs = [lam, *stacks.values(), *(layer.tuning.weight for layer in net.layers)]
    for out, ref in zip(
        torch.autograd.grad(net(x, lam).square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        assert_equal(out, ref)
        assert ref.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lam", [point("simplex", 2, 2), torch.full((2, 2, 8, 8), 0.5, dtype=DTYPE)], ids=["rows", "map"]
)
def test_a_lambda_without_one_kernel_raises_and_names_the_layer(kind: type[nn.Module], lam: Tensor) -> None:
    net, x = model(kind), draw(2, 3, 8, 8)
    text = r"Tunable(Conv2d|Linear) (c|fc|three): lam must (be \[p\], one for all samples, because|not be a map)"
    with pytest.raises(ValueError, match=text) as caught:
        net(x, lam)
    assert "leaves the layer plain" in str(caught.value) or kind is Decoder


def test_outside_a_forward_it_is_the_stack() -> None:
    net = model(Norm)
    weight = net.network.c.weight
    assert isinstance(weight, nn.Parameter)
    assert weight is dict(net.named_parameters())["network.c.weight"] is net.network.c.stack("weight")
    assert weight.shape == (2, 4, 3, 3, 3)


def test_hooks_of_a_layer_see_the_blend() -> None:
    """A hook was written for the plain layer."""
    plain, seen = nn.Sequential(nn.Conv2d(3, 4, 3)).to(DTYPE), []
    plain[0].register_forward_hook(lambda layer, *_: seen.append(layer.weight))
    net = tunable_ops.convert(plain, 2)
    net(draw(1, 3, 8, 8), [0.3, 0.7])
    assert_equal(seen[0].as_subclass(Tensor), plain[0].weight)


def test_a_tunable_layer_written_by_hand_reads_its_stack() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = tunable_ops.TunableConv2d(3, 4, 3, num_params=2)

        def forward(self, x: Tensor) -> Tensor:
            assert self.c.weight.shape[0] == 2
            return self.c(x)

    tunable_ops.TunableModel(ByHand(), 2)(torch.rand(1, 3, 8, 8), [0.3, 0.7])


def test_another_models_layer_cannot_be_read() -> None:
    inner = model(Norm)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.inner = tunable_ops.TunableConv2d(3, 3, 1, num_params=2).to(DTYPE), inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.head(x), [0.5, 0.5]) * self.inner.network.c.weight.norm()

    with pytest.raises(RuntimeError, match=r"^TunableConv2d c: weight must be read while the layer's own model runs"):
        tunable_ops.TunableModel(Outer(), 2)(draw(1, 3, 8, 8), [0.3, 0.7])


class Writes(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.c, self.write = nn.Conv2d(3, 3, 1), write

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self.c.weight)
        return self.c(x)


def _set_data(w: Tensor) -> None:
    w.data = torch.zeros(3, 3, 1, 1)


def _times(w: Tensor) -> None:
    w *= 2


def _item(w: Tensor) -> None:
    w[0] = 1


WRITES = {
    "mul_": lambda w: w.mul_(2),
    "data": _set_data,
    "data.clamp_": lambda w: w.data.clamp_(-1, 1),
    "*=": _times,
    "item": _item,
    "view": lambda w: w.view(-1)[2:].zero_(),
    "split": lambda w: w.split(1)[1].zero_(),
    "detach": lambda w: w.detach().add_(1),
    "init": lambda w: nn.init.normal_(w),
    "constant": lambda w: nn.init.zeros_(w),
    "out": lambda w: torch.add(w, 1, out=w),
    "copy_": lambda w: w.copy_(torch.zeros(3, 3, 1, 1)),
    "relu": lambda w: F.relu(w, inplace=True),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_to_a_blend_raises(write) -> None:
    """It would be lost: the blend is not what the layer keeps."""
    net = tunable_ops.convert(Writes(write), 2)
    with pytest.raises(
        RuntimeError, match=r"^TunableConv2d c: weight must not be written to while the model runs; got"
    ):
        net(torch.rand(1, 3, 4, 4), [0.3, 0.7])


@pytest.mark.parametrize(
    "read",
    [
        lambda w: torch.zeros_like(w).copy_(w),
        lambda w: w.clone().mul_(2),
        lambda w: (w * 2).add_(w),
        lambda w: w.detach().requires_grad_(),
        lambda w: nn.Parameter(w),
        lambda w: torch.cat([w, w]).zero_(),
        pytest.param(
            lambda w: torch.compile(lambda v: v.mT * 2, backend="eager", fullgraph=True)(w),
            marks=pytest.mark.skipif(
                torch.__version__.startswith("2.11."), reason="torch 2.11 looks for a base without end"
            ),
        ),
        lambda w: w.cpu().double().numpy(),
        repr,
    ],
)
def test_reading_does_not(read) -> None:
    net = tunable_ops.convert(Writes(read), 2)
    assert net(torch.rand(1, 3, 4, 4), [0.3, 0.7]).shape == (1, 3, 4, 4)


def test_parts_of_a_split_stack_are_found_as_before() -> None:
    net = model(Merged, "box")
    tunable_ops.split_base(net)
    assert parametrize.is_parametrized(net.network.one, "weight")
    assert net.network.one.weight.shape == net.network.one.stack("weight").shape == (3, 3, 3, 1, 1)
    tunable_ops.merge_base(net)
    assert isinstance(net.network.one.weight, nn.Parameter)


def test_a_read_keeps_the_dtype_of_the_weights_under_autocast() -> None:
    net, x = model(Norm).float(), draw(1, 3, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(net(x, [0.3, 0.7]), tunable_ops.fold(net, [0.3, 0.7])(x), 1e-2)
        seen = []
        net.network.c.register_forward_hook(lambda layer, *_: seen.append(layer.weight.dtype))
        net(x, [0.3, 0.7])
    assert seen == [torch.float32]
