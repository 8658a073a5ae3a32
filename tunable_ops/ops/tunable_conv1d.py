"""tunable_conv1d: tunable_conv2d on a picture one pixel high."""

from collections.abc import Sequence

from torch import Tensor

from tunable_ops import backends, checks
from tunable_ops.ops import tunable_conv2d as conv2d

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
    """Blends P kernels and convolves in one dimension.

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
        activation: As `tunable_conv2d`.
        backend: As `tunable_conv2d`.

    Returns:
        [B, O, OL] or [O, OL].

    dtypes, autocast, gradients and errors: as `tunable_conv2d`.
    """
    checks.check_tensors(NAME, input, weight, bias, alpha)
    chosen = backends.select(NAME, backend, input)
    checks.check_kernels(NAME, input, weight, bias, groups, ndim=1)
    strides = (1, *checks.to_ints(NAME, "stride", stride, 1, 1))
    dilations = (1, *checks.to_ints(NAME, "dilation", dilation, 1, 1))
    left, extra = checks.resolve_padding(NAME, padding, weight.shape[3:], strides[1:], dilations[1:])
    length = input.shape[-1] + extra[0]
    size = checks.conv_output_size(NAME, (length,), weight.shape[3:], strides[1:], left, dilations[1:])
    checks.check_alpha(NAME, alpha, weight.shape[0], input.shape[0] if input.dim() == 3 else None, size)
    name = checks.check_activation(NAME, activation)
    output = conv2d.tunable_conv2d(
        input.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        alpha.unsqueeze(-2) if alpha.dim() == 3 else alpha,
        strides,
        "same" if padding == "same" else (0, *left),
        dilations,
        groups,
        activation=None if name == "none" else name,
        backend=chosen,
    )
    return output.squeeze(-2)
