"""Adversarial losses: restored pictures against real ones, and the discriminator that scores both patch by patch.

A discriminator learns to tell the outputs of a network (fake) from real pictures, and the network to deceive it: an
objective that asks for texture that real pictures have, wherever it may be, rather than for the texture of one picture.
The losses are functions of scores, [B, ...] -> [B], so that `MultiLoss` can weigh them by lambda sample by sample::

    fake, real = discriminator(output, lam), discriminator(clean, lam)
    generator_loss(fake, real)                                           # for the network, the discriminator fixed
    discriminator_loss(discriminator(output.detach(), lam), real)        # for the discriminator
"""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tunable_ops.losses.reduction import at_least_float32, check_image, mean_per_sample

FORMS = ("relativistic", "hinge", "non_saturating")


def generator_loss(fake: Tensor, real: Tensor | None = None, form: str = "relativistic") -> Tensor:
    """Compute the adversarial loss of the network whose pictures have the scores ``fake``, per sample.

    With f and r the scores of a patch in the output and in the real picture, the mean over the patches of

    ==================  ==================================
    ``relativistic``    ``softplus(r - f)``
    ``hinge``           ``-f``
    ``non_saturating``  ``softplus(-f)``
    ==================  ==================================

    The relativistic form (Jolicoeur-Martineau, "The relativistic discriminator", ICLR 2019; in pairs as in Huang et
    al., "The GAN is dead; long live the GAN!", NeurIPS 2024) asks which of two patches is more real. In restoration
    both show the same scene, so that what is in the picture cancels; and unlike ESRGAN's comparison with the mean of
    the batch (Wang et al., 2018), it does not mix samples of different lambda. "hinge" is the loss of Miyato et al.
    (ICLR 2018), "non_saturating" that of Goodfellow et al. (2014) and Real-ESRGAN (Wang et al., 2021).

    Args:
        fake: [B, ...], floating point, any real number; half types are computed in float32.
        real: Same shape and device; needed by "relativistic", ignored by the others.
        form: One of `FORMS`.

    Returns:
        [B], float32 (float64 if either input is). [0] for an empty batch.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, a sample has no elements, or an unknown form.

    Example:
        >>> generator_loss(torch.tensor([[1.0, 3.0]]), form="hinge")
        tensor([-2.])
    """
    _check_form("generator_loss", form)
    if form == "relativistic":
        if real is None:
            raise TypeError("generator_loss: real must be a Tensor for the form 'relativistic'; got None")
        fake, real = _score_pair("generator_loss", fake, real)
        return mean_per_sample(F.softplus(real - fake))
    fake = _scores("generator_loss", "fake", fake)
    return mean_per_sample(-fake if form == "hinge" else F.softplus(-fake))


def discriminator_loss(fake: Tensor, real: Tensor, form: str = "relativistic") -> Tensor:
    """Compute the loss of the discriminator itself, per sample.

    The mean over the patches of ``softplus(f - r)`` (relativistic), ``relu(1 + f) + relu(1 - r)`` (hinge), or
    ``softplus(f) + softplus(-r)`` (non_saturating); letters, forms and sources as for `generator_loss`.

    Args:
        fake: [B, ...], scores of the network's outputs, which the caller detaches.
        real: Same shape and device, scores of real pictures at the same lambda.
        form: One of `FORMS`.

    Returns:
        [B], float32 (float64 if either input is). [0] for an empty batch.

    Raises:
        TypeError: An input is not a floating point Tensor.
        ValueError: Shapes or devices differ, a sample has no elements, or an unknown form.

    Example:
        >>> discriminator_loss(torch.tensor([[-2.0, 0.0]]), torch.tensor([[0.5, 2.0]]), form="hinge")
        tensor([0.7500])
    """
    _check_form("discriminator_loss", form)
    fake, real = _score_pair("discriminator_loss", fake, real)
    if form == "relativistic":
        return mean_per_sample(F.softplus(fake - real))
    if form == "hinge":
        return mean_per_sample(F.relu(1 + fake) + F.relu(1 - real))
    return mean_per_sample(F.softplus(fake) + F.softplus(-real))


def r1_penalty(discriminator: Callable[[Tensor, Tensor], Tensor], pictures: Tensor, lam: Tensor) -> Tensor:
    """Compute the squared gradient of the scores of real pictures, per sample: ``|d sum(D(x)) / dx|**2 / patches``.

    Half of it, times a weight, in the discriminator's loss makes the training of both converge near the solution (R1,
    Mescheder et al., "Which training methods for GANs do actually converge?", ICML 2018). It costs a second-order
    pass; taken every n-th step, n times as strong, it does the same (StyleGAN2, Karras et al., 2020). Divided by the
    number of scores of a sample, it does not depend on the size of the pictures, apart from their borders.

    Args:
        discriminator: ``discriminator(pictures, lam)`` -> scores [B, ...].
        pictures: [B, C, H, W], real ones; not changed, and detached.
        lam: Passed on.

    Returns:
        [B], differentiable in the discriminator's parameters.

    Raises:
        TypeError, ValueError: As the discriminator.

    Example:
        >>> r1_penalty(lambda x, lam: 3 * x.flatten(1).sum(1, keepdim=True), torch.rand(1, 1, 2, 2), torch.zeros(1))
        tensor([36.])
    """
    with torch.enable_grad():
        leaf = pictures.detach().requires_grad_()
        scores = discriminator(leaf, lam)
        (gradient,) = torch.autograd.grad(scores.sum(), leaf, create_graph=True)
    return gradient.square().flatten(1).sum(1) / (scores[:1].numel() or 1)


