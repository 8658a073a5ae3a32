"""The C++ operator and PyTorch's own against one plain convolution with bias: the measurement behind docs/cpp.md.

    python -m bench.cpp [--train] [--threads 2 | --cpu-time] [--channels 16 64] [--batch 1 4] [--layout contiguous]

Prints a line per shape with the ratios, then their geometric means. `--cpu-time` takes the CPU time of a single thread,
for machines that other work shares; otherwise the wall clock counts.
"""

import argparse
import itertools
import math
import time
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bench import timing
from tunable_ops import tunable_conv2d

# taps, stride, padding
KINDS = {"1x1": (1, 1, 0), "3x3": (3, 1, 1), "5x5": (5, 1, 2), "dw3x3": (3, 1, 1), "2x2s2": (2, 2, 0)}


def candidates(
    kind: str, channels: int, size: int, batch: int, layout: str, train: bool
) -> dict[str, Callable[[], Any]]:
    """The plain convolution first, then each backend with a shared and a per-sample alpha; P = 2."""
    taps, stride, padding = KINDS[kind]
    groups = channels if kind == "dw3x3" else 1
    x = torch.randn(batch, channels, size, size)
    weight = torch.randn(2, channels, channels // groups, taps, taps) / math.sqrt(taps * taps * channels / groups)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
        weight = weight.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, channels))
    bias, alpha = torch.randn(2, channels), torch.rand(batch, 2)
    kernel, shift = weight[0].clone(memory_format=torch.preserve_format), bias[0].clone()
    shared = alpha[0].clone()
    geometry = (stride, padding, 1, groups)
    grad = torch.randn_like(F.conv2d(x, kernel, shift, *geometry))
    for t in (x, weight, bias, alpha, kernel, shift, shared):
        t.requires_grad_(train)

    def run(function: Callable[..., Any], *tensors: Any, **options: Any) -> Callable[[], Any]:
        if not train:
            return lambda: function(*tensors, *geometry, **options)
        return lambda: torch.autograd.grad(function(*tensors, *geometry, **options), tensors, grad)

    runs = {"plain": run(F.conv2d, x, kernel, shift)}
    for backend in ("cpp", "torch"):
        runs[f"{backend} shared"] = run(tunable_conv2d, x, weight, bias, shared, backend=backend)
        runs[f"{backend} sample"] = run(tunable_conv2d, x, weight, bias, alpha, backend=backend)
    return runs


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--channels", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--layout", choices=("channels_last", "contiguous"), default="channels_last")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--train", action="store_true", help="forward and backward with all gradients")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread instead of the wall clock")
    args = parser.parse_args()
    if args.cpu_time:
        args.threads = 1
        timing.time = types.SimpleNamespace(perf_counter=time.thread_time)  # type: ignore[assignment]
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ratios: dict[str, dict[str, list[float]]] = {}
    for kind, channels, batch, size in itertools.product(args.kinds, args.channels, args.batch, args.sizes):
        macs = batch * size * size * channels * KINDS[kind][0] ** 2 * (1 if kind == "dw3x3" else channels)
        if macs > 1.3e9 or batch * channels * size * size > 2**22:
            continue
        with torch.set_grad_enabled(args.train):
            results = timing.compare(
                candidates(kind, channels, size, batch, args.layout, args.train), rounds=args.rounds
            )
        plain = results.pop("plain")
        text = " ".join(f"{name} {t.ratio:.2f}" for name, t in results.items())
        print(f"{kind:5} C{channels:<4} {size}^2 B{batch:<3} plain {plain.seconds * 1e3:8.3f} ms  {text}", flush=True)
        for group, (name, t) in itertools.product((kind, "all"), results.items()):
            ratios.setdefault(group, {}).setdefault(name, []).append(t.ratio)
    for group, values in ratios.items():
        means = {n: math.exp(sum(map(math.log, v)) / len(v)) for n, v in values.items()}
        print(f"{group:5} " + " ".join(f"{name} {mean:.3f}" for name, mean in means.items()))


if __name__ == "__main__":
    main()
