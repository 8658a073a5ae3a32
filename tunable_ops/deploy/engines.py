"""The engines of a Runner that run in PyTorch, and how each engine is made."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunable_ops.deploy.engine import PRECISIONS, SESSIONS, Engine, Options, Rows, lambda_by_lambda, require
from tunable_ops.deploy.graphs import Graphs
from tunable_ops.deploy.sessions import SessionEngine
from tunable_ops.deploy.source import Source, two_lambdas
from tunable_ops.modules import LiveFold, TunableModel, accelerate
from tunable_ops.modules.spec import lambda_warnings_off

if TYPE_CHECKING:
    from tunable_ops.deploy.exported import Exported

__all__ = ["build"]

_TRIAL = 64  # pixels of a side of what a network is tried with


def build(name: str, source: Source, options: Options) -> Engine:
    """Return an engine, which may take seconds.

    Raises:
        ModuleNotFoundError, RuntimeError: As `require`.
        ValueError: The network has no such form: it cannot be folded or exported.
    """
    require(name, source.kind, options)
    engine = _made(name, source, options)
    if options.device.type == "cuda":  # calls may come on other streams than the one that brought the network there
        torch.cuda.synchronize(options.device)
    return engine


def _made(name: str, source: Source, options: Options) -> Engine:
    if name == "program":
        assert source.exported is not None
        return _Program(source.exported)
    if name in SESSIONS:
        return SessionEngine(name, source, options)
    if name == "eager":
        return _Eager(source, options)
    return _Live(source, options, name == "compile")


class _Eager(Engine):
    """The network itself; without gradients a TunableModel remembers the kernels of a lambda that rests."""

    def __init__(self, source: Source, options: Options) -> None:
        self._options, self._net = options, options.place(source.net)
        if not isinstance(self._net, TunableModel):
            self._net = accelerate(copy.deepcopy(self._net))  # as the layers of a TunableModel are
        else:
            self._net.remember = options.remember > 0
            self.per_sample = self._takes_one_per_sample(source)

    def _takes_one_per_sample(self, source: Source) -> bool:
        """Return False for a network that needs one kernel for the whole batch, such as one that reads its weights."""
        assert source.spec is not None
        size = max(_TRIAL, source.description.smallest)
        self.per_sample = True
        try:
            self(torch.full((2, source.description.channels, size, size), 0.5), tuple(two_lambdas(source.spec)))
        except (ValueError, RuntimeError, NotImplementedError):
            return False
        return True

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        if len(set(rows)) > 1 and not self.per_sample:
            return lambda_by_lambda(self, x, rows)
        given = self._options.given(x)
        with torch.no_grad(), lambda_warnings_off():
            if not rows:
                output: Tensor = self._net(given)
            else:
                output = self._net(given, torch.tensor(rows[0] if len(set(rows)) == 1 else rows))
        return output


class _Live(Engine):
    """Plain networks whose kernels are blended when lambda moves; on a GPU, their CUDA graphs."""

    def __init__(self, source: Source, options: Options, compiled: bool) -> None:
        self._options, self._compiled = options, compiled
        self._net: Any = options.place(source.net)
        # one compiled network: the compiler would compile for each again
        most = 1 if compiled or source.spec is None else max(1, options.remember)
        self._places = _Places(self._make, most, options.device)
        with self._places.take(None):
            pass  # what cannot be folded says so now

    def _make(self) -> _Place:
        options = self._options
        if isinstance(self._net, TunableModel):
            with lambda_warnings_off():
                live: Any = LiveFold(self._net)
            network = live.network.to(memory_format=options.layout)
        else:
            live, network = None, copy.deepcopy(self._net)
        if self._compiled:
            run: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False if options.fixed_sizes else None)
        elif options.device.type == "cuda":
            run = Graphs(network)
        else:
            run = accelerate(network) if options.device.type == "cpu" else network
        return _Place(live, run)

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        if len(set(rows)) > 1:
            return lambda_by_lambda(self, x, rows)
        given = self._options.given(x)
        with self._places.take(rows[0] if rows else None) as place, torch.no_grad():
            return place.run(given)


class _Place:
    """A plain network that stands at one lambda."""

    def __init__(self, live: Any, run: Callable[[Tensor], Tensor]) -> None:
        self.live, self.run = live, run
        self.row: tuple[float, ...] | None = None
        self.busy = False
        self.done: torch.cuda.Event | None = None  # of what was launched on it last

    def move(self, row: tuple[float, ...] | None) -> None:
        if row is not None and row != self.row:
            self.row = None  # of none, should this fail
            with lambda_warnings_off():
                self.live.set(row)
            self.row = row


class _Places:
    """A few plain networks, one thread in each; whoever comes gets one that stands at its lambda, or the oldest one.

    On a GPU a place is free before its kernels are done: whoever takes it next, perhaps on another stream, waits there.
    """

    def __init__(self, make: Callable[[], _Place], most: int, device: torch.device) -> None:
        self._make, self._most, self._device = make, most, device
        self._places: list[_Place] = []  # the one that was used last is the last
        self._changed = threading.Condition()

    @contextmanager
    def take(self, row: tuple[float, ...] | None) -> Iterator[_Place]:
        """Lend one that has moved to a lambda."""
        place = self._find(row)
        try:
            if place.done is not None:
                torch.cuda.current_stream(self._device).wait_event(place.done)
            place.move(row)
            yield place
        finally:
            try:
                if self._device.type == "cuda":
                    place.done = torch.cuda.current_stream(self._device).record_event()
            finally:
                with self._changed:
                    place.busy = False
                    self._changed.notify()

    def _find(self, row: tuple[float, ...] | None) -> _Place:
        with self._changed:
            while True:
                free = [place for place in self._places if not place.busy]
                place = next((each for each in free if each.row == row), None)
                place = place or next((each for each in free if each.row is None), None)
                if place is None and len(self._places) < self._most:
                    place = self._make()
                    self._places.append(place)
                place = place or (free[0] if free else None)
                if place is not None:
                    self._places.remove(place)
                    self._places.append(place)
                    place.busy = True
                    return place
                self._changed.wait()


class _Program(Engine):
    """A .pt2 file: a graph, or compiled code."""

    def __init__(self, exported: Exported) -> None:
        self._exported = exported
        self.per_sample = exported.description.form in ("per_sample", "map")
        self._lock = threading.Lock()  # what a package guarantees is not written down

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        if len(set(rows)) > 1 and not self.per_sample:
            return lambda_by_lambda(self, x, rows)
        lam = None if not rows else torch.tensor(rows[0] if len(set(rows)) == 1 else rows)
        with self._lock, lambda_warnings_off():
            return self._exported(x.cpu().to(PRECISIONS[self._exported.description.dtype]), lam)
