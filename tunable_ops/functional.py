"""The operators as functions, like torch.nn.functional. Importing this module loads the compiled libraries."""

from tunable_ops.backends import cpp, cuda, wgmma
from tunable_ops.backends.triton import native
from tunable_ops.ops import flops  # noqa: F401  (registers the FLOP formulas)
from tunable_ops.ops.algorithm import exact, set_algorithm
from tunable_ops.ops.conv2d import LEAST_CHANNELS, TAPS, conv2d, leaves_to_torch
from tunable_ops.ops.kept_kernel import KeptKernel, remember_transforms
from tunable_ops.ops.tunable_conv1d import tunable_conv1d
from tunable_ops.ops.tunable_conv2d import blends_first, tunable_conv2d
from tunable_ops.ops.tunable_conv3d import tunable_conv3d
from tunable_ops.ops.tunable_conv_transpose2d import tunable_conv_transpose2d
from tunable_ops.ops.tunable_linear import tunable_linear
from tunable_ops.ops.tunable_parameter import tunable_parameter
from tunable_ops.ops.tunable_parameters import blend_in_place, blend_into, tunable_parameters

__all__ = [
    "LEAST_CHANNELS",
    "TAPS",
    "KeptKernel",
    "blend_in_place",
    "blend_into",
    "blends_first",
    "conv2d",
    "exact",
    "leaves_to_torch",
    "remember_transforms",
    "set_algorithm",
    "tunable_conv1d",
    "tunable_conv2d",
    "tunable_conv3d",
    "tunable_conv_transpose2d",
    "tunable_linear",
    "tunable_parameter",
    "tunable_parameters",
]

cpp.load()
cuda.load()
wgmma.load()
native.load()
