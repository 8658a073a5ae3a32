"""One family of kernels in a process of its own: right against float64, the same bits twice, captured and replayed.

    python -m tunable_ops.bench.gpu.smoke FAMILY [--device cuda]

A wrong access leaves a process without a usable device, so every family has its own.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from tunable_ops.bench import measure, networks, problem, providers, step
from tunable_ops.bench.case_text import read_case
from tunable_ops.bench.cases import Case


class Family(NamedTuple):
    """Kernels that one provider runs, and lines of cases (`case_text.GRAMMAR`) that reach them."""

    provider: str
    cases: tuple[str, ...]


_DENSE = tuple(
    f"3x3 C{c} {rest}"
    for c, rest in (
        (16, "33x31 B3 per_sample"),
        (32, "33x31 B3 per_sample"),
        (64, "56x56 B4 per_sample"),
        (64, "33x31 B3 shared"),
        (32, "33x31 B3 S2 per_sample"),
        (32, "20x20 O1 B2 per_sample"),
        (64, "1x1 B3 per_sample"),
    )
)
_POINTWISE = (
    "1x1 C16 33x31 B3 per_sample",
    "1x1 C64 33x31 B3 shared",
    "1x1 C32 20x20 O1 B2",
    "1x1 C64 1x1 B3 per_sample",
)
_DEPTHWISE = (
    "dw3x3 C16 33x31 B3 per_sample",
    "dw3x3 C64 33x31 B3 shared",
    "dw3x3 C32 33x31 B3 S2 per_sample",
    "dw3x3 C64 1x1 B3 per_sample",
)
_MAP = ("3x3 C16 33x31 B2 map", "1x1 C64 20x20 B2 map", "dw3x3 C32 33x31 B2 map", "3x3 C32 33x31 B2 S2 map")
_WGMMA = ("3x3 C16 33x31 B3 per_sample", "3x3 C32 64x64 B3 shared", "3x3 C64 56x56 B4 per_sample", "1x1 C64 64x64 B2")
FAMILIES: dict[str, Family | None] = {
    "dense": Family("triton-fused", _DENSE),
    "pointwise": Family("triton-fused", _POINTWISE),
    "depthwise": Family("triton-fused", _DEPTHWISE),
    "premix": Family("triton-premix", (*_DENSE[1:5], *_POINTWISE[:2])),
    "map": Family("tunable-triton", _MAP),
    "default": Family("tunable", (*_DENSE[:4], _POINTWISE[0], _DEPTHWISE[0])),
    "cuda-dense": Family("tunable-cuda", (*_DENSE, *_POINTWISE)),
    "cuda-depthwise": Family("tunable-cuda", _DEPTHWISE),
    "wgmma": Family("wgmma", _WGMMA),
    "network": None,  # the blends of a whole network
}
# What stands in for the kernels that need a GPU.
STAND_INS = {"tunable-cuda": "tunable-torch", "wgmma": "tunable"}


def cases_of(family: Family, device: str) -> list[Case]:
    """Return the cases of a family: in bf16 and, for the first, in fp16; in tiny fp32 for a CPU."""
    found = [replace(read_case(text), direction="both", dtype="bf16") for text in family.cases]
    if device == "cuda":
        return [*found, replace(found[0], dtype="fp16")]
    return [_tiny(case) for case in found]


def _tiny(case: Case) -> Case:
    assert case.own is not None
    deep, channels, size = case.layer.depthwise, min(case.channels, 4), min(case.size, 5)
    outputs = channels if deep else min(case.outputs, 4)
    own = replace(case.own, width=size, outputs=outputs, groups=channels if deep else 1)
    return replace(case, channels=channels, size=size, batch=min(case.batch, 2), dtype="fp32", own=own)


def check(case: Case, provider: str, device: str) -> str:
    """Check one case; return what was checked.

    Raises:
        ArithmeticError: A wrong result, or other bits the second time or replayed.
        RuntimeError: The provider does not serve the case.
    """
    made = problem.build(case, device)
    who = providers.PROVIDERS[provider]
    if (reason := who.refuses(made)) is not None:
        raise RuntimeError(f"{provider} must serve {case.id}; got: {reason}")
    with problem.precision(case):
        want = problem.expected(made, torch.float64)
        run = step.make(who.make(made), providers.leaves(made, provider), made.grad_output, case.direction)
        first = [t.clone() for t in run()]
        problem.check(provider, first, want, made)
        _same("a second time", first, run())
        if device != "cuda":
            return "values, same bits twice"
        replay = step.captured(run)
        _same("replayed", first, replay())
        _same("replayed twice", first, replay())
    return "values, same bits twice, replay"


def _same(when: str, first: Sequence[torch.Tensor], again: Sequence[torch.Tensor]) -> None:
    for place, (a, b) in enumerate(zip(first, again, strict=True)):
        if not torch.equal(a, b):
            raise ArithmeticError(f"result {place} must have the same bits {when}; {int((a != b).sum())} differ")


def main() -> int:
    """Check a family; print a line per case, and return 1 if one is wrong or fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    family, failed = FAMILIES[args.family], 0
    if family is None:
        case = networks.NetworkCase("dncnn", 8, 2, "both")
        if args.device == "cuda":
            case = networks.NetworkCase("dncnn", 32, 2, "both", autocast="bf16")
        row = networks.measure(case, args.device, measure.Settings(rounds=3, min_call=1e-4, budget=0.1))
        results = {name: result["status"] for name, result in row["providers"].items()}
        print(f"{case.id}: {results}")
        return 0 if results["tunable"] == results["tunable-per-sample"] == "ok" else 1
    provider = STAND_INS.get(family.provider, family.provider) if args.device == "cpu" else family.provider
    for case in cases_of(family, args.device):
        try:
            print(f"{case.id} {provider}: {check(case, provider, args.device)}", flush=True)
        except Exception as error:
            failed += 1
            print(f"{case.id} {provider}: {type(error).__name__}: {' '.join(str(error).split())[:400]}", flush=True)
            if "CUDA error" in str(error):
                break  # the device is lost to this process
    print(f"{args.family}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a lost device would fail again while the interpreter ends
