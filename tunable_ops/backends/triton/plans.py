"""Plans: what a call does, recorded at the first call of its kind and repeated without deciding anything again.

A call decides on an algorithm, tiles and partial sums, allocates, and launches. All of it follows from shapes, strides,
dtypes, alignment and options, the key of its plan. The first call runs as written while it is watched: allocations,
launches and calls of PyTorch's operators are noted in order, each tensor as one of those before, or a view of it. The
next call with that key repeats the notes with its own tensors. A launch then takes the addresses, the current stream
and one call of Triton's launcher.

A plan holds no memory, and a repeated call no tensor beyond its last use. A call that cannot be noted (its inputs
overlap, or it reads a value back) runs as written.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tunable_ops.backends.triton import shortcuts
from tunable_ops.triton_kernels import INTERPRETED, choose_algorithm
from tunable_ops.triton_kernels.launch import WATCHING, Launch, input_precision, on_device, start

Results = tuple[Tensor | None, ...]
_ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}
# Plans by what they depend on; in place of one, the number of calls that could not be noted.
_PLANS: dict[tuple[Any, ...], "Plan | int"] = {}
_MAX_PLANS = 4096
# A first call may do what later ones do not, such as compiling and checking the wgmma kernel.
_ATTEMPTS = 2


class _Latest(threading.local):
    plan: "Plan | None" = None  # of the last `run` of this thread


LATEST = _Latest()


def run(function: Callable[..., Results], tensors: Sequence[Tensor | None], options: tuple[Any, ...]) -> Results:
    """Return ``function(*tensors, *options)``, from its plan if there is one.

    Args:
        function: Decides by nothing but the properties of the tensors, the options and the tables of measurements.
        tensors: Its tensors; None where there is none.
        options: Its other arguments, hashable.
    """
    first = tensors[0]
    assert first is not None
    key = _key(function, tensors, options)
    plan = _PLANS.get(key)
    if isinstance(plan, Plan):
        LATEST.plan = plan
        try:
            return plan.run(tensors)
        except OtherStrides:
            LATEST.plan = plan = None  # the next one takes its place
    if plan == _ATTEMPTS or first.device.type == "meta" or WATCHING.recorder is not None:
        return function(*tensors, *options)
    recorder = _Recorder(tensors)
    with recorder:
        results = function(*tensors, *options)
    made = recorder.plan(results)
    if _key(function, tensors, options) != key:
        return results  # a setting or a table changed while it ran, so it is not known which of the two it followed
    while len(_PLANS) >= _MAX_PLANS:
        _PLANS.pop(next(iter(_PLANS)), None)
    _PLANS[key] = (plan or 0) + 1 if made is None else made
    LATEST.plan = made
    return results


def find(function: Callable[..., Results], tensors: Sequence[Tensor | None], options: tuple[Any, ...]) -> "Plan | None":
    """Return the plan of such a call of `run`, None if there is none yet."""
    plan = _PLANS.get(_key(function, tensors, options))
    return plan if isinstance(plan, Plan) else None


def _key(
    function: Callable[..., Results], tensors: Sequence[Tensor | None], options: tuple[Any, ...]
) -> tuple[Any, ...]:
    first = tensors[0]
    assert first is not None
    settings = _precision(first.dtype), torch._C._get_cudnn_enabled()  # strides of PyTorch's results depend on cuDNN
    return function, options, first.device, choose_algorithm.revision(), settings, _described(tensors)


def forget() -> None:
    """Forget all plans, and the shortcuts to them: for tests that change what a call decides by."""
    _PLANS.clear()
    shortcuts.forget()
    for function in choose_algorithm.ON_FORGET:
        function()


def _described(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    return tuple([None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() % 16 == 0) for t in tensors])


def _precision(dtype: torch.dtype) -> str:
    return input_precision(dtype) if dtype == torch.float32 else ""


class Place(NamedTuple):
    """A tensor of a plan: a whole slot (size None), or a view of it that starts `offset` elements later."""

    slot: int
    size: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0

    def find(self, slots: list[Any]) -> Tensor:
        """Return the tensor."""
        base: Tensor = slots[self.slot]
        if self.size is None:
            return base
        return base.as_strided(self.size, self.stride, base.storage_offset() + self.offset)


class Allocation(NamedTuple):
    """A new tensor, which takes a slot."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def run(self, slots: list[Any]) -> None:
        """Allocate."""
        slots.append(torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device))


