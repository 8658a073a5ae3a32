"""Adversarial losses against their formulas; the discriminator: shapes, lambda, spectral norms, and that it learns."""

import math

import pytest
import torch
from torch import nn

from tunable_ops import losses
from tunable_ops.losses.adversarial import FORMS


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


GENERATOR = {
    "relativistic": lambda f, r: softplus(r - f),
    "hinge": lambda f, r: -f,
    "non_saturating": lambda f, r: softplus(-f),
}
DISCRIMINATOR = {
    "relativistic": lambda f, r: softplus(f - r),
    "hinge": lambda f, r: max(0.0, 1 + f) + max(0.0, 1 - r),
    "non_saturating": lambda f, r: softplus(f) + softplus(-r),
}


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def discriminator() -> losses.PatchDiscriminator:
    torch.manual_seed(0)
    return losses.PatchDiscriminator(num_params=2, features=4, depth=2)


@pytest.mark.parametrize("form", FORMS)
def test_values_against_loops(form: str) -> None:
    fake, real = scores(3, 1, 4, 5), scores(3, 1, 4, 5, seed=1)
    for loss, formula in ((losses.generator_loss, GENERATOR), (losses.discriminator_loss, DISCRIMINATOR)):
        wanted = [
            sum(formula[form](f, r) for f, r in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)) / 20
            for x, y in zip(fake, real, strict=True)
        ]
        torch.testing.assert_close(loss(fake, real, form), torch.tensor(wanted, dtype=torch.float64))
        assert torch.autograd.gradcheck(lambda f, r, loss=loss: loss(f, r, form), (fake.requires_grad_(), real))
        assert loss(fake[:0], real[:0], form).shape == (0,)
        assert loss(fake.half(), real.half(), form).dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
def test_network_and_discriminator_pull_apart(form: str) -> None:
    fake, real = scores(2, 1, 3, 3).requires_grad_(), scores(2, 1, 3, 3, seed=1)
    (up,) = torch.autograd.grad(losses.generator_loss(fake, real, form).sum(), fake)
    (down,) = torch.autograd.grad(losses.discriminator_loss(fake, real, form).sum(), fake)
    assert (up < 0).all() and (down >= 0).all() and down.any()


