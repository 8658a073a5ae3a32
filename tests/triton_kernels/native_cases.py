"""Layers whose launches are compared, and what they launch; the tests that import it are skipped where nothing can."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from tunable_ops.triton_kernels import INTERPRETED, unavailable_reason

if unavailable_reason() is not None or INTERPRETED:
    pytest.skip(unavailable_reason() or "launches are interpreted here", allow_module_level=True)

from tunable_ops.bench import stand_in_driver
from tunable_ops.bench.stand_in_driver import Driver, Launched

from tunable_ops.backends import implementation
from tunable_ops.backends.triton import native
from tunable_ops.reference.activation import CODES

if stand_in_driver.unavailable_reason() is not None:
    pytest.skip(str(stand_in_driver.unavailable_reason()), allow_module_level=True)

ROOT = Path(__file__).parents[2]
OP = torch.ops.tunable_ops.tunable_conv2d_triton


class Case(NamedTuple):
    """A layer, and a picture."""

    channels: int = 16
    outputs: int = 16
    taps: tuple[int, int] = (3, 3)
    size: tuple[int, int] = (9, 8)
    groups: int = 1
    layout: str = "nhwc"
    alpha: str = "sample"
    dtype: torch.dtype = torch.float16
    stride: tuple[int, int] = (1, 1)
    activation: str | None = None
    bias: bool = True
    batch: int = 2
    kernels: int = 2

    @property
    def id(self) -> str:
        changed = {k: v for k, v in self._asdict().items() if v != self._field_defaults[k]}
        return "-".join(f"{k}={v}" for k, v in changed.items()).replace(" ", "") or "default"

    def options(self) -> tuple[int, ...]:
        return (*self.stride, *(k // 2 for k in self.taps), 1, 1, self.groups, CODES[self.activation])

    def tensors(self) -> list[Any]:
        """New tensors: input, weight, bias or None, alpha."""
        layout = torch.channels_last if self.layout == "nhwc" else torch.contiguous_format
        shape = (self.kernels * self.outputs, self.channels // self.groups, *self.taps)
        weight = torch.randn(shape).to(self.dtype).contiguous(memory_format=layout)
        x = torch.randn(self.batch, self.channels, *self.size).to(self.dtype).contiguous(memory_format=layout)
        bias = torch.randn(self.kernels, self.outputs).to(self.dtype) if self.bias else None
        grid = [(n - 1) // s + 1 for n, s in zip(self.size, self.stride, strict=True)]
        each = (self.batch, self.kernels)
        shape = {"shared": (self.kernels,), "sample": each, "map": (*each, *grid)}[self.alpha]
        return [x, weight.unflatten(0, (self.kernels, -1)), bias, torch.rand(shape)]


def varied(**changes: list[Any]) -> list[Case]:
    """Cases that differ from the default in one thing each."""
    return [Case(**{name: value}) for name, values in changes.items() for value in values]


CASES = [
    Case(),
    *varied(
        alpha=["shared", "map"], layout=["nchw"], dtype=[torch.bfloat16, torch.float32], bias=[False], stride=[(2, 2)]
    ),
    *varied(activation=["relu", "gelu"], taps=[(1, 1)], kernels=[6, 17], size=[(17, 20)], batch=[1]),
    Case(layout="nchw", alpha="shared", activation="silu"),
    Case(alpha="shared", dtype=torch.float32),
    Case(groups=16, activation="leaky_relu"),
    Case(groups=16, alpha="shared", layout="nchw"),
    Case(channels=16, outputs=24, groups=2),
    Case(channels=3, outputs=5, size=(7, 11)),
]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def named(launches: list[Launched], tensors: dict[str, Tensor | None]) -> list[Launched]:
    """Replace addresses by the tensor and the offset in it; those of workspaces by the order of their first use."""
    spans = {}
    for name, t in tensors.items():
        if t is not None and t.numel() > 0:
            reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
            spans[name] = (t.data_ptr(), reach * t.element_size())
    others: dict[int, str] = {}

    def rename(value: int) -> Any:
        for name, (first, size) in spans.items():
            if first <= value < first + size:
                return name, value - first
        is_address = 1 << 32 < value < 1 << 48
        return others.setdefault(value, f"workspace {len(others)}") if is_address else value

    return [one._replace(parameters=tuple(map(rename, one.parameters))) for one in launches]


def served(counts: tuple[int, int]) -> tuple[int, int]:
    """The calls that C++ served and did not serve, since `counts`."""
    now = native.counts()
    return now[0] - counts[0], now[1] - counts[1]


def forward(case: Case, driver: Driver, run: Any) -> tuple[list[Launched], Tensor]:
    tensors = case.tensors()
    driver.take()
    output = run(*tensors)
    names = dict(zip(("x", "weight", "bias", "alpha", "output"), (*tensors, output), strict=True))
    return named(driver.take(), names), output


def in_python(case: Case) -> Any:
    """The forward pass of the Triton backend, called in Python: from its plan at every call but the first."""
    stride, padding, dilation = (case.options()[i : i + 2] for i in (0, 2, 4))
    options = (stride, padding, dilation, case.groups, case.activation or "none")
    return lambda *tensors: implementation("triton", "tunable_conv2d").forward(*tensors, *options)
