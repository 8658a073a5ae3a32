"""Which engine is fastest for a shape: measured once, and remembered, also on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunable_ops.deploy.engine import SESSIONS, Engine, Options, Rows
from tunable_ops.deploy.source import two_lambdas
from tunable_ops.modules import LambdaSpec

__all__ = ["Choices", "circumstances", "measure"]

_FORMAT = "tunable_ops.engines"
_ROUNDS = 3
_TINY = torch.finfo(torch.float32).tiny
_BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 6e-2}  # rms error over rms, beside the first engine


class Choices:
    """The engine of each shape.

    Args:
        names: The engines to choose from; results of the others are compared with those of the first.
        engine: Returns an engine by name.
        spec: Of lambda; None for a plain network.
        precision: A name in `engines.PRECISIONS`.
        about: What a choice depends on beside the shape (`circumstances`).
        cache: File that keeps choices, also those of other networks and machines; None for this process alone.

    Raises:
        ValueError: `cache` exists and is something else, or its folder does not exist.
    """

    def __init__(
        self,
        names: Sequence[str],
        engine: Callable[[str], Engine],
        spec: LambdaSpec | None,
        precision: str,
        about: Mapping[str, Any],
        cache: Path | None = None,
    ) -> None:
        self._names, self._engine, self._spec, self._precision = list(names), engine, spec, precision
        self._about, self._cache = json.dumps(about, sort_keys=True), cache
        self._known: dict[str, dict[str, Any]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        if cache is not None:
            if not cache.parent.is_dir():
                raise ValueError(f"Runner: cache must lie in an existing folder; got {str(cache)!r}")
            self._known = _sound(_read(cache).get(self._about), self._names)

    def pick(self, shape: Sequence[int], per_sample: bool) -> str:
        """Return the name of the fastest engine for pictures of a shape; the first call with it measures all.

        Args:
            shape: (B, C, H, W).
            per_sample: True where the samples have lambdas of their own.
        """
        key = "x".join(map(str, shape)) + (" per sample" if per_sample else "")
        with self._lock:
            if key in self._known:
                return str(self._known[key]["engine"])
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._lock:
                if key in self._known:
                    return str(self._known[key]["engine"])
            seconds = self._measured(shape, per_sample)
            found = {"engine": min(seconds, key=lambda name: seconds[name]), "seconds": seconds}
            with self._lock:
                self._known[key] = found
                if self._cache is not None:
                    _write(self._cache, self._about, {key: found})
        return str(found["engine"])

    def known(self) -> dict[str, dict[str, Any]]:
        """Return what is known: by shape, the engine and the seconds of all."""
        with self._lock:
            return {key: dict(value) for key, value in self._known.items()}

    def _measured(self, shape: Sequence[int], per_sample: bool) -> dict[str, float]:
        """Return seconds by engine, of those that give what the first gives."""
        x = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0))
        moving, resting = _lambdas(self._spec, shape[0], per_sample)
        ready: dict[str, Engine] = {}
        expected: Tensor | None = None
        first = ""
        for name in self._names:
            try:
                engine = self._engine(name)
                output = engine(x, resting).float().cpu()
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"Runner: engine {name!r} is left out, it does not run: {reason}", stacklevel=4)
                continue
            if expected is None:
                first, expected = name, output
            wrong, scale = (each.square().mean().sqrt().item() for each in (output - expected, expected))
            # of the first, NaN would differ from itself; where all is zero, nothing differs
            if name != first and not wrong <= _BOUNDS[self._precision] * scale + _TINY:
                warnings.warn(
                    f"Runner: engine {name!r} is left out, its result differs from that of {first!r} by "
                    f"{wrong / max(scale, _TINY):.2g} (rms over rms)",
                    stacklevel=4,
                )
                continue
            ready[name] = engine
        if not ready:
            raise RuntimeError(f"Runner: engine must be one that runs this network; none of {self._names} does")
        return measure(ready, x, moving, resting) if len(ready) > 1 else dict.fromkeys(ready, 0.0)


def _lambdas(spec: LambdaSpec | None, batch: int, per_sample: bool) -> tuple[list[Rows], Rows]:
    """Return lambdas that move, new ones in each round, and one that rests.

    An engine may keep the kernels of any lambda that it has seen: those that move come once, and never rest.
    """
    if spec is None:
        return [], ()
    first, second = two_lambdas(spec)
    resting = tuple((first, second)[place % 2] for place in range(batch)) if per_sample else (first,)
    if first == second:  # the domain has no other lambda
        return [], resting

    def between(step: int) -> tuple[float, ...]:
        share = step / (2 * _ROUNDS + 1)
        return tuple(one + share * (other - one) for one, other in zip(first, second, strict=True))

    return [
        tuple(between(2 * turn + 1 + place % 2) for place in range(len(resting))) for turn in range(_ROUNDS)
    ], resting


def measure(engines: Mapping[str, Engine], x: Tensor, moving: Sequence[Rows], resting: Rows) -> dict[str, float]:
    """Return the seconds of a call with a lambda that moves and of one with a lambda that rests, together, by engine.

    The engines take turns, so that a change of the machine's load meets all of them; each figure is a median.

    Args:
        engines: By name; each has run once.
        x: [B, C, H, W].
        moving: Lambdas that move, one for each round; none for a plain network.
        resting: The one that rests.
    """
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(_ROUNDS):
        for name, engine in engines.items():
            seconds = _timed(engine, x, moving[turn]) if moving else 0.0
            if turn == 0:
                if len(set(resting)) == 1:
                    engine.rest(resting[0])
                engine(x, resting)
                engine(x, resting)
            elif moving:
                engine(x, resting)
            times[name].append(seconds + _timed(engine, x, resting))
    return {name: statistics.median(each) for name, each in times.items()}


def _timed(engine: Engine, x: Tensor, rows: Rows) -> float:
    start = time.perf_counter()
    engine(x, rows).cpu()  # a GPU has then finished
    return time.perf_counter() - start


def circumstances(fingerprint: str, options: Options, names: Sequence[str]) -> dict[str, Any]:
    """Return what a choice depends on beside the shape: network, processor, threads and versions."""
    versions = {"torch": str(torch.__version__)}
    for package in ("tunable-ops", *(each for each in SESSIONS if each in names)):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a folder in the path
            versions[package] = "unknown"
    return {
        "network": fingerprint,
        "processor": _processor(options.device),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "precision": options.precision,
        "channels_last": options.channels_last,
        "fixed_sizes": options.fixed_sizes,
        "remember": options.remember,
        "engines": list(names),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        pairs = [line.partition(":") for line in lines]
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        found += [fields[name] for name in ("model name", "cpu family", "model", "stepping") if name in fields]
    except OSError:
        found.append(platform.processor())
    return " ".join(filter(None, found))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"Runner: cache must be a file of choices, or not exist; got {str(path)!r}: {error}") from None
    if (
        not isinstance(content, dict)
        or content.get("format") != _FORMAT
        or not isinstance(content.get("choices"), dict)
    ):
        raise ValueError(f"Runner: cache must be a file of choices, or not exist; got {str(path)!r}, something else")
    choices: dict[str, Any] = content["choices"]
    return choices


def _sound(found: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the choices that a file may hold; what is broken or of another engine is measured again."""
    known = {}
    for key, choice in found.items() if isinstance(found, dict) else ():
        seconds = choice.get("seconds") if isinstance(choice, dict) else None
        numbers = isinstance(seconds, dict) and all(isinstance(each, (int, float)) for each in seconds.values())
        if numbers and choice.get("engine") in names:
            known[key] = {"engine": choice["engine"], "seconds": seconds}
    return known


def _write(path: Path, about: str, found: Mapping[str, Any]) -> None:
    """Add choices to a file, atomically; what another process adds in that moment may be lost, and measured again."""
    try:
        choices = _read(path)
    except ValueError:  # damaged since
        choices = {}
    known = choices.get(about)
    choices[about] = {**(known if isinstance(known, dict) else {}), **found}
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.write_text(json.dumps({"format": _FORMAT, "choices": choices}, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        warnings.warn(f"Runner: choices are not kept in {str(path)!r}: {error}", stacklevel=5)