class Call(NamedTuple):
    """A call of an operator. Results that are tensors of before, as those of an operator in place, take no slot."""

    operator: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    kept: tuple[tuple[int, tuple[int, ...]], ...]  # results that take slots: index, strides

    def run(self, slots: list[Any]) -> None:
        """Call the operator."""
        result = self.operator(*_filled(self.arguments, slots), **_filled(self.named, slots))
        results = result if isinstance(result, (tuple, list)) else (result,)
        for index, stride in self.kept:
            if results[index].stride() != stride:
                raise OtherStrides(f"{self.operator} gave {results[index].stride()}, not {stride}")
            slots.append(results[index])


class Start(NamedTuple):
    """A launch: the index, the slot and the offset in bytes of every address among its values."""

    launch: Launch
    compiled: Any
    values: tuple[Any, ...]
    addresses: tuple[tuple[int, int, int], ...]
    places: tuple[Place, ...]  # the same tensors, for the interpreter

    def run(self, slots: list[Any]) -> None:
        """Launch."""
        values = list(self.values)
        if INTERPRETED:
            for (index, _, _), place in zip(self.addresses, self.places, strict=True):
                values[index] = place.find(slots)
            arguments = tuple(values[: len(self.launch.arguments)])
            self.launch._replace(arguments=arguments).run()
            return
        for index, slot, offset in self.addresses:
            values[index] = slots[slot].data_ptr() + offset
        start(self.compiled, self.launch.grid, values)


class Release(NamedTuple):
    """Slots that no later step and no result needs: their memory serves later steps, which run on the same stream."""

    slots: tuple[int, ...]

    def run(self, slots: list[Any]) -> None:
        """Let go of the tensors."""
        for slot in self.slots:
            slots[slot] = None


class Plan(NamedTuple):
    """The steps of a call, and where its results are."""

    steps: tuple[Any, ...]
    results: tuple[Place | None, ...]

    def run(self, tensors: Sequence[Tensor | None]) -> Results:
        """Repeat the call with these tensors, on the current stream of their device; may raise `OtherStrides`."""
        slots = list(tensors)
        with on_device(tensors[0]):  # type: ignore[arg-type]
            for step in self.steps:
                step.run(slots)
        return tuple([None if place is None else place.find(slots) for place in self.results])


class OtherStrides(Exception):
    """An operator of PyTorch's gave a tensor of other strides than in the recorded call: the plan is of no use."""


class _Unknown(Exception):
    """A tensor that is neither an input nor made by the call."""


