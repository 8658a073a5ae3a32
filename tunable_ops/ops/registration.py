"""Registration of operators: a schema, and an implementation at each dispatch key.

Each backend has its own operator (``tunable_ops::tunable_conv2d_cpp``, ...). The Python wrapper chooses one; no kernel
calls the operator of another backend. Python owns the schemas (a second `def` in C++ would abort the process), so the
compiled libraries only add kernels.

Autocast        casts the tensors that the operator names to the active dtype, never alpha
Autograd        an autograd.Function if a gradient is needed, else the kernel
Meta, fake      dtype, shape and strides of the real result
CompositeExplicitAutograd   kernels of backends in Python; C++ kernels are at the CPU and CUDA keys

At CUDA and AutogradCUDA, C++ serves the calls of the Triton backend that have a plan (`backends.triton.native`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends.triton import native, plans
from tunable_ops.checks import autocast_is_on, is_transformed

NAMESPACE = "tunable_ops"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_GRAPH_FORMS: dict[Any, Callable[..., Any]] = {}
_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


class Operator:
    """A registered operator.

    Attributes:
        op: The overload in torch.ops.
        kernel: Its kernel if that is a Python function, else None.
        differentiable: The function that the Autograd key calls if a gradient is needed.
        graph_form: The same made of PyTorch's operators (`ops.graph_form`), for graphs of other runtimes.
    """

    __slots__ = ("differentiable", "graph_form", "kernel", "name", "op", "planned", "schema")

    def __init__(
        self, name: str, arguments: str, result: str, kernel: Callable[..., Any] | None, fake: Callable[..., Any]
    ) -> None:
        """Define ``tunable_ops::<name>`` with its kernel (None: a compiled library adds it) and its fake kernel."""
        _LIBRARY.define(f"{name}({arguments}) -> {result}", tags=(torch.Tag.pt2_compliant_tag,))
        if kernel is not None:
            _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
        self.name, self.kernel, self.planned = name, kernel, False
        self.schema = f"({arguments}) -> {result}"
        self.op = getattr(getattr(torch.ops, NAMESPACE), name).default
        self.differentiable: Callable[..., Any] | None = None
        self.graph_form: Callable[..., Any] | None = None

    def register_autograd(self, differentiable: Callable[..., Any], tensors: int) -> None:
        """Register `differentiable` for calls that need a gradient of one of the first `tensors` arguments."""
        self.differentiable = differentiable

        def autograd(*args: Any) -> Any:
            return differentiable(*args) if wants_gradient(args[:tensors]) else self.run(*args)

        _LIBRARY.impl(self.name, autograd, "Autograd")

    def register_unplanned(self, differentiable: Callable[..., Any] | None = None) -> None:
        """Define what C++ calls in Python: ``<name>_unplanned`` for want of a plan, which it gets for the next time.

        Args:
            differentiable: If given, ``<name>_differentiable`` for calls that need a gradient.
        """
        kernel, self.planned = self.kernel, True
        assert kernel is not None

        def unplanned(*args: Any) -> Any:
            recording = native.begin(self.name, args)
            plans.LATEST.plan = None
            result = kernel(*args)
            plan = plans.LATEST.plan
            if recording is not None and plan is not None and native.hand_over(self.name, recording, plan):
                native.check(args[0].device, plan, result, lambda: self.op(*args))
            return result

        _LIBRARY.define(f"{self.name}_unplanned{self.schema}")
        _LIBRARY.impl(f"{self.name}_unplanned", unplanned, "CompositeExplicitAutograd")
        if differentiable is not None:
            _LIBRARY.define(f"{self.name}_differentiable{self.schema}")
            _LIBRARY.impl(f"{self.name}_differentiable", differentiable, "CompositeImplicitAutograd")

    def is_served(self, tensor: Any) -> bool:
        """Return True if C++ serves calls on the tensor's device."""
        return self.planned and native.serves(tensor.device.type)

    def register_autocast(self, cast: Sequence[int] = ()) -> None:
        """Under autocast, cast the arguments at the positions `cast` to the dtype that is active in the call."""
        for device_type, key in _AUTOCAST_KEYS.items():
            _LIBRARY.impl(self.name, _autocast_kernel(self.op, device_type, key, frozenset(cast)), key)

    def register_graph_form(self, form: Callable[..., Any]) -> None:
        """Register `form`, a function of the operator's arguments, for exports to ONNX and for `decompositions`."""
        self.graph_form = _GRAPH_FORMS[self.op] = form

    def __call__(self, tensors: tuple[Any, ...], *options: Any) -> Any:
        """Call the operator; in plain eager mode past its Autograd key, which is a Python function."""
        if (
            torch.compiler.is_compiling()
            or torch._C._is_any_autocast_enabled()
            or torch._C._get_tracing_state() is not None
            or torch._C._has_torch_function(tensors)
        ):
            if self.graph_form is not None and torch.onnx.is_in_onnx_export():
                return self.graph_form(*tensors, *options)
            return self.op(*tensors, *options)
        if self.is_served(tensors[0]):  # its autograd is C++ too
            return self.op(*tensors, *options)
        if self.differentiable is not None and wants_gradient(tensors):
            return self.differentiable(*tensors, *options)
        return self.run(*tensors, *options)

    def run(self, *args: Any) -> Any:
        """Run the kernel without recording."""
        # Below view tracking too: kernels reshape their results, and autograd refuses an in-place ReLU after a
        # Function whose output it takes for a view.
        with torch._C._AutoDispatchBelowADInplaceOrView():
            if self.kernel is None or self.is_served(args[0]) or not _are_plain(args):
                return self.op(*args)
            return self.kernel(*args)  # from Python to Python: through the dispatcher it takes 30 us more