def test_extreme_scores_stay_finite() -> None:
    for form in FORMS:
        fake, real = torch.tensor([[1e4], [-1e4]], requires_grad=True), torch.tensor([[-1e4], [1e4]])
        for loss in (losses.generator_loss, losses.discriminator_loss):
            (grad,) = torch.autograd.grad(loss(fake, real, form).sum(), fake)
            assert grad.isfinite().all() and loss(fake, real, form).isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda s: losses.generator_loss(s, s, "lsgan"),
            ValueError,
            "generator_loss: form must be one of relativistic",
        ),
        (lambda s: losses.generator_loss(s), TypeError, "generator_loss: real must be a Tensor for the form"),
        (
            lambda s: losses.generator_loss(s.long(), form="hinge"),
            TypeError,
            "generator_loss: fake must be floating po",
        ),
        (lambda s: losses.discriminator_loss(s, s, "x"), ValueError, "discriminator_loss: form must be one of"),
        (
            lambda s: losses.discriminator_loss(s, s[:1]),
            ValueError,
            r"discriminator_loss: real must have fake's shape \[2",
        ),
        (lambda s: losses.generator_loss(s, s.long()), TypeError, "generator_loss: real must be floating point"),
    ],
)
def test_wrong_scores(call, error, text) -> None:
    with pytest.raises(error, match="^" + text):
        call(torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize(("size", "grid"), [((4, 4), (1, 1)), ((7, 12), (1, 3)), ((33, 40), (8, 10))])
def test_a_score_for_every_patch(discriminator, size, grid) -> None:
    x = torch.rand(3, 3, *size)
    assert discriminator(x, [0.0, 1.0]).shape == (3, 1, *grid)
    assert discriminator(x[:0], torch.zeros(0, 2)).shape == (0, 1, *grid)
    assert discriminator.min_size == 4
    assert losses.PatchDiscriminator(0, channels=1, features=2)(x[:, :1, :4, :4].repeat(1, 1, 2, 2), []).shape[0] == 3


def test_the_receptive_field_is_what_it_says(discriminator) -> None:
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(discriminator(x, [0.0, 0.0])[0, 0, 8, 8], x)
    rows = grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == discriminator.receptive_field == 20
    assert losses.PatchDiscriminator(features=1).receptive_field == 40


def test_the_score_is_affine_in_lambda(discriminator) -> None:
    """At first lambda makes no difference; then each parameter has a direction of its own, sample by sample."""
    discriminator.eval()
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(discriminator(x, [0.0, 0.0]), discriminator(x, [1.0, 0.5]))
    with torch.no_grad():
        discriminator.projection.normal_()
    zero, one, two = (discriminator(x, lam) for lam in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    mixed = discriminator(x, [0.25, 0.5])
    torch.testing.assert_close(mixed, zero + 0.25 * (one - zero) + 0.5 * (two - zero))
    per_sample = discriminator(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(per_sample, torch.stack((one[0], two[1])))


def test_spectral_norms_of_the_inner_layers(discriminator) -> None:
    x = torch.rand(2, 3, 16, 16)
    for _ in range(50):
        discriminator(x, [0.0, 0.0])
    normed = [m for m in discriminator.body if isinstance(m, nn.Conv2d) and hasattr(m, "parametrizations")]
    assert len(normed) == 3
    for layer in normed:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)) == pytest.approx(1, abs=1e-3)


def test_the_state_dict_continues_exactly(discriminator) -> None:
    """The vectors of the power iteration are part of it."""
    x, other = torch.rand(1, 3, 16, 16), losses.PatchDiscriminator(num_params=2, features=4, depth=2)
    discriminator(x, [0.0, 1.0])
    other.load_state_dict(discriminator.state_dict())
    assert torch.equal(discriminator(x, [0.0, 1.0]), other(x, [0.0, 1.0]))


@pytest.mark.parametrize(
    ("pictures", "lam", "error", "text"),
    [
        (
            (1, 3, 3, 9),
            [0.0, 0.0],
            ValueError,
            r"pictures must be \[B, 3, H, W\] of at least 4x4 pixels; got \[1, 3, 3",
        ),
        ((1, 1, 9, 9), [0.0, 0.0], ValueError, r"pictures must be \[B, 3, H, W\]"),
        ((3, 9, 9), [0.0, 0.0], ValueError, r"pictures must be \[B, 3, H, W\]"),
        ((3, 3, 9, 9), [0.0], ValueError, r"lam must be \[2\] or \[3, 2\] for a batch of 3; got \[1\]"),
        ((3, 3, 9, 9), torch.zeros(2, 2), ValueError, r"lam must be \[2\] or \[3, 2\] for a batch of 3; got \[2, 2\]"),
        ((3, 3, 9, 9), torch.zeros(2).long(), TypeError, "lam must be floating point; got torch.int64"),
    ],
)
def test_wrong_pictures_and_lambda(discriminator, pictures, lam, error, text) -> None:
    with pytest.raises(error, match="^PatchDiscriminator: " + text):
        discriminator(torch.zeros(pictures), lam)


@pytest.mark.parametrize("name", ["num_params", "channels", "features", "depth"])
def test_wrong_sizes(name) -> None:
    with pytest.raises(
        ValueError, match=rf"^PatchDiscriminator: {name} must be at least . got|{name} must be at least"
    ):
        losses.PatchDiscriminator(**{name: -1})


def test_r1_of_a_linear_discriminator() -> None:
    """Its gradient is the weight at every patch; the penalty of lambda's sample alone, and second order flows on."""
    weight = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()

    def linear(x, lam):
        return (x * weight).sum((1, 2, 3), keepdim=True) * lam.view(-1, 1, 1, 1) * torch.ones(1, 1, 1, 4)

    lam = torch.tensor([1.0, 3.0]).double()
    found = losses.r1_penalty(linear, torch.rand(2, 3, 5, 5).double(), lam)
    torch.testing.assert_close(found, weight.square().sum((1, 2, 3)) * (4 * lam) ** 2 / 4)
    (grad,) = torch.autograd.grad(found.sum(), weight)
    torch.testing.assert_close(grad, 2 * weight * (4 * lam.view(-1, 1, 1, 1)) ** 2 / 4)


def test_r1_reaches_every_layer(discriminator) -> None:
    losses.r1_penalty(discriminator, torch.rand(2, 3, 12, 12), torch.rand(2, 2)).sum().backward()
    for name, parameter in discriminator.named_parameters():
        if not name.endswith("bias"):  # second derivatives of a piecewise linear network know no bias
            assert parameter.grad is not None and parameter.grad.any(), name


def test_one_discriminator_tells_different_faults_at_different_lambdas() -> None:
    """Too bright at lambda 0, too dark at 1: without lambda the two could not both be told from real pictures."""
    torch.manual_seed(0)
    found = {}
    for p in (1, 0):
        discriminator = losses.PatchDiscriminator(num_params=p, features=8, depth=2)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3)

        def pictures(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            real = (0.3 + 0.4 * torch.rand(count, 1, 1, 1)) + 0.1 * torch.rand(count, 3, 8, 8)
            lam = (torch.arange(count) % 2).float().view(-1, 1)
            return real, real + 0.2 * (1 - 2 * lam.view(-1, 1, 1, 1)), lam

        for _ in range(150):
            real, fake, lam = pictures(16)
            lam = lam[:, :p]
            loss = losses.discriminator_loss(discriminator(fake, lam), discriminator(real, lam)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        real, fake, lam = pictures(200)
        with torch.no_grad():
            gap = discriminator(real, lam[:, :p]) - discriminator(fake, lam[:, :p])
        found[p] = float((gap.mean((1, 2, 3)) > 0).float().mean())
    assert found[1] > 0.95 and found[0] < 0.85, found  # a single direction reaches 3 of 4
