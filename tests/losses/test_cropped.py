"""Losses on random crops, and corrections on them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunable_ops import losses


class Noted(nn.Module):
    """A loss that keeps what it was given."""

    def forward(self, output: Tensor, target: Tensor | None) -> Tensor:
        self.given = (output, target)
        return output.flatten(1).mean(1)


class Field:
    """The gradient of mean squares, but for a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.factor * (x - y) / x[0].numel(), (x - y).square().flatten(1).mean(1)


def pictures(count: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(count, 3, 12, 15, requires_grad=True), torch.rand(count, 3, 12, 15)


def test_output_and_target_are_cut_at_the_same_places_of_their_own_for_each_sample() -> None:
    noted = Noted()
    places = torch.arange(12 * 15.0).view(1, 1, 12, 15).expand(8, 3, 12, 15)
    loss = losses.Cropped(noted, 5)
    value = loss(places, 1000 + places)
    output, target = noted.given
    assert output.shape == (8, 3, 5, 5) and torch.equal(target, 1000 + output)
    assert torch.equal(value, output.flatten(1).mean(1))
    rows, columns = output[:, 0] // 15, output[:, 0] % 15
    assert (rows.diff(dim=1) == 1).all() and (columns.diff(dim=2) == 1).all()
    assert len(set(output[:, 0, 0, 0].tolist())) > 1
    loss(places, None)
    assert noted.given[1] is None


@pytest.mark.parametrize(
    ("size", "side", "corners"),
    [
        ((4, 6), 2, [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]),
        ((5, 3), 3, [(0, 0), (2, 0)]),
        ((7, 4), 3, [(0, 0), (0, 1), (2, 0), (2, 1), (4, 0), (4, 1)]),
    ],
)
def test_crops_are_the_tiles_that_cover_a_picture(size: tuple, side: int, corners: list) -> None:
    noted = Noted()
    places = torch.arange(float(size[0] * size[1])).view(1, 1, *size)
    torch.manual_seed(0)
    drawn = []
    for _ in range(300):
        losses.Cropped(noted, side)(places, None)
        drawn.append(divmod(int(noted.given[0][0, 0, 0, 0]), size[1]))
    assert sorted(set(drawn)) == corners
    assert min(drawn.count(corner) for corner in corners) > 0.6 * 300 / len(corners)


def test_a_crop_of_the_whole_is_the_loss() -> None:
    x, y = torch.rand(2, 3, 7, 7), torch.rand(2, 3, 7, 7)
    assert torch.equal(losses.Cropped(losses.mse, 7)(x, y), losses.mse(x, y))


def test_the_gradient_is_that_of_the_crop_and_0_elsewhere() -> None:
    x, y = pictures()
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(losses.Cropped(losses.mse, 4)(x, y).sum(), x)
    inside = gradient != 0
    assert (inside.flatten(1).sum(1) == 3 * 4 * 4).all()
    torch.testing.assert_close(gradient[inside], (2 * (x - y) / (3 * 4 * 4))[inside])


def test_places_follow_the_global_seed() -> None:
    x, y = pictures()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(losses.Cropped(losses.mse, 4)(x, y))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_correction_fits_the_factor_of_the_cheap_gradient() -> None:
    x, y = pictures()
    pair = losses.Corrected(losses.PerceptualGradient(Field(0.25)), losses.mse)  # mse's gradient is 8 times as large
    assert float(pair.coefficient) == 0 and not pair(x, y, 0).any()
    pair(x, y, 4)
    assert float(pair.coefficient) == 0  # in use from the next correction on
    for _ in range(2):
        pair(x, y, 4)
        assert float(pair.coefficient) == pytest.approx(8, rel=1e-5)
    (cheap,) = torch.autograd.grad(pair(x, y, 0).sum(), x)
    torch.testing.assert_close(cheap, 2 * (x - y).detach() / x[0].numel(), rtol=1e-5, atol=1e-8)


def test_a_cheap_gradient_that_says_nothing_counts_for_nothing() -> None:
    x, y = pictures()
    pair = losses.Corrected(losses.PerceptualGradient(Field(-1.0)), losses.mse)
    for _ in range(3):
        pair(x, y, 4)
    assert float(pair.coefficient) == 0
    perfect = losses.Corrected(losses.PerceptualGradient(Field(0.0)), losses.mse)
    for _ in range(3):
        assert torch.isfinite(perfect(x, y, 4)).all()
    assert float(perfect.coefficient) == 0


def test_a_cheap_gradient_that_grows_with_the_distance_is_held_back() -> None:
    """What it adds is no longer than the exact gradient, however far the output goes."""
    pair = losses.Corrected(losses.PerceptualGradient(Field(1.0)), losses.l1, crop=4)
    _, y = pictures()
    for distance in (0.5, 50.0):
        x = (y[..., :12] + distance).requires_grad_()
        for _ in range(80):
            pair(x, y[..., :12])
        (cheap,) = torch.autograd.grad(pair(x, y[..., :12], 0).sum(), x)
        (exact,) = torch.autograd.grad(losses.l1(x, y[..., :12]).sum(), x)
        torch.testing.assert_close(cheap, exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize(("size", "exact"), [((8, 12), losses.l1), ((10, 7), lambda x, y: 0 * losses.l1(x, y))])
def test_the_errors_of_the_cheap_gradient_cancel_over_all_crops(size: tuple[int, int], exact: Any) -> None:
    """Whatever the cheap loss is and the fit says, and for sides that do not divide the picture's."""
    torch.manual_seed(0)
    x, y = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True), torch.rand(1, 3, *size)
    pair = losses.Corrected(lambda x, y: (0.3 * (x - y) + 0.01).pow(4).sum((1, 2, 3)).sqrt(), exact, crop=4)
    noted, found = losses.Cropped(Noted(), 4), {}
    places = torch.arange(float(size[0] * size[1])).view(1, 1, *size)
    for seed in range(80):
        torch.manual_seed(seed)
        noted(places, None)
        torch.manual_seed(seed)
        pair.fit.copy_(torch.tensor([3.0, 1.0]))
        value = pair(x, y)
        found[int(noted.loss.given[0][0, 0, 0, 0])] = value.detach(), torch.autograd.grad(value.sum(), x)[0]
    assert len(found) == 6
    values, gradients = (torch.stack(rows).mean(0) for rows in zip(*found.values(), strict=True))
    wanted = exact(x, y)
    torch.testing.assert_close(values, wanted.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted.sum(), x)[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, None])