_TYPES = (Tensor, torch.nn.Parameter)


def _are_plain(args: tuple[Any, ...]) -> bool:
    """Return True if no dispatch key, mode or transform has anything to do with a call, so that its kernel may run.

    Lists of tensors are not looked into: such calls always go through the dispatcher.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._is_any_autocast_enabled() or is_transformed():
        return False
    for value in args:
        if isinstance(value, Tensor):
            if type(value) not in _TYPES or value.is_neg() or torch._C._functorch.is_legacy_batchedtensor(value):
                return False
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            return False
    return True


def _autocast_kernel(op: Any, device_type: str, key: str, cast: frozenset[int]) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*(to_autocast(a, dtype) if i in cast else a for i, a in enumerate(args)))

    return autocast


def to_autocast(value: Any, dtype: torch.dtype) -> Any:
    """Cast a tensor as torch's autocast does: floating point only, and never fp64."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return each operator (an overload) with its graph form, for `ExportedProgram.run_decompositions`.

    Example:
        >>> torch.ops.tunable_ops.tunable_conv2d_torch.default in decompositions()
        True
    """
    return dict(_GRAPH_FORMS)


def wants_gradient(tensors: Sequence[Any]) -> bool:
    """Return True if autograd records a gradient of any of these: tensors, lists of tensors or None."""
    if not torch.is_grad_enabled():
        return False
    for value in tensors:
        if isinstance(value, (list, tuple)):
            if wants_gradient(value):
                return True
        elif isinstance(value, Tensor) and value.requires_grad:
            return True
    return False


def run_composite(function: Callable[..., Tensor], tensors: Sequence[Tensor | None], cast: int, *args: Any) -> Tensor:
    """Run a definition as PyTorch operators; under autocast, cast the first `cast` tensors as the operators do."""
    device_type = next(t for t in tensors if t is not None).device.type
    if not autocast_is_on(device_type):
        return function(*tensors, *args)
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        return function(*(to_autocast(t, dtype) if i < cast else t for i, t in enumerate(tensors)), *args)


def composite_gradients(
    function: Callable[..., Any], grad_output: Any, tensors: Sequence[Tensor | None], mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Return gradients made of differentiable PyTorch operators, so that they can be differentiated again.

    Args:
        function: The definition, a function of `tensors`.
        grad_output: Gradient of its result; a list if it returns a list.
        tensors: Its arguments.
        mask: True for each gradient to compute; the others are returned empty.
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
