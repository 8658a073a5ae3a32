"""Objectives that `MultiLoss` does not compute at every step, and those that it corrects at some."""

import math

import pytest
import torch
from torch import Tensor, nn

from tunable_ops import losses


class Counted(nn.Module):
    """A loss that counts its calls."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power, self.calls = power, 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return (output - target).abs().pow(self.power).flatten(1).mean(1)


class Field:
    """A wrong gradient."""

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return 0.3 * (x - y) + 0.1, (x - y).square().flatten(1).mean(1)


LAM = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]])


def gradients(criterion: losses.MultiLoss, steps: range) -> tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    x, y = torch.rand(3, 3, 6, 7, dtype=torch.float64, requires_grad=True), torch.rand(3, 3, 6, 7, dtype=torch.float64)
    found, totals, terms = [], [], []
    for step in steps:
        total, each = criterion(x, y, LAM, step)
        found.append(torch.autograd.grad(total, x)[0])
        totals.append(total.detach())
        terms.append(each)
    return found, totals, terms


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_mean_over_a_period_is_the_loss_itself(corrected: bool, first: int) -> None:
    exact = Counted(1.5)
    objective = losses.Corrected(losses.PerceptualGradient(Field()), exact) if corrected else exact
    if isinstance(objective, losses.Corrected):  # as after some corrections
        objective.fit.copy_(torch.tensor([1.4, 2.0]))
        objective.coefficient.fill_(0.7)
    slow = losses.MultiLoss({"l1": losses.l1, "slow": (objective, 0.5)}, every={"slow": 4})
    wanted, whole, _ = gradients(losses.MultiLoss({"l1": losses.l1, "slow": (Counted(1.5), 0.5)}), range(1))
    found, totals, terms = gradients(slow, range(first, first + 4))
    torch.testing.assert_close(torch.stack(found).mean(0), wanted[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.stack(totals).mean(), whole[0], rtol=1e-10, atol=1e-12)
    assert exact.calls == 1
    assert [("slow" in each) for each in terms] == [corrected or step % 4 == 0 for step in range(first, first + 4)]
    assert not torch.equal(found[0], found[1]) or first


def test_the_value_of_a_term_is_that_of_the_objective() -> None:
    criterion = losses.MultiLoss({"l1": losses.l1, "slow": Counted(2)}, every={"slow": 3})
    _, _, terms = gradients(criterion, range(4))
    _, _, always = gradients(losses.MultiLoss({"l1": losses.l1, "slow": Counted(2)}), range(1))
    assert list(terms[1]) == ["l1"]
    torch.testing.assert_close(terms[3]["slow"], always[0]["slow"])


def test_steps_without_any_objective_have_a_gradient_of_zeros() -> None:
    criterion = losses.MultiLoss({"a": Counted(2), "b": Counted(1)}, every={"a": 2, "b": 4})
    found, totals, terms = gradients(criterion, range(3))
    assert terms[1] == {} and float(totals[1]) == 0 and not found[1].any()
    assert found[0].any() and list(terms[2]) == ["a"]


def test_a_step_without_any_objective_is_0_whatever_the_output_is() -> None:
    criterion = losses.MultiLoss({"a": Counted(2)}, every={"a": 2})
    x = torch.full((2, 3), math.inf, requires_grad=True)
    total, _ = criterion(x, torch.zeros(2, 3), [1.0], 1)
    total.backward()
    assert float(total.detach()) == 0 and x.grad is not None and not x.grad.any()


def test_nothing_changes_without_every() -> None:
    x, y = torch.rand(2, 3, 5, 5), torch.rand(2, 3, 5, 5)
    plain = losses.MultiLoss({"l1": losses.l1, "mse": losses.mse})
    assert torch.equal(plain(x, y, [0.5, 0.5])[0], plain(x, y, [0.5, 0.5], step=3)[0])
    assert plain.every == {"l1": 1, "mse": 1}


def test_a_sample_of_weight_0_is_spared_the_nan_of_a_slow_objective() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    slow = losses.MultiLoss({"a": losses.l1, "b": lambda x, y: x.sum(1) * torch.nan}, every={"b": 2})
    total, _ = slow(x, torch.zeros(2, 3), [[1.0, 0.0], [1.0, 0.0]], 2)
    total.backward()
    assert total.isfinite() and x.grad is not None and x.grad.isfinite().all()


def test_corrected_computes_what_it_needs() -> None:
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    cheap, exact = Counted(1), Counted(2)
    pair = losses.Corrected(cheap, exact)
    pair.fit.copy_(torch.tensor([1.0, 2.0]))
    pair.coefficient.fill_(0.5)
    assert torch.equal(pair(x, y), exact(x, y)) and cheap.calls == 0
    assert torch.equal(pair(x, y, 0), 0.5 * cheap(x, y)) and exact.calls == 2
    torch.testing.assert_close(pair(x, y, 3), 0.5 * cheap(x, y) + 3 * (exact(x, y) - 0.5 * cheap(x, y)))


def test_bad_input_is_named() -> None:
    pair = {"a": losses.l1, "b": losses.mse}
    with pytest.raises(TypeError, match="MultiLoss: every must be a mapping name -> steps; got int"):
        losses.MultiLoss(pair, every=4)
    with pytest.raises(TypeError, match=r"MultiLoss: every of 'b' must be an integer; got 2\.0"):
        losses.MultiLoss(pair, every={"b": 2.0})
    with pytest.raises(ValueError, match="MultiLoss: every of 'b' must be at least 1; got 0"):
        losses.MultiLoss(pair, every={"b": 0})
    with pytest.raises(ValueError, match="MultiLoss: every must have the objectives' names a, b; got 'c'"):
        losses.MultiLoss(pair, every={"c": 2})
    x = torch.rand(1, 3)
    with pytest.raises(ValueError, match="MultiLoss: step must be given for 'b', with every 2; got None"):
        losses.MultiLoss(pair, every={"b": 2})(x, x, [0.5, 0.5])
    with pytest.raises(ValueError, match="MultiLoss: step must be at least 0; got -1"):
        losses.MultiLoss(pair)(x, x, [0.5, 0.5], step=-1)
    with pytest.raises(TypeError, match="Corrected: exact must be callable; got int"):
        losses.Corrected(losses.l1, 3)
