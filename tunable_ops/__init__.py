"""Tunable convolutions: layers that hold P kernels and blend them with weights that are set at inference.

layer = tunable_ops.TunableConv2d(64, 64, 3, padding=1, num_params=2)
y = layer(x, lam)                                  # lam: [p] or [B, p]
net = tunable_ops.convert(plain_net, num_params=2)
y = net(x, lam)
plain = tunable_ops.fold(net, lam)
"""

import importlib
from typing import TYPE_CHECKING

from tunable_ops import losses, reference
from tunable_ops.functional import (
    exact,
    remember_transforms,
    set_algorithm,
    tunable_conv1d,
    tunable_conv2d,
    tunable_conv3d,
    tunable_conv_transpose2d,
    tunable_linear,
    tunable_parameter,
    tunable_parameters,
)
from tunable_ops.modules import (
    LambdaPlanes,
    LambdaSpec,
    LambdaWarning,
    LiveFold,
    TunableConv1d,
    TunableConv2d,
    TunableConv3d,
    TunableConvTranspose2d,
    TunableLinear,
    TunableModel,
    TunableParameter,
    accelerate,
    checkpoint,
    convert,
    fold,
    freeze_all_but_new,
    freeze_base,
    load_plain,
    merge_base,
    optimizer_groups,
    split_base,
)

if TYPE_CHECKING:
    from tunable_ops import control as control
    from tunable_ops import deploy as deploy
    from tunable_ops import hub as hub
    from tunable_ops import knob_files as knob_files
    from tunable_ops import models as models
    from tunable_ops import pretrained as pretrained
    from tunable_ops import serialization as serialization
    from tunable_ops import train as train
    from tunable_ops.knob_files import load_knob as load_knob
    from tunable_ops.knob_files import save_knob as save_knob

__version__ = "0.1.0"

__all__ = [
    "LambdaPlanes",
    "LambdaSpec",
    "LambdaWarning",
    "LiveFold",
    "TunableConv1d",
    "TunableConv2d",
    "TunableConv3d",
    "TunableConvTranspose2d",
    "TunableLinear",
    "TunableModel",
    "TunableParameter",
    "accelerate",
    "checkpoint",
    "convert",
    "exact",
    "fold",
    "freeze_all_but_new",
    "freeze_base",
    "load_plain",
    "losses",
    "merge_base",
    "optimizer_groups",
    "reference",
    "remember_transforms",
    "set_algorithm",
    "split_base",
    "tunable_conv1d",
    "tunable_conv2d",
    "tunable_conv3d",
    "tunable_conv_transpose2d",
    "tunable_linear",
    "tunable_parameter",
    "tunable_parameters",
]

# Not in __all__: `import *` needs torch alone, and these need more.
_ON_FIRST_USE = ("control", "deploy", "hub", "knob_files", "models", "pretrained", "serialization", "train")

TunableModel._hub = staticmethod(lambda: importlib.import_module(f"{__name__}.hub"))

if not TYPE_CHECKING:  # for a type checker this would turn every misspelt name into Any

    def __getattr__(name: str) -> object:
        """Import a part of the package when it is first used."""
        if name in _ON_FIRST_USE:
            return importlib.import_module(f"{__name__}.{name}")
        if name in ("load_knob", "save_knob"):
            return getattr(importlib.import_module(f"{__name__}.knob_files"), name)
        if name == "pgn":
            raise AttributeError("tunable_ops.pgn is now tunable_ops.losses.pgn: from tunable_ops.losses import PGN")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ON_FIRST_USE, "load_knob", "save_knob"})
