import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunable_ops import losses


def draw(*shape, dtype=torch.float64, seed=0, grad=False):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.requires_grad_(grad)


def root(output, target):
    """Return the root mean square error, whose derivative at output = target is infinite."""
    return (output - target).square().flatten(1).mean(1).sqrt()


class Perceptual(nn.Module):
    """An objective with parameters."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)

    def forward(self, output, target):
        return losses.mse(self.features(output), self.features(target))


def example(batch=3, dtype=torch.float64):
    """Return a criterion of three objectives with its inputs."""
    criterion = losses.MultiLoss({"clean": (losses.mse, 2.0), "noisy": losses.l1, "smooth": (losses.tv, 0.25)})
    outputs = draw(batch, 3, 4, 5, dtype=dtype, grad=True)
    targets = {
        "clean": draw(batch, 3, 4, 5, dtype=dtype, seed=1),
        "noisy": draw(batch, 3, 4, 5, dtype=dtype, seed=2),
        "smooth": None,
    }
    return criterion, outputs, targets


@given(batch=st.integers(1, 4), shared=st.sampled_from(["p", "1p", "Bp"]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_values_against_loop(batch, shared, seed):
    criterion, outputs, targets = example(batch)
    lam = draw(*{"p": (3,), "1p": (1, 3), "Bp": (batch, 3)}[shared], seed=seed)
    total, terms = criterion(outputs, targets, lam)
    expected, sums = 0.0, dict.fromkeys(criterion.names, 0.0)
    for b in range(batch):
        one = {name: None if target is None else target[b : b + 1] for name, target in targets.items()}
        values = [
            losses.mse(outputs[b : b + 1], one["clean"]).item(),
            losses.l1(outputs[b : b + 1], one["noisy"]).item(),
            losses.tv(outputs[b : b + 1]).item(),
        ]
        weights = (lam[b] if shared == "Bp" else lam.flatten()).tolist()
        for name, value, weight, scale in zip(criterion.names, values, weights, (2.0, 1.0, 0.25), strict=True):
            expected += weight * scale * value / batch
            sums[name] += value / batch
    assert total.shape == () and total.dtype == torch.float64 and total.requires_grad
    assert math.isclose(total.item(), expected, rel_tol=1e-12)
    assert tuple(terms) == criterion.names == ("clean", "noisy", "smooth")
    for name, value in terms.items():
        assert value.shape == () and not value.requires_grad
        assert math.isclose(value.item(), sums[name], rel_tol=1e-12)


def test_per_sample_equals_shared():
    criterion, outputs, targets = example()
    lam = draw(3, seed=5)
    results = []
    for variant in (lam, lam[None], lam.expand(3, 3), lam.float(), lam.tolist()):
        total, _ = criterion(outputs, targets, variant)
        results.append((total, *torch.autograd.grad(total, outputs)))
    for total, grad in results[1:3]:
        assert torch.equal(total, results[0][0]) and torch.equal(grad, results[0][1])
    assert torch.equal(results[4][0], results[3][0]) and torch.equal(results[4][1], results[3][1])


def test_samples_have_their_own_lambda():
    criterion, outputs, targets = example()
    lam = torch.eye(3, dtype=torch.float64)
    total, _ = criterion(outputs, targets, lam)
    expected = 2 * losses.mse(outputs, targets["clean"])[0] + losses.l1(outputs, targets["noisy"])[1]
    expected = (expected + 0.25 * losses.tv(outputs)[2]) / 3
    torch.testing.assert_close(total, expected)
    (grad,) = torch.autograd.grad(total, outputs)
    torch.testing.assert_close(grad[0], 2 * 2 * (outputs - targets["clean"])[0] / 60 / 3)
    torch.testing.assert_close(grad[1], (outputs - targets["noisy"])[1].sign() / 60 / 3)


def test_one_output_for_each_objective():
    criterion = losses.MultiLoss({"a": losses.mse, "b": losses.mse})
    outputs = {"b": draw(2, 5, seed=1), "a": draw(2, 3)}
    targets = {"a": draw(2, 3, seed=2), "b": draw(2, 5, seed=3)}
    total, terms = criterion(outputs, targets, [0.25, 0.75])
    a, b = (losses.mse(outputs[name], targets[name]).mean() for name in "ab")
    torch.testing.assert_close(total, 0.25 * a + 0.75 * b)
    assert list(terms) == ["a", "b"] and torch.equal(terms["b"], b)


def test_one_target_for_all():
    criterion = losses.MultiLoss({"a": losses.mse, "b": losses.l1})
    output, target = draw(2, 3), draw(2, 3, seed=1)
    assert torch.equal(
        criterion(output, target, [1.0, 2.0])[0],
        criterion(output, {"a": target, "b": target}, [1.0, 2.0])[0],
    )
    total, _ = losses.MultiLoss({"smooth": losses.tv})(draw(2, 3, 4), None, [2.0])
    torch.testing.assert_close(total, 2 * losses.tv(draw(2, 3, 4)).mean())


def test_batch_of_one():
    criterion, outputs, targets = example(batch=1)
    total, _ = criterion(outputs, targets, draw(3))
    assert torch.equal(total, criterion(outputs, targets, draw(3)[None])[0])


def test_gradients():
    criterion, outputs, targets = example(batch=2)
    outputs = outputs.detach()[:, :1].requires_grad_()
    targets = {name: None if target is None else target[:, :1] for name, target in targets.items()}

    def total(outputs, lam):
        return criterion(outputs, targets, lam)[0]

    for lam in (draw(3, seed=7, grad=True), draw(2, 3, seed=7, grad=True)):
        assert torch.autograd.gradcheck(total, (outputs, lam))
        assert torch.autograd.gradgradcheck(total, (outputs, lam), fast_mode=True)


def test_gradient_of_lambda_is_the_scaled_terms():
    criterion, outputs, targets = example()
    lam = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64, requires_grad=True)
    total, terms = criterion(outputs, targets, lam)
    (grad,) = torch.autograd.grad(total, lam)
    torch.testing.assert_close(grad, torch.stack(list(terms.values())) * torch.tensor([2.0, 1.0, 0.25]).double())


@pytest.mark.parametrize("per_sample", [False, True])
def test_unused_objective_without_a_derivative(per_sample):
    # regression guarded: sqrt has an infinite derivative at 0, and 0 * inf = NaN reached the network
    criterion = losses.MultiLoss({"mse": losses.mse, "root": root})
    output = draw(2, 3, grad=True)
    targets = {"mse": draw(2, 3, seed=1), "root": output.detach().clone()}
    lam = torch.tensor([[1.0, 0.0], [1.0, 0.0]] if per_sample else [1.0, 0.0])
    total, _ = criterion(output, targets, lam)
    (grad,) = torch.autograd.grad(total, output)
    torch.testing.assert_close(grad, (output - targets["mse"]) * 2 / 3 / 2)


def test_unused_objective_that_overflows():
    criterion = losses.MultiLoss(
        {"mse": losses.mse, "inf": lambda output, _: losses.mse(output, output * 0) * math.inf}
    )
    output, lam = draw(2, 3, grad=True), torch.tensor([[1.0, 0.0], [0.5, 0.0]], requires_grad=True)
    total, terms = criterion(output, torch.zeros(2, 3), lam)
    grad, grad_lam = torch.autograd.grad(total, (output, lam))
    assert total.isfinite() and grad.isfinite().all() and grad_lam.isfinite().all()
    assert grad.abs().min() > 0
    assert terms["inf"].isinf()  # the log still shows it


def test_used_objective_does_not_hide_its_faults():
    criterion = losses.MultiLoss({"mse": losses.mse, "root": root})
    output = draw(2, 3, grad=True)
    targets = {"mse": draw(2, 3, seed=1), "root": output.detach().clone()}
    total, _ = criterion(output, targets, torch.tensor([[1.0, 0.0], [1.0, 0.5]]))
    (grad,) = torch.autograd.grad(total, output)
    assert grad[0].isfinite().all() and grad[1].isnan().all()


def test_scale_of_zero_is_unused_too():
    criterion = losses.MultiLoss({"mse": losses.mse, "root": (root, 0)})
    output = draw(2, 3, grad=True)
    total, _ = criterion(output, {"mse": draw(2, 3, seed=1), "root": output.detach().clone()}, [1.0, 1.0])
    (grad,) = torch.autograd.grad(total, output)
    assert grad.isfinite().all() and grad.abs().min() > 0


def test_mixed_derivative_survives_lambda_zero():
    criterion = losses.MultiLoss({"a": losses.mse, "b": losses.mse})
    output, lam = draw(2, 3, grad=True), torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    total, _ = criterion(output, {"a": draw(2, 3, seed=1), "b": draw(2, 3, seed=2)}, lam)
    (grad,) = torch.autograd.grad(total, output, create_graph=True)
    (mixed,) = torch.autograd.grad(grad.sum(), lam)
    expected = (output - draw(2, 3, seed=2)).sum() * 2 / 6
    torch.testing.assert_close(mixed[1], expected)


@pytest.mark.parametrize("weight", [0.1, 0.4, 0.6, 0.9])
def test_mse_slides_and_l1_switches(weight):
    """Between two targets the minimum of mse is the weighted mean, that of l1 is one of the targets."""
    clean, noisy = draw(1, 50), draw(1, 50, seed=1)
    targets, lam = {"clean": clean, "noisy": noisy}, torch.tensor([weight, 1 - weight], dtype=torch.float64)
    between = (weight * clean + (1 - weight) * noisy).requires_grad_()

    def gradient(loss):
        total, _ = losses.MultiLoss({"clean": loss, "noisy": loss})(between, targets, lam)
        return torch.autograd.grad(total, between)[0]

    torch.testing.assert_close(gradient(losses.mse), torch.zeros(1, 50).double(), rtol=0, atol=1e-15)
    favourite = clean if weight > 0.5 else noisy
    assert torch.equal(gradient(losses.l1).sign(), (between - favourite).sign())


@pytest.mark.parametrize(
    ("objectives", "scales", "expected"),
    [
        ({"a": losses.mse, "b": losses.mse}, None, [1, 1]),
        ({"a": (losses.mse, 3), "b": losses.mse}, None, [3, 1]),
        ({"a": losses.mse, "b": losses.mse}, {"b": 2.5}, [1, 2.5]),
        ({"a": losses.mse, "b": (losses.mse, 4)}, {"a": 0}, [0, 4]),
        ({"a": losses.mse, "b": losses.mse}, [2, 3], [2, 3]),
        ({"a": losses.mse, "b": losses.mse}, torch.tensor([2, 3]), [2, 3]),
    ],
)
def test_scales(objectives, scales, expected):
    criterion = losses.MultiLoss(objectives, scales)
    assert torch.equal(criterion.scales, torch.tensor(expected, dtype=torch.float32))
    total, terms = criterion(draw(2, 3), draw(2, 3, seed=1), [1.0, 1.0])
    torch.testing.assert_close(total, sum(scale * term for scale, term in zip(expected, terms.values(), strict=True)))


def test_state_dict_and_representation():
    criterion = losses.MultiLoss({"clean": (losses.mse, 0.5), "seen": Perceptual()}, {"seen": 1e5})
    state = criterion.state_dict()
    assert list(state) == ["scales", "objectives.seen.features.weight", "objectives.seen.features.bias"]
    assert all(type(value) is torch.Tensor or isinstance(value, nn.Parameter) for value in state.values())
    other = losses.MultiLoss({"clean": losses.mse, "seen": Perceptual()})
    other.load_state_dict(state)
    inputs = draw(2, 3, 6, 6, dtype=torch.float32), draw(2, 3, 6, 6, dtype=torch.float32, seed=1), [0.5, 0.5]
    assert torch.equal(other(*inputs)[0], criterion(*inputs)[0])
    assert criterion.extra_repr() == "clean * 0.5, seen * 100000"
    assert "Perceptual" in repr(criterion)
    assert copy.deepcopy(criterion).to("meta").extra_repr() == "clean, seen"


def test_modules_move_and_scales_keep_their_type():
    criterion = losses.MultiLoss({"seen": (Perceptual(), 1e5)})
    criterion.half()
    assert criterion.objectives["seen"].features.weight.dtype == torch.float16
    assert criterion.scales.dtype == torch.float32 and criterion.scales.item() == 1e5  # inf in fp16
    criterion.double()
    assert criterion.objectives["seen"].features.weight.dtype == torch.float64
    assert criterion.scales.dtype == torch.float32 and criterion.state_dict()["scales"].item() == 1e5
    assert criterion.to("meta").scales.is_meta


def test_deepcopy():
    criterion = losses.MultiLoss({"clean": losses.mse, "seen": (Perceptual(), 2.0)})
    inputs = draw(2, 3, 6, 6, dtype=torch.float32), draw(2, 3, 6, 6, dtype=torch.float32, seed=1), [0.5, 0.5]
    other = copy.deepcopy(criterion)
    assert torch.equal(other(*inputs)[0], criterion(*inputs)[0])
    with torch.no_grad():
        other.objectives["seen"].features.weight.zero_()
        other.scales.zero_()
    assert criterion.objectives["seen"].features.weight.abs().min() > 0 and criterion.scales.min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half(dtype):
    criterion, _, targets = example()
    outputs = draw(3, 3, 4, 5, dtype=dtype, grad=True)
    targets = {name: None if target is None else target.to(dtype) for name, target in targets.items()}
    lam = draw(3, 3, dtype=dtype, seed=3)
    total, terms = criterion(outputs, targets, lam)
    assert total.dtype == torch.float32 and terms["clean"].dtype == torch.float32
    wide = {name: None if target is None else target.float() for name, target in targets.items()}
    assert torch.equal(total, criterion(outputs.float(), wide, lam.float())[0])
    total.backward()
    assert outputs.grad.dtype == dtype and outputs.grad.isfinite().all()


def test_autocast():
    criterion = losses.MultiLoss({"mse": losses.mse, "ssim": losses.ssim, "tv": losses.tv})
    layer = nn.Conv2d(3, 3, 3)
    picture, target = draw(2, 3, 16, 16, dtype=torch.float32), draw(2, 3, 14, 14, dtype=torch.float32, seed=1)
    lam = torch.tensor([0.4, 0.3, 0.2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(picture)
        total, terms = criterion(output, target, lam)
        network, _ = losses.MultiLoss({"seen": Perceptual()})(output, target, [1.0])  # its layers follow autocast
    assert output.dtype == torch.bfloat16
    assert total.dtype == torch.float32 and all(value.dtype == torch.float32 for value in terms.values())
    outside, _ = criterion(output, target, lam)
    assert torch.equal(total, outside) and network.dtype == torch.float32
    (total + network).backward()
    assert layer.weight.grad.isfinite().all()


def compiled_equals_eager(criterion, backend, shared):
    targets = {name: draw(2, 3, 12, 13, dtype=torch.float32, seed=i) for i, name in enumerate(criterion.names)}
    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    results = []
    for call in (compiled, criterion):
        output = draw(2, 3, 12, 13, dtype=torch.float32, seed=9, grad=True)
        lam = draw(*(() if shared else (2,)), len(targets), dtype=torch.float32, seed=8, grad=True)
        total, terms = call(output, targets, lam)
        results.append((total, *torch.autograd.grad(total, (output, lam)), *terms.values()))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_compile_without_a_graph_break():
    objectives = {"mse": losses.mse, "ssim": (losses.ssim, 0.5), "tv": losses.tv, "seen": Perceptual()}
    compiled_equals_eager(losses.MultiLoss(objectives), "aot_eager", shared=False)
    compiled_equals_eager(losses.MultiLoss({"mse": losses.mse, "l1": losses.l1}), "aot_eager", shared=True)


@pytest.mark.slow
def test_compile_to_machine_code():
    compiled_equals_eager(losses.MultiLoss({"mse": losses.mse, "ssim": losses.ssim}), "inductor", shared=False)
