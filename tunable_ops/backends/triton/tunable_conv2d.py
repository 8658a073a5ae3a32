"""tunable_conv2d on the Triton kernels, by one of five algorithms for each call and gradient.

fused    one kernel blends and convolves
premix   blend first, then the same kernel without a blend; it adds the bias
library  blend first, then PyTorch's convolution (shared alpha)
wgmma    the CUDA C++ kernel for compute capability 9.0, which blends once per block
torch    the torch backend
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends import wgmma
from tunable_ops.backends.torch import per_sample
from tunable_ops.backends.torch import tunable_conv2d as torch_backend
from tunable_ops.backends.torch.layout import as_matrix, from_matrix, kernels_are_channels_last, output_format
from tunable_ops.backends.torch.per_sample import chunks
from tunable_ops.backends.triton import plans
from tunable_ops.backends.triton.problem import choose, forward_kind, input_kind, make_problem, weight_kind
from tunable_ops.backends.triton.tunable_conv2d_map import map_backward
from tunable_ops.backends.triton.tunable_parameter import Contraction, blend
from tunable_ops.convolution import convolve, convolve_backward
from tunable_ops.geometry import output_size
from tunable_ops.reference.activation import activation_backward, apply_activation
from tunable_ops.triton_kernels import choose_algorithm as rule
from tunable_ops.triton_kernels.choose_algorithm import Choice, Problem, choose_splits, dtype_name
from tunable_ops.triton_kernels.launch import Config, Geometry, Launch, device_name, input_precision, multiprocessors
from tunable_ops.triton_kernels.tunable_conv2d import plan_tunable_conv2d_forward
from tunable_ops.triton_kernels.tunable_conv2d_depthwise import plan_tunable_conv2d_depthwise
from tunable_ops.triton_kernels.tunable_conv2d_depthwise_weight import plan_tunable_conv2d_depthwise_weight
from tunable_ops.triton_kernels.tunable_conv2d_input import plan_input_gradient
from tunable_ops.triton_kernels.tunable_conv2d_pointwise import plan_tunable_conv2d_pointwise
from tunable_ops.triton_kernels.tunable_conv2d_weight import plan_tunable_conv2d_weight

Pair = Sequence[int]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    choice: Choice | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    """Run the operator.

    For measurements and tests, `choice` overrides the rule. `pre`, with the layout of the output, receives the value
    before the activation.
    """
    options = (tuple(stride), tuple(padding), tuple(dilation), groups, activation)
    if choice is not None or pre is not None:
        return _forward(input, weight, bias, alpha, *options, choice, pre)
    (output,) = plans.run(_planned_forward, (input, weight, bias, alpha), options)
    assert output is not None
    return output


def find_plan(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any) -> plans.Plan | None:
    """Return the plan of such a call of `forward`, None if there is none yet."""
    return plans.find(_planned_forward, (input, weight, bias, alpha), options)


def _planned_forward(*arguments: Any) -> plans.Results:
    return (_forward(*arguments),)


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    choice: Choice | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation))  # type: ignore[arg-type]
    memory_format = output_format(input, weight)
    output = empty_output(input, weight, (stride, padding, dilation))
    if output.numel() == 0:
        return output
    bias = bias if bias is None or bias.stride(1) == 1 else bias.contiguous()
    if alpha.dim() == 4:
        alpha = alpha.contiguous()
    kind = forward_kind(weight, geometry, groups, input, output)
    if choice is None:
        inner = activation if pre is None else "none"
        choice = choose("forward", kind, input, weight, alpha, geometry, groups, output, activation=inner)
    if choice.algorithm == "wgmma":
        if pre is None:
            return wgmma.forward(input, weight, bias, alpha, geometry, activation)
        pre.copy_(wgmma.forward(input, weight, bias, alpha, geometry, "none"))
        return apply_activation(pre, activation)
    blended = choice.algorithm in ("premix", "library")
    if choice.algorithm == "torch" or (blended and alpha.dim() == 4):
        options = (stride, padding, dilation, groups)
        if pre is None:
            return torch_backend.forward(input, weight, bias, alpha, *options, activation)
        pre.copy_(torch_backend.forward(input, weight, bias, alpha, *options, "none"))
        return apply_activation(pre, activation)
    if choice.algorithm == "library" and alpha.dim() == 1:
        kernel, shift = blend(weight, bias, alpha)
        result = convolve(input, kernel, shift, geometry[0], geometry[1], geometry[2], groups)
        if pre is not None:
            pre.copy_(result)
        return apply_activation(result, activation).contiguous(memory_format=memory_format)
    if choice.algorithm == "fused":
        plan_forward(kind, input, weight, bias, alpha, output, geometry, groups, activation, choice.config, pre).run()
        return output
    for rows, alphas in _parts(weight, alpha, input.shape[0]):
        kernel, shift = blend(weight, bias, alphas)
        part = (input[rows], kernel, shift, None, output[rows])
        before = None if pre is None else pre[rows]
        plan_forward(kind, *part, geometry, groups, activation, choice.config, before).run()
    return output


def forward_saving(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    choice: Choice | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output and the value before the activation; the arguments are those of `forward`."""
    options = (tuple(stride), tuple(padding), tuple(dilation), groups, activation)
    output, pre = plans.run(_saving, (input, weight, bias, alpha), (*options, choice))
    assert output is not None and pre is not None
    return output, pre


