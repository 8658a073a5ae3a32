"""tunable_conv_transpose2d: premix, then the library's transposed convolution."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tunable_ops import backends, checks
from tunable_ops.ops.premix import premix

NAME = "tunable_conv_transpose2d"


def tunable_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blends P kernels and applies the transposed convolution (torch's argument order).

    Formula: ``y[b] = act(conv_transpose2d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``.

    Args:
        input: [B, C, H, W], or [C, H, W] with alpha [P].
        weight: [P, C, O/groups, kh, kw].
        bias: [P, O] or None.
        alpha: [P], [B, P] or a map [B, P, OH, OW].
        stride: Pixels.
        padding: Pixels taken off each side.
        output_padding: Pixels added at the bottom and right; smaller than stride or dilation.
        groups: Blocked connections from inputs to outputs.
        dilation: Pixels.
        activation: As `tunable_conv2d`.
        backend: None, "torch" or "reference".

    Returns:
        [B, O, OH, OW] or [O, OH, OW], OH = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1.

    dtypes, autocast, gradients and errors: as `tunable_conv2d`.
    """
    chosen = backends.select(NAME, backend)
    checks.check_tensors(NAME, input, weight, bias, alpha)
    checks.check_kernels(NAME, input, weight, bias, groups, ndim=2, transposed=True)
    strides = checks.to_ints(NAME, "stride", stride, 2, 1)
    pads = checks.to_ints(NAME, "padding", padding, 2, 0)
    more = checks.to_ints(NAME, "output_padding", output_padding, 2, 0)
    dilations = checks.to_ints(NAME, "dilation", dilation, 2, 1)
    size = checks.transposed_output_size(NAME, input.shape[-2:], weight.shape[3:], strides, pads, more, dilations)
    batched = input.dim() == 4
    checks.check_alpha(NAME, alpha, weight.shape[0], input.shape[0] if batched else None, size)
    name = checks.check_activation(NAME, activation)

    def conv(x: Any, w: Any, b: Any) -> Tensor:
        return F.conv_transpose2d(x, w, b, strides, pads, more, groups, dilations)

    output = premix(conv, input if batched else input[None], weight, bias, alpha, name, chosen)
    return output if batched else output[0]