def test_nothing_is_learnt_without_gradients_and_in_evaluation_mode(mode: Any) -> None:
    x, y = pictures()
    pair = losses.Corrected(losses.PerceptualGradient(Field(0.25)), losses.mse, crop=4)
    pair.coefficient.fill_(2.0)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    if mode is None:
        assert pair(x.detach(), y).shape == (3,)
        assert pair.eval()(x, y).requires_grad
    else:
        with mode():
            assert pair(x, y).shape == (3,)
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    assert before.keys() == {"coefficient", "fit"}


def test_a_sample_without_a_finite_gradient_is_left_out_of_the_fit() -> None:
    x, y = pictures()
    pair = losses.Corrected(losses.PerceptualGradient(Field(0.25)), losses.mse)
    y[1, 0, 0, 0] = torch.nan
    for _ in range(2):
        pair(x, y, 4)
    assert float(pair.coefficient) == pytest.approx(8, rel=1e-5)


def test_an_infinite_cheap_loss_counts_for_nothing_until_something_is_fitted() -> None:
    x, y = pictures()
    pair = losses.Corrected(lambda x, y: (x * torch.inf).flatten(1).sum(1), losses.mse)
    assert not pair(x, y, 0).any()
    torch.testing.assert_close(pair(x, y, 4), 4 * losses.mse(x, y))


def test_steps_are_accumulated_before_one_backward_pass() -> None:
    x, y = pictures()
    pair = losses.Corrected(losses.PerceptualGradient(Field(0.25)), losses.mse)
    pair(x, y, 4)
    apart = sum(torch.autograd.grad(pair(x, y, weight).sum(), x)[0] for weight in (0, 4))
    again = losses.Corrected(losses.PerceptualGradient(Field(0.25)), losses.mse)
    again(x, y, 4)
    (together,) = torch.autograd.grad((again(x, y, 0) + again(x, y, 4)).sum(), x)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_fit_stays_in_float32(dtype: torch.dtype) -> None:
    pair = losses.MultiLoss({"a": losses.Corrected(losses.l1, losses.mse)}).to(dtype).objectives["a"]
    assert pair.fit.dtype == pair.coefficient.dtype == torch.float32


def test_the_value_is_the_formula() -> None:
    x, y = pictures()
    cheap = losses.PerceptualGradient(Field(0.3))
    pair = losses.Corrected(cheap, losses.l1, crop=5)
    pair.fit.copy_(torch.tensor([3.0, 1.0]))
    noted = Noted()
    torch.manual_seed(7)
    losses.Cropped(noted, 5)(x, y)
    p, q = noted.given
    torch.manual_seed(7)
    wanted = 3 * cheap(x, y) + 2 * (losses.l1(p, q) - 3 * cheap(x, y))
    torch.testing.assert_close(pair(x, y, 2), wanted)


def test_an_empty_batch_has_no_losses() -> None:
    x = torch.rand(0, 3, 8, 9, requires_grad=True)
    assert losses.Cropped(losses.mse, 4)(x, x).shape == (0,)
    value = losses.Corrected(losses.l1, losses.mse, crop=4)(x, x.detach())
    assert value.shape == (0,) and torch.autograd.grad(value.sum(), x)[0].shape == x.shape


def test_bad_input_is_named() -> None:
    x, y = torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9)
    with pytest.raises(TypeError, match="Cropped: target must be a Tensor; got list"):
        losses.Cropped(losses.l1, 4)(x, [1])
    with pytest.raises(TypeError, match="Corrected: output must be a Tensor; got NoneType"):
        losses.Corrected(losses.l1, losses.mse, crop=4)(None, y)
    with pytest.raises(TypeError, match="Cropped: loss must be callable; got int"):
        losses.Cropped(3, 4)
    with pytest.raises(TypeError, match=r"Cropped: side must be an integer, in pixels; got 4\.0"):
        losses.Cropped(losses.l1, 4.0)
    with pytest.raises(ValueError, match="Cropped: side must be at least 1 pixel; got 0"):
        losses.Cropped(losses.l1, 0)
    with pytest.raises(ValueError, match="Cropped: side must fit in the output of 8x9; got 10"):
        losses.Cropped(losses.l1, 10)(x, y)
    with pytest.raises(ValueError, match=r"Cropped: output must be pictures, \[B, C, H, W\]; got \[3, 8, 9\]"):
        losses.Cropped(losses.l1, 4)(x[0], y[0])
    with pytest.raises(ValueError, match=r"Cropped: target must have the batch and the size of the output, .*7\]"):
        losses.Cropped(losses.l1, 4)(x, y[..., :7])
    with pytest.raises(ValueError, match="Corrected: crop must fit in the output of 8x9; got 10"):
        losses.Corrected(losses.l1, losses.mse, crop=10)(x, y)
    with pytest.raises(TypeError, match="Corrected: crop must be an integer, in pixels; got True"):
        losses.Corrected(losses.l1, losses.mse, crop=True)
