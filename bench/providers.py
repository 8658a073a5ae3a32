"""Who is timed: the plain convolution, to which ratios refer, our backends and algorithms, and today's practice.

A provider makes, for a problem, a differentiable function of (input, weight, bias, alpha) and the leaves it is
differentiated by. "Today's practice" is what people write without this package.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tunable_ops.bench.cases import Case
from tunable_ops.bench.problem import Problem
from tunable_ops.triton_kernels.choose_algorithm import Choice, default_algorithm, default_config, premixed_config
from tunable_ops.triton_kernels.choose_algorithm import Problem as TritonProblem
from tunable_ops.triton_kernels.launch import Geometry

import tunable_ops
from tunable_ops import backends, reference
from tunable_ops.backends import wgmma
from tunable_ops.backends.torch import per_sample
from tunable_ops.backends.torch import tunable_conv2d as torch_backend
from tunable_ops.backends.triton import problem as triton_problem

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Provider:
    """`make(problem)` gives the function; `refuses(problem)` says why it cannot serve, or None."""

    name: str
    description: str
    make: Callable[[Problem], Function]
    refuses: Callable[[Problem], str | None]
    practice: bool = False  # today's practice
    default: bool = True  # timed where no provider is named


def leaves(problem: Problem, name: str) -> tuple[Tensor, ...]:
    """Return the tensors that a provider's function takes and is differentiated by."""
    if name == "plain":
        return problem.input, problem.plain_weight, problem.plain_bias
    return problem.input, problem.weight, problem.bias, problem.alpha


def _convolution(problem: Problem) -> Callable[..., Tensor]:
    """conv(x, w, b, multiple): the library's convolution of the case, with `multiple` times its groups."""
    stride, padding, dilation, groups = problem.geometry
    if problem.case.layer.transposed:
        return lambda x, w, b, multiple=1: F.conv_transpose2d(x, w, b, stride, padding, 0, groups * multiple, dilation)
    return lambda x, w, b, multiple=1: F.conv2d(x, w, b, stride, padding, dilation, groups * multiple)


def _plain(problem: Problem) -> Function:
    convolve = _convolution(problem)
    return lambda x, w, b: convolve(x, w, b)


def _tunable(backend: str | None) -> Callable[[Problem], Function]:
    def make(problem: Problem) -> Function:
        stride, padding, dilation, groups = problem.geometry
        if problem.case.layer.transposed:
            return lambda x, w, b, a: tunable_ops.tunable_conv_transpose2d(
                x, w, b, a, stride, padding, 0, groups, dilation, backend=backend
            )
        return lambda x, w, b, a: tunable_ops.tunable_conv2d(
            x, w, b, a, stride, padding, dilation, groups, backend=backend
        )

    return make


def _backend_missing(name: str) -> Callable[[Problem], str | None]:
    def refuses(problem: Problem) -> str | None:
        op = "tunable_conv_transpose2d" if problem.case.layer.transposed else "tunable_conv2d"
        try:
            backends.select(op, name, problem.input, problem.weight, problem.alpha)
        except RuntimeError as error:
            return str(error)
        return None

    return refuses


def _reference(problem: Problem) -> Function:
    stride, padding, dilation, groups = problem.geometry
    if problem.case.layer.transposed:
        return lambda x, w, b, a: reference.tunable_conv_transpose2d(x, w, b, a, stride, padding, 0, groups, dilation)
    return lambda x, w, b, a: reference.tunable_conv2d(x, w, b, a, stride, padding, dilation, groups)


