"""Plans without Python: calls of the operators that have a plan are served by C++, whoever makes them.

The library `_launcher` puts C++ kernels at the device's keys of the dispatcher. A kernel looks for the plan of its call
and repeats it, without the interpreter's lock. Without one it calls the operator's function in Python, which runs as
written, and hands over what was recorded (`plans`). Where the library is missing, all of this happens in Python.
"""

import importlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tunable_ops.backends.triton import plans
from tunable_ops.triton_kernels import INTERPRETED, choose_algorithm, unavailable_reason

_PACKAGE = Path(__file__).parents[2]
# Types of integers that a parameter may have: it is handed over in a word of 8 bytes, and the driver takes the first.
_INTEGERS = frozenset({"i1", "i8", "i16", "i32", "i64", "u32", "u64"})
_library: Any = None
_missing: str | None = "this build has none"
# What the library serves, by type of device.
_served: dict[str, Any] = {}
# Types of device whose plans are checked, with the compiled kernels that have been; and what was found wanting.
_checked: dict[str, set[int]] = {}
_retired: list[Any] = []
# Operators of PyTorch's that may give other bits in the next call, as cuDNN's gradient of a convolution's kernels.
_VARYING = re.compile(r"conv|einsum|mm|mv|dot|matmul|linear|scatter|index_(add|put)")
# Operators whose plans C++ refused with an error, which was told.
_told: set[str] = set()


def load() -> None:
    """Load the library if this build has it, and serve CUDA tensors. The operators must be defined first."""
    global _missing
    if importlib.util.find_spec("tunable_ops._launcher") is None:
        note = _PACKAGE / "_launcher_left_out.txt"  # written by setup.py
        _missing = note.read_text().strip() if note.exists() else "this build has none"
        return
    try:
        library = importlib.import_module("tunable_ops._launcher")
        has_cuda = torch.version.cuda is not None and unavailable_reason() is None and not INTERPRETED
        if has_cuda and not library.finds_stream():
            raise RuntimeError("this torch does not tell the current stream")
        use(library)
        if has_cuda:
            serve("cuda", checked=True)
    except (AttributeError, ImportError, RuntimeError) as error:  # of another torch or other sources, or damaged
        _missing = f"it does not load here ({type(error).__name__}: {' '.join(str(error).split())})"


def use(library: Any) -> None:
    """Take a library that was loaded; RuntimeError if it was built for another torch."""
    global _library, _missing
    ours = torch.__version__.replace("+", ".")
    if library.torch != ours:
        raise RuntimeError(f"it was built for torch {library.torch}, and this is {ours}")
    _library, _missing = library, None
    if library.forget not in choose_algorithm.ON_FORGET:
        choose_algorithm.ON_FORGET.append(library.forget)


def missing() -> str | None:
    """Return why calls go through Python, or None if those with a plan do not."""
    return _missing


def serve(device: str, *, checked: bool = False) -> None:
    """Let C++ serve the operators for tensors of a type of device; with `checked`, as `check` says."""
    operators = _library.Operators({"cuda": "CUDA", "cpu": "CPU"}[device])
    name = "tunable_conv2d_triton"
    operators.add_convolution(name, f"{name}_saving", f"{name}_backward")
    operators.add_blend("tunable_parameter_triton", "tunable_parameter_triton_backward")
    _served[device] = operators
    if checked:
        _checked[device] = set()


def serve_no_more(device: str) -> None:
    """Undo `serve`."""
    _served.pop(device, None)
    _checked.pop(device, None)


def serves(device: str) -> bool:
    """Return True if C++ serves the operators for tensors of a type of device."""
    return device in _served


def counts() -> tuple[int, int]:
    """Return the number of calls that C++ served, and of those that went on to Python."""
    served: tuple[int, int] = _library.counts()
    return served


def begin(op: str, arguments: tuple[Any, ...]) -> Any:
    """Return what `hand_over` takes after a call of `tunable_ops::<op>` that is about to run; None if C++ serves none.

    The settings that a plan depends on are read here: another thread may change them while the call runs.
    """
    device = arguments[0].device.type
    if device not in _served or INTERPRETED:
        return None
    if not _watches_hooks():
        _library.forget()
        return None
    try:
        recording = _library.Recording(op, arguments)
    except _ERRORS as error:
        _tell(op, error)
        return None
    # Another thread may have found C++ wanting: before, or it makes C++ forget what began before.
    return recording if device in _served else None


def hand_over(op: str, recording: Any, plan: plans.Plan) -> bool:
    """Let C++ serve calls like the one of a recording, if it can repeat the plan; return True if it does from now on.

    It does not if a setting changed while the call ran, or if plans were forgotten.
    """
    try:
        for step in plan.steps:
            _add(recording, step)
        return bool(recording.keep(tuple(map(_place, plan.results))))
    except _Unfit:
        return False
    except _ERRORS as error:
        _tell(op, error)
        return False


def _tell(op: str, error: Exception) -> None:
    """Warn, once for each operator, that calls go through Python which C++ should have served."""
    if op not in _told:
        _told.add(op)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        warnings.warn(f"tunable_ops: C++ refuses a plan of {op}, which Python runs ({reason})", RuntimeWarning, 2)


