"""What a Runner computes with: each engine is a function of pictures and lambdas, and any number of threads may call it.

Lambdas are rows of numbers in the units of the network: none for a plain network, one for the whole batch, or one for
each sample. Engines that know one kernel at a time run the samples of each lambda together.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunable_ops.deploy.graphs import Graphs
from tunable_ops.deploy.source import Source, two_lambdas
from tunable_ops.modules import LiveFold, TunableModel, accelerate
from tunable_ops.modules.spec import lambda_warnings_off

if TYPE_CHECKING:
    from tunable_ops.deploy.exported import Exported

__all__ = ["ENGINES", "PRECISIONS", "Engine", "Options", "Rows", "build", "lambda_by_lambda", "require", "unavailable_reason"]

Rows = tuple[tuple[float, ...], ...]
ENGINES = {
    "network": ("eager", "livefold", "compile", "onnxruntime", "openvino"),
    "onnx": ("onnxruntime", "openvino"),
    "pt2": ("program",),
}
"""The engines of each kind of source."""
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "deploy")}  # and the extra
_EXPORT = ("onnx", "onnxscript")
_TRIAL = 64  # pixels of a side of what a network is tried with


@dataclass(frozen=True)
class Options:
    """What engines have in common.

    Args:
        device: Where the network runs.
        precision: A name in `PRECISIONS`.
        channels_last: Keep pictures and kernels in that memory format.
        fixed_sizes: True where pictures come in a few sizes.
        remember: Lambdas whose kernels are kept.
    """

    device: torch.device = torch.device("cpu")
    precision: str = "float32"
    channels_last: bool = True
    fixed_sizes: bool = False
    remember: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of kernels and pictures inside."""
        return PRECISIONS[self.precision]

    @property
    def layout(self) -> torch.memory_format:
        """Their memory format."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, net: Any) -> Any:
        """Bring a network to device, dtype and layout."""
        return net.to(self.device, self.dtype).to(memory_format=self.layout)

    def given(self, x: Tensor) -> Tensor:
        """Bring a picture there."""
        return x.to(self.device, self.dtype).contiguous(memory_format=self.layout)


class Engine(ABC):
    """A function of pictures [B, C, H, W] and lambdas.

    Attributes:
        per_sample: True if one call takes a lambda for each sample, and gains by it.
    """

    per_sample = False

    @abstractmethod
    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        """Return [B, O, s H, s W]."""

    def rest(self, row: tuple[float, ...]) -> None:  # noqa: B027
        """Get ready for many calls at one lambda, as many calls would."""


def unavailable_reason(name: str, kind: str, options: Options) -> str | None:
    """Return why an engine cannot be used here and what to do, or None."""
    if name in _PACKAGES:
        package, extra = _PACKAGES[name]
        needed = (package, *_EXPORT) if kind == "network" else (package,)
        missing = [each for each in needed if importlib.util.find_spec(each) is None]
        if missing:
            return f"not installed: {', '.join(missing)} (pip install 'tunable-ops[{extra}]')"
        if options.device.type != "cpu":
            return f"runs on the CPU alone, not on {options.device}"
        if options.precision == "bfloat16":
            return "takes float32 and float16, not bfloat16"
    if name == "compile" and options.device.type == "cpu" and not _has_compiler():
        return "needs a C++ compiler: g++, clang++, or the one that CXX names"
    return None


def require(name: str, kind: str = "onnx", options: Options | None = None) -> None:
    """Raise if an engine cannot be used here.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra.
        RuntimeError: Anything else.
    """
    reason = unavailable_reason(name, kind, options or Options())
    if reason is not None:
        kinds = ModuleNotFoundError if "not installed" in reason else RuntimeError
        raise kinds(f"Runner: engine must be one that works here; got {name!r}, {reason}")


def _has_compiler() -> bool:
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in (named, "g++", "clang++", "c++") if name)


def build(name: str, source: Source, options: Options) -> Engine:
    """Return an engine, which may take seconds.

    Raises:
        ModuleNotFoundError, RuntimeError: As `require`.
        ValueError: The network has no such form: it cannot be folded or exported.
    """
    require(name, source.kind, options)
    if name == "program":
        assert source.exported is not None
        return _Program(source.exported)
    if name in _PACKAGES:
        from tunable_ops.deploy.sessions import SessionEngine

        return SessionEngine(name, source, options)
    if name == "eager":
        return _Eager(source, options)
    return _Live(source, options, name == "compile")


class _Eager(Engine):
    """The network itself; without gradients a TunableModel remembers the kernels of a lambda that rests."""

    def __init__(self, source: Source, options: Options) -> None:
        self._options, self._net = options, options.place(copy.deepcopy(source.net))
        if isinstance(self._net, TunableModel):
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
        self._net: Any = options.place(copy.deepcopy(source.net))
        # one compiled network: the compiler would compile for each again
        self._places = _Places(self._make, 1 if compiled or source.spec is None else max(1, options.remember))
        with self._places.take(None):
            pass  # what cannot be folded says so now

    def _make(self) -> _Place:
        options = self._options
        live: Any = self._net
        if isinstance(self._net, TunableModel):
            with lambda_warnings_off():
                live = LiveFold(self._net)
        network = live.network if isinstance(live, LiveFold) else live
        network.to(memory_format=options.layout)
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

    def move(self, row: tuple[float, ...] | None) -> None:
        if row is not None and row != self.row:
            self.row = None  # of none, should this fail
            with lambda_warnings_off():
                self.live.set(row)
            self.row = row


class _Places:
    """A few plain networks, one thread in each; whoever comes gets one that stands at its lambda, or the oldest one."""

    def __init__(self, make: Callable[[], _Place], most: int) -> None:
        self._make, self._most = make, most
        self._places: list[_Place] = []  # the one that was used last is the last
        self._changed = threading.Condition()

    @contextmanager
    def take(self, row: tuple[float, ...] | None) -> Iterator[_Place]:
        """Lend one that has moved to a lambda."""
        place = self._find(row)
        try:
            place.move(row)
            yield place
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
            return self._exported(x.to(PRECISIONS[self._exported.description.dtype]), lam)


def lambda_by_lambda(engine: Engine, x: Tensor, rows: Rows) -> Tensor:
    """Return what an engine makes of the samples of each lambda."""
    places: dict[tuple[float, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row, []).append(place)
    output: Tensor | None = None
    for row, found in places.items():
        part = engine(x[found], (row,))
        if output is None:
            output = part.new_empty(x.shape[0], *part.shape[1:])
        output[found] = part
    assert output is not None
    return output
