"""The tensors of a case, and the gate: what a provider must compute before it is timed."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tunable_ops.bench.cases import DTYPES, LAYOUTS, Case
from tunable_ops.bench.step import wanted_gradients

from tunable_ops import reference

# rms(error) / rms(expected) that a right provider stays below, against the definition in fp32 on the same (rounded)
# inputs. fp32 sums of 10^5 products in another order differ by about 2e-6; one rounding to bf16 is 1.7e-3, and what
# rounds alpha, P products and their sum comes to some four of them. The tests hold our own backends to much tighter
# bounds; this gate is there to find a wrong answer, not a rough one.
GATE = {"fp32": 2e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.5e-2}


@dataclass(frozen=True)
class Problem:
    """Inputs of a case: `plain_weight` and `plain_bias` are one kernel, for the baseline."""

    case: Case
    input: Tensor
    weight: Tensor
    bias: Tensor
    alpha: Tensor
    grad_output: Tensor
    plain_weight: Tensor
    plain_bias: Tensor

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """(stride, padding, dilation, groups)."""
        layer = self.case.layer
        return layer.stride, layer.padding, layer.dilation, self.case.groups


def build(case: Case, device: str) -> Problem:
    """Return random inputs of a case, the same at every call."""
    layer, dtype = case.layer, DTYPES[case.dtype]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    fan_in = case.channels * layer.taps**2 // case.groups
    front = (case.outputs, case.channels // case.groups)
    if layer.transposed:
        front = (case.channels, case.outputs // case.groups)
    weight = normal(case.kernels, *front, layer.taps, layer.taps) / math.sqrt(fan_in)
    weight = _each_kernel_to(weight.to(device, dtype), LAYOUTS[case.layout])
    bias = normal(case.kernels, case.outputs).to(device, dtype)
    alpha_shape = {
        "shared": (case.kernels,),
        "per_sample": (case.batch, case.kernels),
        "map": (case.batch, case.kernels, *case.output_grid),
    }[case.alpha]
    alpha = torch.rand(*alpha_shape, generator=generator).to(device)
    layout = LAYOUTS[case.layout]
    return Problem(
        case,
        normal(case.batch, case.channels, case.size, case.width).to(device, dtype).contiguous(memory_format=layout),
        weight,
        bias,
        alpha,
        normal(case.batch, case.outputs, *case.output_grid).to(device, dtype).contiguous(memory_format=layout),
        weight[0].contiguous(memory_format=layout),
        bias[0].clone(),
    )


def _each_kernel_to(weight: Tensor, layout: torch.memory_format) -> Tensor:
    kernels, *shape = weight.shape
    return weight.flatten(0, 1).contiguous(memory_format=layout).view(kernels, *shape)


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """Turn TF32 on for a case that says so and off for all others, for the duration of the block."""
    convolution, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolution.fp32_precision, matmul.fp32_precision
    convolution.fp32_precision = matmul.fp32_precision = "tf32" if case.dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        convolution.fp32_precision, matmul.fp32_precision = before


def expected(problem: Problem, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return what the pass must give, by the definition in `dtype` without TF32: [output] or [output, *gradients]."""
    case = problem.case
    tensors = [t.detach().to(dtype) for t in (problem.input, problem.weight, problem.bias, problem.alpha)]
    definition = reference.tunable_conv_transpose2d if case.layer.transposed else reference.tunable_conv2d
    stride, padding, dilation, groups = problem.geometry
    pair = [(n, n) for n in (stride, padding, dilation)]
    extra = [(0, 0), groups, pair[2]] if case.layer.transposed else [pair[2], groups]
    with precision(Case("1x1", 1, 1, 1)):
        leaves = [tensors[i].requires_grad_() for i in wanted_gradients(case.direction, len(tensors))]
        output = definition(*tensors, pair[0], pair[1], *extra)
        if not leaves:
            return [output]
        return [output.detach(), *torch.autograd.grad(output, leaves, problem.grad_output.to(dtype))]


def check(name: str, got: Sequence[Tensor], want: Sequence[Tensor], problem: Problem) -> None:
    """Check results against the definition.

    Raises:
        ArithmeticError: A result that is not the definition's, named with its error.
    """
    tensors = ("input", "weight", "bias", "alpha")
    names = ["output", *(f"grad of {tensors[i]}" for i in wanted_gradients(problem.case.direction, len(tensors)))]
    bound = GATE[problem.case.dtype]
    for what, g, w in zip(names, got, want, strict=True):
        if g.shape != w.shape:
            raise ArithmeticError(f"{name}: {what} must have shape {tuple(w.shape)}; got {tuple(g.shape)}")
        scale = _rms(w)
        if what == "grad of alpha":
            # A sum over many products may come out near zero by chance; its error does not shrink with it.
            terms = want[0].numel() * problem.alpha.shape[-1 if problem.alpha.dim() < 3 else 1] / problem.alpha.numel()
            scale = max(scale, _rms(want[0]) * _rms(problem.grad_output.float()) * math.sqrt(terms))
        error = _rms(g.detach().to(w.dtype) - w) / max(scale, 1e-30)
        if not error <= bound:
            raise ArithmeticError(f"{name}: rms error of {what} must be at most {bound:.2g}; got {error:.2g}")


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