class PatchDiscriminator(nn.Module):
    """Score every patch of a picture for how real it looks, at a lambda; small enough to train on a CPU.

    A convolution of 3x3, ``depth`` of 4x4 with stride 2, one of 3x3, each with leaky ReLU (0.2), give features h of the
    pixels around (Isola et al., "pix2pix", CVPR 2017). The score is ``<w, h> + sum_j lambda_j <e_j, h> + b``: outputs
    of a small lambda fail in other ways than those of a large one, and what the discriminator looks for moves with
    lambda as projection moves it with a class (Miyato and Koyama, "cGANs with projection discriminator", ICLR 2018).
    So one discriminator serves the whole slider. The e_j start at 0: at first lambda makes no difference.

    All layers but the first and the last have spectral normalisation (Miyato et al., ICLR 2018), as in Real-ESRGAN
    (Wang et al., 2021); its vectors are buffers, one power iteration moves them at every call in training mode.

    Args:
        num_params: Number p of tuning parameters; 0 for a discriminator without lambda.
        channels: Of the pictures.
        features: Channels of the first layer; the next have 2, 4, 4, ... times as many.
        depth: Number of halvings, at least 1.

    Attributes:
        min_size: Smallest height and width, 2**depth, for which there is a score.
        receptive_field: Side of the square of pixels that a score depends on.

    Raises:
        ValueError: A number is too small.

    Example:
        >>> discriminator = PatchDiscriminator(num_params=2, features=8)
        >>> discriminator(torch.rand(4, 3, 96, 96), [0.0, 1.0]).shape
        torch.Size([4, 1, 12, 12])
    """

    def __init__(self, num_params: int = 1, channels: int = 3, features: int = 32, depth: int = 3) -> None:
        super().__init__()
        for name, value, least in (
            ("num_params", num_params, 0),
            ("channels", channels, 1),
            ("features", features, 1),
            ("depth", depth, 1),
        ):
            if value < least:
                raise ValueError(f"PatchDiscriminator: {name} must be at least {least}; got {value}")
        self.num_params, self.channels, self.min_size = num_params, channels, 2**depth
        widths = [features * min(2**k, 4) for k in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, features, 3, padding=1), nn.LeakyReLU(0.2)]
        field, step = 3, 1
        for before, width in itertools.pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(before, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            field, step = field + 3 * step, 2 * step
        layers += [spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, padding=1)), nn.LeakyReLU(0.2)]
        self.receptive_field = field + 2 * step
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], 1, 1)
        self.projection = nn.Parameter(torch.zeros(num_params, widths[-1]))  # e_j

    def forward(self, pictures: Tensor, lam: Tensor | Sequence[float]) -> Tensor:
        """Score pictures.

        Args:
            pictures: [B, C, H, W], in [0, 1] or about, floating point; H and W at least ``min_size``.
            lam: [p] for all, or [B, p], between 0 and 1.

        Returns:
            [B, 1, h, w], larger where patches look more real; h = H / 2**depth, rounded down. In the dtype of the
            weights.

        Raises:
            TypeError: Pictures or lam are not floating point.
            ValueError: Shapes do not fit, or pictures are too small.
        """
        check_image("PatchDiscriminator", "pictures", pictures)
        least = self.min_size
        if pictures.ndim != 4 or pictures.shape[1] != self.channels or min(pictures.shape[2:]) < least:
            raise ValueError(
                f"PatchDiscriminator: pictures must be [B, {self.channels}, H, W] of at least {least}x{least} pixels; "
                f"got {list(pictures.shape)}"
            )
        lam = self._check_lam(lam, pictures)
        h = self.body(pictures.to(self.projection.dtype) * 2 - 1)
        scores: Tensor = self.head(h)
        if self.num_params:
            direction = lam @ self.projection  # [B, features] or [features]
            scores = scores + (h * direction[..., None, None]).sum(1, keepdim=True)
        return scores

    def _check_lam(self, lam: Tensor | Sequence[float], pictures: Tensor) -> Tensor:
        p, batch = self.num_params, pictures.shape[0]
        if not isinstance(lam, Tensor):
            lam = torch.tensor(lam, dtype=self.projection.dtype)
        if not lam.is_floating_point():
            raise TypeError(f"PatchDiscriminator: lam must be floating point; got {lam.dtype}")
        if lam.shape not in ((p,), (1, p), (batch, p)):
            raise ValueError(
                f"PatchDiscriminator: lam must be [{p}] or [{batch}, {p}] for a batch of {batch}; got {list(lam.shape)}"
            )
        return lam.to(self.projection)


def _check_form(loss: str, form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"{loss}: form must be one of {', '.join(FORMS)}; got {form!r}")


def _scores(loss: str, name: str, value: Tensor) -> Tensor:
    check_image(loss, name, value)
    return value.to(at_least_float32(value))


def _score_pair(loss: str, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    fake, real = _scores(loss, "fake", fake), _scores(loss, "real", real)
    if real.shape != fake.shape or real.device != fake.device:
        raise ValueError(
            f"{loss}: real must have fake's shape {list(fake.shape)} and device {fake.device}; got {list(real.shape)} "
            f"on {real.device}"
        )
    return fake, real
