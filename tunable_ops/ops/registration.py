"""How every registered operator is made: one schema, and what stands at each dispatch key.

Python owns the schemas (a C++ `def` after them would abort the process; C++ libraries add implementations only).

Autocast        casts the tensors named by the operator to the active dtype; alpha is never cast
Autograd        an autograd.Function, or straight through where no gradient is asked for
Meta, fake      dtype, shape and strides of the real result
CompositeExplicitAutograd   the backend named by the last string argument
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops.checks import autocast_is_on

NAMESPACE = "tunable_ops"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def define(name: str, arguments: str, result: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines ``tunable_ops::<name>`` with its kernel and its fake implementation; returns the overload."""
    _LIBRARY.define(f"{name}({arguments}) -> {result}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def define_autograd(op: Any, differentiable: Callable[..., Any], tensors: int) -> None:
    """Stands `differentiable` at the Autograd key for calls that want a gradient of one of the first `tensors`."""

    def autograd(*args: Any) -> Any:
        if wants_gradient(args[:tensors]):
            return differentiable(*args)
        return below_autograd(op, *args)

    _LIBRARY.impl(_name(op), autograd, "Autograd")


def define_autocast(op: Any, cast: Sequence[int]) -> None:
    """Casts the arguments at the positions `cast` to the dtype that is active when the operator is called."""
    for device_type, key in _AUTOCAST_KEYS.items():
        _LIBRARY.impl(_name(op), _autocast_kernel(op, device_type, key, frozenset(cast)), key)


def _autocast_kernel(op: Any, device_type: str, key: str, cast: frozenset[int]) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*(to_autocast(a, dtype) if i in cast else a for i, a in enumerate(args)))

    return autocast


def to_autocast(value: Any, dtype: torch.dtype) -> Any:
    """Casts a tensor as torch's own autocast does: floating point only, and never fp64."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def below_autograd(op: Any, *args: Any) -> Any:
    """Calls the operator's kernel without recording."""
    # Below view tracking too: kernels reshape their results, and autograd refuses an in-place ReLU after a Function
    # whose output it takes for a view.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return op(*args)


def wants_gradient(tensors: Sequence[Any]) -> bool:
    """True where a gradient of one of these is recorded: tensors, lists of them or None."""
    if not torch.is_grad_enabled():
        return False
    for value in tensors:
        if isinstance(value, list | tuple):
            if wants_gradient(value):
                return True
        elif isinstance(value, Tensor) and value.requires_grad:
            return True
    return False


def call(op: Any, tensors: Sequence[Any], *options: Any) -> Any:
    """Calls an operator; where no gradient is wanted straight below autograd, whose key is a slow Python function."""
    if torch.compiler.is_compiling() or wants_gradient(tensors):
        return op(*tensors, *options)
    return below_autograd(op, *tensors, *options)


def needs_composite() -> bool:
    """True inside torch.func transforms and forward-mode AD, which need differentiable PyTorch operators.

    An autograd.Function at the Autograd key passes opcheck and fullgraph but is opaque to torch.func.grad and vmap.
    """
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def run_composite(function: Callable[..., Tensor], tensors: Sequence[Tensor | None], cast: int, *args: Any) -> Tensor:
    """Runs a definition as PyTorch operators, with autocast as the operators have it: the first `cast` tensors."""
    device_type = next(t for t in tensors if t is not None).device.type
    if not autocast_is_on(device_type):
        return function(*tensors, *args)
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        return function(*(to_autocast(t, dtype) if i < cast else t for i, t in enumerate(tensors)), *args)


def composite_gradients(
    function: Callable[..., Any], grad_output: Any, tensors: Sequence[Tensor | None], mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The gradients as differentiable PyTorch operators: what a second derivative differentiates.

    Args:
        function: The definition, a function of `tensors`.
        grad_output: Gradient of its result, or a list of them where it returns a list.
        tensors: Its arguments.
        mask: Which gradients are asked for; the others come back empty.
    """
    with torch.enable_grad():
        aliases = [
            None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_(m)
            for t, m in zip(tensors, mask, strict=True)
        ]
        wanted = [t for t, m in zip(aliases, mask, strict=True) if m and t is not None]
        outputs = function(*aliases)
        if not isinstance(outputs, list):
            outputs, grad_output = [outputs], [grad_output]
        grads = iter(torch.autograd.grad(outputs, wanted, grad_output, create_graph=True))
        empty = grad_output[0].new_empty(0)
        return tuple(next(grads) if m and t is not None else empty for t, m in zip(tensors, mask, strict=True))


def _name(op: Any) -> str:
    return op._schema.name.split("::")[1]
