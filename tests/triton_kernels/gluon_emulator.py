"""Runs the source of a Gluon kernel on the CPU, one block after another. Gluon has no interpreter of its own.

The kernel's file is executed with stand-ins for the modules that it imports, so what runs is the very source that is
compiled for the GPU, on torch tensors; layouts, alone, are ignored. It is stricter than the GPU about order:

- Shared memory begins as NaN. A TMA copy makes its destination NaN when it is issued and brings the data when its
  barrier is waited for; a wait for a phase that nothing will complete raises.
- An asynchronous product reads its operands when it is waited for, as late as it may. An overwritten slot is seen.
- Every access to global memory is checked against its buffer, and a second store to one address raises.
"""

import math
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor


class Pointer:
    """A pointer into a flat buffer, or a tensor of them."""

    def __init__(self, buffer: Tensor, offset: Any = 0, stored: set[int] | None = None) -> None:
        self.buffer, self.offset, self.stored = buffer, offset, set() if stored is None else stored
        self.dtype = types.SimpleNamespace(element_ty=buffer.dtype)

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.buffer, self.offset + offset, self.stored)


class Shared:
    """Shared memory: a view of a torch tensor."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.dtype = data, data.dtype

    def index(self, i: Any) -> "Shared":
        assert 0 <= int(i) < len(self.data), f"index {int(i)} of {len(self.data)} in shared memory"
        return Shared(self.data[int(i)])

    def permute(self, order: Sequence[int]) -> "Shared":
        return Shared(self.data.permute(*order))

    def _reinterpret(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> "Shared":
        assert dtype == self.dtype and math.prod(shape) == self.data.numel()
        return Shared(self.data.view(*shape))

    def store(self, value: Tensor) -> None:
        assert value.shape == self.data.shape and value.dtype == self.dtype
        self.data.copy_(value)


class Descriptor:
    """A tensor descriptor: what it is on the host and what the kernel sees of it."""

    def __init__(self, tensor: Tensor, block: Sequence[int]) -> None:
        self.tensor, self.dtype, self.layout = tensor, tensor.dtype, None
        self.block_type = types.SimpleNamespace(shape=list(block), nbytes=math.prod(block) * tensor.element_size())

    def read(self, start: Sequence[int]) -> Tensor:
        """A block, zero outside of the tensor."""
        block = torch.zeros(self.block_type.shape, dtype=self.dtype)
        inside = [(max(s, 0), min(s + b, n)) for s, b, n in zip(start, block.shape, self.tensor.shape, strict=True)]
        if all(low < high for low, high in inside):
            source = tuple(slice(low, high) for low, high in inside)
            target = tuple(slice(low - s, high - s) for (low, high), s in zip(inside, start, strict=True))
            block[target] = self.tensor[source]
        return block


class Barriers:
    """What an mbarrier knows, by the address of its word in shared memory."""

    def __init__(self) -> None:
        self.completed: dict[int, int] = {}
        self.expected: dict[int, int] = {}
        self.copies: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def init(self, bar: Shared, count: int) -> None:
        assert count == 1
        self.completed[bar.data.data_ptr()] = self.expected[bar.data.data_ptr()] = 0
        self.copies[bar.data.data_ptr()] = []

    def expect(self, bar: Shared, bytes_per_cta: int, pred: Any = True) -> None:
        if pred:
            assert self.expected[bar.data.data_ptr()] == 0, "a barrier expects again before its phase is complete"
            self.expected[bar.data.data_ptr()] = bytes_per_cta

    def copy(self, desc: Descriptor, coord: Sequence[Any], bar: Shared, result: Shared, pred: Any = True) -> None:
        if pred:
            assert result.data.is_contiguous() and list(result.data.shape) == desc.block_type.shape
            result.data.fill_(math.nan)
            self.copies[bar.data.data_ptr()].append((result.data, desc.read([int(c) for c in coord])))

    def wait(self, bar: Shared, phase: Any) -> None:
        key = bar.data.data_ptr()
        if self.completed[key] % 2 != int(phase):
            return  # that phase is complete already
        arrived = sum(data.numel() * data.element_size() for _, data in self.copies[key])
        assert self.expected[key] and arrived == self.expected[key], (
            f"deadlock: a barrier waits for {self.expected[key]} bytes, {arrived} were sent"
        )
        for target, data in self.copies[key]:
            target.copy_(data)
        self.completed[key] += 1
        self.expected[key], self.copies[key] = 0, []


class Product:
    """An accumulator of asynchronous products, computed when it is waited for."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.shape = value, value.shape


class TensorCores:
    """Asynchronous products in the order of issue."""

    def __init__(self) -> None:
        self.pending: list[tuple[Shared, Shared, Product]] = []

    def multiply(self, a: Shared, b: Shared, acc: Any, *, use_acc: Any = True, is_async: bool = False) -> Product:
        assert is_async and a.data.shape[0] == acc.shape[0] and b.data.shape[1] == acc.shape[1]
        if not isinstance(acc, Product):
            acc = Product(acc.clone())
        if not use_acc:
            acc.value = torch.zeros_like(acc.value)
        self.pending.append((a, b, acc))
        return acc

    def wait(self, num_outstanding: int = 0, deps: Any = ()) -> Any:
        while len(self.pending) > num_outstanding:
            a, b, acc = self.pending.pop(0)
            acc.value = acc.value + a.data.float() @ b.data.float()
        values = tuple(d.value if not num_outstanding and isinstance(d, Product) else d for d in deps)
        return values[0] if len(values) == 1 else values