class _Algorithm(torch.autograd.Function):
    """One algorithm of the torch backend, whatever its rule would pick."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, a: Tensor, geometry: Any, name: str) -> Tensor:
        ctx.save_for_backward(x, w, b, a)
        ctx.options = (geometry, name)
        return torch_backend.forward(x, w, b, a, *geometry, "none", name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        geometry, name = ctx.options
        mask = list(ctx.needs_input_grad[:4])
        return (*torch_backend.backward(grad, None, *ctx.saved_tensors, *geometry, "none", mask, name), None, None)


def _algorithm(name: str) -> Callable[[Problem], Function]:
    def make(problem: Problem) -> Function:
        geometry = _pairs(problem)
        return lambda x, w, b, a: _Algorithm.apply(x, w, b, a, geometry, name)

    return make


def _algorithm_refuses(name: str) -> Callable[[Problem], str | None]:
    def refuses(problem: Problem) -> str | None:
        kind = problem.case.layer
        if problem.case.alpha != "per_sample" or kind.transposed:
            return "serves a per-sample alpha and no transposed convolution"
        return "serves 1x1 alone" if name == "bmm" and kind.taps != 1 else None

    return refuses


class _TritonAlgorithm(torch.autograd.Function):
    """One algorithm of the Triton backend with the heuristic's tiles, whatever rule and table would pick.

    `like` has the shape and layout of the output. The gradient of the kernels takes what the heuristic picks where the
    algorithm has none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, a: Tensor, geometry: Any, name: str, like: Tensor) -> Tensor:
        ctx.save_for_backward(x, w, b, a)
        ctx.options = (geometry, name)
        backend = backends.implementation("triton", "tunable_conv2d")
        output: Tensor = backend.forward(
            x, w, b, a, *geometry, "none", _choice("forward", name, x, w, a, geometry, like)
        )
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        geometry, name = ctx.options
        x, w, b, a = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:4])
        backend = backends.implementation("triton", "tunable_conv2d")
        on_weight = "fused" if a.dim() == 2 else name  # there is one algorithm for a gradient per sample
        choices = (
            _choice("input", name, grad, w, a, geometry, x),
            _choice("weight", on_weight, x, w, a, geometry, grad),
        )
        return (*backend.backward(grad, None, x, w, b, a, *geometry, "none", mask, choices), None, None, None)


def _choice(direction: str, name: str, source: Tensor, w: Tensor, a: Tensor, geometry: Any, result: Tensor) -> Choice:
    problem = _problem_of(direction, source, w, a, geometry, result)
    if name == "wgmma" and direction == "weight":
        name = default_algorithm(problem)
    return Choice(name, premixed_config(problem) if name == "premix" else default_config(problem))


def _problem_of(direction: str, source: Tensor, w: Tensor, a: Tensor, geometry: Any, result: Tensor) -> TritonProblem:
    shape = Geometry(*geometry[:3])
    groups = geometry[3]
    if direction == "weight":
        kind = triton_problem.weight_kind(w, groups)
    elif direction == "input":
        kind = triton_problem.input_kind(w, shape, groups, result, source)
    else:
        kind = triton_problem.forward_kind(w, shape, groups, source, result)
    return triton_problem.make_problem(direction, kind, source, w, a, shape, groups, result)


def _pairs(problem: Problem) -> Any:
    stride, padding, dilation, groups = problem.geometry
    return (stride, stride), (padding, padding), (dilation, dilation), groups


def _triton(name: str) -> Callable[[Problem], Function]:
    def make(problem: Problem) -> Function:
        geometry = _pairs(problem)
        return lambda x, w, b, a: _TritonAlgorithm.apply(x, w, b, a, geometry, name, problem.grad_output)

    return make


def _triton_refuses(problem: Problem) -> str | None:
    if problem.case.layer.transposed or problem.case.alpha == "map":
        return "serves no map and no transposed convolution"
    return _backend_missing("triton")(problem)


def _library_refuses(problem: Problem) -> str | None:
    return _triton_refuses(problem) if problem.case.alpha == "shared" else "serves one lambda for the batch"


