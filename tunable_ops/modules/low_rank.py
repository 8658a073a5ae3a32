"""New kernels of low rank: a stack that is kept as its base kernel and two thin factors of each new one."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops import checks


def saves_parameters(rank: int, kernel: tuple[int, ...]) -> bool:
    """Return True if factors of this rank can hold fewer numbers than the kernel [O, *rest] itself."""
    outputs, inputs = kernel[0], math.prod(kernel[1:])
    return rank < min(outputs, inputs) and rank * (outputs + inputs) < outputs * inputs


class BaseAndLowRank(nn.Module):
    """A parametrisation that keeps a stack [P, O, *rest] as its base and the factors of its new kernels.

    Formula: ``stack[0] = base[0]``, ``stack[1 + j] = U[j] @ V[j]``, with base [1, O, *rest], U [P - 1, O, r] and
    V [P - 1, r, numel(rest)]; O is C for a transposed convolution, whose kernels are [C, O/groups, kh, kw]. The
    product accumulates in fp32 (fp64 for fp64) and rounds once, whatever autocast says.

    In evaluation mode without gradients the stack is kept until one of the three is written or replaced: the product
    then costs nothing. (Writes through `.data` do not show; `eval()` forgets the stack.) The stack has the memory
    format of the base.

    Args:
        rank: r.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self._kept: tuple[Any, Tensor] | None = None

    def forward(self, base: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return the stack."""
        parts = (base, u, v)
        if self.training or torch.is_grad_enabled() or not _may_keep(parts):
            self._kept = None  # fused optimisers leave no trace in versions, but come after a forward with gradients
            return _join(*parts)
        state = [_stream(base), *((id(part), part._version, part.data_ptr()) for part in parts)]
        if self._kept is None or self._kept[0] != (state, self._kept[1]._version):
            # outside inference mode, whose tensors have no version: a write to the stack must show
            with torch.inference_mode(False), torch.no_grad():
                stack = _join(*parts)
            self._kept = (state, stack._version), stack
        return self._kept[1]

    def right_inverse(self, stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return base, U and V: the best factors of the new kernels; U = 0 and a random V where they are all zero.

        The random entries have the deviation 1 / sqrt(r): a step of Adam on U then moves the kernels about as far as a
        step at full rank does.
        """
        new = stack[1:].flatten(2)
        if stack.is_meta or not bool(new.any()):
            u = new.new_zeros(*new.shape[:2], self.rank)
            v = torch.randn_like(new[:, : self.rank]).div_(math.sqrt(self.rank))
        else:
            left, values, right = torch.linalg.svd(new.to(torch.promote_types(new.dtype, torch.float32)), False)
            root = values[:, : self.rank].sqrt()
            u = (left[..., : self.rank] * root.unsqueeze(1)).to(new.dtype)
            v = (right[:, : self.rank] * root.unsqueeze(2)).to(new.dtype)
        return stack[:1].clone(), u.contiguous(), v.contiguous()

    def train(self, mode: bool = True) -> Any:
        """Set the mode and forget the stack."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._kept = None  # there and back again, .half().float(), new values may have the old address
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Return the rank."""
        return f"rank={self.rank}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies and pickles keep the parameters alone


def _join(base: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the stack of base and new kernels, each kernel in the memory format of the base."""
    if checks.autocast_is_on(base.device.type):
        with torch.autocast(base.device.type, enabled=False):
            new = torch.bmm(u, v)
    else:
        new = torch.bmm(u, v)
    new = new.view(-1, *base.shape[1:])
    layout = {5: torch.channels_last, 6: torch.channels_last_3d}.get(base.dim())
    if layout is None or base.is_contiguous():
        return torch.cat((base, new))
    # torch knows these formats for single kernels alone: those of the stack lie side by side
    flat = [part.flatten(0, 1).contiguous(memory_format=layout) for part in (base, new)]
    return torch.cat(flat).unflatten(0, (-1, base.shape[1]))


def _may_keep(parts: tuple[Tensor, ...]) -> bool:
    """Return True for plain tensors in eager mode, whose changes show, and which nothing traces or captures."""
    if not checks.is_plain_eager() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if any(type(part) not in (Tensor, nn.Parameter) or part.is_inference() for part in parts):
        return False
    if any(part.grad is not None for part in parts if part.is_leaf):  # a step of the optimiser is due
        return False
    # a captured graph would go on reading the memory of a stack that has been replaced
    return not (parts[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _stream(tensor: Tensor) -> int:
    """Return the stream that writes now: another one might read a stack before it is there."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