def _load(pointer: Pointer, mask: Any = None, other: Any = None) -> Tensor:
    offset = torch.as_tensor(pointer.offset)
    mask = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask.expand(offset.shape)
    assert bool(((offset >= 0) & (offset < pointer.buffer.numel()) | ~mask).all()), "a load outside of its buffer"
    value = pointer.buffer[torch.where(mask, offset, 0).long()]
    return torch.where(mask, value, torch.as_tensor(math.nan if other is None else other, dtype=value.dtype))


def _store(pointer: Pointer, value: Tensor, mask: Any = None) -> None:
    mask = torch.ones_like(value, dtype=torch.bool) if mask is None else mask.expand(value.shape)
    offset = torch.as_tensor(pointer.offset).expand(value.shape)[mask]
    assert bool(((offset >= 0) & (offset < pointer.buffer.numel())).all()), "a store outside of its buffer"
    assert value.dtype == pointer.buffer.dtype
    addresses = set(offset.tolist())
    assert len(addresses) == offset.numel() and not addresses & pointer.stored, "an address stored to twice"
    pointer.stored |= addresses
    pointer.buffer[offset.long()] = value[mask]


class Emulator:
    """The stand-ins of one kernel file.

    Attributes:
        module: The kernel's file, executed.
    """

    def __init__(self, file: Path, edit: Callable[[str], str] = lambda source: source, num_warps: int = 4) -> None:
        self.program = [0, 0, 0]
        self.grid = [1, 1, 1]
        self.barriers = Barriers()
        self.cores = TensorCores()
        gl = self._language(num_warps)
        hopper = types.SimpleNamespace(
            fence_async_shared=lambda: None,
            mbarrier=types.SimpleNamespace(
                MBarrierLayout=lambda: None,
                init=lambda bar, count: self.barriers.init(bar, count),
                expect=lambda *a, **k: self.barriers.expect(*a, **k),
                wait=lambda *a, **k: self.barriers.wait(*a, **k),
            ),
            tma=types.SimpleNamespace(async_copy_global_to_shared=lambda *a, **k: self.barriers.copy(*a, **k)),
            warpgroup_mma=lambda *a, **k: self.cores.multiply(*a, **k),
            warpgroup_mma_wait=lambda *a, **k: self.cores.wait(*a, **k),
        )
        gluon = types.SimpleNamespace(
            jit=lambda fn=None, **_: fn if fn is not None else (lambda inner: inner), constexpr_function=lambda fn: fn
        )
        names = ("triton", "triton.experimental", "triton.experimental.gluon", "triton.experimental.gluon.language")
        packages: dict[str, Any] = {name: types.ModuleType(name) for name in names}
        packages["triton.experimental"].gluon = packages["triton.experimental.gluon"]
        packages["triton.experimental.gluon"].__dict__.update(vars(gluon), language=gl)
        stand_ins = {**packages, "triton.experimental.gluon.language.nvidia.hopper": hopper}
        self.module = types.ModuleType(file.stem)
        # A tensor per index, as in the kernel: `.to` works on it and its arithmetic is 32 bits wide.
        self.module.__dict__["range"] = lambda *bounds: (
            torch.tensor(i, dtype=torch.int32) for i in range(*map(int, bounds))
        )
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(sys.modules, stand_ins))
            exec(compile(edit(file.read_text()), str(file), "exec"), self.module.__dict__)

    def run(self, kernel: str, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
        """Runs every block of the grid."""
        self.grid = [*grid, 1, 1][:3]
        for y in range(self.grid[1]):
            for x in range(self.grid[0]):
                self.program, self.barriers, self.cores = [x, y, 0], Barriers(), TensorCores()
                getattr(self.module, kernel)(*arguments, **constants)
                assert not any(self.barriers.copies.values()), "a block ends while a copy is under way"
                assert not self.cores.pending, "a block ends while a product is under way"

    def _language(self, num_warps: int) -> Any:
        def allocate(dtype: torch.dtype, shape: Sequence[int], layout: Any) -> Shared:
            return Shared(torch.full(list(shape), math.nan if dtype.is_floating_point else 0, dtype=dtype))

        def scalar(value: int) -> Tensor:
            return torch.tensor(value, dtype=torch.int32)

        layout = lambda *_, **__: None  # noqa: E731
        return types.SimpleNamespace(
            constexpr=lambda value: value,
            static_range=range,
            program_id=lambda axis: scalar(self.program[axis]),
            num_programs=lambda axis: scalar(self.grid[axis]),
            num_warps=lambda: num_warps,
            arange=lambda start, end, layout=None: torch.arange(start, end, dtype=torch.int32),
            zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
            allocate_shared_memory=allocate,
            load=_load,
            store=_store,
            convert_layout=lambda value, layout: value,
            maximum=lambda a, b: a.clamp(min=b),
            where=torch.where,
            exp=torch.exp,
            erf=torch.erf,
            SliceLayout=layout,
            BlockedLayout=layout,
            NVMMADistributedLayout=layout,
            NVMMASharedLayout=types.SimpleNamespace(get_default_for=layout),
            int32=torch.int32,
            int64=torch.int64,
            float32=torch.float32,
        )
