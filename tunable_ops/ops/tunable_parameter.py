"""tunable_parameter: the blend as an operator of its own, and the first half of the operators that premix."""

from typing import Any

import torch
from torch import Tensor

from tunable_ops import backends, checks, reference
from tunable_ops.backends.torch import layout
from tunable_ops.backends.torch import tunable_parameter as torch_backend
from tunable_ops.ops import registration

NAME = "tunable_parameter"


def tunable_parameter(parameter: Tensor, alpha: Tensor, *, backend: str | None = None) -> Tensor:
    """Blends P copies of any tensor: residual scales, position tables.

    Formula: ``y = sum_p alpha[p] * parameter[p]``, or ``y[b] = sum_p alpha[b,p] * parameter[p]``; accumulated in fp32
    (fp64 for fp64) and rounded once. Differentiable to any order in eager mode.

    Args:
        parameter: [P, *shape], float32, float16, bfloat16 or float64.
        alpha: [P] or [B, P], of the parameter's dtype or float32.
        backend: None for the fastest that can serve the call, or "torch", "reference", "triton".

    Returns:
        [*shape] or [B, *shape], of the parameter's dtype (autocast casts neither).

    Raises:
        TypeError: Not tensors, or dtypes other than these.
        ValueError: Ranks, sizes or devices that do not fit, or an unknown backend.
        RuntimeError: A backend that cannot run here.

    Example:
        >>> scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> tunable_parameter(scale, torch.tensor([0.5, 0.5]))
        tensor([2., 3.])
    """
    _check(parameter, alpha)
    chosen = backends.select(NAME, backend, parameter)
    if chosen == "reference" or registration.needs_composite():
        return registration.run_composite(reference.tunable_parameter, (parameter, alpha), 0)
    return _forward_op(parameter, alpha, chosen)


def _check(parameter: Tensor, alpha: Tensor) -> None:
    for name, tensor in (("parameter", parameter), ("alpha", alpha)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{NAME}: {name} must be a Tensor; got {type(tensor).__name__}")
        if tensor.dtype not in checks.FLOATS:
            raise TypeError(f"{NAME}: {name} must be float32, float16, bfloat16 or float64; got {tensor.dtype}")
    if alpha.device != parameter.device:
        raise ValueError(f"{NAME}: alpha must be on the parameter's device, {parameter.device}; got {alpha.device}")
    if alpha.dtype not in (parameter.dtype, torch.float32):
        raise TypeError(
            f"{NAME}: alpha must be float32 or have the parameter's dtype, {parameter.dtype}; got {alpha.dtype}"
        )
    if parameter.dim() < 1 or parameter.shape[0] < 1:
        raise ValueError(f"{NAME}: parameter must be [P, *shape], P >= 1; got shape {checks.shape_of(parameter)}")
    if alpha.dim() not in (1, 2) or alpha.shape[-1] != parameter.shape[0]:
        raise ValueError(
            f"{NAME}: alpha must be [P] or [B, P] with P = {parameter.shape[0]}, as the parameter has it; got shape "
            f"{checks.shape_of(alpha)}"
        )


def _kernel(parameter: Tensor, alpha: Tensor, backend: str) -> Tensor:
    return _implementation(backend).forward(parameter, alpha)


def _implementation(backend: str) -> Any:
    return torch_backend if backend == "torch" else backends.implementation(backend, NAME)


def _fake(parameter: Tensor, alpha: Tensor, backend: str) -> Tensor:
    rows = alpha.shape[:-1]
    return layout.from_matrix(parameter.new_empty(*rows, parameter.shape[1:].numel()), parameter)


def _backward_kernel(grad_output: Tensor, parameter: Tensor, alpha: Tensor, backend: str, mask: list[bool]) -> Any:
    grads = _implementation(backend).backward(grad_output, parameter, alpha, (mask[0], mask[1]))
    return tuple(parameter.new_empty(0) if g is None else g for g in grads)


def _backward_fake(grad_output: Tensor, parameter: Tensor, alpha: Tensor, backend: str, mask: list[bool]) -> Any:
    return (
        layout.empty_stack_like(parameter) if mask[0] else parameter.new_empty(0),
        alpha.new_empty(alpha.shape) if mask[1] else parameter.new_empty(0),
    )


_forward_op = registration.define(NAME, "Tensor parameter, Tensor alpha, str backend", "Tensor", _kernel, _fake)
_backward_op = registration.define(
    f"{NAME}_backward",
    "Tensor grad_output, Tensor parameter, Tensor alpha, str backend, bool[2] mask",
    "(Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, alpha: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(parameter, alpha)
        ctx.backend = backend
        return registration.below_autograd(_forward_op, parameter, alpha, backend)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        mask = list(ctx.needs_input_grad[:2])
        grads = _backward_op(grad_output, *ctx.saved_tensors, ctx.backend, mask)
        return (*(g if m else None for g, m in zip(grads, mask, strict=True)), None)


def _differentiable_backward(
    grad_output: Tensor, parameter: Tensor, alpha: Tensor, backend: str, mask: list[bool]
) -> tuple[Tensor, ...]:
    return registration.composite_gradients(reference.tunable_parameter, grad_output, (parameter, alpha), mask)


registration.define_autograd(_forward_op, _Blend.apply, tensors=2)
registration.define_autograd(_backward_op, _differentiable_backward, tensors=3)
registration.define_autocast(_forward_op, cast=())
registration.define_autocast(_backward_op, cast=())
