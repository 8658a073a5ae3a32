"""tunable_conv3d: the definition of tunable_conv2d in 3-D."""

from torch import Tensor

from tunable_ops.convolution import convolve
from tunable_ops.reference.tunable_conv2d import blend_and_convolve


def tunable_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] | str = 0,
    dilation: int | tuple[int, int, int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """Compute ``y[b] = act(conv3d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``.

    Input [B, C, D, H, W], weight [P, O, C/groups, kd, kh, kw], bias [P, O], alpha [P], [B, P] or [B, P, OD, OH, OW].
    """

    def conv(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return convolve(x, w, b, stride, padding, dilation, groups)

    return blend_and_convolve(conv, input, weight, bias, alpha, activation)
