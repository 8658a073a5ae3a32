"""Blends of many stacks on the Triton kernels: one launch, and two for the gradients.

The launches read tables that depend only on the addresses of the stacks, which do not change: the blends, and the
gradients of the stacks, are placed in one workspace each. The gradients of the blends arrive at new addresses in every
step. They are first copied into a workspace (a few launches of `_foreach_copy_`), because a table of new addresses
would be a copy from the host, which a CUDA graph cannot capture. For the same reason a call that needs new tables
raises while a graph is captured: a call before the capture makes them. Tables that a captured graph reads are kept.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tunable_ops.backends.torch import tunable_parameters as torch_backend
from tunable_ops.backends.torch.layout import as_matrix, from_matrix
from tunable_ops.triton_kernels.launch import cdiv
from tunable_ops.triton_kernels.tunable_parameters import (
    ALIGNMENT,
    Tables,
    make_tables,
    plan_tunable_parameters_backward,
    plan_tunable_parameters_forward,
    plan_tunable_parameters_sum,
)

_T = TypeVar("_T")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class _Plan(NamedTuple):
    """Everything that depends only on the stacks."""

    tables: Tables
    shapes: list[tuple[tuple[int, ...], tuple[int, ...], int]]  # of each blend: shape, strides, first element
    elements: int  # size of the workspace of all blends
    grad_shapes: list[tuple[tuple[int, ...], tuple[int, ...], int]]  # the same for the stacks' gradients
    grad_elements: int
    sums: Tensor  # [A, most], see `_sums`


# The most recent plans, by everything that they depend on; and those that a captured graph may read, which stay.
_PLANS: dict[tuple[object, ...], _Plan] = {}
_CAPTURED: dict[tuple[object, ...], _Plan] = {}
_MAX_PLANS = 64


def forward(
    parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], dtype: torch.dtype | None
) -> list[Tensor]:
    """Return sum_p alpha[starts[i] + p] parameters[i][p] for each stack, with the layout of its kernels."""
    results: list[Tensor] = [alpha] * len(parameters)
    for kind, members in _by_kind(parameters, dtype).items():
        stacks, firsts = _pick(parameters, members), _pick(starts, members)
        plan = None if kind is None else _plan(stacks, firsts, [True] * len(stacks), alpha.shape[0])
        if plan is None or kind is None:
            made = torch_backend.forward(stacks, alpha, firsts, dtype)
        else:
            workspace = torch.empty(plan.elements, dtype=kind[1], device=alpha.device)
            made = [workspace.as_strided(*shape) for shape in plan.shapes]
            launch = plan_tunable_parameters_forward(plan.tables, _fp32(alpha), workspace.data_ptr(), *kind)
            launch.run()
        for i, result in zip(members, made, strict=True):
            results[i] = result
    return results


def blend_into(parameters: Sequence[Tensor], alpha: Tensor, starts: Sequence[int], outputs: Sequence[Tensor]) -> None:
    """Write what `forward` returns into existing tensors, each with the layout of its stack's kernels."""
    for kind, members in _by_kind(parameters, None).items():
        stacks, firsts, targets = _pick(parameters, members), _pick(starts, members), _pick(outputs, members)
        tables = None if kind is None else _tables_into(stacks, firsts, targets)
        if tables is None or kind is None:
            torch_backend.blend_into(stacks, alpha, firsts, targets)
        else:
            plan_tunable_parameters_forward(tables, _fp32(alpha), 0, *kind).run()