def _saving(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    choice: Choice | None,
) -> plans.Results:
    pre = empty_output(input, weight, (stride, padding, dilation))
    options = (stride, padding, dilation, groups, activation)
    return _forward(input, weight, bias, alpha, *options, choice, pre), pre


def empty_output(input: Tensor, weight: Tensor, geometry: Sequence[Pair]) -> Tensor:
    """Return the output's memory, in the operator's format; `geometry` is stride, padding and dilation."""
    shape = (input.shape[0], weight.shape[1], *output_size(input.shape[2:], weight.shape[3:], *geometry))
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=output_format(input, weight))


def backward(
    grad_output: Tensor,
    saved: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    mask: Sequence[bool],
    choices: tuple[Choice, Choice] | None = None,
) -> Gradients:
    """Return the gradients of input, weight, bias and alpha; None where `mask` is False.

    `choices` overrides the rule, for the gradients of the input and of the kernels.
    """
    options = (tuple(stride), tuple(padding), tuple(dilation), groups, activation, tuple(mask))
    tensors = (grad_output, saved, input, weight, bias, alpha)
    if choices is not None:
        return _backward(*tensors, *options, choices)
    return plans.run(_backward, tensors, (*options, None, per_sample.CHUNK_BYTES))  # type: ignore[return-value]


def _backward(
    grad_output: Tensor,
    saved: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    mask: Sequence[bool],
    choices: tuple[Choice, Choice] | None,
    *key: Any,  # what else tells its plan apart
) -> Gradients:
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation))  # type: ignore[arg-type]
    rest = (stride, padding, dilation, groups, activation, mask)
    if grad_output.numel() == 0:
        return torch_backend.backward(grad_output, saved, input, weight, bias, alpha, *rest)
    kinds = input_kind(weight, geometry, groups, input, grad_output), weight_kind(weight, groups)
    on_input, on_weight = choices or (
        choose("input", kinds[0], grad_output, weight, alpha, geometry, groups, input),
        choose("weight", kinds[1], input, weight, alpha, geometry, groups, grad_output),
    )
    if "torch" in (on_input.algorithm, on_weight.algorithm):
        return torch_backend.backward(grad_output, saved, input, weight, bias, alpha, *rest)
    if saved is not None:
        grad_output = activation_backward(grad_output, saved, activation)
    if alpha.dim() == 4:
        configs = None if choices is None else (choices[0].config, choices[1].config, choices[0].config)
        return map_backward(grad_output, input, weight, bias, alpha.contiguous(), geometry, groups, mask, configs)
    wants_kernels = mask[1] or mask[3]
    grad_input = gradient = None
    if alpha.dim() == 1:  # one call of PyTorch's backward for both gradients, where they are premixed
        wanted = [
            mask[0] and on_input.algorithm == "library",
            wants_kernels and on_weight.algorithm == "library",
            False,
        ]
        if any(wanted):
            grad_output = grad_output.contiguous(memory_format=output_format(input, weight))
            kernel = blend(weight, None, alpha)[0] if wanted[0] else weight[0]
            grad_input, gradient, _ = convolve_backward(grad_output, input, kernel, geometry[:3], groups, wanted)
    if mask[0] and on_input.algorithm == "wgmma":
        grad_input = wgmma.input_gradient(grad_output, input, weight, alpha, geometry)
    elif mask[0] and grad_input is None:
        grad_input = torch.empty_like(input, memory_format=output_format(input, weight))
        _input_gradient(grad_output, weight, alpha, grad_input, geometry, groups, on_input)
    if grad_input is not None:
        grad_input = grad_input.contiguous(memory_format=output_format(input, weight))
    operands = (grad_output, input, weight, bias, alpha, geometry, groups)
    return grad_input, *_kernel_gradients(*operands, on_weight, gradient, mask)


def _input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    alpha: Tensor,
    grad_input: Tensor,
    geometry: Geometry,
    groups: int,
    choice: Choice,
) -> None:
    """Write grad_input: the forward operator on grad_output with the kernel flipped and transposed."""
    kind = input_kind(weight, geometry, groups, grad_input, grad_output)

    def run(grad: Tensor, kernels: Tensor, weights: Tensor | None, result: Tensor) -> None:
        for launch in plan_input_gradient(kind, grad, kernels, weights, result, geometry, groups, choice.config):
            launch.run()

    if choice.algorithm == "fused":
        run(grad_output, weight, alpha, grad_input)
        return
    for rows, alphas in _parts(weight, alpha, grad_output.shape[0]):
        run(grad_output[rows], blend(weight, None, alphas)[0], None, grad_input[rows])


