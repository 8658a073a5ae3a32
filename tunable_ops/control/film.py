"""FiLM: channels scaled and shifted by a small network of lambda (YOTO)."""

from collections.abc import Sequence

import torch
from torch import nn

from tunable_ops.control.modulated import as_model, modulate
from tunable_ops.modules import TunableModel
from tunable_ops.modules.spec import LambdaSpec


def film(
    network: nn.Module,
    num_params: int = 2,
    *,
    hidden: int = 64,
    after: Sequence[str] | None = None,
    domain: str = "simplex",
    names: Sequence[str] | None = None,
    ranges: Sequence[Sequence[float]] | None = None,
    defaults: Sequence[float] | None = None,
    units: Sequence[str] | None = None,
) -> TunableModel:
    """Add feature-wise linear modulation: ``y = (1 + s(lam)) * conv(x) + t(lam)`` after every convolution.

    s and t [O] come from a network of the layer's own, Linear p -> hidden, ReLU, Linear hidden -> 2 O, whose last layer
    starts at zero. It is trained at all lambda, under the multi-loss with lambda drawn at every step. `fold` is exact
    and leads to plain convolutions of the same number: scale and shift become part of kernel and bias.

    Args:
        network: Plain network; it is copied. A modulated convolution's parameters are called ``NAME.conv.weight``.
        num_params: p.
        hidden: Width of the hidden layer.
        after: Patterns of the convolutions; None: every Conv2d.
        domain: "simplex" or "box".
        names: Names of the tuning parameters.
        ranges: Their (low, high), in their units.
        defaults: Where sliders start.
        units: What each is counted in.

    Raises:
        TypeError, ValueError: An argument is out of range, or a pattern matches nothing.

    Source: Dosovitskiy and Djolonga, "You Only Train Once: Loss-Conditional Training of Deep Networks", ICLR 2020. The
    size of the small networks and their start at zero are our choices.
    """
    spec = LambdaSpec.create(num_params, domain, names, ranges, defaults, units)
    if type(hidden) is not int or hidden < 1:
        raise ValueError(f"film: hidden must be a positive int; got {hidden!r}")

    def build(conv: nn.Conv2d) -> nn.Module:
        last = nn.Linear(hidden, 2 * conv.out_channels)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
        return nn.Sequential(nn.Linear(num_params, hidden), nn.ReLU(), last)

    modulated = modulate("film", network, num_params, after, build)
    conversion = {"control": "film", "hidden": hidden, "after": None if after is None else list(after)}
    return as_model(modulated, spec, conversion)
