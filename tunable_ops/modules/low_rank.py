"""New kernels of low rank: a stack that is kept as its base kernel and two thin factors of each new one."""

import math

import torch
from torch import Tensor, nn

from tunable_ops import checks


def join_kernels(base: Tensor, *new: Tensor) -> Tensor:
    """Return the stack of base [1, *kernel] and new kernels [P - 1, *kernel], each in the memory format of the base."""
    layout = {5: torch.channels_last, 6: torch.channels_last_3d}.get(base.dim())
    if layout is None or base.is_contiguous():
        return torch.cat((base, *new))
    # torch knows these formats for single kernels alone: those of the stack lie side by side
    flat = [part.flatten(0, 1).contiguous(memory_format=layout) for part in (base, *new)]
    return torch.cat(flat).unflatten(0, (-1, base.shape[1]))


def saves_parameters(rank: int, kernel: tuple[int, ...]) -> bool:
    """Return True if factors of this rank can hold fewer numbers than the kernel [O, *rest] itself."""
    outputs, inputs = kernel[0], math.prod(kernel[1:])
    return rank < min(outputs, inputs) and rank * (outputs + inputs) < outputs * inputs


class BaseAndLowRank(nn.Module):
    """A parametrisation that keeps a stack [P, O, *rest] as its base and the factors of its new kernels.

    Formula: ``stack[0] = base[0]``, ``stack[1 + j] = U[j] @ V[j]``, with base [1, O, *rest], U [P - 1, O, r] and
    V [P - 1, r, numel(rest)]; O is C for a transposed convolution, whose kernels are [C, O/groups, kh, kw]. The
    product accumulates in fp32 (fp64 for fp64) and rounds once, whatever autocast says. The stack
    has the memory format of the base.

    Args:
        rank: r.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, base: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return the stack."""
        if checks.autocast_is_on(base.device.type):
            with torch.autocast(base.device.type, enabled=False):
                new = torch.bmm(u, v)
        else:
            new = torch.bmm(u, v)
        return join_kernels(base, new.view(-1, *base.shape[1:]))

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

    def extra_repr(self) -> str:
        """Return the rank."""
        return f"rank={self.rank}"
