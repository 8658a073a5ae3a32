"""Whole networks: latency and training step, plain against tunable against folded, and the cost of autocast's casts.

Rows of the same form as a case's; ratios are to the plain network's step of the same kind.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tunable_ops.bench import network_gate
from tunable_ops.bench import step as steps
from tunable_ops.bench.cases import DTYPES
from tunable_ops.bench.measure import Settings, failure, time_steps

import tunable_ops
from tunable_ops import TunableModel, models


@dataclass(frozen=True)
class NetworkCase:
    """One network, input and way of calling. `autocast` is the dtype of the computation, the parameters stay fp32."""

    network: str
    size: int
    batch: int
    direction: str = "forward"
    dtype: str = "fp32"
    autocast: str | None = None
    kernels: int = 2
    mode: str = "eager"

    @property
    def id(self) -> str:
        """Return the name that filters match and results carry."""
        dtype = f"autocast_{self.autocast}" if self.autocast else self.dtype
        size = f"{self.size}x{self.size}"
        return f"{self.network}-{size}-B{self.batch}-P{self.kernels}-{dtype}-channels_last-{self.direction}-{self.mode}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return asdict(self)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "nafnet": models.NAFNet,
    "edsr": lambda: models.EDSR(scale=1),
    "dncnn": lambda: models.DnCNN(),
}


def network_suite(device: str) -> list[NetworkCase]:
    """Return networks in their published sizes on crops that the device takes in a minute or two."""
    if device == "cuda":
        return [
            NetworkCase("nafnet", 256, 1, dtype="bf16", mode="graph"),
            NetworkCase("nafnet", 256, 1, dtype="bf16"),
            NetworkCase("nafnet", 256, 8, "both", autocast="bf16"),
            NetworkCase("edsr", 256, 1, dtype="bf16", mode="graph"),
            NetworkCase("edsr", 256, 1, dtype="bf16"),
            NetworkCase("edsr", 64, 16, "both", autocast="bf16"),
        ]
    return [
        NetworkCase("dncnn", 64, 4),
        NetworkCase("dncnn", 64, 4, "both"),
        NetworkCase("edsr", 64, 1),
        NetworkCase("edsr", 32, 4, "both"),
        NetworkCase("edsr", 32, 4, "both", autocast="bf16"),
        NetworkCase("nafnet", 64, 1),
        NetworkCase("nafnet", 64, 2, "both"),
    ]


def measure(case: NetworkCase, device: str, settings: Settings) -> dict[str, Any]:
    """Return the results of a network, in the form of `bench.measure.measure`."""
    row: dict[str, Any] = {"id": case.id, "network": case.to_dict()}
    names = ("plain", "tunable", "tunable-per-sample", "tunable-remembered", "folded", "live-fold", "memory-floor")
    names += ("cast-kernels", "accelerated")
    if case.mode == "graph" and device != "cuda":
        reason = {"status": "unsupported", "reason": "graph replay needs a GPU"}
        return {**row, "providers": dict.fromkeys(names, reason)}
    try:
        variants, gate = _variants(case, device)
        gate()
    except Exception as error:
        return {**row, "providers": dict.fromkeys(names, failure(error))}
    results = timed(variants, case.mode, device, settings)
    left_out = {"status": "unsupported", "reason": "not part of this kind of step"}
    return {**row, "providers": {name: results.get(name, left_out) for name in names}}


def timed(variants: dict[str, steps.Step], mode: str, device: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return memory, launches and interleaved times of steps, by name; ratios are to the first, "plain"."""
    results: dict[str, dict[str, Any]] = {}
    candidates: dict[str, steps.Step] = {}
    extras: dict[str, dict[str, Any]] = {}
    for name, step in variants.items():
        try:
            extras[name] = steps.resources(step, device)
            candidates[name] = steps.captured(step) if mode == "graph" else step
        except Exception as error:
            results[name] = failure(error)
    if "plain" in candidates:
        longer = replace(settings, budget=4 * settings.budget)
        timings = time_steps(candidates, results, mode, device, longer, warmup=1)
        results.update({n: {"status": "ok", **t.to_dict(), **extras[n]} for n, t in timings.items()})
    return results


