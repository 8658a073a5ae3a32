"""The cases that have targets on a GPU, the most important first, and who is timed for each.

A CPU gets the same list in tiny shapes: a rehearsal, whose figures say nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from tunable_ops.bench.cases import Case
from tunable_ops.bench.networks import NetworkCase


def target_cases(device: str) -> list[Case]:
    """Return per-sample steps, small layers, depthwise layers, shared layers, and eager calls, in this order."""
    step = [Case("3x3", c, s, b, alpha="per_sample", direction="both") for c, s, b in ((64, 56, 32), (32, 128, 16))]
    step.append(Case("3x3", 128, 64, 16, alpha="per_sample", direction="both"))
    step += [replace(step[0], direction=direction) for direction in ("grad_input", "grad_weight")]
    small = [
        Case("3x3", c, s, b, alpha=alpha)
        for c, s, b in ((64, 56, 32), (32, 128, 16), (16, 256, 16), (64, 128, 32))
        for alpha in ("per_sample", "shared")
    ]
    deep = [Case("dw3x3", 64, 128, 16, alpha="per_sample"), Case("dw3x3", 128, 64, 32, alpha="per_sample")]
    deep.append(replace(deep[0], direction="both"))
    shared = [Case("3x3", 128, 64, 16), Case("3x3", 256, 32, 32), Case("1x1", 64, 128, 16), Case("1x1", 256, 32, 32)]
    shared.append(Case("3x3", 256, 32, 32, alpha="per_sample"))
    eager = [
        Case("3x3", 64, 32, 1),
        Case("1x1", 64, 64, 1),
        Case("dw3x3", 64, 64, 1),
        Case("3x3", 32, 64, 4, alpha="per_sample"),
        Case("3x3", 64, 128, 16),
    ]
    replayed = [replace(case, dtype="bf16", mode="graph") for case in (*step, *small, *deep, *shared)]
    found = [*replayed, *(replace(case, dtype="bf16") for case in eager)]
    if device == "cuda":
        return found
    tiny = [replace(c, channels=min(c.channels, 4), size=8, batch=2, dtype="fp32", mode="eager") for c in found]
    return list(dict.fromkeys(tiny))


def target_networks(device: str) -> list[NetworkCase]:
    """Return the network that has targets: inference and training step; for a rehearsal a smaller one."""
    if device == "cuda":
        return [
            NetworkCase("nafnet", 256, 1, dtype="bf16", mode="graph"),
            NetworkCase("nafnet", 256, 8, "both", autocast="bf16"),
        ]
    return [NetworkCase("dncnn", 8, 1), NetworkCase("dncnn", 8, 2, "both")]


def target_providers(case: Case) -> Sequence[str]:
    """Return who is timed beside the plain convolution: ours by default and per algorithm, and for steps the trick."""
    names = ["tunable", "triton-fused", "triton-premix", "tunable-cuda", "wgmma"]
    return [*names, "grouped-trick"] if case.direction == "both" else names
