"""Transformed kernels that are kept from call to call, for layers whose kernel seldom changes."""

from typing import Any

from torch import Tensor

from tunable_ops.ops import registration
from tunable_ops.ops.tunable_conv2d import NAME

_OPERATOR = registration.Operator(
    f"{NAME}_cpp_keeping",
    "Tensor input, Tensor weight, Tensor? bias, Tensor alpha, Tensor? kept, int padding_h, int padding_w, int groups",
    "(Tensor, Tensor)",
    None,
    lambda *args: _never(),
)
_enabled = True


def _never() -> Any:
    raise RuntimeError("kept kernels serve plain eager calls alone")


class KeptKernel:
    """The transformed kernel of one layer, or nothing yet.

    It holds a copy of the kernel too, with which every call compares the kernel that it is given, bit by bit: no change
    goes unnoticed. Threads may share it: one that replaces what is kept does not write to it.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What it holds."""
        kept = self._kept
        return 0 if kept is None else kept.nbytes

    def convolve(
        self, input: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int], groups: int
    ) -> Tensor:
        """Convolve without stride, with what is kept if it is of this kernel; keep it where that pays.

        Args:
            input: [B, C, H, W], float32 in channels_last.
            kernel: [1, O, C/groups, k, k].
            bias: [1, O] or None.
            padding: Pixels.
            groups: As in `tunable_conv2d`.
        """
        output, kept = _OPERATOR.run(input, kernel, bias, input.new_ones(1), self._kept, *padding, groups)
        if kept.numel():
            self._kept = kept
        return output  # type: ignore[no-any-return]

    def release(self) -> None:
        """Keep nothing."""
        self._kept = None


def remember_transforms(enabled: bool) -> bool:
    """Set whether layers keep transformed kernels in this process, and return what was set before. The default is True.

    In inference on a CPU, layers whose kernel seldom changes (those of `accelerate`, and of a TunableModel with
    `remember`) keep it in the form that Winograd's filtering needs, beside a copy by which changes show: 5 times the
    memory of a 3x3 kernel, 2.4 times that of a 5x5 one. They do so only for pictures so small that it saves time, for
    3x3 kernels of 16x16 to some 39x39 pixels in a batch. Results are the same to the last bit. A layer of `accelerate`
    releases it in calls with gradients or with this set to False, when it moves to another device or dtype, and when it
    dies; a model with the kernels that it remembers.

    Args:
        enabled: True to keep them.

    Raises:
        TypeError: Not a bool.
    """
    global _enabled
    if not isinstance(enabled, bool):
        raise TypeError(f"remember_transforms: enabled must be a bool; got {type(enabled).__name__}")
    before, _enabled = _enabled, enabled
    return before


def remembers_transforms() -> bool:
    """Return what `remember_transforms` has set last."""
    return _enabled
