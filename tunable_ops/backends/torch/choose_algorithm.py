"""Choice of the algorithm for a per-sample alpha; `python -m bench --suite per-sample` measures the candidates.

Measured on two CPU cores (docs/per_sample.md), fp32, P = 2: "bmm" wins wherever it applies. For contiguous tensors
"grouped" wins, since viewing the batch as channels is free. In channels_last "grouped" converts the layout twice, and
"loop" has a fixed cost per sample that only large samples are worth.
Nothing here has been measured on a GPU; "loop" is used there because grouped convolutions are known to be slow.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tunable_ops.backends.torch.layout import output_format

# In channels_last, a sample of this many multiply-adds (elements, if depthwise) is worth a convolution of its own.
LOOP_MACS = 1 << 24
LOOP_DEPTHWISE = 1 << 16


def choose_algorithm(input: Tensor, weight: Tensor, geometry: Any, groups: int) -> str:
    """Return the fastest algorithm in `per_sample` for a call, forward and backward."""
    stride, padding, _ = geometry
    if tuple(weight.shape[3:]) == (1, 1) and groups == 1 and tuple(stride) == (1, 1) and tuple(padding) == (0, 0):
        return "bmm"
    if input.device.type != "cpu":
        return "loop"
    if output_format(input, weight) == torch.contiguous_format:
        return "grouped"
    elements = input.shape[1] * input.shape[2] * input.shape[3]
    if groups == input.shape[1]:
        return "loop" if elements >= LOOP_DEPTHWISE else "grouped"
    macs = weight.shape[1] * math.prod(weight.shape[2:]) * input.shape[2] * input.shape[3] // math.prod(stride)
    return "loop" if macs >= LOOP_MACS else "grouped"
