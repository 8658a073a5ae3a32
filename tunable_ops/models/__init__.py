"""Networks that checkpoints and training configs can name: plain ones, which `tunable_ops.convert` makes tunable."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
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

__all__ = ["ARCHITECTURES", "CARN", "EDSR", "IMDN", "RLFN", "DnCNN", "FFDNet", "NAFNet", "StyleNet", "SwinIR", "build"]

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
                f"models: arguments of {name} must be among {', '.join(known)}; got {key!r}{_nearest(key, known)}"
            )
    return ARCHITECTURES[name](**arguments)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
