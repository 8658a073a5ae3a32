"""What a tunable_conv2d call asks of the rule: which kernel can serve, how large the problem is, which algorithm."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from tunable_ops.backends.torch import per_sample
from tunable_ops.triton_kernels.choose_algorithm import Choice, Problem, choose_algorithm, dtype_name
from tunable_ops.triton_kernels.launch import INDEX_LIMIT, Geometry, device_name, extent, input_precision
from tunable_ops.triton_kernels.tunable_conv2d_pointwise import is_pointwise

MAX_KERNELS = 16
_KINDS = {1: "shared", 2: "sample", 4: "map"}


def chunks(weight: Tensor, batch: int) -> Iterator[slice]:
    """Runs of samples whose kernels in fp32 stay within the workspace."""
    size = max(1, per_sample.CHUNK_BYTES // (4 * max(1, weight[0].numel())))
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


def forward_kind(weight: Tensor, geometry: Geometry, groups: int, source: Tensor, result: Tensor) -> str:
    """Which kernel serves: pointwise and depthwise where they can."""
    if weight.shape[2] == 1 and groups > 1:
        return "depthwise"
    taps = tuple(weight.shape[3:])
    plain = taps == (1, 1) and geometry.stride == (1, 1) and geometry.padding == (0, 0)
    return "pointwise" if plain and is_pointwise(source, result) else "dense"


def input_kind(weight: Tensor, geometry: Geometry, groups: int, input: Tensor, grad_output: Tensor) -> str:
    """The same of the input gradient: with several outputs per channel it is a sum over them."""
    kind = forward_kind(weight, geometry, groups, input, grad_output)
    return "dense" if kind == "depthwise" and weight.shape[1] != groups else kind


def weight_kind(weight: Tensor, groups: int) -> str:
    """The same of the gradients of kernels and of a map."""
    return "depthwise" if weight.shape[2] == 1 and groups > 1 else "dense"


def make_problem(
    direction: str,
    kind: str,
    source: Tensor,
    weight: Tensor,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    result: Tensor,
) -> Problem:
    """The problem of a call: `source` is what the kernel reads pixels from, and `result` has the grid."""
    _, outputs, inputs, kh, kw = weight.shape
    outputs //= groups
    if direction == "input":
        inputs, outputs = outputs, inputs
    return Problem(
        direction,
        kind,
        _KINDS[alpha.dim()],
        dtype_name(source.dtype, input_precision(source.dtype)),
        "nhwc" if source.stride(1) == 1 and source.shape[1] > 1 else "nchw",
        source.shape[0],
        weight.shape[0],
        inputs,
        outputs,
        groups,
        (kh, kw),
        geometry.stride,
        (result.shape[2], result.shape[3]),
    )


def choose(direction: str, kind: str, source: Tensor, weight: Tensor, *rest: Any) -> Choice:
    """Asks the rule; samples too large for 32-bit offsets, and more kernels than a launch takes, go to the library."""
    choice = choose_algorithm(make_problem(direction, kind, source, weight, *rest), device_name(source))
    if weight.shape[0] > MAX_KERNELS or max(extent(source), extent(rest[-1])) >= INDEX_LIMIT:
        return choice._replace(algorithm="library")
    return choice
