"""tunable_conv1d: tunable_conv2d on an image one pixel high."""

from collections.abc import Sequence

from torch import Tensor

from tunable_ops import checks
from tunable_ops.ops.tunable_conv2d import run_checked

NAME = "tunable_conv1d"


def tunable_conv1d(
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
    """Blend P kernels and convolve in one dimension.

    Formula: ``y[b] = act(conv1d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``.

    Args:
        input: [B, C, L], or [C, L] with alpha [P].
        weight: [P, O, C/groups, k].
        bias: [P, O] or None.
        alpha: [P], [B, P] or a map [B, P, OL].
        stride: Samples.
        padding: Samples, "same" or "valid".
        dilation: Samples.
        groups: Blocked connections from inputs to outputs.
        activation: As in `tunable_conv2d`.
        backend: As in `tunable_conv2d`.

    Returns:
        [B, O, OL] or [O, OL].

    Dtypes, autocast, gradients and errors are those of `tunable_conv2d`.
    """
    call = checks.check_convolution(NAME, 1, input, weight, bias, alpha, stride, padding, dilation, groups, activation)
    flat = call._replace(
        stride=(1, *call.stride),
        padding=(0, *call.padding),
        end_padding=call.end_padding and (0, *call.end_padding),
        dilation=(1, *call.dilation),
    )
    output = run_checked(
        NAME,
        input.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        alpha.unsqueeze(-2) if alpha.dim() == 3 else alpha,
        flat,
        groups,
        backend,
    )
    return output.squeeze(-2)
