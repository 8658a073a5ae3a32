"""The input gradient: forward kernels applied to grad_output, one launch per phase of a strided convolution."""

from torch import Tensor
from tunable_ops.triton_kernels.launch import Config, Geometry, Launch
from tunable_ops.triton_kernels.phases import phases
from tunable_ops.triton_kernels.tunable_conv2d import plan_tunable_conv2d_input
from tunable_ops.triton_kernels.tunable_conv2d_depthwise import plan_tunable_conv2d_depthwise
from tunable_ops.triton_kernels.tunable_conv2d_map import plan_tunable_conv2d_map_input
from tunable_ops.triton_kernels.tunable_conv2d_pointwise import plan_tunable_conv2d_pointwise


def plan_input_gradient(
    kind: str,
    grad_output: Tensor,
    weight: Tensor,
    alpha: Tensor | None,
    grad_input: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config,
) -> list[Launch]:
    """Return the launches that write grad_input; if no tap reaches some pixels, set it to 0 first.

    Args:
        kind: "dense", "pointwise" (not for a map) or "depthwise" (one output per channel).
        grad_output: [B, O, OH, OW].
        weight: [P, O, C/groups, kh, kw]; without alpha [1 or B, O, C/groups, kh, kw], already blended.
        alpha: [P], [B, P], [B, P, OH, OW] (each [OH, OW] contiguous) or None.
        grad_input: [B, C, H, W].
        geometry: The convolution's own.
        groups: Groups of the convolution.
        config: Tile sizes of the kind's kernel.
    """
    if kind == "pointwise":
        operands = (grad_output, weight, None, alpha, grad_input)
        return [plan_tunable_conv2d_pointwise(*operands, groups, "none", config, transposed=True)]
    spread = alpha is not None and alpha.dim() == 4
    parts = list(phases(grad_input, weight, geometry))
    if sum(part.pixels.numel() for part in parts) < grad_input.numel():
        grad_input.zero_()
    launches = []
    for pixels, taps, backwards in parts:
        if kind == "depthwise":
            operands = (grad_output, taps, None, alpha, pixels)
            launch = plan_tunable_conv2d_depthwise(*operands, backwards, "none", config, spread=spread)
        elif alpha is not None and spread:
            launch = plan_tunable_conv2d_map_input(grad_output, taps, alpha, pixels, backwards, groups, config)
        else:
            launch = plan_tunable_conv2d_input(grad_output, taps, alpha, pixels, backwards, groups, config)
        launches.append(launch)
    return launches
