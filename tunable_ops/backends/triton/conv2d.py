"""conv2d with one kernel, for layers whose kernel was blended with those of the whole network."""

from torch import Tensor

from tunable_ops.backends.triton import plans
from tunable_ops.backends.triton.problem import forward_kind, make_problem
from tunable_ops.backends.triton.tunable_conv2d import empty_output, plan_forward
from tunable_ops.convolution import convolve
from tunable_ops.triton_kernels.choose_algorithm import choose_blended
from tunable_ops.triton_kernels.launch import INDEX_LIMIT, Geometry, device_name, extent


def forward(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Return PyTorch's conv2d, by our kernel where that is predicted or measured to be faster: it adds the bias too.

    Args:
        input: [B, C, H, W].
        kernel: [O, C/groups, kh, kw].
        bias: [O] or None.
        stride: Rows, columns.
        padding: Likewise.
        dilation: Likewise.
        groups: As in `torch.nn.functional.conv2d`.
    """
    options = (stride, padding, dilation, groups)
    (output,) = plans.run(_forward, (input, kernel, bias), options)
    return convolve(input, kernel, bias, *options) if output is None else output


def _forward(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> plans.Results:
    geometry, weight = Geometry(stride, padding, dilation), kernel[None]
    shift = None if bias is None else bias.contiguous()[None]
    output = empty_output(input, weight, (stride, padding, dilation))
    if output.numel() == 0 or max(extent(input), extent(output)) >= INDEX_LIMIT:
        return (None,)
    kind = forward_kind(weight, geometry, groups, input, output)
    problem = make_problem("forward", kind, input, weight, None, geometry, groups, output)
    config = choose_blended(problem, device_name(input))
    if config is None:
        return (None,)
    plan_forward(kind, input, weight, shift, None, output, geometry, groups, "none", config, None).run()
    return (output,)
