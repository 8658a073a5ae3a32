"""The registered operators under everything PyTorch does to an operator: opcheck, compile, export, func, autocast."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import tunable_ops
from tests.ops.conv2d_cases import ALPHAS, CASES, Case, options_of
from tunable_ops import reference, tunable_conv2d, tunable_parameter

OPS = torch.ops.tunable_ops


def leaves(case: Case, alpha: str, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> list[Any]:
    return [None if t is None else t.requires_grad_() for t in case.tensors(alpha, dtype, channels_last)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ["shared", "sample", "map"])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[8], CASES[9]], ids=str)
def test_opcheck_conv2d(case: Case, alpha: str, channels_last: bool) -> None:
    for act in (None, "relu", "gelu"):
        args = (*leaves(case, alpha, channels_last=channels_last), *options_of(case, act))
        torch.library.opcheck(OPS.tunable_conv2d_torch.default, args)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ["shared", "sample", "map"])
@pytest.mark.parametrize("mask", [(True,) * 4, (False, True, False, False), (False, False, False, True)])
def test_opcheck_conv2d_backward(alpha: str, channels_last: bool, mask: tuple[bool, ...]) -> None:
    case = CASES[0]
    tensors = case.tensors(alpha, torch.float32, channels_last)
    grad = torch.randn(case.batch, case.outputs, *case.grid)
    saved = torch.randn_like(grad)
    args = (grad, saved, *tensors, *options_of(case, "silu"), list(mask))
    torch.library.opcheck(
        OPS.tunable_conv2d_torch_backward.default, args, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 4, 3, 2), (2, 6, 1, 1, 1)])
def test_opcheck_parameter(shape: tuple[int, ...]) -> None:
    for rows in ((), (4,)):
        stack, alpha = torch.randn(shape, requires_grad=True), torch.rand(*rows, shape[0], requires_grad=True)
        torch.library.opcheck(OPS.tunable_parameter_torch.default, (stack, alpha))
        grad = torch.randn(*rows, *shape[1:])
        args = (grad, stack.detach(), alpha.detach(), [True, True])
        torch.library.opcheck(OPS.tunable_parameter_torch_backward.default, args)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_a_break(alpha: str, backend: str) -> None:
    torch._dynamo.reset()
    case = Case(padding=(1, 1), channels=4, outputs=4)

    def function(*tensors: Any) -> Tensor:
        return tunable_conv2d(*tensors, padding="same", activation="silu").square().mean()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    eager, traced = leaves(case, alpha), None
    traced = [t.detach().clone().requires_grad_() for t in eager]
    expected, out = function(*eager), compiled(*traced)
    torch.testing.assert_close(out, expected)
    expected.backward()
    out.backward()
    for a, b in zip(traced, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_compile_with_dynamic_sizes() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, w, a: tunable_conv2d(x, w, None, a, padding=1), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    weight, alpha = torch.randn(2, 3, 4, 3, 3), torch.rand(2)
    for size in (5, 8, 13):
        x = torch.randn(2, 4, size, size + 1)
        torch.testing.assert_close(compiled(x, weight, alpha), tunable_conv2d(x, weight, None, alpha, padding=1))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, a: Tensor) -> Tensor:
            return tunable_conv2d(x, w, None, a, activation="relu")

    args = (torch.randn(2, 3, 6, 5), torch.randn(2, 4, 3, 2, 2), torch.rand(2, 2))
    program = torch.export.export(Net(), args, strict=strict)
    assert "tunable_ops.tunable_conv2d" in str(program.graph)
    torch.testing.assert_close(program.module()(*args), Net()(*args))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_func_grad_vmap_jvp_hessian(alpha: str) -> None:
    case = Case(batch=2, channels=2, outputs=2, size=(4, 3), kernels=2)
    x, w, b, a = case.tensors(alpha)

    def loss(alpha: Tensor, weight: Tensor) -> Tensor:
        return tunable_conv2d(x, weight, b, alpha, padding=1, activation="silu").square().sum()

    # Transforms differentiate the definition, eager calls run the backward operator.
    given = [t.clone().requires_grad_() for t in (a, w)]
    expected, grad_weight = torch.autograd.grad(loss(*given), given)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(a, w), (expected, grad_weight))
    many = torch.rand(3, *a.shape, dtype=a.dtype)
    torch.testing.assert_close(torch.vmap(loss, (0, None))(many, w), torch.stack([loss(m, w) for m in many]))
    per_alpha = torch.vmap(torch.func.grad(loss), (0, None))(many, w)
    torch.testing.assert_close(per_alpha[1], torch.func.grad(loss)(many[1], w))
    tangent = torch.rand_like(a)
    value, directional = torch.func.jvp(lambda v: loss(v, w), (a,), (tangent,))
    torch.testing.assert_close(directional, (expected * tangent).sum())
    torch.testing.assert_close(value, loss(a, w))
    hessian = torch.func.hessian(lambda v: loss(v, w))(a)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda v: loss(v, w), a))


def test_vmap_over_stacked_kernels() -> None:
    x, w, _, a = Case().tensors("shared")
    weights = torch.stack([w, 2 * w, -w])
    out = torch.vmap(lambda k: tunable_conv2d(x, k, None, a))(weights)
    torch.testing.assert_close(out, torch.stack([tunable_conv2d(x, k, None, a) for k in weights]))


def test_forward_mode() -> None:
    import torch.autograd.forward_ad as fwad

    x, w, _, a = Case().tensors("sample")
    with fwad.dual_level():
        out = fwad.unpack_dual(tunable_conv2d(x, w, None, fwad.make_dual(a, torch.ones_like(a))))
    torch.testing.assert_close(out.tangent, tunable_conv2d(x, w, None, torch.ones_like(a)))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_autocast_casts_everything_but_alpha(alpha: str) -> None:
    case = CASES[0]
    x, w, b, a = case.tensors(alpha, torch.float32)
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is OPS.tunable_conv2d_torch.default:
                seen.append([t.dtype for t in args[:4]])
            return func(*args, **(kwargs or {}))

    w.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        with Spy():
            out = tunable_conv2d(x, w, b, a, *case.geometry)
        plain = torch.nn.functional.conv2d(x, w[0])
        expected = tunable_conv2d(x.bfloat16(), w.bfloat16(), b.bfloat16(), a, *case.geometry)
    assert seen == [[torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32]]
    assert out.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    out.float().sum().backward()
    assert w.grad.dtype == torch.float32


def test_autocast_of_every_operator_agrees_with_the_cast_by_hand() -> None:
    a32, half = torch.rand(2), torch.bfloat16
    args = {
        "tunable_conv1d": (torch.randn(2, 3, 9), torch.randn(2, 4, 3, 3), torch.randn(2, 4)),
        "tunable_conv3d": (torch.randn(2, 3, 4, 5, 6), torch.randn(2, 4, 3, 2, 2, 2), torch.randn(2, 4)),
        "tunable_conv_transpose2d": (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 2, 2), torch.randn(2, 4)),
        "tunable_linear": (torch.randn(2, 3), torch.randn(2, 4, 3), torch.randn(2, 4)),
    }
    for name, tensors in args.items():
        for alpha in (a32, torch.rand(2, 2)):
            operator = getattr(tunable_ops, name)
            expected = operator(*(t.to(half) for t in tensors), alpha)
            with torch.autocast("cpu", half):
                out = operator(*tensors, alpha)
                named = operator(*tensors, alpha, backend="reference")
            assert out.dtype == named.dtype == half, name
            assert torch.equal(out, expected), name
    stack = torch.randn(2, 5)
    with torch.autocast("cpu", half):
        assert (a32 @ stack).dtype == half  # what a matrix product alone would do to alpha
        out = tunable_parameter(stack, a32)
    assert out.dtype == torch.float32
    assert torch.equal(out, tunable_parameter(stack, a32))


def test_fp64_stays_fp64_under_autocast() -> None:
    x, w, b, a = CASES[0].tensors("shared")
    with torch.autocast("cpu", torch.bfloat16):
        assert tunable_conv2d(x, w, b, a, padding=1).dtype == torch.float64


def test_compile_under_autocast() -> None:
    torch._dynamo.reset()
    x, w, b, a = CASES[0].tensors("sample", torch.float32)

    def function(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return tunable_conv2d(*tensors, padding=1)

    out = torch.compile(function, fullgraph=True, backend="aot_eager")(x, w, b, a)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, function(x, w, b, a))


def test_deepcopy_of_a_graph_of_functions() -> None:
    layer = tunable_ops.TunableConv2d(3, 4, 3, num_params=2)
    twin = copy.deepcopy(layer)
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(layer(x, [0.3, 0.7]), twin(x, [0.3, 0.7]))


def test_the_matmul_setting_of_the_process_does_not_reach_the_blend() -> None:
    """PyTorch's matmul in bf16 passes would round alpha and the kernels."""
    stack, alpha = torch.randn(3, 1000), torch.rand(4, 3)
    expected = reference.tunable_parameter(stack.double(), alpha.double())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        grads = []
        for t in (stack, alpha):
            t.requires_grad_()
        out = tunable_parameter(stack, alpha)
        grads = torch.autograd.grad(out.square().sum(), (stack, alpha))
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)
    s, a = stack.detach().double().requires_grad_(), alpha.detach().double().requires_grad_()
    for got, ref in zip(
        grads, torch.autograd.grad(reference.tunable_parameter(s, a).square().sum(), (s, a)), strict=True
    ):
        torch.testing.assert_close(got.double(), ref, rtol=1e-5, atol=1e-4)


