"""Layers, conversion and folding."""

from tunable_ops.modules.accelerate import accelerate
from tunable_ops.modules.convert import convert
from tunable_ops.modules.finetune import (
    freeze_all_but_new,
    freeze_base,
    load_plain,
    merge_base,
    optimizer_groups,
    split_base,
)
from tunable_ops.modules.fold import LiveFold, fold
from tunable_ops.modules.frame import checkpoint
from tunable_ops.modules.lambda_planes import LambdaPlanes
from tunable_ops.modules.layer import TunableLayer
from tunable_ops.modules.model import TunableModel
from tunable_ops.modules.spec import LambdaSpec, LambdaWarning
from tunable_ops.modules.tunable_conv import TunableConv1d, TunableConv2d, TunableConv3d, TunableConvTranspose2d
from tunable_ops.modules.tunable_linear import TunableLinear
from tunable_ops.modules.tunable_parameter import TunableParameter
from tunable_ops.modules.tuning import Tuning

__all__ = [
    "LambdaPlanes",
    "LambdaSpec",
    "LambdaWarning",
    "LiveFold",
    "TunableConv1d",
    "TunableConv2d",
    "TunableConv3d",
    "TunableConvTranspose2d",
    "TunableLayer",
    "TunableLinear",
    "TunableModel",
    "TunableParameter",
    "Tuning",
    "accelerate",
    "checkpoint",
    "convert",
    "fold",
    "freeze_all_but_new",
    "freeze_base",
    "load_plain",
    "merge_base",
    "optimizer_groups",
    "split_base",
]
