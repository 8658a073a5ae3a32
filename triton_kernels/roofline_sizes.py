"""What the predictions read of a problem, and what the counts of several kernels share."""

from typing import Any, Protocol, TypeVar

from tunable_ops.triton_kernels.launch import Config

# Registers of a multiprocessor in warps of 128 registers a thread: what limits the number of its blocks.
WARPS = 16
SHARED_MEMORY = 227 << 10

Self = TypeVar("Self")


class Sizes(Protocol):
    """What is read of a `choose_algorithm.Problem`, which says what each of them is."""

    @property
    def direction(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def alpha(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def layout(self) -> str: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def kernels(self) -> int: ...  # noqa: D102
    @property
    def inputs(self) -> int: ...  # noqa: D102
    @property
    def outputs(self) -> int: ...  # noqa: D102
    @property
    def groups(self) -> int: ...  # noqa: D102
    @property
    def taps(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def stride(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102
    def _replace(self: Self, **changes: Any) -> Self: ...


def item_size(dtype: str) -> int:
    """Return the bytes of an element."""
    return 4 if dtype in ("float32", "tf32") else 2


def moved_pixels(sizes: Sizes, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the pixels that the kernel reads and those of its result, of the whole batch."""
    result = sizes.batch * grid[0] * grid[1]
    if sizes.direction == "input":  # the phases share grad_output
        full = sizes.size[0] * sizes.size[1]
        return sizes.batch * full // (sizes.stride[0] * sizes.stride[1]), result
    return result * sizes.stride[0] * sizes.stride[1], result


def resident_tiles(config: Config, shared: int = 0) -> int:
    """Return the blocks that a multiprocessor holds, given the bytes of shared memory that one needs."""
    fits = SHARED_MEMORY // shared if shared else WARPS
    return max(1, min(WARPS // config.num_warps, fits))


def summed_pixels(sizes: Sizes) -> tuple[int, int]:
    """Return the number of weight gradients, and the pixels that each sums over."""
    sums = {"shared": 1, "map": sizes.kernels}.get(sizes.alpha, sizes.batch)
    return sums, sizes.size[0] * sizes.size[1] * (sizes.batch if sizes.alpha in ("shared", "map") else 1)
