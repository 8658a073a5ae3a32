"""tunable_conv2d: the Python wrapper and the registered operator behind it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import backends, checks, reference
from tunable_ops.backends import cpp, cuda
from tunable_ops.backends.torch import layout
from tunable_ops.backends.torch import tunable_conv2d as torch_backend
from tunable_ops.ops import direct, registration
from tunable_ops.reference.activation import SAVES_OUTPUT

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
    """Blends P kernels and convolves.

    Formula: ``y[b] = act(conv2d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p]))``. With a map the blend
    differs from pixel to pixel: ``y[b] = act(sum_p alpha[b,p] * (conv2d(x[b], weight[p]) + bias[p]))``. The blend
    accumulates in fp32 and rounds once to the compute dtype; so does the convolution. Gradients of input, weight,
    bias and alpha, to any order in eager mode (first order under torch.compile).

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

    dtypes: float32, float16, bfloat16, float64; input, weight and bias share one, alpha has it or float32. Under
    autocast input, weight and bias are cast to its dtype; alpha never is.

    Raises:
        TypeError: Not tensors, or dtypes other than these.
        ValueError: Ranks, sizes, devices or options that do not fit; an unknown backend.
        RuntimeError: A backend that cannot run here.

    Source: Maggioni et al., "Tunable Convolutions with Parametric Multi-Loss Optimization", CVPR 2023.

    Example:
        >>> x, weight = torch.ones(1, 1, 2, 2), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
        >>> tunable_conv2d(x, weight, None, torch.tensor([0.5, 0.5])).flatten()
        tensor([2., 2., 2., 2.])
    """
    quick = direct.tunable_conv2d(input, weight, bias, alpha, stride, padding, dilation, groups, activation, backend)
    if quick is not None:
        return quick
    call = _key(input, weight, bias, alpha, stride, padding, dilation, groups, activation, backend)
    if call is not None and (options := _CHECKED.get(call)) is not None:
        return registration.call(_forward_op, (input, weight, bias, alpha), *options)
    checks.check_tensors(NAME, input, weight, bias, alpha)
    checks.check_kernels(NAME, input, weight, bias, groups, ndim=2)
    stride = checks.to_ints(NAME, "stride", stride, 2, 1)
    dilation = checks.to_ints(NAME, "dilation", dilation, 2, 1)
    taps = weight.shape[3:]
    padding, extra = checks.resolve_padding(NAME, padding, taps, stride, dilation)
    if any(extra):
        input = F.pad(input, (0, extra[1], 0, extra[0]))
    size = checks.conv_output_size(NAME, input.shape[-2:], taps, stride, padding, dilation)
    batched = input.dim() == 4
    checks.check_alpha(NAME, alpha, weight.shape[0], input.shape[0] if batched else None, size)
    name = checks.check_activation(NAME, activation)
    if not batched:
        input = input[None]
    chosen = backends.select(NAME, backend, input, weight, bias, alpha)
    single = alpha.dim() == 2 and alpha.shape[0] == 1
    if single:
        alpha = alpha[0]
    if chosen == "reference" or registration.needs_composite():
        options = (stride, padding, dilation, groups, name)
        output = registration.run_composite(reference.tunable_conv2d, (input, weight, bias, alpha), 3, *options)
    else:
        options = (stride, padding, dilation, groups, name, chosen)
        # A remembered call hands its tensors to the operator as they are.
        if call is not None and batched and not single and not any(extra):
            if len(_CHECKED) >= _CHECKED_LIMIT:
                _CHECKED.clear()
            _CHECKED[call] = options
        output = registration.call(_forward_op, (input, weight, bias, alpha), *options)
    return output if batched else output[0]


# Calls that have passed the checks, with the operator's options: reading fifteen properties is faster than checking
# them, which after a convolution (whose tensors fill the caches) takes a tenth of a millisecond.
_CHECKED: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_CHECKED_LIMIT = 4096
_TYPES = (Tensor, torch.nn.Parameter)


def _key(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any) -> tuple[Any, ...] | None:
    """All that checks and choice depend on; None inside transforms, autocast and torch.compile, or for subclasses."""
    if torch.compiler.is_compiling() or registration.needs_composite():
        return None
    if type(input) not in _TYPES or type(weight) not in _TYPES or type(alpha) not in _TYPES:
        return None
    if (bias is not None and type(bias) not in _TYPES) or checks.autocast_is_on(input.device.type):
        return None
    for value in options:  # equal keys must pass equally: True and 1.0 equal 1, and no check lets them pass
        if type(value) is tuple:
            if any(type(v) is not int for v in value):
                return None
        elif type(value) is not int and type(value) is not str and value is not None:
            return None
    last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
    shift = None if bias is None else (bias.shape, bias.dtype, bias.device)
    tensors = (input.dtype, weight.dtype, alpha.dtype, input.device, weight.device, alpha.device)
    return (input.shape, weight.shape, shift, alpha.shape, tensors, last, *options)


def blends_first(weight: Tensor, kernels: int, dtype: torch.dtype, stride: tuple[int, int], groups: int) -> bool:
    """Whether a layer with one alpha is faster as torch's own with a kernel from the blend of its whole network.

    Args:
        weight: [any, O, C/groups, kh, kw].
        kernels: P.
        dtype: What the layer computes in.
        stride: Pixels.
        groups: Of the convolution.
    """
    if backends.select(NAME, None, weight) != "triton":  # measured on a CPU: docs/network_blend.md
        return True
    chosen: bool = backends.implementation("triton", NAME).blends_first(weight, kernels, dtype, stride, groups)
    return chosen


def _kernel(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any) -> Tensor:
    return _implementation(options[-1]).forward(input, weight, bias, alpha, *options[:-1])


def _implementation(backend: str) -> Any:
    return torch_backend if backend == "torch" else backends.implementation(backend, NAME)


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    backend: str,
) -> Tensor:
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(input.shape[2:], weight.shape[3:], stride, padding, dilation, strict=True)
    ]
    output = input.new_empty(input.shape[0], weight.shape[1], *size)
    return output.to(memory_format=layout.output_format(input, weight))


def _saving_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    output, saved = _implementation(args[-1]).forward_saving(*args[:-1])
    return output, saved


def _saving_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return _fake(*args), _fake(*args)


def _backward_kernel(
    grad_output: Tensor,
    saved: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    *options_without_backend, backend, mask = options
    grads = _implementation(backend).backward(
        grad_output, saved, input, weight, bias, alpha, *options_without_backend, mask
    )
    return tuple(grad_output.new_empty(0) if g is None else g for g in grads)


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
    return (
        torch.empty_like(input, memory_format=layout.output_format(input, weight))
        if mask[0]
        else grad_output.new_empty(0),
        layout.empty_stack_like(weight) if mask[1] else grad_output.new_empty(0),
        bias.new_empty(bias.shape) if mask[2] and bias is not None else grad_output.new_empty(0),
        alpha.new_empty(alpha.shape) if mask[3] else grad_output.new_empty(0),
    )


_OPTIONS = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, str activation, str backend"
_TENSORS = "Tensor input, Tensor weight, Tensor? bias, Tensor alpha"
_forward_op = registration.define(NAME, f"{_TENSORS}, {_OPTIONS}", "Tensor", _kernel, _fake)
# The output and the value before the activation, from one pass, for the backends that can.
_saving_op = registration.define(
    f"{NAME}_saving", f"{_TENSORS}, {_OPTIONS}", "(Tensor, Tensor)", _saving_kernel, _saving_fake
)
# `saved` is the output (relu, leaky_relu), the value before the activation (gelu, silu) or None (no activation).
_backward_op = registration.define(
    f"{NAME}_backward",
    f"Tensor grad_output, Tensor? saved, {_TENSORS}, {_OPTIONS}, bool[4] mask",
    "(Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)


class _TunableConv2d(torch.autograd.Function):
    """First order runs the backward operator; under create_graph that operator differentiates the definition."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *options: Any) -> Tensor:
        *geometry, activation, backend = options
        tensors = (input, weight, bias, alpha)
        if activation == "none" or activation in SAVES_OUTPUT:
            output = saved = registration.below_autograd(_forward_op, *tensors, *options)
        elif backend == "triton":
            output, saved = registration.below_autograd(_saving_op, *tensors, *options)
        else:
            saved = registration.below_autograd(_forward_op, *tensors, *geometry, "none", backend)
            output = reference.apply_activation(saved, activation)
        ctx.save_for_backward(*tensors, None if activation == "none" else saved)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        *tensors, saved = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:4])
        grads = _backward_op(grad_output, saved, *tensors, *ctx.options, mask)
        return (*(g if m else None for g, m in zip(grads, mask, strict=True)), *(None for _ in ctx.options))


def _differentiable_backward(
    grad_output: Tensor,
    saved: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    *definition_options, _, mask = options

    def definition(*tensors: Any) -> Tensor:
        return reference.tunable_conv2d(*tensors, *definition_options)

    return registration.composite_gradients(definition, grad_output, (input, weight, bias, alpha), mask)


# Where C++ implements the operators, calls for another backend reach PyTorch's own through these.
registration.define(f"{NAME}_library", f"{_TENSORS}, {_OPTIONS}", "Tensor", _kernel, _fake)
registration.define(
    f"{NAME}_backward_library",
    f"Tensor grad_output, Tensor? saved, {_TENSORS}, {_OPTIONS}, bool[4] mask",
    "(Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
# The CUDA operators ask at every fp32 call: compiled and exported programs follow the setting of the day too.
registration.define(
    f"{NAME}_tf32",
    "Tensor input",
    "bool",
    lambda input: torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
    lambda input: False,
)
registration.define_autograd(_forward_op, _TunableConv2d.apply, tensors=4)
registration.define_autograd(_backward_op, _differentiable_backward, tensors=6)
registration.define_autocast(_forward_op, cast=(0, 1, 2))
registration.define_autocast(_backward_op, cast=())
cpp.load()
cuda.load()
