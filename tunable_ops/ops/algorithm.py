"""The algorithm of convolutions on a CPU: a setting of the process."""

from collections.abc import Iterator
from contextlib import contextmanager

from tunable_ops import backends
from tunable_ops.ops import registration
from tunable_ops.ops.tunable_conv2d import NAME as CONV2D

# The position is the code in csrc/cpu/algorithm.h.
NAMES = ("default", "direct", "winograd2", "winograd4")
_OPERATOR = registration.Operator(f"{CONV2D}_cpp_algorithm", "int algorithm", "int", None, lambda algorithm: 0)
_current = NAMES[0]


def set_algorithm(name: str) -> str:
    """Set the algorithm of the C++ operators' convolutions in this process, and return the name of the one before.

    - "default": Winograd's minimal filtering where it is estimated to be faster, else the direct kernels.
    - "direct": The direct kernels everywhere.
    - "winograd2", "winograd4": Winograd's filtering in tiles of 2x2 or 4x4 outputs; calls that it does not serve raise
      a RuntimeError. It serves float32, kernels of 3x3 (in tiles of 2x2 also 5x5) with stride 1 and dilation 1 that are
      not depthwise, and an alpha [P] or [B, P].

    The filtering does 2.25 or 4 times fewer multiplications and rounds at points between: docs/winograd.md has its
    error. Compiled and exported programs follow the setting too. Without the C++ operators it has no effect.

    Args:
        name: One of the above.

    Raises:
        TypeError: The name is no string.
        ValueError: The name is unknown.

    Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
    """
    if not isinstance(name, str):
        raise TypeError(f"set_algorithm: name must be a string; got {type(name).__name__}")
    if name not in NAMES:
        raise ValueError(f"set_algorithm: name must be one of {', '.join(map(repr, NAMES))}; got {name!r}")
    global _current
    if backends.unavailable_reason(CONV2D, "cpp") is None:
        _OPERATOR.op(NAMES.index(name))
    before, _current = _current, name
    return before


def current_algorithm() -> str:
    """Return the name that `set_algorithm` has set last."""
    return _current


@contextmanager
def exact() -> Iterator[None]:
    """Take the direct kernels inside the block: ``with tunable_ops.exact(): ...``.

    A setting of the process (`set_algorithm`), which other threads see too; put back at the end. A backward pass
    follows the setting at its own time.
    """
    before = set_algorithm("direct")
    try:
        yield
    finally:
        set_algorithm(before)
