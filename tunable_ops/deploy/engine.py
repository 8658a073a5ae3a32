"""What engines of a Runner have in common: a function of pictures and lambdas, which any number of threads may call.

Lambdas are rows of numbers in the units of the network: none for a plain network, one for the whole batch, or one for
each sample. Engines that know one kernel at a time run the samples of each lambda together.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunable_ops.extras import install

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "SESSIONS",
    "Engine",
    "Options",
    "Rows",
    "engines_to_try",
    "lambda_by_lambda",
    "precision_inside",
    "require",
    "unavailable_reason",
]

Rows = tuple[tuple[float, ...], ...]
ENGINES = {
    "network": ("eager", "livefold", "compile", "onnxruntime", "openvino"),
    "onnx": ("onnxruntime", "openvino"),
    "pt2": ("program",),
}
"""The engines of each kind of source."""
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SESSIONS = ("onnxruntime", "openvino")
"""The engines of other runtimes."""
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "deploy")}  # and the extra
_SLOW_TO_START = ("compile",)  # "auto" takes these only where they are named
_EXPORT = ("onnx", "onnxscript")
_CPU = torch.device("cpu")


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

    device: torch.device = _CPU
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
        """Bring a network to device, dtype and layout; a copy of it, where it would become another one."""
        if self.device.type != "cpu" or self.dtype != torch.float32:
            net = copy.deepcopy(net)
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
    if name == "program" and options.device.type != "cpu":
        return f"runs on the CPU alone, not on {options.device}"
    if name in _PACKAGES:
        package, extra = _PACKAGES[name]
        needed = (package, *_EXPORT) if kind == "network" else (package,)
        missing = [each for each in needed if importlib.util.find_spec(each) is None]
        if missing:
            return f"not installed: {', '.join(missing)} ({install(extra)})"
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


def engines_to_try(kind: str, engine: str, candidates: Sequence[str] | None, options: Options) -> list[str]:
    """Return the engines to choose from, checked; one where it is named."""
    own = ENGINES[kind]
    if engine != "auto":
        if candidates is not None:
            raise ValueError(f"Runner: candidates must be left out beside engine={engine!r}; got {candidates!r}")
        if engine not in own:
            what = {"network": "a network", "onnx": "an ONNX file", "pt2": "a .pt2 file"}[kind]
            raise ValueError(f"Runner: engine must be auto or one of {', '.join(own)} for {what}; got {engine!r}")
        require(engine, kind, options)
        return [engine]
    if candidates is None:
        names = [name for name in own if name not in _SLOW_TO_START and unavailable_reason(name, kind, options) is None]
        if not names:
            require(own[0], kind, options)
        return names
    if isinstance(candidates, str) or not candidates:
        raise ValueError(f"Runner: candidates must be names of engines; got {candidates!r}")
    for name in candidates:
        engines_to_try(kind, name, None, options)
    return list(dict.fromkeys(candidates))


def precision_inside(name: str, device: torch.device, kind: str = "network", own: str = "float32") -> str:
    """Return the precision of the engines, a name in `PRECISIONS`.

    Args:
        name: As given, perhaps "auto".
        device: Where they run.
        kind: Of the source, a key of `ENGINES`.
        own: That of a file, which cannot be changed.
    """
    if name != "auto" and name not in PRECISIONS:
        raise ValueError(f"Runner: precision must be auto or one of {', '.join(PRECISIONS)}; got {name!r}")
    if kind != "network":
        if name not in ("auto", own):
            raise ValueError(f"Runner: precision must be auto or {own}, that of the file; got {name!r}")
        return own
    if name == "auto":
        # on CPUs 16 bits are slower than float32 in Winograd's filtering, or lose bits that pictures need
        return "float16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0) else "float32"
    return name


def _has_compiler() -> bool:
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in (named, "g++", "clang++", "c++") if name)


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