def check(device: torch.device, plan: plans.Plan, results: Any, again: Callable[[], Any]) -> None:
    """Serve the type of device no more, with a warning, unless C++ repeats a plan to the same bits.

    Every compiled kernel is compared once, in the first plan that has it and promises the same bits twice: one without
    convolutions and matrix products of PyTorch's. Nothing is compared while a CUDA graph is captured.

    Args:
        device: Where the call ran.
        plan: What was handed over.
        results: What the call returned in Python: a tensor, or a sequence of tensors and None.
        again: Makes the same call, which C++ now serves.
    """
    checked = _checked.get(device.type)
    starts = [step for step in plan.steps if isinstance(step, plans.Start)]
    new = {id(start.compiled) for start in starts} - (checked or set())
    if checked is None or not new or any(map(_varies, plan.steps)):
        return
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    checked |= new
    with torch._C._AutoDispatchBelowADInplaceOrView():
        repeated = again()
    if not _same(results, repeated):
        # The kernel in C++ that made this call must live on; without plans it sends every call to Python.
        _retired.append(_served.pop(device.type, None))  # None: another thread was first
        _checked.pop(device.type, None)
        _library.forget()
        names = ", ".join(sorted({start.launch.kernel.__name__ for start in starts}))
        warnings.warn(
            f"tunable_ops: C++ repeats {names} to other values than Python; all calls go through Python now",
            RuntimeWarning,
            stacklevel=3,
        )


def _varies(step: Any) -> bool:
    return isinstance(step, plans.Call) and _VARYING.search(step.operator._schema.name) is not None


def _same(results: Any, others: Any) -> bool:
    if not isinstance(results, Sequence):
        results, others = [results], [others]
    pairs = list(zip(results, others, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    return all(a is None or bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)


def _watches_hooks() -> bool:
    """Watch the hooks that Triton calls around a launch; False for an older Triton, whose hooks cannot be watched."""
    from triton import knobs

    chains = [getattr(knobs.runtime, name, None) for name in ("launch_enter_hook", "launch_exit_hook")]
    calls = [getattr(chain, "calls", None) for chain in chains]
    if not all(isinstance(found, list) for found in calls):
        return False
    _library.watch_hooks(*calls)
    return True


class _Unfit(Exception):
    """A step that C++ cannot repeat."""


_ERRORS = (TypeError, ValueError, RuntimeError)  # what the library raises


def _place(place: plans.Place | None) -> tuple[Any, ...] | None:
    return None if place is None else (place.slot, place.size, place.stride, place.offset)


def _argument(value: Any) -> tuple[Any, Any]:
    """Return an argument's value and its place or places; one of the two is None."""
    if isinstance(value, plans.Place):
        return None, _place(value)
    if isinstance(value, (tuple, list)) and any(isinstance(v, plans.Place) for v in value):
        if not all(isinstance(v, plans.Place) for v in value):
            raise _Unfit
        return None, list(map(_place, value))
    return list(value) if isinstance(value, tuple) else value, None


def _add(recording: Any, step: Any) -> None:
    if isinstance(step, plans.Allocation):
        recording.allocate(step.size, step.stride, step.dtype, step.device)
    elif isinstance(step, plans.Call):
        schema = step.operator._schema
        if any("Optional[Tensor]]" in str(argument.type) for argument in schema.arguments):
            raise _Unfit  # lists of tensors or None
        arguments = tuple(map(_argument, step.arguments))
        named = {key: _argument(value) for key, value in step.named.items()}
        recording.call(schema.name, schema.overload_name, arguments, named, step.kept)
    elif isinstance(step, plans.Release):
        recording.release(step.slots)
    elif all(step.launch.grid):
        recording.launch(*_launch(step))


def _launch(step: plans.Start) -> tuple[Any, ...]:
    """Return the function, grid, threads, shared memory, parameters and addresses of a launch."""
    made = step.compiled.metadata
    plain = not any(getattr(made, name, 0) for name in ("launch_cooperative_grid", "launch_pdl", "tensordesc_meta"))
    scratch = any(getattr(made, name, 0) for name in ("global_scratch_size", "profile_scratch_size"))
    if made.num_ctas != 1 or not plain or scratch:
        raise _Unfit
    parameters: list[int] = []
    places = {}
    slots = {index: (slot, offset) for index, slot, offset in step.addresses}

    def add(kind: Any, value: Any, index: int | None) -> None:
        if isinstance(kind, tuple):
            for k, v in zip(kind, value, strict=True):
                add(k, v, None)
        elif kind == "constexpr":
            return
        elif kind.startswith("*") and index in slots:
            places[len(parameters)] = slots[index]
            parameters.append(0)
        elif kind in _INTEGERS and type(value) in (int, bool):
            parameters.append(value & ((1 << 64) - 1))
        else:
            raise _Unfit

    for index, (kind, value) in enumerate(zip(step.compiled.src.signature.values(), step.values, strict=True)):
        add(kind, value, index)
    addresses = [(parameter, *place) for parameter, place in places.items()]
    # Triton's kernels end with two pointers to scratch memory, which these do not have.
    grid = (*step.launch.grid, 1, 1)[:3]
    return step.compiled.function, grid, 32 * made.num_warps, made.shared, [*parameters, 0, 0], addresses
