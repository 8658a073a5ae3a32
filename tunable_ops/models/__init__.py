"""Networks that checkpoints and training configs can name: plain ones, which `tunable_ops.convert` makes tunable."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from tunable_ops.models.carn import CARN
from tunable_ops.models.dncnn import DnCNN
from tunable_ops.models.edsr import EDSR
from tunable_ops.models.ffdnet import FFDNet
from tunable_ops.models.imdn import IMDN
from tunable_ops.models.nafnet import NAFNet
from tunable_ops.models.rlfn import RLFN
from tunable_ops.models.stylenet import StyleNet
from tunable_ops.models.swinir import SwinIR
from tunable_ops.nearest import hint

__all__ = [
    "ARCHITECTURES",
    "CARN",
    "EDSR",
    "IMDN",
    "RLFN",
    "DnCNN",
    "FFDNet",
    "NAFNet",
    "StyleNet",
    "SwinIR",
    "build",
    "build_imported",
]

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "carn": CARN,
    "dncnn": DnCNN,
    "edsr": EDSR,
    "ffdnet": FFDNet,
    "imdn": IMDN,
    "nafnet": NAFNet,
    "rlfn": RLFN,
    "stylenet": StyleNet,
    "swinir": SwinIR,
}


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a registered network with freshly initialised weights.

    Args:
        name: Key of `ARCHITECTURES`.
        **arguments: Arguments of its class; those left out have the class's defaults.

    Returns:
        The plain network, in training mode, on the CPU.

    Raises:
        ValueError: The name is not registered, the class has no such argument, or a value is out of range.
        TypeError: An argument has the wrong type.

    Example:
        >>> build("dncnn", features=16, depth=4).channels
        3
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"models: name must be one of {', '.join(sorted(ARCHITECTURES))}; got {name!r}")
    known = list(inspect.signature(ARCHITECTURES[name]).parameters)
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"models: arguments of {name} must be among {', '.join(known)}; got {key!r}{hint(key, known)}"
            )
    return ARCHITECTURES[name](**arguments)


def build_imported(name: str, **arguments: Any) -> nn.Module:
    """Build a network of any package that is installed.

    It is imported and called, which can do anything: never pass on a name that somebody else's file contains.

    Args:
        name: "package.module:Class"; a function that returns a network will do.
        **arguments: Of the class.

    Returns:
        The plain network as its class makes it.

    Raises:
        ValueError: It cannot be imported, or has no such arguments; and whatever the class raises.
        TypeError: What the name stands for is no class or makes no module.

    Example:
        >>> build_imported("torch.nn:Conv2d", in_channels=3, out_channels=3, kernel_size=1)
        Conv2d(3, 3, kernel_size=(1, 1), stride=(1, 1))
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty name
        raise ValueError(
            f"models: name must be a package.module:Class that can be imported; got {name!r}: {error} (PYTHONPATH "
            "names folders of modules that are not installed)"
        ) from error
    if not callable(found):
        raise TypeError(f"models: name must stand for a class of networks; got {name!r}, {type(found).__name__}")
    try:
        inspect.signature(found).bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: some builtins have no signature
        raise ValueError(f"models: arguments must be those of {name}; got {arguments}: {error}") from None
    network = found(**arguments)
    if not isinstance(network, nn.Module):
        raise TypeError(f"models: name must make an nn.Module; got {name!r}, which made {type(network).__name__}")
    return network
