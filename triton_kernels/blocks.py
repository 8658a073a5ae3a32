"""What the kernels share: the blend of tiles, the activations, and where an input pixel lies.

The blend accumulates in fp32 in the order of the kernels and rounds once to the compute dtype.
"""

import triton
import triton.language as tl


@triton.jit
def load_alphas(alpha_ptr, stride, P: tl.constexpr):
    """P scalars of one sample as a tuple of fp32."""
    alphas = ()
    for p in tl.static_range(P):
        alphas = alphas + (tl.load(alpha_ptr + p * stride).to(tl.float32),)
    return alphas


@triton.jit
def blend(ptrs, stride, alphas, mask, P: tl.constexpr):
    """sum_p alphas[p] * tile[p] in fp32; `stride` leads from one kernel of the stack to the next."""
    total = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32) * alphas[0]
    for p in tl.static_range(1, P):
        total += tl.load(ptrs + p * stride, mask=mask, other=0.0).to(tl.float32) * alphas[p]
    return total


@triton.jit
def load_kernel(ptrs, stride, alphas, mask, P: tl.constexpr, ALPHA: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of the blended kernel in the compute dtype; with ALPHA none the tile itself, blended before."""
    if ALPHA == "none":
        tile = tl.load(ptrs, mask=mask, other=0.0)
    else:
        tile = blend(ptrs, stride, alphas, mask, P).to(DTYPE)
    return tile


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """The epilogue in fp32: gelu in the erf form, leaky_relu with slope 0.01."""
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
def source(position, size, UPSAMPLE: tl.constexpr, factor):
    """Index and validity of an input row (or column) that a tap asks for.

    With UPSAMPLE the input is read as if factor - 1 zeros stood between its rows, for the gradient of a strided
    convolution.
    """
    inside = position >= 0
    if UPSAMPLE:
        inside = inside & (position % factor == 0)
        position = position // factor
    return position, inside & (position < size)
