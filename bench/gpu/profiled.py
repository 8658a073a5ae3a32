"""Seven kernels, each launched once between the profiler's start and stop: what `ncu --profile-from-start off` sees.

ncu --clock-control none --profile-from-start off python -m tunable_ops.bench.gpu.profiled
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from tunable_ops.bench import problem, providers, step
from tunable_ops.bench.case_text import read_case

# Provider and case.
CALLS = (
    ("triton-fused", "3x3 C64 56x56 B32 per_sample bf16 forward"),
    ("triton-fused", "3x3 C64 56x56 B32 per_sample bf16 grad_weight"),
    ("triton-fused", "dw3x3 C64 128x128 B16 per_sample bf16 forward"),
    ("triton-premix", "3x3 C64 56x56 B32 per_sample bf16 forward"),
    ("wgmma", "3x3 C64 56x56 B32 per_sample bf16 forward"),
    ("wgmma", "3x3 C64 56x56 B32 per_sample bf16 grad_input"),
    ("plain", "3x3 C64 56x56 B32 per_sample bf16 forward"),
)


def main() -> int:
    """Run the calls; return 1 if one of them fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device, failed = parser.parse_args().device, 0
    for name, text in CALLS:
        case = read_case(text)
        if device == "cpu":
            name, case = "plain" if name == "plain" else "tunable", replace(case, channels=4, size=8, batch=2, own=None)
        try:
            made = problem.build(case, device)
            who = providers.PROVIDERS[name]
            if (reason := who.refuses(made)) is not None:
                raise RuntimeError(reason)
            run = step.make(who.make(made), providers.leaves(made, name), made.grad_output, case.direction)
            for _ in range(2):
                run()
            with _profiled(device):
                run()
            print(f"{name}: {case.id}", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: {case.id}: {' '.join(str(error).split())[:300]}", flush=True)
    return 1 if failed else 0


def _profiled(device: str) -> AbstractContextManager[None]:
    if device != "cuda":
        return nullcontext()
    torch.cuda.synchronize()
    return torch.cuda.profiler.profile()


if __name__ == "__main__":
    raise SystemExit(main())
