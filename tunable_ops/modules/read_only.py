"""What a converted layer's `weight` reads as while its model runs: the blend, which nothing may write to."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunable_ops import checks

# Operators that write to their first argument: add_, __iadd__, __setitem__, and the setters of `data` and the like.
_WRITES = re.compile(
    r"[a-z].*_|__setitem__|__set__|__i(add|sub|mul|div|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift)__"
)


def read_only(blend: Tensor, what: str) -> Tensor:
    """Return the blend as a tensor that raises when it, or a view of it, is written to.

    The network was written for a layer with one kernel; what it writes there would be lost. Only in eager mode: graphs
    take plain tensors.

    Args:
        blend: Any tensor.
        what: What it is, for the error.
    """
    if not checks.is_plain_eager():
        return blend
    shown = blend.as_subclass(ReadOnlyBlend)
    shown.what = what
    return shown


class ReadOnlyBlend(Tensor):
    """A tensor that raises when it is written to; what is computed from it are plain tensors."""

    what: str
    is_part = False  # True for a view of the blend: whether that requires gradients is its own affair

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator.

        Raises:
            RuntimeError: It writes to the blend.
        """
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a compiled function that the network hands the blend to
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        written = first if kwargs.get("inplace") or _WRITES.fullmatch(func.__name__) else kwargs.get("out")
        if isinstance(written, cls) and not (written.is_part and func.__name__ == "requires_grad_"):
            raise RuntimeError(
                f"{written.what} must not be written to while the model runs; got {func.__name__}. It reads as the "
                "blend at this lambda: write to the layer's stack(name), or leave the layer plain by convert(..., "
                "exclude=[...])"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            return _guard(result, first) if isinstance(first, cls) else result


def _guard(result: Any, source: ReadOnlyBlend) -> Any:
    """Return the results of an operator, those that are views of its first argument read-only as well."""
    if isinstance(result, tuple | list):
        parts = [_guard(part, source) for part in result]
        return type(result)(parts) if type(result) in (tuple, list) else result
    if type(result) is not Tensor or result.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
        return result
    view = result.as_subclass(ReadOnlyBlend)
    view.what, view.is_part = source.what, True
    return view
