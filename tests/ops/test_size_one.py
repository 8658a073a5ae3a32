"""Dimensions of size 1, in every layout: their strides mean nothing, and the libraries below go by them.

A layer with one output channel in channels_last raised in backward, and other strides gave wrong values without a word.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import tunable_ops
from tests.ops.strided_tensors import LAYOUTS, stack_layout
from tunable_ops import reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# operator: (input, weight, options); sizes of dimensions that may become 1 are letters
LETTERS = {"B": 2, "C": 4, "O": 6, "H": 5, "W": 7, "D": 3, "P": 3, "k": 3, "l": 3}
OPERATORS: dict[str, tuple[str, str]] = {
    "tunable_conv1d": ("BCW", "POCk"),
    "tunable_conv2d": ("BCHW", "POCkl"),
    "tunable_conv3d": ("BCDHW", "POCkll"),
    "tunable_conv_transpose2d": ("BCHW", "PCOkl"),
    "tunable_linear": ("BHC", "POC"),
    "tunable_parameter": ("", "POCkl"),
}
BACKENDS = {"tunable_conv1d": ("torch", "cpp", None), "tunable_conv2d": ("torch", "cpp", None)}
NAMES = ("output", "input", "weight", "bias", "alpha")
ALONE = ("", *"BCOHWklP")  # the dimensions of size 1


def sizes(ones: str) -> dict[str, int]:
    return {letter: 1 if letter in ones else n for letter, n in LETTERS.items()}


def integers(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return -1, 0 or 1: sums are exact in every dtype."""
    return torch.randint(-1, 2, tuple(shape)).to(dtype)


def draw(op: str, ones: str, groups: int, alpha: str, dtype: torch.dtype) -> list[Tensor]:
    """Return input (none for the parameter), weight, bias and alpha."""
    size, (shape, kernel) = sizes(ones), OPERATORS[op]
    weight = [size[letter] for letter in kernel]
    if kernel[1:3] in ("OC", "CO"):
        weight[2] //= groups
    alphas = {"shared": (size["P"],), "sample": (size["B"], size["P"])}[alpha]
    tensors = [integers([size[letter] for letter in shape], dtype)] if shape else []
    tensors.append(integers(weight, dtype))
    if shape:
        tensors.append(integers([size["P"], size["O"]], dtype))
    return [*tensors, integers(alphas, torch.promote_types(dtype, torch.float32))]


def options_of(op: str, ones: str, groups: int, stride: int) -> dict[str, Any]:
    if op in ("tunable_linear", "tunable_parameter"):
        return {}
    size = sizes(ones)
    padding = [size[letter] // 2 for letter in OPERATORS[op][1][3:]]
    return {"stride": stride, "padding": padding, "groups": groups}


def run(function: Any, given: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in given]
    output = function(*leaves, **options)
    grad = (torch.arange(output.numel()).view(output.shape) % 3 - 1).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def laid_out(given: list[Tensor], layout: str, kernels: str) -> list[Tensor]:
    *first, weight = given[: 2 if len(given) == 4 else 1]
    rest = given[len(first) + 1 :]
    first = [LAYOUTS[layout](t) if t.dim() > 2 else t for t in first]
    return [*first, stack_layout(kernels, weight), *rest]


def cases() -> Iterator[tuple[str, str, int, str, int]]:
    """Return operator, dimensions of size 1, groups, alpha and stride of each case."""
    for op, (shape, kernel) in OPERATORS.items():
        for ones in (*ALONE, "HW", "kl", "OC", "klHW", "BO", "BCOHWklP"):
            if not set(ones) <= set(shape + kernel):
                continue
            convolves = "k" in kernel and shape
            divides = convolves and not set("CO") & set(ones)
            for alpha in ("shared", "sample"):
                for groups in (1, 2) if divides else (1,):
                    for stride in (
                        (1, 2) if convolves and "k" in ones and ("l" in ones or op == "tunable_conv1d") else (1,)
                    ):
                        yield op, ones, groups, alpha, stride


CASES = list(cases())


def check(op: str, ones: str, groups: int, alpha: str, stride: int, dtype: torch.dtype, layouts: Any) -> None:
    options = options_of(op, ones, groups, stride)
    given = draw(op, ones, groups, alpha, dtype)
    ref = run(getattr(reference, op), [t.double() for t in given], options)
    for layout, kernels in layouts:
        tensors = laid_out(given, layout, kernels)
        for backend in (*BACKENDS.get(op, (None, "torch")), "reference"):
            if backend == "cpp" and dtype == torch.float64:
                continue
            results = run(getattr(tunable_ops, op), tensors, {**options, "backend": backend})
            names = NAMES if len(given) == 4 else ("output", "weight", "alpha")
            for name, o, r in zip(names, results, ref, strict=True):
                assert torch.equal(o, r.to(o.dtype)), f"{dtype} {layout} {kernels} {backend} {name}"


# The layouts that have met faults of the libraries.
KNOWN = [
    ("channels_last", "channels_last"),
    ("odd_channels_last", "odd_channels_last"),
    ("odd", "odd"),
    ("batch_stride_of_channels", "channels_last"),
]


@pytest.mark.parametrize("op, ones, groups, alpha, stride", CASES)
def test_known_layouts(op: str, ones: str, groups: int, alpha: str, stride: int) -> None:
    check(op, ones, groups, alpha, stride, torch.float32, KNOWN)
    check(op, ones, groups, alpha, stride, torch.float64, KNOWN[-1:])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, ones, groups, alpha, stride", CASES)
def test_all_layouts(op: str, ones: str, groups: int, alpha: str, stride: int, dtype: torch.dtype) -> None:
    check(op, ones, groups, alpha, stride, dtype, product(LAYOUTS, LAYOUTS))


@pytest.mark.parametrize("size", [10, 50, 51])
def test_one_output_channel_in_channels_last(size: int) -> None:
    layer = tunable_ops.TunableConv2d(8, 1, 3, padding=1, num_params=2).to(memory_format=torch.channels_last)
    x = torch.randn(1, 8, size, size).to(memory_format=torch.channels_last).requires_grad_()
    layer(x, torch.tensor([0.3, 0.7])).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
