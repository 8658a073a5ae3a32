import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunable_ops import losses

PAIRED = [losses.mse, losses.l1, losses.charbonnier, losses.log_mse]
EVERY = [*PAIRED, losses.tv]
FORMULAS = {
    losses.mse: lambda d: d * d,
    losses.l1: abs,
    losses.charbonnier: lambda d: math.sqrt(d * d + 1e-6),
}


def names(loss):
    return loss.__name__


def draw(*shape, dtype=torch.float64, seed=0, grad=False):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.requires_grad_(grad)


def loop(loss, output, target):
    """Compute the definition element by element in Python floats."""
    return torch.tensor(
        [
            sum(FORMULAS[loss](a - b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
            / x.numel()
            for x, y in zip(output, target, strict=True)
        ],
        dtype=torch.float64,
    )


def loop_tv(output):
    result = []
    for sample in output:
        total = 0.0
        for dim in (1, 2):
            pairs = []
            for index in itertools.product(*map(range, sample.shape)):
                after = list(index)
                after[dim] += 1
                if after[dim] < sample.shape[dim]:
                    pairs.append(abs(sample[tuple(after)].item() - sample[index].item()))
            total += sum(pairs) / len(pairs) if pairs else 0.0
        result.append(total)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("loss", FORMULAS, ids=names)
@pytest.mark.parametrize("shape", [(1, 1), (3,), (1, 3, 1, 1), (2, 3, 4, 5), (3, 2, 5), (2, 1, 2, 3, 4)], ids=str)
def test_values_against_loop(loss, shape):
    output, target = draw(*shape), draw(*shape, seed=1)
    actual = loss(output, target)
    assert actual.shape == shape[:1] and actual.dtype == torch.float64
    torch.testing.assert_close(actual, loop(loss, output, target), rtol=1e-12, atol=0)


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_values_of_any_shape(shape, seed):
    output, target = draw(*shape, seed=seed), draw(*shape, seed=seed + 100)
    for loss in FORMULAS:
        torch.testing.assert_close(loss(output, target), loop(loss, output, target), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 2, 1), (1, 2, 1, 7), (2, 1, 1, 1), (3, 1, 5, 2)], ids=str)
def test_tv_against_loop(shape):
    output = draw(*shape)
    torch.testing.assert_close(losses.tv(output), loop_tv(output), rtol=1e-12, atol=0)


def test_tv_takes_any_number_of_leading_dimensions():
    output = draw(2, 3, 4, 5)
    torch.testing.assert_close(losses.tv(output.flatten(0, 1)).view(2, 3).mean(1), losses.tv(output))
    torch.testing.assert_close(losses.tv(output.unsqueeze(1)), losses.tv(output))


def test_tv_ignores_the_target():
    output = draw(2, 3, 4, 5)
    assert torch.equal(losses.tv(output, None), losses.tv(output, torch.zeros(1)))


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_derivatives(loss):
    output, target = draw(2, 2, 3, 4, grad=True), draw(2, 2, 3, 4, seed=1, grad=True)
    inputs = (output,) if loss is losses.tv else (output, target)
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_derivatives_are_finite_where_inputs_are_equal(loss):
    # regression guarded: sqrt and norm have no derivative at 0 and return NaN
    output = torch.full((2, 1, 3, 3), 0.5, requires_grad=True)
    target = output.detach().clone()
    (grad,) = torch.autograd.grad(loss(output, target).sum(), output, create_graph=True)
    assert torch.equal(grad, torch.zeros_like(grad))
    if grad.requires_grad:
        (second,) = torch.autograd.grad(grad.sum(), output)
        assert second.isfinite().all()


