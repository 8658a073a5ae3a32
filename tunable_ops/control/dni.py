"""DNI: fine-tune a copy of the network, then interpolate all weights."""

from collections.abc import Sequence

from torch import nn

from tunable_ops.control.phased import InterpolatedModel
from tunable_ops.modules import convert
from tunable_ops.modules.convert import USUAL_PARAMETERS


def dni(
    network: nn.Module,
    num_params: int = 2,
    *,
    parameters: Sequence[str] = USUAL_PARAMETERS,
    names: Sequence[str] | None = None,
    defaults: Sequence[float] | None = None,
) -> InterpolatedModel:
    """Prepare deep network interpolation: ``weights = sum_k lambda_k * weights_k``.

    The arithmetic is that of tunable kernels with alpha = lambda, trained at the corners only: phase 0 trains the
    network, phase k a copy of it on objective k. Foldable. What `tunable_ops.convert` does not change, such as
    normalisation layers, is not interpolated and keeps its values of phase 0.

    Args:
        network: Plain network; it is copied.
        num_params: p.
        parameters: Patterns of other parameters to interpolate, as for `convert`.
        names: Names of the tuning parameters.
        defaults: Initial positions of the sliders.

    Raises:
        TypeError, ValueError: As for `tunable_ops.convert`.

    Source: Wang et al., "Deep Network Interpolation for Continuous Imagery Effect Transition", CVPR 2019.
    """
    converted = convert(network, num_params, tuning="identity", parameters=parameters)
    conversion = {"control": "dni", "parameters": list(parameters)}
    return InterpolatedModel(converted.network, num_params, (), conversion, names, defaults)
