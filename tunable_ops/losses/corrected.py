"""A cheap loss that an expensive one corrects at some steps, or on a part of the picture: a control variate."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tunable_ops.losses.cropped import Loss, check_side, draw_crops
from tunable_ops.losses.reduction import value_and_gradient

_MEMORY = 0.95  # of the fit, from one correction to the next


class Corrected(nn.Module):
    """A cheap loss, corrected by the exact one at some steps, or on random crops: a control variate of `MultiLoss`.

    Formula, with a weight w and a coefficient c::

        c * cheap + w * (exact - c * cheap)

    With ``every={name: N}`` the multi-loss has w = N at every N-th step and 0 at the others. Over N steps from such a
    step on the sum is N times ``exact``, were the outputs the same: the errors of ``cheap`` cancel.

    With ``crop`` the correction is made on a random crop of each sample, as of `Cropped`, at every step: ``exact`` is
    that of the crop, and the gradient of ``cheap``, which is of the whole output, is taken back on the crop alone, over
    the probability with which a pixel is in one. So its errors cancel in the mean over crops.

    **c is fitted**: it is the factor, at least 0, with which the gradients of ``cheap`` for the output come nearest to
    those of ``exact``, by least squares over the corrections before the last one, each with 0.95 times the weight of
    the next. So ``cheap`` needs no scale of its own, and counts for little where it knows little. A fixed factor lets
    errors grow: `PerceptualGradient` grows with the distance to the target, and `Perceptual` does not. Calls in
    training mode with a gradient for the output learn; samples whose gradients are not finite are left out.

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
        """Return the formula of each sample, [B]; corrected, it has the first derivative for the output alone.

        Args:
            output: As for both losses.
            target: As for both losses.
            weight: Of the correction. 0 spares the exact loss; 1, without ``crop``, the cheap one: the result is then
                the exact loss itself, with all its derivatives.

        Raises:
            TypeError: With ``crop``, output or target is no Tensor.
            ValueError: The crop does not fit, or output and target differ in size.
        """
        if weight == 1 and self.crop is None:
            return self.exact(output, target)
        if weight == 0:
            return _times(self.coefficient.clone(), self.cheap(output, target))
        crops = None if self.crop is None else draw_crops("Corrected", "crop", self.crop, output, target)
        x = output.detach()
        p, q = (x, target) if crops is None else (crops.of(x), None if target is None else crops.of(target))
        if not (torch.is_grad_enabled() and output.requires_grad):
            value = _times(self.coefficient, self.cheap(x, target))
            return value + weight * (self.exact(p, q) - value)
        c = self._next_coefficient() if self.training else self.coefficient.clone()
        value, field = value_and_gradient(self.cheap, x, target)
        exact, true = value_and_gradient(self.exact, p, q)
        part = field if crops is None else crops.of(field / crops.share.to(field))
        if self.training:
            self._learn(true, part)
        value, field, correction = _times(c, value), _times(c, field), weight * (true - _times(c, part))
        if crops is None:
            field += correction
        else:
            crops.add(field, correction)
        step = (output - x).to(field.dtype)  # zeros
        return value + weight * (exact - value) + (step * field).flatten(1).sum(1)

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
        true, predicted = true.flatten(1).float(), predicted.flatten(1).float()
        sums = torch.stack([(true * predicted).sum(1), predicted.square().sum(1)])
        self.fit.mul_(_MEMORY).add_(torch.where(sums.isfinite().all(0), sums, 0).sum(1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Corrected":
        kept = self.coefficient, self.fit
        super()._apply(fn, recurse)
        if self.fit.dtype != torch.float32:  # sums of small squares, averaged over many steps
            self.coefficient, self.fit = (value.to(self.fit.device) for value in kept)
        return self


def _times(c: Tensor, value: Tensor) -> Tensor:
    """Return c times a value, and 0 with c = 0 whatever the value is."""
    return torch.where(c > 0, c * value, 0)
