"""ONNX Runtime and OpenVINO as engines: one session that takes lambda, and sessions for lambdas that rest.

A session that takes lambda blends the kernels at every call, and its convolutions cannot be prepared for kernels that
are not known. Where a lambda comes again and again, it becomes a constant of the graph: the runtime then blends when it
makes the session.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunable_ops.deploy.description import Description
from tunable_ops.deploy.engine import PRECISIONS, Engine, Options, Rows, lambda_by_lambda
from tunable_ops.deploy.exported import in_form
from tunable_ops.deploy.onnx import export_onnx
from tunable_ops.deploy.source import Source

__all__ = ["SessionEngine", "at_lambda", "open_session"]

Session = Callable[[Sequence[Any]], Any]
"""From the arrays of the inputs, in order, to that of the output; any number of threads may call it."""


class SessionEngine(Engine):
    """A network in another runtime, on the CPU.

    It uses as many threads as torch does when it is made.

    Args:
        name: "onnxruntime" or "openvino".
        source: A network, which is exported first, or an ONNX file.
        options: As for all engines.
    """

    def __init__(self, name: str, source: Source, options: Options) -> None:
        self._name, self._threads = name, torch.get_num_threads()
        self._content, self._description = _exported(source, options)
        start = time.perf_counter()
        self._session = open_session(name, self._content, self._threads)
        seconds = time.perf_counter() - start
        self.per_sample = self._description.form in ("per_sample", "map")
        self._at_rest: AtRest | None = None
        if self._description.form == "shared" and options.remember and _can_edit():
            self._at_rest = AtRest(self._make_at, seconds, options.remember)

    def _make_at(self, row: tuple[float, ...]) -> Session:
        return open_session(self._name, at_lambda(self._content, row), self._threads)

    def rest(self, row: tuple[float, ...]) -> None:
        """Make the session of a lambda."""
        if self._at_rest is not None:
            self._at_rest.make(row)

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        """Run it, with the session of a lambda where there is one."""
        if len(set(rows)) > 1 and not self.per_sample:
            return lambda_by_lambda(self, x, rows)
        given = x.cpu().to(PRECISIONS[self._description.dtype]).contiguous()
        if not rows:
            return _output(self._session([given.numpy()]))
        session = None if self._at_rest is None else self._at_rest.find(rows[0])
        if session is not None:
            return _output(session([given.numpy()]))
        lam = torch.tensor(rows[0] if len(set(rows)) == 1 else rows)
        start = time.perf_counter()
        output = _output(self._session([given.numpy(), in_form(self._description, lam, given).numpy()]))
        if self._at_rest is not None:
            self._at_rest.count(rows[0], time.perf_counter() - start)
        return output


class AtRest:
    """Sessions for lambdas that rest: one is made when the calls with its lambda have taken as long as making it will.

    So a lambda that comes once costs nothing more, and one that stays costs at most twice what the best choice would.

    Args:
        make: Makes the session of a lambda.
        seconds: What that takes, about.
        most: Sessions that are kept.
    """

    def __init__(self, make: Callable[[tuple[float, ...]], Session], seconds: float, most: int) -> None:
        self._make, self._seconds, self._most = make, seconds, most
        self._sessions: OrderedDict[tuple[float, ...], Session] = OrderedDict()
        self._last: tuple[float, ...] | None = None
        self._spent = 0.0
        self._lock, self._making = threading.Lock(), threading.Lock()

    def find(self, row: tuple[float, ...]) -> Session | None:
        """Return the session of a lambda, made now if it is time; None if there is none."""
        with self._lock:
            if row in self._sessions:
                self._sessions.move_to_end(row)
                return self._sessions[row]
            if row != self._last or self._spent < self._seconds:
                return None
        if not self._making.acquire(blocking=False):  # another thread makes one: nobody waits for it
            return None
        try:
            return self._made(row)
        finally:
            self._making.release()

    def make(self, row: tuple[float, ...]) -> None:
        """Make the session of a lambda, if there is none."""
        with self._making:
            self._made(row)

    def _made(self, row: tuple[float, ...]) -> Session:
        with self._lock:
            if row in self._sessions:
                return self._sessions[row]
        session = self._make(row)
        with self._lock:
            self._sessions[row] = session
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)
        return session

    def count(self, row: tuple[float, ...], seconds: float) -> None:
        """Note a call without a session."""
        with self._lock:
            if row != self._last:
                self._last, self._spent = row, 0.0
            self._spent += seconds


def _exported(source: Source, options: Options) -> tuple[bytes, Description]:
    """Return the content of an ONNX file, and what it says of itself."""
    if source.path is not None:
        return source.path.read_bytes(), source.description
    assert source.net is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        example = torch.zeros(1, source.description.channels, 1, 1)
        description = export_onnx(source.net, path, half=options.precision == "float16", example=example)
        return path.read_bytes(), description


def open_session(name: str, content: bytes, threads: int) -> Session:
    """Return an ONNX model in a runtime, on the CPU."""
    return _open_onnxruntime(content, threads) if name == "onnxruntime" else _open_openvino(content, threads)


def _open_onnxruntime(content: bytes, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # otherwise its threads spin on after a call, at the cost of whatever runs next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def _open_openvino(content: bytes, threads: int) -> Session:
    import openvino

    core = openvino.Core()
    # "f32": where the processor has bfloat16, OpenVINO takes it by default
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(content), "CPU", options)
    own = threading.local()  # a request serves one call at a time

    def run(arrays: Sequence[Any]) -> Any:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return own.request.infer(list(arrays), share_inputs=True)[0]  # its output is a copy

    return run


def _can_edit() -> bool:
    import importlib.util

    return importlib.util.find_spec("onnx") is not None


def at_lambda(content: bytes, row: Sequence[float]) -> bytes:
    """Return an ONNX model of this package with one lambda for the batch as a constant instead of an input."""
    import numpy as np
    import onnx

    model = onnx.load_from_string(content)
    left = [each for each in model.graph.input if each.name != "lam"]
    del model.graph.input[:]
    model.graph.input.extend(left)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(row, np.float32), "lam"))
    edited: bytes = model.SerializeToString()
    return edited


def _output(array: Any) -> Tensor:
    return torch.from_numpy(array)