class _Recorder(TorchDispatchMode):
    """Notes what a call does; `Launch.run` tells it about launches."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.inputs = len(tensors)
        self.steps: list[Any] = []
        self.slots: list[Tensor | None] = []
        self.ranges: list[tuple[int, int]] = []
        self.failed = False
        for tensor in tensors:
            self._add(tensor)
        spans = sorted(r for r in self.ranges if r[0] < r[1])
        if any(a[1] > b[0] for a, b in pairwise(spans)):
            self.failed = True  # which of two inputs an address belongs to would be a guess

    def __enter__(self) -> "_Recorder":
        WATCHING.recorder = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        WATCHING.recorder = None

    def _add(self, tensor: Tensor | None) -> None:
        self.slots.append(tensor)
        span = (0, 0)
        if tensor is not None and tensor.numel() > 0:
            reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            span = (tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size())
        self.ranges.append(span)

    def _place(self, tensor: Tensor) -> tuple[Place, int]:
        """Return where a tensor is, and its offset in its slot in bytes."""
        for slot, known in enumerate(self.slots):
            if known is tensor:
                return Place(slot), 0
        address = tensor.data_ptr()
        for slot, (first, last) in enumerate(self.ranges):
            if first <= address < last:
                base = self.slots[slot]
                assert base is not None
                offset, rest = divmod(address - first, base.element_size())
                if rest or base.dtype != tensor.dtype:
                    raise _Unknown
                if not offset and base.shape == tensor.shape and base.stride() == tensor.stride():
                    return Place(slot), 0
                return Place(slot, tuple(tensor.shape), tensor.stride(), offset), address - first
        raise _Unknown

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note it."""
        named = kwargs or {}
        result = func(*args, **named)
        if self.failed or (func.is_view and self._are_known(result)):
            return result
        try:
            if func in _ALLOCATIONS:
                self.steps.append(Allocation(tuple(result.shape), result.stride(), result.dtype, result.device))
                self._add(result)
            else:
                self._note(func, args, named, result)
        except _Unknown:
            self.failed = True
        return result

    def _are_known(self, result: Any) -> bool:
        """Return True for views of known tensors; `to` and `contiguous` count as views, but may copy."""
        try:
            self._marked(result)
        except _Unknown:
            return False
        return True

    def _note(self, func: Any, args: Any, named: dict[str, Any], result: Any) -> None:
        if func is torch.ops.aten.promote_types.default:
            return  # what it returns follows from dtypes
        arguments, options = self._marked(tuple(args)), self._marked(named)
        kept = []
        for index, value in enumerate(result if isinstance(result, (tuple, list)) else (result,)):
            if value is not None and not isinstance(value, Tensor):
                raise _Unknown  # read back: what follows may depend on it
            if value is not None and (func.is_view or func._schema.returns[index].alias_info is None):
                kept.append((index, value.stride()))
                self._add(value)
        self.steps.append(Call(func, arguments, options, tuple(kept)))

    def _marked(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._place(value)[0]
        if isinstance(value, dict):
            return {name: self._marked(v) for name, v in value.items()}
        return tuple(map(self._marked, value)) if isinstance(value, (tuple, list)) else value

    def launched(self, launch: Launch) -> None:
        """Note a launch that is about to start."""
        if self.failed:
            return
        values = launch.values()
        tensors = [(i, value) for i, value in enumerate(values) if isinstance(value, Tensor)]
        try:
            found = [(i, *self._place(tensor)) for i, tensor in tensors]
        except _Unknown:
            self.failed = True
            return
        addresses = tuple((i, place.slot, offset) for i, place, offset in found)
        template = tuple(None if isinstance(value, Tensor) else value for value in values)
        compiled = None if INTERPRETED else launch.compiled()
        bare = launch._replace(arguments=template[: len(launch.arguments)])
        self.steps.append(Start(bare, compiled, template, addresses, tuple(place for _, place, _ in found)))

    def plan(self, results: Results) -> Plan | None:
        """Return the plan of the call that was watched; None if it could not be noted."""
        if self.failed:
            return None
        try:
            places = tuple(None if result is None else self._place(result)[0] for result in results)
        except _Unknown:
            return None
        if all(isinstance(step, Allocation) for step in self.steps) and not any(places):
            return Plan((), places)  # it only decided, against doing anything
        return Plan(_with_releases(self.steps, self.inputs, places), places)


def _with_releases(steps: Sequence[Any], inputs: int, results: tuple[Place | None, ...]) -> tuple[Any, ...]:
    """Return the steps, each followed by a `Release` of the slots that it uses last; inputs and results stay."""
    last: dict[int, int] = {}
    made = inputs
    for index, step in enumerate(steps):
        count = len(step.kept) if isinstance(step, Call) else int(isinstance(step, Allocation))
        last |= dict.fromkeys((*_used(step), *range(made, made + count)), index)
        made += count
    stay = {*range(inputs), *(place.slot for place in results if place is not None)}
    found: list[Any] = []
    for index, step in enumerate(steps):
        found.append(step)
        if over := tuple(slot for slot, end in last.items() if end == index and slot not in stay):
            found.append(Release(over))
    return tuple(found)


def _used(value: Any) -> Iterator[int]:
    """Yield the slots that a step, or an argument of one, takes tensors from."""
    if isinstance(value, Place):
        yield value.slot
    elif isinstance(value, Call):
        yield from _used((value.arguments, value.named))
    elif isinstance(value, Start):
        yield from (slot for _, slot, _ in value.addresses)
    elif isinstance(value, Allocation):
        return
    elif isinstance(value, dict):
        yield from _used(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _used(v)


def _filled(value: Any, slots: list[Any]) -> Any:
    """Put tensors in the place of their notes."""
    if isinstance(value, Place):
        return value.find(slots)
    if isinstance(value, dict):
        return {name: _filled(v, slots) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_filled(v, slots) for v in value]
    return value