def _parts(weight: Tensor, alpha: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the samples whose kernels are blended at a time, with the rows [1 or n, P] of their alpha."""
    if alpha.dim() == 1:
        yield slice(None), alpha[None]
        return
    for rows in chunks(weight, batch, weight.element_size()):
        yield rows, alpha[rows]


def _kernel_gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    geometry: Geometry,
    groups: int,
    choice: Choice,
    gradient: Tensor | None,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of weight, bias and alpha; `gradient` is G of a shared alpha if already computed.

    G is made in fp32 as parts to be summed, for as many samples as `CHUNK_BYTES` holds at a time; that of the bias in
    the same launch.
    """
    shared = alpha.dim() == 1
    rows = alpha[None] if shared else alpha
    if not (mask[2] or mask[3]):
        bias = None
    if not (mask[1] or mask[3]):
        if bias is None:
            return None, None, None
        contraction = Contraction(bias, None, rows, (True, False, False))
        contraction.add(slice(None), _sum_pixels(grad_output, shared), None)
        return None, contraction.result()[0], None
    parts = [slice(0, 1)] if shared else list(chunks(weight, input.shape[0]))
    kind, size, most = weight_kind(weight, groups), weight[0].numel(), parts[0].stop
    splits = 1
    if gradient is None:
        problem = make_problem("weight", kind, input, weight, alpha, geometry, groups, grad_output)
        limit = max(1, per_sample.CHUNK_BYTES // (4 * size * most))
        splits = choose_splits(problem, choice.config, multiprocessors(input), limit)
    contraction = Contraction(weight, bias, rows, mask[1:], splits, most)
    for part in parts:
        if gradient is None:
            samples, count = (slice(None) if shared else part), part.stop - part.start
            options: dict[str, Any] = {"dtype": torch.float32, "device": input.device}
            made = torch.empty(count, splits, size, **options)
            sums = None if bias is None else torch.empty(count, splits, weight.shape[1], **options)
            operands = (grad_output[samples], input[samples], from_matrix(made, weight), geometry)
            if kind == "depthwise":
                plan_tunable_conv2d_depthwise_weight(*operands, choice.config, shift=sums).run()
            else:
                plan_tunable_conv2d_weight(*operands, groups, choice.config, shift=sums).run()
        else:  # PyTorch's, whose bias has a pass of its own too
            made = as_matrix(gradient[None], like=weight)
            sums = None if bias is None else _sum_pixels(grad_output, shared)
        contraction.add(part, made.view(-1, size), None if sums is None else sums.view(-1, weight.shape[1]))
    grad_weight, grad_bias, grad_alpha = contraction.result()
    return grad_weight, grad_bias, None if grad_alpha is None else grad_alpha.view(alpha.shape)


def _sum_pixels(grad_output: Tensor, shared: bool) -> Tensor:
    """Return the sums of grad_output over pixels, and with a shared alpha over samples, in fp32: [1 or B, O]."""
    sums = grad_output.sum((0, 2, 3) if shared else (2, 3), dtype=torch.float32)
    return sums.view(-1, grad_output.shape[1])


def plan_forward(
    kind: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    output: Tensor,
    geometry: Geometry,
    groups: int,
    activation: str,
    config: Config,
    pre: Tensor | None,
) -> Launch:
    """Return the launch of a kind of kernel; without alpha `weight` is [1 or B, O, C/groups, kh, kw]."""
    tensors = (input, weight, bias, alpha, output)
    if kind == "depthwise":
        return plan_tunable_conv2d_depthwise(*tensors, geometry, activation, config, pre=pre)
    if kind == "pointwise":
        return plan_tunable_conv2d_pointwise(*tensors, groups, activation, config, pre=pre)
    return plan_tunable_conv2d_forward(*tensors, geometry, groups, activation, config, pre)


def blends_first(weight: Tensor, kernels: int, dtype: torch.dtype, stride: tuple[int, int], groups: int) -> bool:
    """Return True if a layer is faster with the whole network blended first than with one of these kernels."""
    _, outputs, inputs, kh, kw = weight.shape
    kind = "dense"
    if inputs == 1 and groups > 1:
        kind = "depthwise"
    elif (kh, kw) == stride == (1, 1):
        kind = "pointwise"
    layout = "nhwc" if kernels_are_channels_last(weight) else "nchw"
    name = dtype_name(dtype, input_precision(dtype))
    sizes = (1, kernels, inputs, outputs // groups, groups)
    problem = Problem("forward", kind, "shared", name, layout, *sizes, (kh, kw), stride, (1, 1))
    return rule.blends_first(problem, device_name(weight))
