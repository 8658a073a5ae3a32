"""Planes: lambda as further channels of the network's input."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tunable_ops.control.additions import check_network, find
from tunable_ops.control.modulated import as_model, modulate
from tunable_ops.modules import LambdaPlanes, TunableModel
from tunable_ops.modules.convert import copy_network
from tunable_ops.modules.spec import LambdaSpec

_BORDERS = ("zeros", "extend")


def planes(
    network: nn.Module,
    num_params: int = 2,
    *,
    before: str | None = None,
    borders: str = "zeros",
    domain: str = "simplex",
    names: Sequence[str] | None = None,
    ranges: Sequence[Sequence[float]] | None = None,
    defaults: Sequence[float] | None = None,
    units: Sequence[str] | None = None,
) -> TunableModel:
    """Append lambda to the input of a convolution as p planes of constants: ``y = conv(cat(x, lam))``.

    The convolution gets p further input channels, whose weights start at zero. It is trained at all lambda, under the
    multi-loss with lambda drawn at every step.

    Away from the borders planes amount to a shift of the bias, ``sum over taps of W_j * lam_j``; where a kernel reaches
    into padding with zeros it meets fewer of them. So `fold` keeps the planes, as constants: exact everywhere, and the
    network keeps the p channels. With ``borders="extend"`` the planes go on beyond the picture and are that shift
    everywhere; only the sum over taps is held, [O] for each parameter, and `fold` is exact and leads to the plain
    network itself. Without padding, or with one that repeats the picture, both compute the same.

    Args:
        network: Plain network; it is copied. The parameters of that convolution are called ``NAME.1.weight``, or
            ``NAME.conv.weight`` with ``borders="extend"``.
        num_params: p.
        before: Name of the convolution, with groups = 1; None: the first one in the order of modules.
        borders: What planes are beyond the picture: "zeros", the padding of the picture, or "extend".
        domain: "simplex" or "box".
        names: Names of the tuning parameters.
        ranges: Their (low, high), in their units; planes hold lambda divided by the larger end.
        defaults: Where sliders start.
        units: What each is counted in.

    Raises:
        TypeError, ValueError: An argument is out of range, or there is no such convolution.

    Source: Zhang et al., "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising", 2018 (arXiv
    1710.04026), whose plane is the noise level. The start at zero and `borders` are our choices.
    """
    check_network("planes", network)
    if borders not in _BORDERS:
        raise ValueError(f"planes: borders must be one of {', '.join(_BORDERS)}; got {borders!r}")
    spec = LambdaSpec.create(num_params, domain, names, ranges, defaults, units)
    chosen = find("planes", network, None if before is None else [before], nn.Conv2d)
    name, conv = next(iter(chosen.items()))
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
        got = f"{name!r}, a {type(conv).__name__}"
        raise ValueError(f"planes: before must name a Conv2d without groups; got {got}")
    if borders == "extend":

        def build(conv: nn.Conv2d) -> nn.Module:
            return _zeros(nn.Linear(num_params, conv.out_channels, bias=False))

        changed = modulate("planes", network, num_params, [name], build, scales=False)
    else:
        memo: dict[int, Any] = {}
        wider = _with_channels(copy.deepcopy(conv, memo), num_params)
        memo[id(conv)] = nn.Sequential(LambdaPlanes(range(num_params), spec.scales), wider).train(conv.training)
        changed = copy_network(network, memo)
    conversion = {"control": "planes", "before": before, "borders": borders}
    return as_model(changed, spec, conversion)


def _with_channels(conv: nn.Conv2d, count: int) -> nn.Conv2d:
    """Give a convolution further input channels, whose weights are zero; in place."""
    old = conv.weight
    conv.in_channels += count
    weight = torch.cat((old.detach(), old.new_zeros(old.shape[0], count, *old.shape[2:])), 1)
    conv.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    return conv


def _zeros(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    return linear
