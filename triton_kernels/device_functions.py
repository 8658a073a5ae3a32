"""Functions that the kernels call: the blend of tiles, their columns, the activations, the mask of the padding.

The blend accumulates in fp32, in the order of the kernels, and rounds once to the compute dtype.
"""

import triton
import triton.language as tl


@triton.jit
def load_alphas(alpha_ptr, stride, P: tl.constexpr):
    """Load the P scalars of one sample as a tuple of fp32."""
    alphas = ()
    for p in tl.static_range(P):
        alphas = alphas + (tl.load(alpha_ptr + p * stride).to(tl.float32),)
    return alphas


@triton.jit
def blend(ptrs, stride, alphas, mask, P: tl.constexpr):
    """Return sum_p alphas[p] * tile[p] in fp32; `stride` is that from kernel to kernel."""
    total = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32) * alphas[0]
    for p in tl.static_range(1, P):
        total += tl.load(ptrs + p * stride, mask=mask, other=0.0).to(tl.float32) * alphas[p]
    return total


@triton.jit
def load_kernel(ptrs, stride, alphas, mask, P: tl.constexpr, ALPHA: tl.constexpr, DTYPE: tl.constexpr):
    """Load a tile of the blended kernel in the compute dtype; with ALPHA "none" the kernel is already blended."""
    if ALPHA == "none":
        tile = tl.load(ptrs, mask=mask, other=0.0)
    else:
        tile = blend(ptrs, stride, alphas, mask, P).to(DTYPE)
    return tile


@triton.jit
def columns_of(tile, SIZE: tl.constexpr, COUNT: tl.constexpr):
    """Return the columns of a tile [SIZE, COUNT], COUNT a power of two up to 64, as a tuple of tiles [SIZE].

    They need one exchange between threads in all; a load per column would need one each.
    """
    parts = (tile,)
    for level in tl.static_range(6):
        if COUNT >> level > 1:
            halves = ()
            for i in tl.static_range(1 << level):
                halved = tl.reshape(parts[i], [SIZE, 2, COUNT >> (level + 1)])
                halves = halves + tl.split(tl.permute(halved, (0, 2, 1)))
            parts = halves
    columns = ()
    for i in tl.static_range(COUNT):
        columns = columns + (tl.reshape(parts[i], [SIZE]),)
    return columns


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """Apply the activation in fp32: gelu in its erf form, leaky_relu with slope 0.01."""
    if ACTIVATION == "relu":
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "leaky_relu":
        value = tl.where(value >= 0.0, value, value * 0.01)
    elif ACTIVATION == "gelu":
        value = value * 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == "silu":
        value = value * tl.sigmoid(value)
    return value


@triton.jit
def finish(y_ptrs, pre_ptrs, value, mask, ACTIVATION: tl.constexpr, SAVE: tl.constexpr):
    """Store the activated value and, with SAVE, also the value before the activation; each is rounded once."""
    dtype = y_ptrs.dtype.element_ty
    if SAVE:
        tl.store(pre_ptrs, value.to(dtype), mask=mask)
    tl.store(y_ptrs, activate(value, ACTIVATION).to(dtype), mask=mask)


@triton.jit
def within(position, size):
    """Return the mask of rows (or columns) inside the input; the others are padding."""
    return (position >= 0) & (position < size)
