"""The definitions: each operator in a few lines of plain PyTorch, any dtype, twice differentiable.

Every backend is tested against these. They loop over kernels or samples; speed does not matter here.
"""

from tunable_ops.reference.activation import apply_activation
from tunable_ops.reference.tunable_conv1d import tunable_conv1d
from tunable_ops.reference.tunable_conv2d import tunable_conv2d
from tunable_ops.reference.tunable_conv3d import tunable_conv3d
from tunable_ops.reference.tunable_conv_transpose2d import tunable_conv_transpose2d
from tunable_ops.reference.tunable_linear import tunable_linear
from tunable_ops.reference.tunable_parameter import tunable_parameter
from tunable_ops.reference.tunable_parameters import tunable_parameters

__all__ = [
    "apply_activation",
    "tunable_conv1d",
    "tunable_conv2d",
    "tunable_conv3d",
    "tunable_conv_transpose2d",
    "tunable_linear",
    "tunable_parameter",
    "tunable_parameters",
]