def _wgmma_refuses(problem: Problem) -> str | None:
    case = problem.case
    if case.direction == "grad_weight":
        return "serves the forward pass and the gradient of the input"
    reason = wgmma.unavailable_reason() or _triton_refuses(problem)
    if reason is not None:
        return reason
    x, w, a, y, geometry = problem.input, problem.weight, problem.alpha, problem.grad_output, _pairs(problem)
    for direction, source, result in (("forward", x, y), ("input", y, x)):
        gradient, shape = direction == "input", Geometry(*geometry[:3])
        if gradient and case.direction == "forward":
            break
        made = _problem_of(direction, source, w, a, geometry, result)
        if not wgmma.fits(made, source, w, shape):
            return "serves fp16 and bf16 in channels_last, multiples of 8 channels, and one group, stride and dilation"
        if not wgmma.is_ready(x, w, a, shape, "none", gradient):
            return f"cannot run this layer's {direction} pass: its kernels do not fit, or a warning says why"
    return None


def _blend(stack: Tensor, alpha: Tensor) -> Tensor:
    """Blend by a matrix product: [P, *] and [P] or [B, P] to [*] or [B, *]."""
    return (alpha.to(stack.dtype) @ stack.flatten(1)).view(*alpha.shape[:-1], *stack.shape[1:])


def _broadcast_blend(stack: Tensor, alpha: Tensor) -> Tensor:
    """Multiply and sum over a broadcast axis, as the published layer does it."""
    alpha = alpha.to(stack.dtype)
    return (alpha.view(*alpha.shape, *[1] * (stack.dim() - 1)) * stack).sum(alpha.dim() - 1)


def _grouped(blend: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem], Function]:
    """Blend, then one convolution: groups = B over the batch laid out as channels where alpha is per sample."""

    def make(problem: Problem) -> Function:
        convolve = _convolution(problem)

        def function(x: Tensor, w: Tensor, b: Tensor, a: Tensor) -> Tensor:
            kernel, shift = blend(w, a), blend(b, a)
            if a.dim() == 1:
                return convolve(x, kernel, shift)
            y = convolve(x.reshape(1, -1, *x.shape[2:]), kernel.flatten(0, 1), None, x.shape[0])
            return y.view(x.shape[0], -1, *y.shape[2:]) + shift[:, :, None, None]

        return function

    return make


def _loop(problem: Problem) -> Function:
    convolve = _convolution(problem)

    def function(x: Tensor, w: Tensor, b: Tensor, a: Tensor) -> Tensor:
        kernel, shift = _blend(w, a), _blend(b, a)
        return torch.cat([convolve(x[n : n + 1], kernel[n], shift[n]) for n in range(x.shape[0])])

    return function


def _weights_of(alpha: Tensor, p: int | slice, dtype: torch.dtype) -> Tensor:
    """Return alpha of kernel(s) p, to be multiplied with [B, O, OH, OW] (one p) or [B, P, O, OH, OW] (a slice)."""
    alpha = alpha.to(dtype)
    if alpha.dim() == 1:
        return alpha[p] if isinstance(p, int) else alpha.view(1, -1, 1, 1, 1)
    if alpha.dim() == 2:
        return alpha[:, p].view(-1, 1, 1, 1) if isinstance(p, int) else alpha.view(*alpha.shape, 1, 1, 1)
    return alpha[:, p, None] if isinstance(p, int) else alpha[:, :, None]


def _p_convolutions(problem: Problem) -> Function:
    convolve = _convolution(problem)

    def function(x: Tensor, w: Tensor, b: Tensor, a: Tensor) -> Tensor:
        parts = (convolve(x, w[p], b[p]) * _weights_of(a, p, x.dtype) for p in range(w.shape[0]))
        return sum(parts, start=next(parts))

    return function


def _one_convolution(problem: Problem) -> Function:
    convolve = _convolution(problem)
    transposed = problem.case.layer.transposed

    def function(x: Tensor, w: Tensor, b: Tensor, a: Tensor) -> Tensor:
        kernels = w.shape[0]
        merged = w.transpose(0, 1).flatten(1, 2) if transposed else w.flatten(0, 1)
        y = convolve(x, merged, b.flatten())
        y = y.view(x.shape[0], kernels, -1, *y.shape[2:])
        return (y * _weights_of(a, slice(None), x.dtype)).sum(1)

    return function


