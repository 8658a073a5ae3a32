"""tunable_conv3d: premix, then the library's convolution."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tunable_ops import backends, checks
from tunable_ops.ops.premix import premix

NAME = "tunable_conv3d"


def tunable_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blends P kernels and convolves in three dimensions.

    Formula: ``y[b] = act(conv3d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``.

    Args:
        input: [B, C, D, H, W], or [C, D, H, W] with alpha [P].
        weight: [P, O, C/groups, kd, kh, kw].
        bias: [P, O] or None.
        alpha: [P], [B, P] or a map [B, P, OD, OH, OW].
        stride: Voxels.
        padding: Voxels, "same" or "valid".
        dilation: Voxels.
        groups: Blocked connections from inputs to outputs.
        activation: As `tunable_conv2d`.
        backend: None, "torch" or "reference".

    Returns:
        [B, O, OD, OH, OW] or [O, OD, OH, OW].

    dtypes, autocast, gradients and errors: as `tunable_conv2d`.
    """
    chosen = backends.select(NAME, backend)
    checks.check_tensors(NAME, input, weight, bias, alpha)
    checks.check_kernels(NAME, input, weight, bias, groups, ndim=3)
    strides = checks.to_ints(NAME, "stride", stride, 3, 1)
    dilations = checks.to_ints(NAME, "dilation", dilation, 3, 1)
    taps = weight.shape[3:]
    start, extra = checks.resolve_padding(NAME, padding, taps, strides, dilations)
    if any(extra):
        input = F.pad(input, (0, extra[2], 0, extra[1], 0, extra[0]))
    size = checks.conv_output_size(NAME, input.shape[-3:], taps, strides, start, dilations)
    batched = input.dim() == 5
    checks.check_alpha(NAME, alpha, weight.shape[0], input.shape[0] if batched else None, size)
    name = checks.check_activation(NAME, activation)

    def conv(x: Any, w: Any, b: Any) -> Tensor:
        return F.conv3d(x, w, b, strides, start, dilations, groups)

    output = premix(conv, input if batched else input[None], weight, bias, alpha, name, chosen)
    return output if batched else output[0]
