"""tunable_conv_transpose2d: the C++ operator if it can serve the call, else blend first, then PyTorch's convolution.

A kernel as large as its stride (the usual upsampling layer) is a 1x1 convolution whose outputs are arranged as blocks
of pixels. With an alpha per sample that is one call of `tunable_conv2d` instead of one convolution per sample.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops import backends, checks
from tunable_ops.backends import cpp
from tunable_ops.backends.torch.layout import output_format
from tunable_ops.convolution import convolve_transposed
from tunable_ops.geometry import transposed_output_size
from tunable_ops.ops import graph_form, registration
from tunable_ops.ops.premix import premix
from tunable_ops.ops.tunable_conv2d import tunable_conv2d

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
    """Blend P kernels and apply a transposed convolution (torch's argument order).

    Formula: ``y[b] = act(conv_transpose2d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``.

    Args:
        input: [B, C, H, W], or [C, H, W] with alpha [P].
        weight: [P, C, O/groups, kh, kw].
        bias: [P, O] or None.
        alpha: [P], [B, P] or a map [B, P, OH, OW].
        stride: Pixels.
        padding: Pixels removed from each side.
        output_padding: Pixels added at the bottom and right; smaller than stride or dilation.
        groups: Blocked connections from inputs to outputs.
        dilation: Pixels.
        activation: As in `tunable_conv2d`.
        backend: None, "torch" or "reference".

    Returns:
        [B, O, OH, OW] or [O, OH, OW], OH = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1.

    Dtypes, autocast, gradients and errors are those of `tunable_conv2d`.
    """
    chosen = backends.select(NAME, backend)
    call = checks.check_transposed(
        NAME, input, weight, bias, alpha, stride, padding, output_padding, groups, dilation, activation
    )
    strides, pads, more, dilations, code, batched = call
    if not batched:
        input = input[None]
    if backend is None and cpp.serves_transposed(input, weight, bias, alpha, call):
        row = alpha[0] if alpha.shape == (1, weight.shape[0]) else alpha
        output = _inference((input, weight, bias, row), *strides, *pads, *more, groups, code)
        return output if batched else output[0]
    separate = strides == tuple(weight.shape[3:]) and not any((*pads, *more)) and dilations == (1, 1)
    if separate and groups == 1 and batched and alpha.dim() == 2 and chosen != "reference":
        return _as_blocks(input, weight, bias, alpha, activation, backend)

    def conv(x: Any, w: Any, b: Any) -> Tensor:
        return convolve_transposed(x, w, b, strides, pads, more, groups, dilations)

    output = premix(conv, input, weight, bias, alpha, activation, backend)
    return output if batched else output[0]


def _as_blocks(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, activation: str | None, backend: str | None
) -> Tensor:
    """Turn each input pixel into a block of kh x kw output pixels by a 1x1 convolution to kh*kw*O channels."""
    kernels, channels, outputs, kh, kw = weight.shape
    flat = weight.permute(0, 3, 4, 2, 1).reshape(kernels, kh * kw * outputs, channels, 1, 1)
    shift = None if bias is None else bias.repeat(1, kh * kw)
    blocks = tunable_conv2d(input, flat, shift, alpha, activation=activation, backend=backend)
    batch, _, height, width = input.shape
    pixels = blocks.permute(0, 2, 3, 1).view(batch, height, width, kh, kw, outputs)
    if not checks.is_transformed() and output_format(input, weight) == torch.channels_last:
        spread = pixels.transpose(2, 3)  # [B, H, kh, W, kw, O]
        return spread.reshape(batch, height * kh, width * kw, outputs).permute(0, 3, 1, 2)
    spread = pixels.permute(0, 5, 1, 3, 2, 4)  # [B, O, H, kh, W, kw]
    return spread.reshape(batch, outputs, height * kh, width * kw)


def _inference_fake(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: int) -> Tensor:
    stride, padding, more = (options[i : i + 2] for i in (0, 2, 4))
    size = transposed_output_size(input.shape[2:], weight.shape[3:], stride, padding, more, (1, 1))
    output = input.new_empty(input.shape[0], weight.shape[2] * options[6], *size)
    return output.to(memory_format=torch.channels_last)


# Inference only, channels_last, no dilation: see `cpp.serves_transposed`.
_inference = registration.Operator(
    f"{NAME}_cpp",
    "Tensor input, Tensor weight, Tensor? bias, Tensor alpha, int stride_h, int stride_w, int padding_h, "
    "int padding_w, int output_padding_h, int output_padding_w, int groups, int activation",
    "Tensor",
    None,
    _inference_fake,
)
_inference.register_graph_form(graph_form.tunable_conv_transpose2d)