def _condconv(problem: Problem) -> Function:
    from timm.layers import CondConv2d

    stride, padding, dilation, groups = problem.geometry
    case = problem.case
    layer = CondConv2d(
        case.channels,
        case.outputs,
        case.layer.taps,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=True,
        num_experts=case.kernels,
    ).to(problem.input.device, problem.input.dtype)

    def function(x: Tensor, w: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": w.flatten(1), "bias": b}, (x, a.to(x.dtype)))

    return function


def _condconv_refuses(problem: Problem) -> str | None:
    if importlib.util.find_spec("timm") is None:
        return "timm is not installed"
    if problem.case.layer.transposed or problem.case.alpha != "per_sample":
        return "serves a per-sample alpha and no transposed convolution"
    return None


def _no_map(problem: Problem) -> str | None:
    return "a map cannot be blended beforehand" if problem.case.alpha == "map" else None


def _per_sample_only(problem: Problem) -> str | None:
    return _no_map(problem) or ("alpha is shared" if problem.case.alpha == "shared" else None)


def _no_groups(problem: Problem) -> str | None:
    return "written for groups = 1" if problem.case.groups > 1 else None


def _always(problem: Problem) -> str | None:
    return None


_ALL = (
    Provider("plain", "the library's convolution with one kernel and bias", _plain, _always),
    Provider("tunable", "ours, the default backend", _tunable(None), _always),
    *(
        Provider(f"tunable-{name}", f"ours, backend {name!r}", _tunable(name), _backend_missing(name), default=False)
        for name in ("torch", "cpp", "triton", "cuda")
    ),
    *(
        Provider(f"algorithm-{n}", f"ours, algorithm {n!r}", _algorithm(n), _algorithm_refuses(n), default=False)
        for n in per_sample.FORWARD
    ),
    *(
        Provider(f"triton-{n}", f"ours, Triton kernels, algorithm {n!r}", _triton(n), _triton_refuses, default=False)
        for n in ("fused", "premix")
    ),
    Provider("triton-library", "our blend, torch's convolution", _triton("library"), _library_refuses, default=False),
    Provider("wgmma", "ours, the wgmma kernel of CUDA C++", _triton("wgmma"), _wgmma_refuses, default=False),
    Provider("grouped-trick", "matrix-product blend, groups = B", _grouped(_blend), _per_sample_only, practice=True),
    Provider("broadcast", "broadcast multiply-sum blend, as published", _grouped(_broadcast_blend), _no_map, True),
    Provider("loop", "blend, a Python loop over samples", _loop, _per_sample_only, practice=True),
    Provider("p-convolutions", "P convolutions, then a sum", _p_convolutions, _always, practice=True),
    Provider("one-convolution", "one convolution with P*O outputs, then a sum", _one_convolution, _no_groups, True),
    Provider("condconv", "timm's CondConv2d", _condconv, _condconv_refuses, practice=True),
    Provider("reference", "the definition", _reference, _always, default=False),
    Provider("reference-compiled", "torch.compile of the definition", _reference, _always, True, default=False),
)
PROVIDERS = {provider.name: provider for provider in _ALL}


# Compiling takes seconds each: where no provider is named, a compiled case is about these.
_COMPILED = ("plain", "tunable", "broadcast", "reference-compiled")


def check_names(names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuse unknown names: those of neither a provider of layers nor one of `others`.

    Raises:
        ValueError: An unknown name; the message lists the known ones.
    """
    for name in names:
        known = dict.fromkeys((*PROVIDERS, *others))
        if name not in known:
            raise ValueError(f"bench: --providers must be among {', '.join(known)}; got {name!r}")


def select(case: Case, names: Sequence[str]) -> list[Provider]:
    """Return the providers of a case, the plain convolution first: the named ones, or (no names) the default ones."""
    if not names:
        names = _COMPILED if case.mode == "compile" else [p.name for p in _ALL if p.default]
    return [p for p in _ALL if p.name in names or p.name == "plain"]
