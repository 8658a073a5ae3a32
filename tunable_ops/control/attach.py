"""attach: add a knob by the name of its method."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from tunable_ops.control.adafm import adafm
from tunable_ops.control.cfsnet import cfsnet
from tunable_ops.control.cresmd import cresmd
from tunable_ops.control.dni import dni
from tunable_ops.control.dynamic_net import dynamic_net
from tunable_ops.control.film import film
from tunable_ops.control.low_rank import low_rank
from tunable_ops.control.phased import PhasedModel
from tunable_ops.control.planes import planes
from tunable_ops.modules import TunableModel

PHASED: dict[str, Callable[..., PhasedModel]] = {
    "dni": dni,
    "adafm": adafm,
    "dynamic_net": dynamic_net,
    "cfsnet": cfsnet,
}
"""Trained at the ends, one objective after another."""

METHODS: dict[str, Callable[..., TunableModel]] = {
    **PHASED,
    "film": film,
    "planes": planes,
    "cresmd": cresmd,
    "low_rank": low_rank,
}
"""These, and those that are trained at all lambda."""


def attach(network: nn.Module, method: str, num_params: int = 2, **arguments: Any) -> TunableModel:
    """Add a knob to a plain network.

    At first the network computes the same as before for every lambda of the simplex (with CFSNet, whose tuning branch
    is untrained, only at (1, 0)).

    Args:
        network: Plain network; it is copied.
        method: "dni", "adafm", "dynamic_net" or "cfsnet", which return a `PhasedModel`; "film", "planes", "cresmd" or
            "low_rank", which are trained at all lambda like a conversion.
        num_params: p; 2 for "cfsnet".
        arguments: Arguments of the method's function.

    Raises:
        TypeError, ValueError: An unknown method, arguments that it does not have, or as for its function.

    Example:
        >>> import torch
        >>> net = attach(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)), "adafm")
        >>> net(torch.zeros(1, 3, 8, 8), [0.3, 0.7]).shape
        torch.Size([1, 3, 4, 4])
    """
    if method not in METHODS:
        raise ValueError(f"control: method must be one of {', '.join(METHODS)}; got {method!r}")
    function = METHODS[method]
    known = [name for name in inspect.signature(function).parameters if name != "network"]
    if "num_params" in known:
        arguments = {"num_params": num_params, **arguments}
    elif num_params != 2:
        raise ValueError(f"control: num_params of {method} must be 2; got {num_params}")
    for name in arguments:
        if name not in known:
            raise ValueError(f"control: arguments of {method} must be among {', '.join(known)}; got {name!r}")
    return function(network, **arguments)
