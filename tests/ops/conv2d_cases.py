"""Test cases of tunable_conv2d, in which all sizes differ, and their tensors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunable_ops.reference.activation import CODES

ALPHAS = ("shared", "one", "sample", "map")


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call."""

    batch: int = 2
    channels: int = 3
    outputs: int = 5
    size: tuple[int, int] = (9, 11)
    taps: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    kernels: int = 3
    bias: bool = True

    def __str__(self) -> str:
        (height, width), (kh, kw) = self.size, self.taps
        text = f"B{self.batch}-C{self.channels}-O{self.outputs}-{height}x{width}-k{kh}x{kw}"
        for name, value, default in (
            ("s", self.stride, (1, 1)),
            ("p", self.padding, (1, 1)),
            ("d", self.dilation, (1, 1)),
        ):
            text += f"-{name}{value[0]}{value[1]}" if value != default else ""
        return (
            text
            + (f"-g{self.groups}" if self.groups > 1 else "")
            + f"-P{self.kernels}"
            + ("" if self.bias else "-nobias")
        )

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The arguments after alpha."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def grid(self) -> tuple[int, ...]:
        """The output's spatial size."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(self.size, self.padding, self.dilation, self.taps, self.stride, strict=True)
        )

    def tensors(self, alpha: str, dtype: torch.dtype = torch.float64, channels_last: bool = False) -> list[Any]:
        """Return [input, weight, bias or None, alpha], drawn from torch's global generator."""
        shape = {
            "shared": (self.kernels,),
            "one": (1, self.kernels),
            "sample": (self.batch, self.kernels),
            "map": (self.batch, self.kernels, *self.grid),
        }[alpha]
        fan_in = self.channels // self.groups * self.taps[0] * self.taps[1]
        x = torch.randn(self.batch, self.channels, *self.size).to(dtype)
        weight = torch.randn(self.kernels, self.outputs, self.channels // self.groups, *self.taps) / fan_in**0.5
        weight = weight.to(dtype)
        if channels_last:
            x, weight = x.to(memory_format=torch.channels_last), kernels_last(weight)
        bias = torch.randn(self.kernels, self.outputs).to(dtype) if self.bias else None
        return [x, weight, bias, torch.rand(shape).to(dtype)]


def kernels_last(weight: Tensor) -> Tensor:
    """Return a stack [P, O, C, kh, kw] with each kernel in channels_last."""
    return weight.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, weight.shape[:2])


CASES = [
    Case(),
    Case(kernels=1, batch=1),
    Case(taps=(1, 1), padding=(0, 0), channels=7, outputs=6),
    Case(taps=(1, 1), padding=(0, 0), stride=(2, 1), bias=False),
    Case(taps=(1, 1), padding=(1, 0)),
    Case(taps=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False),
    Case(channels=6, outputs=4, groups=2, taps=(3, 2)),
    Case(channels=4, outputs=8, groups=4, kernels=2),
    Case(channels=5, outputs=5, groups=5, batch=3),  # depthwise
    Case(channels=1, outputs=2, size=(5, 4)),
    Case(size=(3, 3), padding=(0, 0)),  # one output pixel
    Case(batch=17, channels=2, outputs=3, size=(4, 5), kernels=8),
]


def options_of(case: Case, activation: str | None = None) -> tuple[int, ...]:
    """Return the options of a call in the order of the operators' schemas."""
    stride, padding, dilation, groups = case.geometry
    return (*stride, *padding, *dilation, groups, CODES[activation])
