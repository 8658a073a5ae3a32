"""Output sizes and padding of convolutions: the formulas, without checks."""

from collections.abc import Sequence


def output_size(
    size: Sequence[int], taps: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return the spatial size of a convolution's output: floor((n + 2 pad - dil (k - 1) - 1) / stride) + 1."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, taps, stride, padding, dilation, strict=True)
    )


def transposed_output_size(
    size: Sequence[int],
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Return the spatial size of a transposed convolution's output: (n - 1) s - 2 pad + dil (k - 1) + out_pad + 1."""
    return tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, k, s, p, e, d in zip(size, taps, stride, padding, output_padding, dilation, strict=True)
    )


def same_padding(taps: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Resolve padding="same" at stride 1: return the padding on both sides, and the extra zeros at the end."""
    total = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
    return tuple(t // 2 for t in total), tuple(t % 2 for t in total)
