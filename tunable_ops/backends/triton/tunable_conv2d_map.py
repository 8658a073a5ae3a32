"""Gradients of tunable_conv2d with a map as alpha, without materialising P*O channels.

grad_input      = sum_p input gradient of conv_p for alpha_p * grad_output  one launch per phase
grad_weight[p]  = weight gradient for alpha_p * grad_output                 one launch for all p, in partial sums
grad_bias[p]    = sum over samples and pixels of alpha_p * grad_output      in the same launch, likewise
grad_alpha[b,p] = <grad_output, conv_p(x) + bias_p> over the outputs        one launch, in partial sums over outputs

The partial sums are added in their order, by a launch for kernels and biases and one for alpha.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunable_ops.backends.torch import per_sample
from tunable_ops.backends.torch.layout import from_matrix, output_format
from tunable_ops.backends.triton.problem import choose, input_kind, make_problem, weight_kind
from tunable_ops.triton_kernels.choose_algorithm import choose_splits
from tunable_ops.triton_kernels.launch import Config, Geometry, cdiv, multiprocessors
from tunable_ops.triton_kernels.tunable_conv2d import alpha_parts, plan_tunable_conv2d_alpha
from tunable_ops.triton_kernels.tunable_conv2d_depthwise import plan_tunable_conv2d_depthwise
from tunable_ops.triton_kernels.tunable_conv2d_depthwise_weight import plan_tunable_conv2d_depthwise_weight
from tunable_ops.triton_kernels.tunable_conv2d_input import plan_input_gradient
from tunable_ops.triton_kernels.tunable_conv2d_weight import plan_tunable_conv2d_weight
from tunable_ops.triton_kernels.tunable_parameter import plan_tunable_parameter_sum

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def map_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    mask: Sequence[bool],
    configs: Sequence[Config] | None = None,
) -> Gradients:
    """Return the gradients of input, weight, bias and alpha [B, P, OH, OW] (contiguous); None where `mask` is False.

    `configs` overrides the rule, for the gradients of input, kernels and alpha.
    """
    on_input, on_weight, on_alpha = configs or (None, None, None)
    grad_input = grad_weight = grad_bias = grad_alpha = None
    if mask[0]:
        grad_input = torch.empty_like(input, memory_format=output_format(input, weight))
        _input_gradient(grad_output, weight, alpha, grad_input, geometry, groups, on_input)
    bias_wanted = mask[2] and bias is not None
    if mask[1] or bias_wanted:
        operands = (grad_output, input, weight, alpha, geometry, groups, on_weight)
        grad_weight, grad_bias = _weight_gradients(*operands, mask[1], bias if bias_wanted else None)
    if mask[3]:
        grad_alpha = _alpha_gradient(grad_output, input, weight, bias, alpha, geometry, groups, on_alpha)
    return grad_input, grad_weight, grad_bias, grad_alpha


def _input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    alpha: Tensor,
    grad_input: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config | None,
) -> None:
    kind = input_kind(weight, geometry, groups, grad_input, grad_output)
    kind = "dense" if kind == "pointwise" else kind
    if config is None:
        config = choose("input", kind, grad_output, weight, alpha, geometry, groups, grad_input).config
    operands = (grad_output, weight, alpha, grad_input, geometry, groups)
    for launch in plan_input_gradient(kind, *operands, config):
        launch.run()


def _weight_gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config | None,
    weight_wanted: bool,
    bias: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the weight, if it is wanted, and of the bias, if there is one."""
    kind, kernels, size = weight_kind(weight, groups), weight.shape[0], weight[0].numel()
    problem = make_problem("weight", kind, input, weight, alpha, geometry, groups, grad_output)
    if config is None:
        config = choose("weight", kind, input, weight, alpha, geometry, groups, grad_output).config
    limit = max(1, per_sample.CHUNK_BYTES // (4 * size * kernels))
    splits = choose_splits(problem, config, multiprocessors(input), limit)
    parts = torch.empty(kernels, splits, size, dtype=torch.float32, device=input.device)
    sums = None if bias is None else parts.new_empty(kernels, splits, bias.shape[1])
    laid = from_matrix(parts, weight)
    if kind == "depthwise":
        plan_tunable_conv2d_depthwise_weight(grad_output, input, laid, geometry, config, alpha, sums).run()
    else:
        plan_tunable_conv2d_weight(grad_output, input, laid, geometry, groups, config, alpha, sums).run()
    grad_weight = weight.new_empty(kernels, size) if weight_wanted else None
    grad_bias = None if bias is None else bias.new_empty(bias.shape)
    of_weight = parts.transpose(0, 1) if weight_wanted else None
    of_bias = None if sums is None else sums.transpose(0, 1)
    plan_tunable_parameter_sum(of_weight, grad_weight, of_bias, grad_bias, None, None).run()
    return None if grad_weight is None else from_matrix(grad_weight, weight), grad_bias


def _alpha_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    config: Config | None,
) -> Tensor:
    kind = weight_kind(weight, groups)
    if config is None:
        config = choose("alpha", kind, input, weight, alpha, geometry, groups, grad_output).config
    outputs = weight.shape[1]
    parts = cdiv(outputs, config.block_k) if kind == "depthwise" else alpha_parts(outputs, groups, config)
    partial = torch.empty(parts, *alpha.shape, dtype=torch.float32, device=input.device)
    operands = (input, weight, bias)
    if kind == "depthwise":
        step = partial.stride(0)
        plan_tunable_conv2d_depthwise(*operands, partial[0], grad_output, geometry, "none", config, part=step).run()
    else:
        plan_tunable_conv2d_alpha(*operands, grad_output, partial, geometry, groups, config).run()
    gradient = alpha.new_empty(alpha.shape)
    plan_tunable_parameter_sum(partial.view(parts, 1, -1), gradient.view(1, -1), None, None, None, None).run()
    return gradient
