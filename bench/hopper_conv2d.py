"""Where the Hopper kernel wins: its tiles against one plain channels_last convolution with bias, bf16, forward.

    python -m bench.hopper_conv2d [--quick] [--out bench/results/hopper_conv2d.json]

Needs a GPU of compute capability 9.0. Per case: both tiles, alpha shared and per sample, and the grouped trick; eager
and as a replayed graph. The big pictures do not fit L2; the small ones stay there, as they do inside a network.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tunable_ops.triton_kernels import hopper_conv2d as hopper

from bench.timing import compare


def cases(quick: bool) -> Iterator[dict[str, int]]:
    """Shapes of restoration networks; W of 56 and 48 leave part of each 64-pixel row unused."""
    channels = ((32, 32), (64, 64)) if quick else ((16, 16), (32, 32), (64, 64), (64, 128), (128, 64), (128, 128))
    pictures = ((32, 56), (4, 256)) if quick else ((32, 48), (32, 56), (16, 128), (4, 256), (16, 256))
    for taps, (c, o), (batch, size) in itertools.product((3, 1), channels, pictures):
        yield {"taps": taps, "C": c, "O": o, "batch": batch, "size": size}


def candidates(case: dict[str, int], kernels: int) -> dict[str, Callable[[], Tensor]]:
    """Plain first; every other one is checked before it is returned."""
    taps, c, o, batch, size = (case[name] for name in ("taps", "C", "O", "batch", "size"))
    named: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(batch, c, size, size, **named).to(memory_format=torch.channels_last)
    weight = torch.randn(kernels, o, taps, taps, c, **named).permute(0, 1, 4, 2, 3) / (c * taps * taps) ** 0.5
    bias = torch.randn(kernels, o, **named)
    alphas = {"shared": torch.rand(kernels, device="cuda"), "per_sample": torch.rand(batch, kernels, device="cuda")}
    pad = taps // 2
    plain_weight, plain_bias = weight[0].contiguous(memory_format=torch.channels_last), bias[0]

    def blends(alpha: Tensor) -> tuple[Tensor, Tensor]:
        alpha = alpha.to(weight.dtype).expand(batch, kernels)
        return torch.einsum("bp,pochw->bochw", alpha, weight).flatten(0, 1), (alpha @ bias).flatten()

    def grouped() -> Tensor:
        blended, blended_bias = blends(alphas["per_sample"])
        merged = x.reshape(1, batch * c, size, size)
        return F.conv2d(merged, blended, blended_bias, padding=pad, groups=batch).view(batch, o, size, size)

    def launch(alpha: Tensor, tile: str) -> Callable[[], Tensor]:
        return lambda: hopper.launch_hopper_conv2d_forward(x, weight, bias, alpha, (pad, pad), tile=tile)

    found: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: F.conv2d(x, plain_weight, plain_bias, padding=pad),
        "grouped": grouped,
    }
    for mode, alpha in alphas.items():
        reason = hopper.unsupported_reason(x, weight, bias, alpha, (1, 1), (pad, pad), (1, 1), 1)
        if reason is not None:
            raise RuntimeError(f"bench: {case}: {reason}")
        for tile in hopper.tiles(c, o, taps):
            found[f"{mode}_{tile}"] = launch(alpha, tile)
            _check(found[f"{mode}_{tile}"](), x, weight, bias, alpha.expand(batch, kernels), pad, f"{mode}_{tile}")
    return found


def _check(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, pad: int, name: str) -> None:
    """A red gate prints no time: the first and the last sample against float64."""
    for b in (0, len(x) - 1):
        blended = torch.einsum("p,pochw->ochw", alpha[b].double(), weight.double()).to(weight.dtype).double()
        blended_bias = (alpha[b].double() @ bias.double()).to(bias.dtype).double()
        ref = F.conv2d(x[b : b + 1].double(), blended, blended_bias, padding=pad)
        error = ((out[b : b + 1].double() - ref).norm() / ref.norm()).item()
        if not error < 4e-3:
            raise AssertionError(f"{name} must agree with float64 to 4e-3 in the norm; got {error:.2g}")


def replays(found: dict[str, Callable[[], Tensor]]) -> dict[str, Callable[[], None]]:
    """Each candidate as a captured graph."""
    graphs = {}
    for name, function in found.items():
        function()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        graphs[name] = graph.replay
    return graphs


def main() -> int:
    """Measures, prints, writes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few shapes only")
    parser.add_argument("--kernels", type=int, default=2, help="P (default 2)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write JSON here")
    args = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("bench.hopper_conv2d: needs a GPU of compute capability 9.0", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    results = []
    for case in cases(args.quick):
        found = candidates(case, args.kernels)
        row: dict[str, Any] = dict(case)
        for mode, functions in (("eager", found), ("graph", replays(found))):
            timings = compare(functions, rounds=args.rounds)
            row[mode] = {name: timing.to_dict() for name, timing in timings.items()}
            cells = " ".join(f"{name} {timing.ratio:.2f}" for name, timing in timings.items() if name != "plain")
            print(f"{case} {mode}: plain {timings['plain'].seconds * 1e6:.1f} us; {cells}", flush=True)
        results.append(row)
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        header = {
            "schema": 1,
            "commit": commit,
            "torch": torch.__version__,
            "triton": version("triton"),
            "device": torch.cuda.get_device_name(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**header, "cases": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
