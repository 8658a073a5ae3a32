"""CResMD: residuals scaled per channel by a linear layer of lambda."""

from collections.abc import Sequence

import torch
from torch import nn

from tunable_ops.control.modulated import as_model, modulate
from tunable_ops.modules import TunableModel
from tunable_ops.modules.spec import LambdaSpec


def cresmd(
    network: nn.Module,
    num_params: int = 2,
    *,
    after: Sequence[str],
    domain: str = "simplex",
    names: Sequence[str] | None = None,
    ranges: Sequence[Sequence[float]] | None = None,
    defaults: Sequence[float] | None = None,
    units: Sequence[str] | None = None,
) -> TunableModel:
    """Add controllable residuals: ``y = x + a(lam) * f(x)``, a [C] a linear layer of lambda for each residual.

    f ends in a convolution, and a scales that one's output. a starts as 1 at every lambda. It is trained at all lambda,
    under the multi-loss with lambda drawn at every step. `fold` is exact: a becomes part of kernel and bias.

    Args:
        network: Plain network; it is copied. A scaled convolution's parameters are called ``NAME.conv.weight``.
        num_params: p.
        after: Patterns of the convolutions that residual branches end with: of `EDSR` "body.*.conv2", and
            "conv_after_body", which ends the long one.
        domain: "simplex" or "box".
        names: Names of the tuning parameters.
        ranges: Their (low, high), in their units.
        defaults: Where sliders start.
        units: What each is counted in.

    Raises:
        TypeError, ValueError: An argument is out of range, or a pattern matches nothing.

    Source: He et al., "Interactive Multi-Dimension Modulation with Dynamic Controllable Residual Learning for Image
    Restoration", ECCV 2020; one linear layer per residual is recalled. Its start is our choice, and that a is not made
    0 at lambda = 0, as published, where the network would have to do nothing: no lambda stands for that here.
    """
    spec = LambdaSpec.create(num_params, domain, names, ranges, defaults, units)

    def build(conv: nn.Conv2d) -> nn.Module:
        linear = nn.Linear(num_params, conv.out_channels)
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.zero_()
        return linear

    modulated = modulate("cresmd", network, num_params, after, build, shifts=False)
    conversion = {"control": "cresmd", "after": list(after)}
    return as_model(modulated, spec, conversion)
