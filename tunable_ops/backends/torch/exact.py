"""Matrix products in exact fp32, whatever precision (TF32, bf16) the process's settings allow."""

import torch
from torch import Tensor


def exact_matmul(left: Tensor, right: Tensor) -> Tensor:
    """Multiply left [M, K] or [K] by right [K, N] with fp32 (or wider) products and sums."""
    if 0 in (left.numel(), right.numel()) or left.dtype == torch.float64 or _matmul_is_exact(left.device.type):
        return left @ right
    # Changing the process-wide settings here would race with other threads. Loop over K or N; one of them is small.
    if right.shape[0] <= right.shape[1]:
        result = left[..., 0, None] * right[0]
        for k in range(1, right.shape[0]):
            result.addcmul_(left[..., k, None], right[k])
        return result
    columns = [(left * right[:, n]).sum(-1) for n in range(right.shape[1])]
    return torch.stack(columns, -1)


def _matmul_is_exact(device_type: str) -> bool:
    # The getter behind torch.backends.*.matmul.fp32_precision, which takes ten times as long and runs twice per layer.
    read = torch._C._get_fp32_precision_getter
    backend = "cuda" if device_type == "cuda" else "mkldnn"
    precision = read(backend, "matmul")
    if precision == "none":
        precision = read("generic", "all")
    return precision in ("none", "ieee")
