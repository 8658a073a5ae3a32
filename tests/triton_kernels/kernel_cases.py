"""Cases for the Triton kernels, and a check of values and all gradients with kernels chosen by name.

Nothing here imports Triton before a test runs, because the interpreter must be enabled before that import.
"""

from typing import Any

import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import Case
from tunable_ops import reference

NOT_INTERPRETED = "needs TRITON_INTERPRET=1 in a process of its own, as `make test` runs it"
BLOCK = 16
TAILS = (1, BLOCK - 1, BLOCK, BLOCK + 1)
# Depthwise tiles: rows, columns, channels.
ROWS = 4


def tile_cases() -> list[Case]:
    """Return cases with one dimension at a time just below, at or above a tile's end; all dimensions differ."""
    small: dict[str, Any] = {"channels": 3, "outputs": 5, "size": (4, 2), "kernels": 2}
    cases = []
    for n in TAILS:
        for taps, padding in (((3, 2), (1, 1)), ((1, 1), (0, 0))):
            for change in ({"channels": n}, {"outputs": n}, {"size": (1, n)}):
                cases.append(Case(taps=taps, padding=padding, **(small | change)))
    return list(dict.fromkeys(cases))


def depthwise_cases() -> list[Case]:
    """Return the same for depthwise convolutions: channels, columns and rows."""
    sizes = [(n, (3, 5)) for n in (2, *TAILS[1:])] + [(3, (2, n)) for n in TAILS]
    sizes += [(3, (n, 6)) for n in (1, ROWS - 1, ROWS, ROWS + 1)]
    return [Case(channels=c, outputs=c, groups=c, size=size, kernels=2) for c, size in sizes]


def small_tiles(case: Case) -> Any:
    """Return the smallest tiles."""
    from tunable_ops.triton_kernels.launch import Config

    return Config(ROWS, BLOCK, BLOCK) if is_depthwise(case) else Config(BLOCK, BLOCK, BLOCK)


def large_tiles(case: Case) -> Any:
    """Return tiles that hold most of a test's tensors: interpreted blocks are slow, whatever their size."""
    from tunable_ops.triton_kernels.launch import Config

    return Config(ROWS, 32, 16) if is_depthwise(case) else Config(128, 32, 64)


def is_depthwise(case: Case) -> bool:
    """Return True if the depthwise kernel serves a case."""
    return case.groups > 1 and case.channels == case.groups


def run(
    case: Case, tensors: list[Any], grad: Tensor, algorithm: str, tiles: Any = None, activation: str = "none"
) -> list[Tensor | None]:
    """Return the output and the gradients of input, weight, bias and alpha by the chosen kernels."""
    from tunable_ops.triton_kernels.choose_algorithm import Choice

    from tunable_ops.backends.triton import tunable_conv2d

    choice = Choice(algorithm, tiles or large_tiles(case))
    output = tunable_conv2d.forward(*tensors, *case.geometry, activation, choice)
    saved = None if activation == "none" else output
    mask = [True, True, case.bias, True]
    # There is only one algorithm for per-sample weight gradients.
    choices = (choice, choice if tensors[3].dim() == 1 else choice._replace(algorithm="fused"))
    return [
        output,
        *tunable_conv2d.backward(grad, saved, *tensors, *case.geometry, activation, mask, choices),
    ]


def expected(case: Case, tensors: list[Any], grad: Tensor, dtype: torch.dtype, activation: str) -> list[Tensor | None]:
    """Return the same from the definition, in `dtype`."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    output = reference.tunable_conv2d(*leaves, *case.geometry, activation=activation)
    gradients = iter(torch.autograd.grad(output, [t for t in leaves if t is not None], grad.to(dtype)))
    return [output, *(None if t is None else next(gradients) for t in leaves)]


def check(
    case: Case,
    alpha: str,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    algorithm: str = "fused",
    tiles: Any = None,
    activation: str = "none",
    device: str = "cpu",
) -> None:
    """Compare every result with the float64 definition by `assert_agrees`."""
    tensors = [None if t is None else t.to(device) for t in case.tensors(alpha, dtype, channels_last)]
    grad = torch.randn(case.batch, case.outputs, *case.grid).to(dtype).to(device)
    out = run(case, tensors, grad, algorithm, tiles, activation)
    ref = expected(case, tensors, grad, torch.float64, activation)
    base = expected(case, tensors, grad, dtype, activation)
    names = ("output", "grad_input", "grad_weight", "grad_bias", "grad_alpha")
    for name, o, r, b in zip(names, out, ref, base, strict=True):
        assert (o is None) == (r is None), name
        if o is not None and r is not None and b is not None:
            assert_agrees(o, r, b, f"{algorithm} {name}")