def backward(
    grad_outputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    alpha: Tensor,
    starts: Sequence[int],
    mask: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of the parameters and, last, of alpha; empty where `mask` is False."""
    results: list[Tensor] = [p.new_empty(0) for p in parameters]
    grad_alpha = torch.zeros_like(alpha) if mask[-1] else alpha.new_empty(0)
    for kind, members in _by_kind(parameters, grad_outputs[0].dtype if grad_outputs else None).items():
        stacks, firsts = _pick(parameters, members), _pick(starts, members)
        grads, wanted = _pick(grad_outputs, members), _pick(mask, members)
        alike = len({grad.dtype for grad in grads}) == 1
        plan = _plan(stacks, firsts, wanted, alpha.shape[0]) if kind is not None and alike else None
        if plan is None:
            *found, share = torch_backend.backward(grads, stacks, alpha, firsts, [*wanted, mask[-1]])
        else:
            found, share = _contract(plan, grads, stacks, alpha, wanted, mask[-1])
        for i, grad in zip(members, found, strict=True):
            results[i] = grad
        if mask[-1]:
            grad_alpha += share
    return [*results, grad_alpha]


def _contract(
    plan: _Plan, grads: list[Tensor], stacks: list[Tensor], alpha: Tensor, wanted: list[bool], need_alpha: bool
) -> tuple[list[Tensor], Tensor]:
    gathered = torch.empty(plan.elements, dtype=grads[0].dtype, device=alpha.device)
    torch._foreach_copy_([gathered.as_strided(*shape) for shape in plan.shapes], grads)
    results = torch.empty(plan.grad_elements, dtype=stacks[0].dtype, device=alpha.device)
    tables = plan.tables
    blocks, width = tables.blocks.shape[0], tables.width
    partial = torch.empty(blocks, width, dtype=torch.float32, device=alpha.device) if need_alpha else None
    bases = (gathered.data_ptr(), results.data_ptr())
    kind = (stacks[0].dtype, grads[0].dtype)
    plan_tunable_parameters_backward(tables, _fp32(alpha), partial, bases, *kind).run()
    share = alpha.new_empty(0)
    if partial is not None:
        shares = torch.zeros(len(stacks) * width + 1, dtype=torch.float32, device=alpha.device)
        plan_tunable_parameters_sum(tables, partial, shares).run()
        share = shares[plan.sums].sum(1).to(alpha.dtype)
    placed = iter(plan.grad_shapes)
    found = [results.as_strided(*next(placed)) if w else s.new_empty(0) for s, w in zip(stacks, wanted, strict=True)]
    return found, share


def _pick(values: Sequence[_T], members: Sequence[int]) -> list[_T]:
    return [values[i] for i in members]


def _by_kind(
    parameters: Sequence[Tensor], dtype: torch.dtype | None
) -> dict[tuple[torch.dtype, torch.dtype] | None, list[int]]:
    """Group indices by the dtypes of stack and blend, one pair per launch; None: not served by the kernels."""
    groups: dict[tuple[torch.dtype, torch.dtype] | None, list[int]] = {}
    for i, parameter in enumerate(parameters):
        kind = (parameter.dtype, dtype or parameter.dtype)
        served = kind[0] in _DTYPES and kind[1] in _DTYPES and parameter.numel() > 0
        groups.setdefault(kind if served else None, []).append(i)
    return groups


def _plan(stacks: list[Tensor], starts: list[int], wanted: list[bool], length: int) -> _Plan | None:
    """Return the plan for these stacks; None if they are not dense."""
    key = (_identity(stacks), tuple(starts), tuple(wanted), length)
    plan = _known(key, stacks[0])
    if plan is not None:
        return plan
    matrices = _matrices(stacks)
    if matrices is None:
        return None
    _check_not_capturing(stacks[0])
    places, shapes, elements = [], [], 0
    grad_places, grad_shapes, grad_elements = [], [], 0
    for stack, matrix, grad in zip(stacks, matrices, wanted, strict=True):
        like = from_matrix(torch.empty(matrix.shape, device="meta"), stack)
        places.append(elements)
        shapes.append((tuple(like.shape[1:]), like.stride()[1:], elements))
        elements += cdiv(matrix.shape[1], ALIGNMENT) * ALIGNMENT
        grad_places.append(grad_elements if grad else -ALIGNMENT)
        if grad:
            grad_shapes.append((tuple(like.shape), like.stride(), grad_elements))
            grad_elements += cdiv(matrix.numel(), ALIGNMENT) * ALIGNMENT
    tables = make_tables(matrices, starts, places, grad_places)
    sums = _sums(stacks, starts, tables.width, length).to(stacks[0].device)
    return _remember(key, _Plan(tables, shapes, elements, grad_shapes, grad_elements, sums))


def _tables_into(stacks: list[Tensor], starts: list[int], outputs: list[Tensor]) -> Tables | None:
    """Return the tables for blends into existing tensors; None as in `_plan`."""
    key = (_identity(stacks), tuple(starts), tuple(output.data_ptr() for output in outputs))
    plan = _known(key, stacks[0])
    if plan is not None:
        return plan.tables
    matrices = _matrices(stacks)
    if matrices is None:
        return None
    _check_not_capturing(stacks[0])
    tables = make_tables(matrices, starts, [output.data_ptr() // output.element_size() for output in outputs])
    return _remember(key, _Plan(tables, [], 0, [], 0, tables.blocks)).tables


def _identity(stacks: list[Tensor]) -> tuple[object, ...]:
    return tuple((s.data_ptr(), s.shape, s.stride()) for s in stacks), stacks[0].dtype, stacks[0].device


def _matrices(stacks: list[Tensor]) -> list[Tensor] | None:
    """Return the stacks as [P, N] with dense rows; None if that would copy one of them."""
    matrices = [as_matrix(stack) for stack in stacks]
    whole = all(
        matrix.data_ptr() == stack.data_ptr() and (matrix.stride(1) == 1 or matrix.shape[1] == 1)
        for matrix, stack in zip(matrices, stacks, strict=True)
    )
    return matrices if whole else None


def _sums(stacks: list[Tensor], starts: list[int], width: int, length: int) -> Tensor:
    """Return [A, most]: for each value of alpha, the indices of its shares in [stacks * width + 1].

    Shorter rows are padded with the last index, at which there is a zero.
    """
    lists: list[list[int]] = [[] for _ in range(length)]
    for i, (stack, start) in enumerate(zip(stacks, starts, strict=True)):
        for p in range(stack.shape[0]):
            lists[start + p].append(i * width + p)
    most = max(map(len, lists))
    zero = len(stacks) * width
    return torch.tensor([row + [zero] * (most - len(row)) for row in lists])


def _known(key: tuple[object, ...], tensor: Tensor) -> _Plan | None:
    """Return the plan of a key; while a graph is captured, keep it from then on."""
    plan = _CAPTURED.get(key) or _PLANS.get(key)
    if plan is not None and _capturing(tensor):
        _CAPTURED[key] = plan
    return plan


def _check_not_capturing(tensor: Tensor) -> None:
    if _capturing(tensor):
        raise RuntimeError(
            "tunable_parameters: the first call with given stacks must come before a CUDA graph is captured; got one "
            "during the capture. Run the same call once before, on the stacks that the graph will read"
        )


def _remember(key: tuple[object, ...], plan: _Plan) -> _Plan:
    while len(_PLANS) >= _MAX_PLANS:
        _PLANS.pop(next(iter(_PLANS)))
    _PLANS[key] = plan
    return plan


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _fp32(alpha: Tensor) -> Tensor:
    return alpha.to(torch.float32).contiguous()
