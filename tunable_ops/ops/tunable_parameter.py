"""tunable_parameter: the blend as an operator of its own, also used by the operators that blend first (premix.py)."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunable_ops import backends, checks, reference
from tunable_ops.backends import cpp
from tunable_ops.backends.torch import layout
from tunable_ops.ops import graph_form, registration

NAME = "tunable_parameter"


def tunable_parameter(parameter: Tensor, alpha: Tensor, *, backend: str | None = None) -> Tensor:
    """Blend P copies of any tensor, such as residual scales or position tables.

    Formula: ``y = sum_p alpha[p] * parameter[p]``, or ``y[b] = sum_p alpha[b,p] * parameter[p]``; accumulated in fp32
    (fp64 for fp64) and rounded once. Differentiable to any order in eager mode.

    Args:
        parameter: [P, *shape], float32, float16, bfloat16 or float64.
        alpha: [P] or [B, P], of the parameter's dtype or float32.
        backend: None for the fastest that can serve the call, or "torch", "reference", "cpp", "triton".

    Returns:
        [*shape] or [B, *shape], of the parameter's dtype (autocast casts neither).

    Raises:
        TypeError: An argument is not a tensor or has another dtype.
        ValueError: Ranks, sizes or devices do not fit, or the backend is unknown.
        RuntimeError: The backend cannot run here.

    Example:
        >>> scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> tunable_parameter(scale, torch.tensor([0.5, 0.5]))
        tensor([2., 3.])
    """
    _check(parameter, alpha)
    return run_checked(parameter, alpha, backend)


def run_checked(parameter: Tensor, alpha: Tensor, backend: str | None, inference: bool = False) -> Tensor:
    """Choose a backend for valid tensors, and blend them.

    With `inference` the default may take the C++ operator where no gradient is wanted; its sums differ in the last bit.
    """
    if inference and backend is None and cpp.serves_blend(parameter, alpha):
        chosen = "cpp"
    else:
        chosen = backends.select(NAME, backend, parameter, alpha)
    tensors = (parameter, alpha)
    if chosen == "reference" or checks.is_transformed():
        return registration.run_composite(reference.tunable_parameter, tensors, 0)
    output: Tensor = _OPERATORS[chosen].forward(tensors)
    return output


def _check(parameter: Tensor, alpha: Tensor) -> None:
    checks.check_float(NAME, "parameter", parameter)
    checks.check_float(NAME, "alpha", alpha)
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


def _forward_kernel(backend: str, parameter: Tensor, alpha: Tensor) -> Tensor:
    return backends.implementation(backend, NAME).forward(parameter, alpha)


def _forward_fake(parameter: Tensor, alpha: Tensor) -> Tensor:
    return layout.from_matrix(parameter.new_empty(*alpha.shape[:-1], parameter.shape[1:].numel()), parameter)


def _backward_kernel(backend: str, grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: list[bool]) -> Any:
    grads = backends.implementation(backend, NAME).backward(grad_output, parameter, alpha, (mask[0], mask[1]))
    return tuple(parameter.new_empty(0) if g is None else g for g in grads)


def _backward_fake(grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: list[bool]) -> Any:
    return (
        layout.empty_stack_like(parameter) if mask[0] else parameter.new_empty(0),
        alpha.new_empty(alpha.shape) if mask[1] else parameter.new_empty(0),
    )


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: "_Operators", parameter: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(parameter, alpha)
        ctx.ops = ops
        return ops.forward.run(parameter, alpha)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        mask = list(ctx.needs_input_grad[1:])
        grads = ctx.ops.backward((grad_output, *ctx.saved_tensors), mask)
        return (None, *(g if m else None for g, m in zip(grads, mask, strict=True)))


def _differentiable_backward(
    grad_output: Tensor, parameter: Tensor, alpha: Tensor, mask: list[bool]
) -> tuple[Tensor, ...]:
    return registration.composite_gradients(reference.tunable_parameter, grad_output, (parameter, alpha), mask)


class _Operators(NamedTuple):
    """Operators of one backend."""

    forward: registration.Operator
    backward: registration.Operator


def _define(backend: str) -> _Operators:
    name = f"{NAME}_{backend}"
    kernel = partial(_forward_kernel, backend) if backend in backends.IN_PYTHON else None
    # The C++ kernel is for inference; its gradients are those of the torch backend.
    backward_kernel = partial(_backward_kernel, "torch" if backend == "cpp" else backend)
    grads = "Tensor grad_output, Tensor parameter, Tensor alpha, bool[2] mask"
    ops = _Operators(
        registration.Operator(name, "Tensor parameter, Tensor alpha", "Tensor", kernel, _forward_fake),
        registration.Operator(f"{name}_backward", grads, "(Tensor, Tensor)", backward_kernel, _backward_fake),
    )
    ops.forward.register_autograd(partial(_Blend.apply, ops), tensors=2)
    ops.forward.register_autocast()
    ops.forward.register_graph_form(graph_form.tunable_parameter)
    ops.backward.register_autograd(_differentiable_backward, tensors=3)
    ops.backward.register_autocast()
    if backend == "triton":
        ops.forward.register_unplanned()
        ops.backward.register_unplanned(_differentiable_backward)
    return ops


_OPERATORS = {backend: _define(backend) for backend in ("torch", "cpp", "triton")}