def test_meta_tensors_give_shapes() -> None:
    for alpha in ALPHAS:
        tensors = [t.to("meta") for t in CASES[0].tensors(alpha)]
        assert tunable_conv2d(*tensors, *CASES[0].geometry).shape == (2, 5, 9, 11)
    layer = tunable_ops.TunableConv2d(3, 4, 3, num_params=2, device="meta")
    out = layer(torch.empty(1, 3, 8, 8, device="meta"), torch.empty(2, device="meta"))
    assert out.device.type == "meta"
    assert out.shape == (1, 4, 6, 6)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ["shared", "sample", "map"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients(alpha: str, channels_last: bool) -> None:
    """is_grads_batched: PyTorch hands the backward pass tensors that only a dispatched operator can take."""
    case = Case(batch=2, channels=4, outputs=16, kernels=3)
    for act in (None, "gelu"):
        tensors = leaves(case, alpha, channels_last=channels_last)
        output = tunable_conv2d(*tensors, *case.geometry, activation=act)
        grads = torch.randn(2, *output.shape)
        batched = torch.autograd.grad(output, tensors, grads, is_grads_batched=True, retain_graph=True)
        for i in range(2):
            for whole, single in zip(
                batched, torch.autograd.grad(output, tensors, grads[i], retain_graph=True), strict=True
            ):
                torch.testing.assert_close(whole[i], single)
