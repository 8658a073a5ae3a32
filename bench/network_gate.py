"""The gate of whole networks: outputs and all gradients against the definition, on parameters that hide nothing.

A fresh network may scale the blocks between its ends by zero, and a fresh conversion holds equal kernels: a wrong
kernel or a wrong blend would change nothing. Both are made random first.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tunable_ops.bench.cases import Case
from tunable_ops.bench.problem import precision as ieee

# Largest rms(error) / rms(expected) of a result, or this many times what the plain network has in the same precision.
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
TIMES = 3.0
# Tensors with fewer elements are measured by the scale of all such gradients: their own may come out near zero.
FEW = 64


@torch.no_grad()
def randomise(net: nn.Module) -> None:
    """Move every parameter that is constant, such as a scale of 0 or 1, to random values around it."""
    for parameter in net.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter += 0.3 * torch.randn_like(parameter)


@torch.no_grad()
def spread(net: nn.Module) -> None:
    """Make the kernels of a conversion differ, and alpha differ from lambda."""
    for name, parameter in net.named_parameters():
        if "tuning" in name.split("."):
            parameter += 0.1 * torch.randn_like(parameter)
        else:
            parameter *= 1 + 0.3 * torch.randn_like(parameter)


def defined(plain: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, lam: Tensor) -> Tensor:
    """Return what a converted network computes, by the definition: blend in torch, then run the plain network.

    Args:
        plain: The network before its conversion.
        parameters: Those of the converted network, by name.
        x: [B, C, H, W].
        lam: [p], or [B, p]: the plain network then runs once per sample.
    """
    if lam.dim() == 2:
        pairs = zip(x.split(1), lam, strict=True)
        return torch.cat([defined(plain, parameters, sample, each) for sample, each in pairs])
    shapes = {name: value.shape for name, value in plain.named_parameters()}
    blended = {}
    for name, value in parameters.items():
        place = _plain_name(name)
        if place is None:
            continue
        tuning = f"{name.removesuffix('original')}0.tuning" if name.endswith(".original") else _tuning(name)
        if f"{tuning}.weight" in parameters:
            alpha = parameters[f"{tuning}.weight"].float() @ lam.float() + parameters[f"{tuning}.bias"].float()
            value = torch.tensordot(alpha, value.float(), 1).to(value.dtype)
        blended[place] = value.reshape(shapes[place])
    return torch.func.functional_call(plain, blended, (x,))


def _tuning(name: str) -> str:
    return f"{name.rpartition('.')[0]}.tuning"


def _plain_name(name: str) -> str | None:
    """Return the name of a parameter in the plain network; None for those of phi."""
    words = name.removeprefix("network.").split(".")
    if "tuning" in words:
        return None
    if words[-1] == "original":  # parametrizations.beta.original is beta
        return ".".join([*words[:-3], words[-2]])
    return ".".join(words)


def results(call: Callable[[], Tensor], parameters: Mapping[str, Tensor], training: bool) -> dict[str, Tensor]:
    """Return the output and, of the mean of its squares, the gradient of every parameter."""
    if not training:
        with torch.no_grad():
            return {"output": call()}
    output = call()
    loss = output.float().square().mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    named = {f"grad of {name}": gradient for name, gradient in zip(parameters, gradients, strict=True)}
    return {"output": output.detach(), **named}


def smooth() -> AbstractContextManager[Any]:
    """Put SiLU in ReLU's place, whose gradient within rounding of 0 is that of either side, and right."""
    return mock.patch.object(F, "relu", lambda input, inplace=False: F.silu(input))


def check(
    plain: nn.Module,
    net: nn.Module,
    calls: Mapping[str, tuple[Callable[[], Tensor], Tensor]],
    x: Tensor,
    training: bool,
    precision: str,
    context: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Check calls of a converted network, with the gradients if it is trained.

    Args:
        plain: The network before its conversion.
        net: The converted network.
        calls: Name: the call, and its lambda.
        x: Input of the calls.
        training: Compare the gradients of all parameters too, with a smooth function in ReLU's place; else the outputs.
        precision: "fp32", "fp16" or "bf16": that of the computation.
        context: Autocast, or nothing.

    Raises:
        ArithmeticError: A result that is not the definition's, named with its error.
    """
    parameters = dict(net.named_parameters())
    wide = {name: value.detach().float().requires_grad_(training) for name, value in parameters.items()}
    wide_plain = copy.deepcopy(plain).float()
    for name, (call, lam) in calls.items():
        # Folded networks have parameters of their own, and no lambda to train.
        trained = training and name.startswith("tunable")
        for gradients in (False, True) if trained else (False,):
            with smooth() if gradients else nullcontext():
                with ieee(Case("1x1", 1, 1, 1)):
                    want = results(lambda lam=lam: defined(wide_plain, wide, x.float(), lam), wide, gradients)
                with context():
                    base = results(lambda lam=lam: defined(plain, parameters, x, lam), parameters, gradients)
                    got = results(call, parameters, gradients)
            _compare(name, want, base, got, BOUNDS[precision])


def check_accelerated(
    plain: nn.Module,
    fast: nn.Module,
    x: Tensor,
    training: bool,
    precision: str,
    context: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Check what `accelerate` makes of a plain network against that network, as `check` does."""
    wide = copy.deepcopy(plain).float()
    for gradients in (False, True) if training else (False,):
        with smooth() if gradients else nullcontext():
            with ieee(Case("1x1", 1, 1, 1)):
                want = results(lambda: wide(x.float()), dict(wide.named_parameters()), gradients)
            with context():
                base = results(lambda: plain(x), dict(plain.named_parameters()), gradients)
                got = results(lambda: fast(x), dict(fast.named_parameters()), gradients)
        _compare("accelerated", want, base, got, BOUNDS[precision])


def _compare(
    name: str, want: Mapping[str, Tensor], base: Mapping[str, Tensor], got: Mapping[str, Tensor], bound: float
) -> None:
    few = [value for value in want.values() if value.numel() < FEW]
    common = _rms(torch.cat([value.flatten() for value in few])) if few else 0.0
    for what, value in want.items():
        scale = max(_rms(value), common if value.numel() < FEW else 1e-30, 1e-30)
        error, ordinary = (_rms(found[what].float() - value) / scale for found in (got, base))
        most = max(bound, TIMES * ordinary)
        if not error <= most:
            raise ArithmeticError(f"{name}: rms error of {what} must be at most {most:.2g}; got {error:.2g}")


def _rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()
