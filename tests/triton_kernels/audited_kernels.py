"""Small kernels that test the audit: a good one, and one for each fault."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from tunable_ops.triton_kernels.audit_cases import AuditCase
from tunable_ops.triton_kernels.launch import Launch


@triton.jit
def _blend_and_multiply(x_ptr, w_ptr, out_ptr, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Blend two weight tiles and multiply by them on tensor cores, as a fused kernel does."""
    offs_m, offs_n, offs_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + offs_m[:, None] * K + (k + offs_k)[None, :])
        first = tl.load(w_ptr + offs_n[None, :] * K + (k + offs_k)[:, None])
        second = tl.load(w_ptr + BLOCK_N * K + offs_n[None, :] * K + (k + offs_k)[:, None])
        acc = tl.dot(x, (0.25 * first.to(tl.float32) + 0.75 * second.to(tl.float32)).to(x.dtype), acc)
    tl.store(out_ptr + offs_m[:, None] * BLOCK_N + offs_n[None, :], acc.to(out_ptr.dtype.element_ty))


@triton.jit
def _scale(x_ptr, out_ptr, BLOCK: tl.constexpr):
    """Scale a block without tensor cores."""
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs) * 2)


@triton.jit
def _hoard(x_ptr, out_ptr, BLOCK: tl.constexpr):
    """Use all values again after their sum, which takes BLOCK / 32 registers with one warp."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, x * tl.sum(x))


@triton.jit
def _broken(x_ptr):
    undefined_name(x_ptr)  # noqa: F821


def tensors(count: int, dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(1, dtype=dtype, device="meta") for _ in range(count))


def matrix(name: str, m: int, n: int, k: int, num_warps: int = 4, num_stages: int = 3) -> AuditCase:
    constants = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    return AuditCase(name, Launch(_blend_and_multiply, (1,), (*tensors(3), 64), constants, num_warps, num_stages), m)


GOOD = matrix("good", 128, 64, 32)
SPILLING = AuditCase("spilling", Launch(_hoard, (1,), tensors(2, torch.float32), {"BLOCK": 16384}, 1, 3))
TOO_MUCH_SHARED = matrix("too-much-shared", 128, 128, 128, num_stages=6, num_warps=8)
PLAIN = AuditCase("plain", Launch(_scale, (1,), tensors(2), {"BLOCK": 1024}, 4, 3), rows=128)
BROKEN = AuditCase("broken", Launch(_broken, (1,), tensors(1), {}, 4, 3))


def cases() -> Iterator[AuditCase]:
    yield PLAIN
    yield GOOD