def _variants(case: NetworkCase, device: str) -> tuple[dict[str, steps.Step], Callable[[], None]]:
    """Return steps of the plain network and its tunable forms, and a check of the latter against the definition."""
    torch.manual_seed(0)
    dtype = DTYPES[case.dtype]
    plain = BUILDERS[case.network]().to(device, dtype).to(memory_format=torch.channels_last)
    network_gate.randomise(plain)
    net = tunable_ops.convert(plain, num_params=case.kernels).to(device)
    x = torch.rand(case.batch, 3, case.size, case.size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    shared = torch.full((case.kernels,), 1 / case.kernels, device=device)
    each = torch.rand(case.batch, case.kernels, device=device)
    each = each / each.sum(1, keepdim=True)
    training = case.direction != "forward"
    calls: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "plain": (plain, lambda: plain(x)),
        "tunable": (net, lambda: net(x, shared)),
        "tunable-per-sample": (net, lambda: net(x, each)),
    }
    _check_conversion(case, device, {name: call for name, (_, call) in calls.items()})
    network_gate.spread(net)
    if not training:
        folded = tunable_ops.fold(net, shared)
        live = tunable_ops.LiveFold(net)
        live.set(shared)
        if device == "cpu":
            remembered = copy.deepcopy(net)
            remembered.remember = True
            calls["tunable-remembered"] = (remembered, lambda: remembered(x, shared))
        calls["folded"] = (folded, lambda: folded(x))
        calls["live-fold"] = (net, lambda: live(x))
    variants = {name: _step(case, device, module, call) for name, (module, call) in calls.items()}
    fast = tunable_ops.accelerate(copy.deepcopy(plain)) if device == "cpu" else None
    if fast is not None:
        variants["accelerated"] = _step(case, device, fast, lambda: fast(x))
    if not training:
        variants["memory-floor"] = _memory_step(net)
    if case.autocast:
        variants["cast-kernels"] = _cast_step(net, DTYPES[case.autocast])

    def gate() -> None:
        tunable = {name: (call, each if "per-sample" in name else shared) for name, (_, call) in calls.items()}
        del tunable["plain"]
        precision = case.autocast or case.dtype
        network_gate.check(plain, net, tunable, x, training, precision, lambda: _autocast(case, device))
        if fast is not None:
            network_gate.check_accelerated(plain, fast, x, training, precision, lambda: _autocast(case, device))

    return variants, gate


def _check_conversion(case: NetworkCase, device: str, calls: dict[str, Callable[[], Tensor]]) -> None:
    """Check that a fresh conversion computes what the plain network does, for every lambda of the simplex."""
    with torch.no_grad(), _autocast(case, device):
        want = calls["plain"]().float()
        for name, call in calls.items():
            error = (call().float() - want).square().mean().sqrt() / want.square().mean().sqrt()
            bound = {"fp32": 1e-4}.get(case.autocast or case.dtype, 5e-2)  # tens of layers, each rounds
            if not error.item() <= bound:
                raise ArithmeticError(f"{name}: rms error must be at most {bound}; got {error.item():.2g}")


def _autocast(case: NetworkCase, device: str) -> Any:
    if case.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=DTYPES[case.autocast])


def _step(case: NetworkCase, device: str, module: nn.Module, call: Callable[[], Tensor]) -> steps.Step:
    def forward() -> list[Tensor]:
        with torch.no_grad(), _autocast(case, device):
            return [call()]

    parameters = [p for p in module.parameters() if p.requires_grad]

    def both() -> list[Tensor]:
        with _autocast(case, device):
            loss = call().float().square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    return forward if case.direction == "forward" else both


def _cast_step(net: nn.Module, dtype: torch.dtype) -> steps.Step:
    """Return what autocast does to all P kernels once per step, and nothing else."""
    stacks = [p for p in net.parameters() if p.dim() > 2]

    def cast() -> list[Tensor]:
        with torch.no_grad():
            return [stack.to(dtype) for stack in stacks]

    return cast


def _memory_step(net: TunableModel) -> steps.Step:
    """Return what blending cannot be faster than: reading all stacks once, as one piece of memory, and writing a blend.

    The network's own time comes on top of it, unless the two overlap.
    """
    found = [p for layer in net.layers for name, p in layer.named_parameters() if "tuning" not in name.split(".")]
    stacks = [stack.flatten(1) for stack in found if stack.dim() > 1]
    kernels = stacks[0].shape[0]
    values = torch.cat([stack.detach() for stack in stacks], 1)
    blend = torch.empty_like(values[0])

    def move() -> list[Tensor]:
        torch.add(values[0], values[-1], out=blend)
        for p in range(1, kernels - 1):
            blend.add_(values[p])
        return [blend]

    return move
