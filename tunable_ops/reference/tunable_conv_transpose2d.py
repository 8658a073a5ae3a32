"""tunable_conv_transpose2d: arguments in torch's order, with output_padding before groups and dilation."""

from torch import Tensor

from tunable_ops.convolution import convolve_transposed
from tunable_ops.reference.tunable_conv2d import blend_and_convolve


def tunable_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str | None = None,
) -> Tensor:
    """Compute ``y[b] = act(conv_transpose2d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``.

    Input [B, C, H, W], weight [P, C, O/groups, kh, kw], bias [P, O], alpha [P], [B, P] or [B, P, OH, OW].
    """

    def conv(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return convolve_transposed(x, w, b, stride, padding, output_padding, groups, dilation)

    return blend_and_convolve(conv, input, weight, bias, alpha, activation)
