"""Make tensors and launches for a problem, for autotuning and for the audit."""

from typing import NamedTuple

import torch
from torch import Tensor
from tunable_ops.triton_kernels.choose_algorithm import (
    Problem,
    choose_splits,
    default_config,
    fit_stages,
)
from tunable_ops.triton_kernels.launch import Config, Geometry, Launch, cdiv, multiprocessors
from tunable_ops.triton_kernels.tunable_conv2d import (
    alpha_parts,
    plan_tunable_conv2d_alpha,
    plan_tunable_conv2d_forward,
)
from tunable_ops.triton_kernels.tunable_conv2d_depthwise import plan_tunable_conv2d_depthwise
from tunable_ops.triton_kernels.tunable_conv2d_depthwise_weight import plan_tunable_conv2d_depthwise_weight
from tunable_ops.triton_kernels.tunable_conv2d_input import plan_input_gradient
from tunable_ops.triton_kernels.tunable_conv2d_pointwise import plan_tunable_conv2d_pointwise
from tunable_ops.triton_kernels.tunable_conv2d_weight import plan_tunable_conv2d_weight

WORKSPACE = 64 << 20


class Operands(NamedTuple):
    """Tensors of the forward convolution, whatever the direction; without alpha, weight is already blended."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    alpha: Tensor | None
    y: Tensor
    geometry: Geometry


def make_operands(problem: Problem, device: str | torch.device) -> Operands:
    """Make random tensors for a problem with "same" padding; on "meta" without values."""
    dtype = torch.float32 if problem.dtype == "tf32" else getattr(torch, problem.dtype)
    inputs, outputs = problem.inputs, problem.outputs
    if problem.direction == "input":
        inputs, outputs = outputs, inputs
    kh, kw = problem.taps
    padding = (kh // 2, kw // 2)
    if problem.direction == "input":
        size = problem.size
    else:  # the smallest input with this output size
        size = tuple(
            max(1, (n - 1) * s + k - 2 * p)
            for n, s, k, p in zip(problem.size, problem.stride, problem.taps, padding, strict=True)
        )
    grid = [(n + 2 * p - k) // s + 1 for n, s, k, p in zip(size, problem.stride, problem.taps, padding, strict=True)]
    memory_format = torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format
    kernels = problem.kernels
    if problem.alpha == "none":
        kernels = problem.batch
    options = {"device": device, "dtype": dtype}
    x = torch.randn(problem.batch, inputs * problem.groups, *size, **options)
    y = torch.empty(problem.batch, outputs * problem.groups, *grid, **options)
    weight = torch.randn(kernels * outputs * problem.groups, inputs, kh, kw, **options)
    weight = weight.contiguous(memory_format=memory_format).unflatten(0, (kernels, -1))
    shapes = {"shared": (kernels,), "sample": (problem.batch, kernels), "map": (problem.batch, kernels, *grid)}
    alpha = None if problem.alpha == "none" else torch.rand(shapes[problem.alpha], device=device)
    return Operands(
        x.contiguous(memory_format=memory_format),
        weight,
        torch.randn(kernels, outputs * problem.groups, **options),
        alpha,
        y.contiguous(memory_format=memory_format),
        Geometry(problem.stride, padding, (1, 1)),
    )


def plan_problem(
    problem: Problem, operands: Operands, config: Config, with_bias: bool = False
) -> tuple[list[Launch], Tensor]:
    """Return the launches that solve a problem with a configuration, and the tensor that they write.

    It is y (forward), x (input), [sums, splits, O, C/groups, kh, kw] (weight) or [parts, B, P, OH, OW] (alpha). With
    `with_bias` the launch of a weight gradient makes that of the bias too.
    """
    x, weight, bias, alpha, y, geometry = operands
    groups = problem.groups
    if problem.direction == "weight":
        launch, partial = _plan_weight(problem, operands, config, with_bias)
        return [launch], partial
    if problem.direction == "alpha":
        assert alpha is not None
        outputs = weight.shape[1]
        deep = problem.kind == "depthwise"
        parts = cdiv(outputs, config.block_k) if deep else alpha_parts(outputs, groups, config)
        partial = torch.empty(parts, *alpha.shape, device=x.device)
        if deep:
            arguments = (x, weight, bias, partial[0], y, geometry, "none", config)
            return [plan_tunable_conv2d_depthwise(*arguments, part=partial.stride(0))], partial
        return [plan_tunable_conv2d_alpha(x, weight, bias, y, partial, geometry, groups, config)], partial
    if problem.direction == "input":
        return plan_input_gradient(problem.kind, y, weight, alpha, x, geometry, groups, config), x
    if problem.kind == "depthwise":
        return [plan_tunable_conv2d_depthwise(x, weight, bias, alpha, y, geometry, "none", config)], y
    if problem.kind == "pointwise":
        return [plan_tunable_conv2d_pointwise(x, weight, bias, alpha, y, groups, "none", config)], y
    return [plan_tunable_conv2d_forward(x, weight, bias, alpha, y, geometry, groups, "none", config)], y


def _plan_weight(problem: Problem, operands: Operands, config: Config, with_bias: bool) -> tuple[Launch, Tensor]:
    x, weight, _, alpha, y, geometry = operands
    sums = {"shared": 1, "map": problem.kernels}.get(problem.alpha, problem.batch)
    over = alpha if problem.alpha == "map" else None
    size = weight[0].numel()
    splits = choose_splits(problem, config, multiprocessors(x), max(1, WORKSPACE // (4 * size * sums)))
    strides = (splits * size, size, *weight.stride()[1:])
    partial = torch.empty(sums * splits * size, device=x.device).as_strided((sums, splits, *weight.shape[1:]), strides)
    shift = torch.empty(sums, splits, weight.shape[1], device=x.device) if with_bias else None
    if problem.kind == "depthwise":
        return plan_tunable_conv2d_depthwise_weight(y, x, partial, geometry, config, over, shift), partial
    return plan_tunable_conv2d_weight(y, x, partial, geometry, problem.groups, config, over, shift), partial


def candidates(problem: Problem) -> list[Config]:
    """List the configurations that autotuning tries for a problem, the heuristic's first."""
    first = default_config(problem)
    if problem.kind == "depthwise":
        of_weight = problem.direction == "weight"  # has no rows; 16 columns by 64 channels spill with 2 warps
        widths = (4, 8, 16) if problem.layout == "nhwc" else (64, 128, 256)
        tries = [
            first._replace(block_m=rows, block_n=width, num_warps=warps)
            for rows in ((first.block_m,) if of_weight else (8, 16, 32))
            for width in sorted({*widths, first.block_n})
            for warps in ((4,) if of_weight and width == 16 else (2, 4))
        ]
    else:
        kernels = 1 if problem.alpha in ("map", "none") or problem.direction == "weight" else problem.kernels
        tries = [first._replace(num_stages=stages) for stages in (2, 4)]
        # Larger tiles only if they are filled, and only ones that do not spill (checked in the machine code).
        if problem.dtype in ("float16", "bfloat16") and problem.layout == "nhwc" and problem.alpha != "map":
            # With three stages of 64 rows, ptxas spills a few registers on sm_100, in the input gradient with two.
            deep = 32 if problem.direction == "input" else first.block_k
            tries += [first._replace(block_m=64, block_k=min(first.block_k, deep), num_stages=2)]
            tries += [first._replace(block_k=32)]
            if problem.direction != "weight":
                tries += [Config(256, first.block_n, first.block_k, 8, 3)]
                tries += [Config(128, 128, 32, 8, 3)] if problem.outputs >= 128 and kernels <= 2 else []
        tries = [fit_stages(config, kernels, problem.dtype) for config in tries]
    return list(dict.fromkeys([first, *tries]))
