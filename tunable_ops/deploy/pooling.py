"""Adaptive average pooling to any size, as matrix products: runtimes such as ONNX know it for constant sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["adaptive_avg_pool2d", "pooling_decompositions"]


def pooling_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the operator with its form, for `ExportedProgram.run_decompositions`."""
    return {torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d}


def adaptive_avg_pool2d(input: Tensor, output_size: Sequence[Any]) -> Tensor:
    """Return ``rows @ input @ columns^T``: each matrix averages what torch's pooling of that size does.

    Formula: output i covers the inputs from ``floor(i n / m)`` to ``ceil((i + 1) n / m)``.

    Args:
        input: [B, C, H, W].
        output_size: (OH, OW), numbers or symbols of an export.
    """
    height, width = input.shape[-2:]
    rows, columns = output_size
    if _same(rows, height) and _same(columns, width):
        return input.clone()
    pooled = _matrix(height, rows, input) @ input
    return pooled @ _matrix(width, columns, input).mT


def _same(a: Any, b: Any) -> bool:
    """Return True for equal numbers, and for symbols that are equal whatever they stand for."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return str(a) == str(b)


def _matrix(size: Any, outputs: Any, like: Tensor) -> Tensor:
    """Return [outputs, size] with rows that sum to 1."""
    first = torch.arange(outputs, device=like.device).unsqueeze(1)
    place = torch.arange(size, device=like.device)
    start = torch.div(first * size, outputs, rounding_mode="floor")
    end = torch.div((first + 1) * size + outputs - 1, outputs, rounding_mode="floor")
    inside = ((place >= start) & (place < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
