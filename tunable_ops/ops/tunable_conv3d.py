"""tunable_conv3d: blend first, then PyTorch's convolution."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tunable_ops import backends, checks
from tunable_ops.convolution import convolve
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
    """Blend P kernels and convolve in three dimensions.

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
        activation: As in `tunable_conv2d`.
        backend: None, "torch" or "reference".

    Returns:
        [B, O, OD, OH, OW] or [O, OD, OH, OW].

    Dtypes, autocast, gradients and errors are those of `tunable_conv2d`.
    """
    backends.select(NAME, backend)  # only names that can serve
    call = checks.check_convolution(NAME, 3, input, weight, bias, alpha, stride, padding, dilation, groups, activation)
    if call.end_padding:
        input = F.pad(input, [n for end in reversed(call.end_padding) for n in (0, end)])

    def conv(x: Any, w: Any, b: Any) -> Tensor:
        return convolve(x, w, b, call.stride, call.padding, call.dilation, groups)

    output = premix(conv, input if call.batched else input[None], weight, bias, alpha, activation, backend)
    return output if call.batched else output[0]
