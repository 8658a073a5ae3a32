"""A cheap loss that a dear one corrects now and then, or on a part of the picture: a control variate."""

import torch
from torch import Tensor, nn

from tunable_ops.losses.cropped import Loss, check_side, draw_crops, same_crops

_MEMORY = 0.95  # of the fit, from one correction to the next


class Corrected(nn.Module):
    """A cheap loss, corrected by the exact one at some steps, or on random crops: a control variate of `MultiLoss`.

    Formula, with a weight w and a coefficient c::

        c * cheap + w * (exact - c * cheap)

    With ``every={name: N}`` the multi-loss has w = N at every N-th step and 0 at the others. Over N steps from such a
    step on the sum is N times ``exact``, were the outputs the same: what the cheap loss says wrong goes out again.

    With ``crop`` the correction is made on a random crop of each sample, as of `Cropped`: ``exact`` is that of the
    crop, and the gradient of ``cheap``, which is of the whole output at every step, is taken back there alone, as many
    times as there are crops. So w = 1 at every step, and it is the mean over crops from which the cheap loss goes out.

    **c is fitted**: it is the factor with which the gradients of ``cheap`` for the output come nearest to those of
    ``exact``, by least squares over the corrections before the last one, each 0.95 times the next one's weight. So
    ``cheap`` needs no scale of its own, and counts for little where it knows little: a fixed factor lets errors grow,
    as `PerceptualGradient` grows with the distance to the target and `Perceptual` does not.

    Args:
        cheap: ``f(output, target) -> [B]``, such as a `PerceptualGradient`.
        exact: The loss that it stands for, such as `losses.Perceptual`.
        crop: Side of the crops, in pixels; None corrects whole pictures.

    Attributes:
        coefficient: c, float32; 0 up to the second correction.
        fit: [2] float32, sums over corrections: <exact, cheap> and <cheap, cheap> of the gradients.

    Raises:
        TypeError: `cheap` or `exact` cannot be called, or `crop` is no integer.
        ValueError: `crop` is below 1.

    Example:
        >>> from tunable_ops import losses
        >>> cheap = losses.PerceptualGradient(losses.PGN("unet"))
        >>> exact = losses.Perceptual("vgg16", ["relu1_2"], weights="random")
        >>> pair = losses.Corrected(cheap, exact, crop=16)
        >>> criterion = losses.MultiLoss({"l1": losses.l1, "perceptual": pair})
        >>> x, y = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)
        >>> total, terms = criterion(x, y, [0.5, 0.5])
        >>> total.backward()
    """

    coefficient: Tensor
    fit: Tensor

    def __init__(self, cheap: Loss, exact: Loss, crop: int | None = None) -> None:
        super().__init__()
        for name, loss in (("cheap", cheap), ("exact", exact)):
            if not callable(loss):
                raise TypeError(f"Corrected: {name} must be callable; got {type(loss).__name__}")
        if crop is not None:
            check_side("Corrected", "crop", crop)
        self.cheap, self.exact, self.crop = cheap, exact, crop
        self.register_buffer("coefficient", torch.zeros(()))
        self.register_buffer("fit", torch.zeros(2))

    def forward(self, output: Tensor, target: Tensor, weight: float = 1.0) -> Tensor:
        """Return the formula of each sample, [B]; only the first derivative exists, and only for the output.

        Args:
            output: As for both losses.
            target: As for both losses.
            weight: Of the correction. 0 spares the exact loss; 1, without ``crop``, the cheap one: the result is then
                the exact loss itself.

        Raises:
            ValueError: The crop does not fit, or output and target differ in size.
        """
        if weight == 1 and self.crop is None:
            return self.exact(output, target)
        if weight == 0:
            return self.coefficient * self.cheap(output, target)
        learns = torch.is_grad_enabled()
        c = self._next_coefficient() if learns else self.coefficient
        x = output.detach()
        value, field = _differentiated(self.cheap, x, target)
        if self.crop is None:
            crops, part = None, field
            exact, true = _differentiated(self.exact, x, target)
        else:
            crops = draw_crops("Corrected", "crop", self.crop, output)
            exact, true = _differentiated(self.exact, crops.of(x), same_crops("Corrected", crops, output, target))
            part = crops.of(field) * (x[0, 0].numel() / self.crop**2)
        if learns:
            self._learn(true, part)
        correction, field = weight * (true - c * part), c * field
        if crops is None:
            field += correction
        else:
            crops.add(field, correction)
        step = (output - x).to(field.dtype)  # zeros
        return c * value + weight * (exact - c * value) + (step * field).flatten(1).sum(1)

    def extra_repr(self) -> str:
        """Return the crop's side, if there is one."""
        return "" if self.crop is None else f"crop={self.crop}"

    @torch.no_grad()
    def _next_coefficient(self) -> Tensor:
        """Take the fit of the corrections so far into use."""
        numerator, denominator = self.fit
        c = (numerator / denominator.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0)
        self.coefficient.copy_(torch.where(denominator > 0, c, 0))
        return self.coefficient.clone()

    @torch.no_grad()
    def _learn(self, true: Tensor, predicted: Tensor) -> None:
        """Add a correction to the fit."""
        true, predicted = true.float(), predicted.float()
        sums = torch.stack([(true * predicted).sum(), predicted.square().sum()])
        self.fit.mul_(_MEMORY).add_(torch.where(sums.isfinite().all(), sums, 0))


def _differentiated(loss: Loss, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the values of a loss, [B], and the gradient of their sum for x."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = loss(leaf, target)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient
