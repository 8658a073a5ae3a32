"""The perceptual objective of a training step: the true loss against perceptual gradient networks.

A step computes the gradient for a batch of outputs, as `MultiLoss` would ask for it. Rows of the same form as a
network's; the baseline, "plain", is the true gradient with VGG16. Weights are random: no time depends on their values.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tunable_ops.bench import step as steps
from tunable_ops.bench.measure import Settings, failure
from tunable_ops.bench.networks import NetworkCase, timed

from tunable_ops import losses, tunable_conv2d
from tunable_ops.losses.pgn import PGN

CONTRACTION = 0.8  # of the network that ships


class _Own(nn.Module):
    """A convolution by the package's own operator, with a single kernel."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding, self.groups = plain.stride, plain.padding, plain.groups
        self.register_buffer("weight", plain.weight.detach()[None])  # [1, O, C / groups, kh, kw]
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach()[None])
        self.register_buffer("alpha", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return tunable_conv2d(x, self.weight, self.bias, self.alpha, self.stride, self.padding, 1, self.groups)


def _with_own_operators() -> PGN:
    """Return the UNet whose depthwise and 1x1 layers run on the package's operators."""
    pgn = PGN("unet", bounded=False, contraction=CONTRACTION)
    for module in list(pgn.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and (child.groups > 1 or child.kernel_size == (1, 1)):
                setattr(module, name, _Own(child))
    return pgn


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: losses.Perceptual("vgg16", weights="random", bounded=False),
    "true-vgg19": lambda: losses.Perceptual("vgg19", weights="random", bounded=False),
    "pgn-unet": lambda: losses.PerceptualGradient(PGN("unet", bounded=False, contraction=CONTRACTION)),
    "pgn-unet-own": lambda: losses.PerceptualGradient(_with_own_operators()),
    "pgn-unet-published": lambda: losses.PerceptualGradient(PGN("unet_published", bounded=False).eval()),
    "pgn-resnet4": lambda: losses.PerceptualGradient(PGN("resnet4", bounded=False)),
}


def perceptual_suite(device: str) -> list[NetworkCase]:
    """Return batches and sizes of training crops."""
    case = NetworkCase("perceptual", 224, 1, "both", kernels=1)
    if device == "cuda":
        return [replace(case, batch=batch) for batch in (1, 32)] + [replace(case, batch=32, mode="graph")]
    return [replace(case, size=64, batch=4), replace(case, size=128), case]


def measure(case: NetworkCase, device: str, settings: Settings) -> dict[str, Any]:
    """Return the results of a case, in the form of `bench.networks.measure`."""
    row: dict[str, Any] = {"id": case.id, "network": case.to_dict()}
    torch.manual_seed(0)
    shape = (case.batch, 3, case.size, case.size)
    x, y = (torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last) for _ in "xy")
    if case.mode == "graph" and device != "cuda":
        reason = {"status": "unsupported", "reason": "graph replay needs a GPU"}
        return {**row, "providers": dict.fromkeys(BUILDERS, reason)}
    results: dict[str, dict[str, Any]] = {}
    variants: dict[str, steps.Step] = {}
    for name, build in BUILDERS.items():
        try:
            step = _step(build().to(device), x, y)
            (gradient,) = step()
            if not (gradient.shape == x.shape and bool(gradient.isfinite().all()) and bool(gradient.any())):
                raise ArithmeticError(f"{name}: the gradient must be finite, of x's shape, and not zero")
            variants[name] = step
        except Exception as error:
            results[name] = failure(error)
    results.update(timed(variants, case.mode, device, settings))
    left_out = {"status": "failed", "reason": "the baseline failed"}
    return {**row, "providers": {name: results.get(name, left_out) for name in BUILDERS}}


def macs(size: int = 224) -> dict[str, float]:
    """Return the multiply-adds of every provider's gradient for one picture, in units of 1e9; nothing is computed."""
    found = {}
    for name, build in BUILDERS.items():
        with torch.device("meta"):
            objective = build()
        x, y = (torch.empty(1, 3, size, size, device="meta") for _ in "xy")
        with FlopCounterMode(display=False) as counter:
            objective(x.requires_grad_(), y).sum().backward()
        found[name] = counter.get_total_flops() / 2e9
    return found


def _step(objective: nn.Module, x: Tensor, y: Tensor) -> steps.Step:
    def step() -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        return list(torch.autograd.grad(objective(leaf, y).sum(), leaf))

    return step
