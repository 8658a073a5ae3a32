"""tunable_conv2d, and the loops that all convolutions of the family share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tunable_ops.convolution import convolve
from tunable_ops.reference.activation import apply_activation
from tunable_ops.reference.tunable_parameter import tunable_parameter


def tunable_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """Compute ``y[b] = act(conv2d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``.

    With a map: ``y[b] = act(sum_p alpha[b,p] * (conv2d(x[b], weight[p]) + bias[p]))``, per output pixel.

    Args:
        input: [B, C, H, W]; [C, H, W] with a shared alpha.
        weight: [P, O, C/groups, kh, kw].
        bias: [P, O] or None.
        alpha: [P], [B, P] ([1, P] is shared) or [B, P, OH, OW].
        stride: As torch.nn.functional.conv2d.
        padding: As torch.nn.functional.conv2d.
        dilation: As torch.nn.functional.conv2d.
        groups: As torch.nn.functional.conv2d.
        activation: None, "relu", "gelu", "silu" or "leaky_relu".

    Returns:
        [B, O, OH, OW].
    """

    def conv(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return convolve(x, w, b, stride, padding, dilation, groups)

    return blend_and_convolve(conv, input, weight, bias, alpha, activation)


def blend_and_convolve(
    conv: Callable[[Any, Any, Any], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    activation: str | None,
    blend: Callable[[Tensor, Tensor], Tensor] = tunable_parameter,
) -> Tensor:
    """Apply the definition above with any convolution `conv(input, weight, bias)` and implementation of the blend."""
    if alpha.dim() > 2:
        accumulate = torch.promote_types(input.dtype, torch.float32)
        outputs = [conv(input, weight[p], None if bias is None else bias[p]) for p in range(weight.shape[0])]
        blended = sum(alpha[:, p, None].to(accumulate) * outputs[p].to(accumulate) for p in range(len(outputs)))
        return apply_activation(blended.to(input.dtype), activation)  # type: ignore[union-attr]
    if alpha.dim() == 2 and alpha.shape[0] == 1:
        alpha = alpha[0]
    blended_weight = blend(weight, alpha)
    blended_bias = None if bias is None else blend(bias, alpha)
    if alpha.dim() == 1:
        return apply_activation(conv(input, blended_weight, blended_bias), activation)
    if input.shape[0] == 0:  # no samples to loop over: an empty sum gives a kernel of the right shape
        output = conv(input, blended_weight.sum(0), None if blended_bias is None else blended_bias.sum(0))
        return apply_activation(output, activation)
    samples = [
        conv(input[b : b + 1], blended_weight[b], None if blended_bias is None else blended_bias[b])
        for b in range(input.shape[0])
    ]
    return apply_activation(torch.cat(samples), activation)