def test_charbonnier_with_the_smallest_eps_has_finite_derivatives():
    output = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(
        losses.charbonnier(output, torch.zeros(1, 4), eps=1e-9).sum(), output, create_graph=True
    )
    (second,) = torch.autograd.grad(grad.sum(), output)
    torch.testing.assert_close(second, torch.full((1, 4), 1e9 / 4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_empty_batch(loss):
    output = torch.zeros(0, 3, 4, 5, requires_grad=True)
    value = loss(output, torch.zeros(0, 3, 4, 5))
    assert value.shape == (0,) and value.dtype == torch.float32
    if loss is not losses.tv or value.requires_grad:
        value.sum().backward()
        assert output.grad.shape == output.shape


@pytest.mark.parametrize("loss", EVERY, ids=names)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_is_computed_in_float32(loss, dtype):
    output, target = draw(2, 3, 4, 5, dtype=dtype, grad=True), draw(2, 3, 4, 5, dtype=dtype, seed=1)
    value = loss(output, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(output.float(), target.float()))
    value.sum().backward()
    assert output.grad.dtype == dtype


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_half_sums_do_not_overflow(loss):
    # 300**2 and a sum of 300 over 16384 pixels are both beyond fp16's 65504
    output = torch.zeros(1, 1, 128, 128, dtype=torch.float16)
    output[..., ::2] = 300
    target = torch.zeros_like(output)
    expected = {losses.mse: 45000.0, losses.l1: 150.0, losses.charbonnier: 150.0005, losses.tv: 300.0}
    expected[losses.log_mse] = 10 * math.log10(45000)
    torch.testing.assert_close(loss(output, target), torch.tensor([expected[loss]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", PAIRED, ids=names)
def test_types_may_differ(loss):
    output, target = draw(2, 3, dtype=torch.bfloat16), draw(2, 3, seed=1)
    assert loss(output, target.float()).dtype == torch.float32
    assert torch.equal(loss(output, target), loss(output.double(), target))


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_layouts(loss):
    output, target = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    expected = loss(output, target)
    variants = [
        (output.to(memory_format=torch.channels_last), target.to(memory_format=torch.channels_last)),
        (output.to(memory_format=torch.channels_last), target),
        (torch.cat((output, output), -1)[..., :5], target),
        (output.mT.contiguous().mT, target),
    ]
    for a, b in variants:
        torch.testing.assert_close(loss(a, b), expected, rtol=1e-13, atol=0)
    wide = target[:1].expand(2, 3, 4, 5)
    torch.testing.assert_close(loss(output, wide), loss(output, wide.contiguous()), rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_samples_do_not_mix(loss):
    output, target = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1)
    alone = torch.cat([loss(output[b : b + 1], target[b : b + 1]) for b in range(3)])
    assert torch.equal(loss(output, target), alone)


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_compile_without_a_graph_break(loss):
    output, target = draw(2, 3, 4, 5, grad=True), draw(2, 3, 4, 5, seed=1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(output, target), loss(output, target))
    (actual,) = torch.autograd.grad(compiled(output, target).sum(), output)
    (expected,) = torch.autograd.grad(loss(output, target).sum(), output)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("loss", EVERY, ids=names)
def test_func_transforms(loss):
    output, target = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1, grad=False)
    mapped = torch.func.vmap(lambda a, b: loss(a[None], b[None])[0])(output, target)
    torch.testing.assert_close(mapped, loss(output, target))
    leaf = output.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, target).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda a: loss(a, target).sum())(output), expected)


@pytest.mark.parametrize("loss", EVERY, ids=names)
@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        ([[1.0]], TypeError, r"{}: output must be a Tensor; got list"),
        (
            torch.zeros(2, 3, 4, dtype=torch.uint8),
            TypeError,
            r"{}: output must be floating point; got torch.uint8; .*/ 255",
        ),
        (
            torch.zeros(2, 3, 4, dtype=torch.complex64),
            TypeError,
            r"{}: output must be floating point; got torch.complex64",
        ),
        (torch.tensor(1.0), ValueError, r"{}: output must have a batch dimension, \[B, ...\]; got a scalar"),
        (torch.zeros(2, 0, 4), ValueError, r"{}: output must hold at least one element per sample; got \[2, 0, 4\]"),
    ],
    ids=["list", "uint8", "complex", "scalar", "no-elements"],
)
def test_wrong_output(loss, output, error, text):
    with pytest.raises(error, match="^" + text.format(loss.__name__)):
        loss(output, output)


@pytest.mark.parametrize("loss", [*PAIRED, losses.ssim], ids=names)
@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        (None, TypeError, r"{}: target must be a Tensor; got NoneType"),
        (
            torch.zeros(2, 1, 12, 12, dtype=torch.int64),
            TypeError,
            r"{}: target must be floating point; got torch.int64",
        ),
        (
            torch.zeros(1, 1, 12, 12),
            ValueError,
            r"{}: target must have output's shape \[2, 1, 12, 12\]; got \[1, 1, 12, 12\]; there is no broadcasting",
        ),
        (torch.zeros(2, 1, 12, 12, device="meta"), ValueError, r"{}: target must be on output's device cpu; got meta"),
    ],
    ids=["None", "int64", "shape", "device"],
)
def test_wrong_target(loss, target, error, text):
    with pytest.raises(error, match="^" + text.format(loss.__name__)):
        loss(torch.zeros(2, 1, 12, 12), target)


@pytest.mark.parametrize("eps", [0.0, -1e-3, 1e-10, math.nan, math.inf])
def test_wrong_eps(eps):
    with pytest.raises(ValueError, match=r"^charbonnier: eps must be finite and at least 1e-9; got .*; use l1"):
        losses.charbonnier(torch.zeros(1, 2), torch.zeros(1, 2), eps=eps)


def test_tv_needs_a_picture():
    with pytest.raises(ValueError, match=r"^tv: output must be \[B, ..., H, W\]; got \[2, 3\]"):
        losses.tv(torch.zeros(2, 3))


def test_log_mse_is_minus_the_psnr_of_each_sample():
    target = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    output = target + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    expected = torch.tensor([-20 + 10 * math.log10(1 + 1e-6), -40 + 10 * math.log10(1 + 1e-4), -80])
    torch.testing.assert_close(losses.log_mse(output, target), expected.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.log_mse(output, target, eps=1e-4)[2], torch.tensor(-40.0).double())


def test_log_mse_gives_every_sample_an_equal_pull():
    """The gradient is 20/ln10 over the error in length: ten times the error pulls a tenth; lambda weighs samples."""
    target = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    error = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = (target + error * torch.tensor([0.1, 1.0]).view(2, 1, 1, 1)).requires_grad_()
    criterion = losses.MultiLoss({"db": losses.log_mse})
    total, _ = criterion(output, {"db": target}, torch.tensor([[0.5], [2.0]], dtype=torch.float64))
    (grad,) = torch.autograd.grad(total, output)
    pulls = (grad * (output - target)).detach().flatten(1).sum(1)
    torch.testing.assert_close(pulls, torch.tensor([0.5, 2.0]).double() / 2 * 20 / math.log(10), rtol=1e-5, atol=0)


@pytest.mark.parametrize("eps", [0.0, -1e-3, 1e-31, math.nan, math.inf])
def test_wrong_eps_of_log_mse(eps):
    with pytest.raises(ValueError, match=r"^log_mse: eps must be finite and at least 1e-30; got "):
        losses.log_mse(torch.zeros(1, 2), torch.zeros(1, 2), eps=eps)
