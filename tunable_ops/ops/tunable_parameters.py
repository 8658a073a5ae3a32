"""tunable_parameters: blend many stacks, such as all kernels of a network, in one call."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops import backends, checks, reference
from tunable_ops.backends.torch import layout
from tunable_ops.ops import graph_form, registration

NAME = "tunable_parameters"


def tunable_parameters(
    parameters: Sequence[Tensor],
    alpha: Tensor,
    starts: Sequence[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """Blend many stacks at once, each with its own part of one alpha.

    Formula: ``y[i] = sum_p alpha[starts[i] + p] * parameters[i][p]``; accumulated in fp32 (fp64 for fp64) and rounded
    once to the dtype of the result. Differentiable to any order in eager mode; the gradient of a stack whose result
    is not used is None.

    Args:
        parameters: [P_i, *shape_i] each: float32, float16, bfloat16 or float64, on one device.
        alpha: [A], float32 or of every parameter's dtype.
        starts: Index in alpha of each stack's first value; stacks may share values. By default one after the other.
        dtype: Dtype of the results. By default that of each stack; under autocast that of autocast, unless a stack is
            float64.
        backend: None for the fastest that can serve the call, or "torch", "reference", "cpp", "triton".

    Returns:
        [*shape_i] each, with the layout of the stack's kernels.

    Raises:
        TypeError: An argument is not a tensor or has another dtype.
        ValueError: Ranks, sizes or devices do not fit, or the backend is unknown.
        RuntimeError: The backend cannot run here.

    Example:
        >>> weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0], [8.0]])
        >>> tunable_parameters([weight, bias], torch.tensor([0.5, 0.5]), starts=[0, 0])
        [tensor([2., 3.]), tensor([4.])]
    """
    parameters = list(parameters)
    if starts is None:
        counts = (p.shape[0] if isinstance(p, Tensor) and p.dim() else 0 for p in parameters)
        starts = list(accumulate(counts, initial=0))[:-1]
    starts = list(starts)
    _check(parameters, alpha, starts, dtype)
    if not parameters:
        return []
    if dtype is None and checks.autocast_is_on(alpha.device.type):
        wide = any(parameter.dtype == torch.float64 for parameter in parameters)
        dtype = None if wide else torch.get_autocast_dtype(alpha.device.type)
    chosen = backends.select(NAME, backend, *parameters)
    if chosen == "reference" or checks.is_transformed():
        return reference.tunable_parameters(parameters, alpha, starts, dtype)
    alpha = alpha.to(torch.promote_types(alpha.dtype, torch.float32))
    results: list[Tensor] = _OPERATORS[chosen].forward((parameters, alpha), starts, dtype)
    return results


def blend_into(parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], outputs: Sequence[Tensor]) -> None:
    """Write what `tunable_parameters` returns into existing tensors, without gradients.

    Args:
        parameters: [P_i, *shape_i].
        alpha: [A].
        starts: Index in alpha of each stack's first value.
        outputs: [*shape_i] each; one launch writes all that have the dtype and kernel layout of their stack.
    """
    _check(parameters, alpha, starts, None)
    with torch.no_grad():
        alike = [layout.lie_alike(stack, output) for stack, output in zip(parameters, outputs, strict=True)]
        for is_alike in (True, False):
            members = [i for i, value in enumerate(alike) if value == is_alike]
            if not members:
                continue
            stacks, targets = [parameters[i] for i in members], [outputs[i] for i in members]
            backend = backends.select(NAME, None, *stacks) if is_alike else "torch"
            exact = alpha.to(torch.promote_types(alpha.dtype, torch.float32))
            _OPERATORS[backend].into.run(stacks, exact, [starts[i] for i in members], targets)
            torch.autograd.graph.increment_version([t for t in targets if not t.is_inference()])


def blend_in_place() -> Callable[[list[Tensor], Tensor, list[int], list[Tensor]], None] | None:
    """Return the C++ operator behind `blend_into`, or None where it is not there.

    It takes the arguments of `blend_into`, on the CPU, without gradients; alpha is float32 or float64, and outputs lie
    as the kernels of their stacks do. It raises RuntimeError for shapes and layouts that do not fit, before it writes.
    """
    operator: Callable[..., None] | None = None
    if backends.unavailable_reason(NAME, "cpp") is None:
        operator = _OPERATORS["cpp"].into.op
    return operator


def _all_alike(parameters: Sequence[Tensor], alpha: Tensor) -> bool:
    """Return True for tensors of one allowed dtype on one device: a quick test that most calls pass."""
    if not all(isinstance(parameter, Tensor) for parameter in parameters):
        return False
    dtypes = {parameter.dtype for parameter in parameters} | {alpha.dtype}
    devices = {parameter.device for parameter in parameters} | {alpha.device}
    return len(devices) == 1 and len(dtypes) == 1 and alpha.dtype in checks.FLOATS


def _check(parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], dtype: torch.dtype | None) -> None:
    checks.check_float(NAME, "alpha", alpha)
    if dtype is not None and dtype not in checks.FLOATS:
        raise TypeError(f"{NAME}: dtype must be float32, float16, bfloat16 or float64; got {dtype}")
    if alpha.dim() != 1:
        raise ValueError(f"{NAME}: alpha must be [A], one blend for all samples; got shape {checks.shape_of(alpha)}")
    if len(starts) != len(parameters):
        raise ValueError(f"{NAME}: starts must hold one index per parameter, {len(parameters)}; got {len(starts)}")
    length = alpha.shape[0]
    if _all_alike(parameters, alpha) and all(
        p.dim() > 0 and 0 <= s <= length - p.shape[0] < length for p, s in zip(parameters, starts, strict=True)
    ):
        return
    for parameter, start in zip(parameters, starts, strict=True):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"{NAME}: parameters must be Tensors; got {type(parameter).__name__}")
        if parameter.dtype not in checks.FLOATS:
            raise TypeError(f"{NAME}: parameters must be float32, float16, bfloat16 or float64; got {parameter.dtype}")
        if alpha.dtype not in (torch.float32, parameter.dtype):
            raise TypeError(
                f"{NAME}: alpha must be float32 or have the parameters' dtype, {parameter.dtype}; got {alpha.dtype}"
            )
        if parameter.device != alpha.device:
            raise ValueError(
                f"{NAME}: parameters must be on the device of alpha, {alpha.device}; got {parameter.device}"
            )
        if parameter.dim() < 1 or parameter.shape[0] < 1:
            raise ValueError(f"{NAME}: parameters must be [P, *shape], P >= 1; got shape {checks.shape_of(parameter)}")
        if not 0 <= start <= length - parameter.shape[0]:
            raise ValueError(
                f"{NAME}: starts must leave P = {parameter.shape[0]} of the {length} values of alpha; got {start}"
            )


def _kernel(backend: str, function: str, *args: Any) -> Any:
    return getattr(backends.implementation(backend, NAME), function)(*args)


def _forward_fake(parameters: list[Tensor], alpha: Tensor, starts: list[int], dtype: Any) -> list[Tensor]:
    return [
        layout.from_matrix(p.new_empty(p.shape[1:].numel(), dtype=dtype or p.dtype), p).detach() for p in parameters
    ]


def _backward_fake(
    grad_outputs: list[Tensor], parameters: list[Tensor], alpha: Tensor, starts: list[int], mask: list[bool]
) -> list[Tensor]:
    grads = [layout.empty_stack_like(p) if m else p.new_empty(0) for p, m in zip(parameters, mask[:-1], strict=True)]
    return [*grads, alpha.new_empty(alpha.shape if mask[-1] else 0)]


class _Blends(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: "_Operators", starts: list[int], dtype: Any, alpha: Tensor, *parameters: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(alpha, *parameters)
        ctx.ops, ctx.starts = ops, starts
        return tuple(ops.forward.run(list(parameters), alpha, starts, dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        alpha, *parameters = ctx.saved_tensors
        need_alpha, *need = ctx.needs_input_grad[3:]
        grads: list[Tensor | None] = [None] * len(parameters)
        used = [i for i, g in enumerate(grad_outputs) if g is not None and (need_alpha or need[i])]
        if not used:
            return (None, None, None, None, *grads)
        g, p, starts = ([x[i] for i in used] for x in (grad_outputs, parameters, ctx.starts))
        mask = [*(need[i] for i in used), need_alpha]
        # PyTorch has no batching rule for operators that take lists.
        batched = any(torch._C._functorch.is_legacy_batchedtensor(each) for each in g)
        if batched:
            *found, grad_alpha = _batched_backward(g, p, alpha, starts, mask)
        else:
            *found, grad_alpha = ctx.ops.backward((g, p, alpha), starts, mask)
        for i, grad in zip(used, found, strict=True):
            grads[i] = grad if need[i] else None
        return (None, None, None, grad_alpha if need_alpha else None, *grads)


def _batched_backward(
    grad_outputs: list[Tensor],
    parameters: list[Tensor],
    alpha: Tensor,
    starts: list[int],
    mask: list[bool],
) -> list[Tensor]:
    """Compute what the backward operator does with operators that PyTorch can batch (for is_grads_batched)."""
    grads, shares = [], []
    for g, stack, start in zip(grad_outputs, parameters, starts, strict=True):
        kernels, gradient = stack.shape[0], g.to(alpha.dtype)
        factors = alpha[start : start + kernels].view(-1, *[1] * gradient.dim())
        grads.append((factors * gradient).to(stack.dtype))
        products = stack.to(alpha.dtype) * gradient
        if stack.dim() > 1:
            products = products.sum(tuple(range(1, stack.dim())))
        shares.append(F.pad(products, (start, alpha.shape[0] - start - kernels)))
    return [*grads, torch.stack(shares).sum(0)]


def _differentiable_backward(
    grad_outputs: list[Tensor],
    parameters: list[Tensor],
    alpha: Tensor,
    starts: list[int],
    mask: list[bool],
) -> list[Tensor]:
    def definition(*tensors: Any) -> list[Tensor]:
        *stacks, values = tensors
        parts = [values[start : start + stack.shape[0]] for stack, start in zip(stacks, starts, strict=True)]
        wanted = [g.dtype for g in grad_outputs]
        return [reference.tunable_parameter(*each) for each in zip(stacks, parts, wanted, strict=True)]

    return list(registration.composite_gradients(definition, grad_outputs, (*parameters, alpha), mask))


class _Operators(NamedTuple):
    """Operators of one backend."""

    forward: registration.Operator
    into: registration.Operator
    backward: registration.Operator


_TENSORS = "Tensor[] parameters, Tensor alpha, SymInt[] starts"
# `mask`: the gradients to compute, of each parameter and, last, of alpha; the results have the same order.
_GRADIENTS = f"Tensor[] grad_outputs, {_TENSORS}, bool[] mask"


def _define(backend: str) -> _Operators:
    name = f"{NAME}_{backend}"
    in_python = backend in backends.IN_PYTHON
    forward, into, backward = (
        partial(_kernel, backend, function) if in_python else None for function in ("forward", "blend_into", "backward")
    )
    ops = _Operators(
        registration.Operator(name, f"{_TENSORS}, ScalarType? dtype", "Tensor[]", forward, _forward_fake),
        registration.Operator(f"{name}_into", f"{_TENSORS}, Tensor(a!)[] outputs", "()", into, lambda *args: None),
        registration.Operator(f"{name}_backward", _GRADIENTS, "Tensor[]", backward, _backward_fake),
    )

    def differentiable(parameters: list[Tensor], alpha: Tensor, *options: Any) -> list[Tensor]:
        return list(_Blends.apply(ops, *options, alpha, *parameters))

    ops.forward.register_autograd(differentiable, tensors=2)
    ops.forward.register_autocast()
    ops.forward.register_graph_form(graph_form.tunable_parameters)
    ops.backward.register_autograd(_differentiable_backward, tensors=3)
    ops.backward.register_autocast()
    return ops


_OPERATORS = {backend: _define(backend) for backend in ("torch", "cpp", "triton")}
