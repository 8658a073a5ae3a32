"""tunable_conv2d: the Python wrapper, and the operators of its backends."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import backends, checks, reference
from tunable_ops.backends.torch import layout
from tunable_ops.backends.triton import plans, shortcuts
from tunable_ops.geometry import output_size
from tunable_ops.ops import graph_form, registration
from tunable_ops.reference.activation import TABLE

NAME = "tunable_conv2d"


def tunable_conv2d(
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
    """Blend P kernels and convolve.

    Formula: ``y[b] = act(conv2d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``. With a map the blend
    differs from pixel to pixel: ``y[b] = act(sum_p alpha[b,p] * (conv2d(x[b], weight[p]) + bias[p]))``. The blend
    accumulates in fp32 and rounds once to the compute dtype; so does the convolution. Differentiable in input, weight,
    bias and alpha, to any order in eager mode and once under torch.compile.

    Args:
        input: [B, C, H, W] (contiguous or channels_last; the output keeps the format), or [C, H, W] with alpha [P].
        weight: [P, O, C/groups, kh, kw].
        bias: [P, O] or None.
        alpha: [P], one blend for the batch; [B, P], one per sample ([1, P] broadcasts); or [B, P, OH, OW], a map.
        stride: Pixels; int or pair.
        padding: Pixels; int or pair, "same" (stride 1) or "valid".
        dilation: Pixels; int or pair.
        groups: Blocked connections from inputs to outputs.
        activation: None, "relu", "gelu" (erf form), "silu" or "leaky_relu" (slope 0.01).
        backend: None for the fastest that can serve the call, or "torch", "reference", "cpp", "triton", "cuda".

    Returns:
        [B, O, OH, OW] or [O, OH, OW], of the input's dtype.

    Dtypes: float32, float16, bfloat16 or float64, the same for input, weight and bias; alpha may also be float32.
    Autocast casts input, weight and bias, but never alpha.

    Raises:
        TypeError: An argument is not a tensor or has another dtype.
        ValueError: Ranks, sizes, devices or options do not fit, or the backend is unknown.
        RuntimeError: The backend cannot run here.

    Source: Maggioni et al., "Tunable Convolutions with Parametric Multi-Loss Optimization", CVPR 2023.

    Example:
        >>> x, weight = torch.ones(1, 1, 2, 2), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
        >>> tunable_conv2d(x, weight, None, torch.tensor([0.5, 0.5])).flatten()
        tensor([2., 2., 2., 2.])
    """
    tensors = (input, weight, bias, alpha)
    options: tuple[Any, ...] = (stride, padding, dilation, groups, activation)
    key = shortcuts.key_of(NAME, tensors, (*options, backend)) if shortcuts.serves(input) else None
    if key is not None:
        served = shortcuts.find(key)
        if served is not None:
            if served.in_cpp:
                planned: Tensor = _OPERATORS["triton"].forward.op(*tensors, *served.options)
                return planned
            if registration.wants_gradient(tensors):
                return _differentiable(served, tensors)
            if served.plan is not None:
                return _planned(served, tensors)
    call = checks.check_convolution(NAME, 2, *tensors, *options)
    output = run_checked(NAME, *tensors, call, groups, backend)
    if key is not None and (served := _served(tensors, call, groups, backend)) is not None:
        shortcuts.remember(key, served)
    return output


def run_checked(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    call: checks.Convolution,
    groups: int,
    backend: str | None,
) -> Tensor:
    """Choose a backend for a call of `op` that has passed `checks.check_convolution`, and run it."""
    stride, padding, end_padding, dilation, activation, batched = call
    if not batched:
        input = input[None]
    if end_padding:
        input = F.pad(input, (0, end_padding[1], 0, end_padding[0]))
    transformed = checks.is_transformed()
    # The default looks at memory formats, which tensors under vmap do not tell.
    chosen = "reference" if transformed and backend is None else backends.select(op, backend, input, weight, alpha)
    if chosen == "torch" and backend is None and backends.cpp.is_fastest_contiguous(input, weight, alpha, call):
        chosen = "cpp"
    if alpha.dim() == 2 and checks.is_one(alpha.shape[0]):
        alpha = alpha[0]
    tensors = (input, weight, bias, alpha)
    if chosen == "reference" or transformed:
        options = (stride, padding, dilation, groups, TABLE[activation].name)
        output = registration.run_composite(reference.tunable_conv2d, tensors, 3, *options)
    else:
        output = _OPERATORS[chosen].forward(tensors, *stride, *padding, *dilation, groups, activation)
    return output if batched else output[0]


class _Served(NamedTuple):
    """A valid call that the Triton kernels serve: the operator's options, and who has its plan.

    Attributes:
        options: The operator's.
        plan: Its plan if it has one.
        in_cpp: True if C++ looks for the plan.
    """

    options: tuple[int, ...]
    plan: Any
    in_cpp: bool


def _served(tensors: tuple[Any, ...], call: checks.Convolution, groups: int, backend: str | None) -> _Served | None:
    """Return how calls like this one can be served from now on; None where not in that way."""
    input, weight, _, alpha = tensors
    if call.end_padding or not call.batched or (alpha.dim() == 2 and checks.is_one(alpha.shape[0])):
        return None
    if backends.select(NAME, backend, input, weight, alpha) != "triton":
        return None
    options = (*call.stride, *call.padding, *call.dilation, groups, call.activation)
    plan = backends.implementation("triton", NAME).find_plan(*tensors, *_unpack(options))
    return _Served(options, plan, _OPERATORS["triton"].forward.is_served(input))


def _planned(served: _Served, tensors: tuple[Any, ...]) -> Tensor:
    try:
        with torch._C._AutoDispatchBelowADInplaceOrView():  # as in `Operator.run`
            output: Tensor = served.plan.run(tensors)[0]
    except plans.OtherStrides:
        shortcuts.forget()
        output = _OPERATORS["triton"].forward(tensors, *served.options)
    return output


def _differentiable(served: _Served, tensors: tuple[Any, ...]) -> Tensor:
    output: Tensor = _TunableConv2d.apply(_OPERATORS["triton"], *tensors, served.options)
    return output


def blends_first(weight: Tensor, kernels: int, dtype: torch.dtype, stride: tuple[int, int], groups: int) -> bool:
    """Return True if blending the whole network first, then PyTorch's convolution, beats the fused kernel.

    Args:
        weight: [any, O, C/groups, kh, kw].
        kernels: P; alpha is shared by the batch.
        dtype: Compute dtype of the layer.
        stride: Pixels.
        groups: As in `tunable_conv2d`.
    """
    if not backends.triton.is_fastest(NAME, weight):  # measured on CPUs: docs/network_blend.md
        return True
    chosen: bool = backends.implementation("triton", NAME).blends_first(weight, kernels, dtype, stride, groups)
    return chosen


def _unpack(options: Sequence[Any]) -> tuple[Any, ...]:
    """Return stride, padding, dilation, groups and the activation's name: the arguments of the Python backends."""
    *sizes, groups, activation = options
    return (*zip(sizes[::2], sizes[1::2], strict=True), groups, TABLE[activation].name)


def _forward_kernel(backend: str, *args: Any) -> Tensor:
    return backends.implementation(backend, NAME).forward(*args[:4], *_unpack(args[4:]))


def _saving_kernel(backend: str, *args: Any) -> tuple[Tensor, Tensor]:
    output, saved = backends.implementation(backend, NAME).forward_saving(*args[:4], *_unpack(args[4:]))
    return output, saved


def _backward_kernel(backend: str, grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *options, mask = args[5:]
    grads = backends.implementation(backend, NAME).backward(grad_output, *args[:5], *_unpack(options), mask)
    return tuple(grad_output.new_empty(0) if g is None else g for g in grads)


def _forward_fake(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any) -> Tensor:
    stride, padding, dilation = (options[i : i + 2] for i in (0, 2, 4))
    size = output_size(input.shape[2:], weight.shape[3:], stride, padding, dilation)
    output = input.new_empty(input.shape[0], weight.shape[1], *size)
    return output.to(memory_format=layout.output_format(input, weight))


def _saving_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return _forward_fake(*args), _forward_fake(*args)


def _backward_fake(
    grad_output: Tensor,
    saved: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    mask = options[-1]
    empty = grad_output.new_empty(0)
    return (
        torch.empty_like(input, memory_format=layout.output_format(input, weight)) if mask[0] else empty,
        layout.empty_stack_like(weight) if mask[1] else empty.clone(),
        bias.new_empty(bias.shape) if mask[2] and bias is not None else empty.clone(),
        alpha.new_empty(alpha.shape) if mask[3] else empty.clone(),
    )


class _TunableConv2d(torch.autograd.Function):
    """The backward pass calls the backward operator, whose own gradient (create_graph) is that of the definition."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: "_Operators",
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        alpha: Tensor,
        options: tuple[int, ...],
    ) -> Tensor:
        activation = options[-1]
        if TABLE[activation].saves_output:
            output = saved = ops.forward.run(input, weight, bias, alpha, *options)
        elif ops.saving is not None:
            output, saved = ops.saving.run(input, weight, bias, alpha, *options)
        else:
            saved = ops.forward.run(input, weight, bias, alpha, *options[:-1], 0)
            output = TABLE[activation].forward(saved)
        ctx.save_for_backward(input, weight, bias, alpha, saved if activation else None)
        ctx.ops, ctx.options = ops, options
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        input, weight, bias, alpha, saved = ctx.saved_tensors
        _, *needed, _ = ctx.needs_input_grad
        op = ctx.ops.backward
        # The Autograd key records for create_graph; compiled autograd traces the operator, not a kernel.
        call = op.op if torch.is_grad_enabled() or torch.compiler.is_compiling() else op.run
        grads = call(grad_output, saved, input, weight, bias, alpha, *ctx.options, needed)
        return (None, *(g if n else None for g, n in zip(grads, needed, strict=True)), None)


def _differentiable_backward(grad_output: Tensor, saved: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *options, mask = args[4:]

    def definition(*tensors: Any) -> Tensor:
        return reference.tunable_conv2d(*tensors, *_unpack(options))

    return registration.composite_gradients(definition, grad_output, args[:4], mask)


class _Operators(NamedTuple):
    """Operators of one backend."""

    forward: registration.Operator
    saving: registration.Operator | None  # also returns the value before the activation
    backward: registration.Operator


_TENSORS = "Tensor input, Tensor weight, Tensor? bias, Tensor alpha"
_GEOMETRY = (
    "SymInt stride_h, SymInt stride_w, SymInt padding_h, SymInt padding_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups"
)
_OPTIONS = f"{_GEOMETRY}, int activation"  # a code of reference/activation.py
SCHEMA = (f"{_TENSORS}, {_OPTIONS}", "Tensor")
# `saved` is the output (relu, leaky_relu), the value before the activation (gelu, silu) or None (no activation).
BACKWARD_SCHEMA = (
    f"Tensor grad_output, Tensor? saved, {_TENSORS}, {_OPTIONS}, bool[4] mask",
    "(Tensor, Tensor, Tensor, Tensor)",
)


def _define(backend: str) -> _Operators:
    name = f"{NAME}_{backend}"
    in_python = backend in backends.IN_PYTHON
    kernel = partial(_forward_kernel, backend) if in_python else None
    backward_kernel = partial(_backward_kernel, backend) if in_python else None
    saving = None
    if backend == "triton":
        schema = (f"{name}_saving", SCHEMA[0], "(Tensor, Tensor)")
        saving = registration.Operator(*schema, partial(_saving_kernel, backend), _saving_fake)
    ops = _Operators(
        registration.Operator(name, *SCHEMA, kernel, _forward_fake),
        saving,
        registration.Operator(f"{name}_backward", *BACKWARD_SCHEMA, backward_kernel, _backward_fake),
    )

    def differentiable(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: int) -> Tensor:
        output: Tensor = _TunableConv2d.apply(ops, input, weight, bias, alpha, options)
        return output

    ops.forward.register_autograd(differentiable, tensors=4)
    ops.forward.register_autocast(cast=(0, 1, 2))
    ops.forward.register_graph_form(graph_form.tunable_conv2d)
    ops.backward.register_autograd(_differentiable_backward, tensors=6)
    ops.backward.register_autocast()
    if saving is not None:
        ops.forward.register_unplanned()
        saving.register_unplanned()
        ops.backward.register_unplanned(_differentiable_backward)
    return ops


_OPERATORS = {backend: _define(backend) for backend in ("torch", "cpp", "triton", "cuda")}
# The wgmma kernel: an algorithm of the Triton backend, not differentiable by itself.
registration.Operator(f"{NAME}_wgmma", *SCHEMA, None, _forward_fake)
registration.Operator(
    f"{NAME}_wgmma_input",
    f"Tensor grad_output, Tensor input, Tensor weight, Tensor alpha, {_GEOMETRY}",
    "Tensor",
    None,
    lambda grad_output, input, weight, *rest: torch.empty_like(
        input, memory_format=layout.output_format(input, weight)
    ),
)
registration.Operator(
    f"{NAME}_wgmma_prepare",
    f"Tensor input, Tensor weight, Tensor alpha, {_GEOMETRY}, int activation, bool gradient",
    "bool",
    None,
    lambda *args: False,
)
# The CUDA operators ask in every fp32 call, so that compiled and exported programs follow the current setting too.
registration.Operator(
    f"{NAME}_tf32",
    "Tensor input",
    "bool",
    lambda input: torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
    lambda input: False,
)
