"""From a tunable_conv2d call to an algorithm: the kind of kernel that can serve it, and its problem for the rule."""

from typing import Any

from torch import Tensor

from tunable_ops.backends import wgmma
from tunable_ops.triton_kernels.choose_algorithm import Choice, Problem, choose_algorithm, dtype_name
from tunable_ops.triton_kernels.launch import INDEX_LIMIT, Geometry, device_name, extent, input_precision
from tunable_ops.triton_kernels.tunable_conv2d_pointwise import is_pointwise

MAX_KERNELS = 16
_KINDS = {1: "shared", 2: "sample", 4: "map"}


def forward_kind(weight: Tensor, geometry: Geometry, groups: int, source: Tensor, result: Tensor) -> str:
    """Return the kind of kernel for the forward pass: "pointwise" or "depthwise" where possible, else "dense"."""
    if weight.shape[2] == 1 and groups > 1:
        return "depthwise"
    taps = tuple(weight.shape[3:])
    plain = taps == (1, 1) and geometry.stride == (1, 1) and geometry.padding == (0, 0)
    return "pointwise" if plain and is_pointwise(source, result) else "dense"


def input_kind(weight: Tensor, geometry: Geometry, groups: int, input: Tensor, grad_output: Tensor) -> str:
    """Return the kind for the input gradient: not depthwise if it sums over several outputs per channel."""
    kind = forward_kind(weight, geometry, groups, input, grad_output)
    return "dense" if kind == "depthwise" and weight.shape[1] != groups else kind


def weight_kind(weight: Tensor, groups: int) -> str:
    """Return the kind for the gradients of the kernels and of a map."""
    return "depthwise" if weight.shape[2] == 1 and groups > 1 else "dense"


def make_problem(
    direction: str,
    kind: str,
    source: Tensor,
    weight: Tensor,
    alpha: Tensor | None,
    geometry: Geometry,
    groups: int,
    result: Tensor,
) -> Problem:
    """Return the problem of a call. The kernel reads pixels from `source`; `result` has the output grid.

    Without alpha `weight` is one kernel that all samples share.
    """
    _, outputs, inputs, kh, kw = weight.shape
    outputs //= groups
    if direction == "input":
        inputs, outputs = outputs, inputs
    return Problem(
        direction,
        kind,
        "shared" if alpha is None else _KINDS[alpha.dim()],
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


def choose(direction: str, kind: str, source: Tensor, weight: Tensor, *rest: Any, activation: str = "none") -> Choice:
    """Ask the rule; "torch" for samples too large for 32-bit offsets and for more kernels than a launch takes."""
    problem, device = make_problem(direction, kind, source, weight, *rest), device_name(source)
    alpha, geometry, _, result = rest
    choice = choose_algorithm(problem, device, wgmma.fits(problem, source, weight, geometry))
    if choice.algorithm == "wgmma":
        of_input = direction == "input"
        input = result if of_input else source
        if not wgmma.is_ready(input, weight, alpha, geometry, activation, of_input):
            choice = choose_algorithm(problem, device)
    if weight.shape[0] > MAX_KERNELS or max(extent(source), extent(rest[-1])) >= INDEX_LIMIT:
        return choice._replace(algorithm="torch")
    return choice
