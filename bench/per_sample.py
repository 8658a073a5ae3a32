"""Which algorithm serves a per-sample alpha best: the measurement behind `backends/torch/choose_algorithm.py`.

    python -m bench.per_sample [--quick] [--out bench/results/per_sample_cpu.json]

Prints, per case, the ratio of each algorithm to one plain convolution of the batch (shared kernel, with bias), and
which one the rule picks; forward, and the backward alone with all gradients asked for.
"""

import argparse
import itertools
import json
import math
import platform
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.timing import compare
from tunable_ops.backends.torch import per_sample
from tunable_ops.backends.torch import tunable_conv2d as backend
from tunable_ops.backends.torch.choose_algorithm import choose_algorithm

KINDS = {"1x1": (1, False), "3x3": (3, False), "5x5": (5, False), "dw3x3": (3, True)}


def cases(quick: bool, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Shapes of restoration networks that fit a CPU."""
    sizes = (8, 32) if quick else (8, 16, 32, 64, 128)
    for kind, channels, size, batch, layout in itertools.product(
        kinds,
        (16, 64) if quick else (16, 32, 64, 128),
        sizes,
        (4,) if quick else (4, 16),
        ("channels_last", "contiguous"),
    ):
        taps, depthwise = KINDS[kind]
        work = batch * size * size * channels * taps * taps * (1 if depthwise else channels)
        if work <= 1.3e9 and batch * channels * size * size <= 2**22:
            yield {"kind": kind, "channels": channels, "size": size, "batch": batch, "layout": layout}


def measure(case: dict[str, Any], kernels: int, rounds: int) -> dict[str, Any]:
    """Ratios of every algorithm that serves the case, forward and backward, checked against each other first."""
    taps, depthwise = KINDS[case["kind"]]
    channels, batch = case["channels"], case["batch"]
    groups = channels if depthwise else 1
    x = torch.randn(batch, channels, case["size"], case["size"])
    weight = torch.randn(kernels, channels, channels // groups, taps, taps) / math.sqrt(taps * taps * channels / groups)
    bias, alpha = torch.randn(kernels, channels), torch.rand(batch, kernels)
    if case["layout"] == "channels_last":
        x = x.to(memory_format=torch.channels_last)
        weight = weight.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (kernels, channels))
    geometry = ((1, 1), (taps // 2, taps // 2), (1, 1))
    plain, plain_bias = weight[0].contiguous(memory_format=_format(case)), bias[0]
    grad = torch.randn_like(x)

    def forward(algorithm: str) -> torch.Tensor:
        return backend.forward(x, weight, bias, alpha, *geometry, groups, "none", algorithm)

    def backward(algorithm: str) -> Any:
        return backend.backward(grad, None, x, weight, bias, alpha, *geometry, groups, "none", [True] * 4, algorithm)

    def fold() -> torch.Tensor:
        """One convolution with P*O outputs, then the sum over P: P times the arithmetic, and no loop."""
        merged = weight.reshape(kernels, groups, channels // groups, *weight.shape[2:]).transpose(0, 1)
        products = F.conv2d(x, merged.reshape(-1, *weight.shape[2:]), None, *geometry, groups)
        products = products.view(batch, groups, kernels, channels // groups, *x.shape[2:])
        blended = torch.einsum("bp,bgpohw->bgohw", alpha, products).reshape(x.shape)
        return blended + (alpha @ bias)[:, :, None, None]

    def plain_backward() -> Any:
        return per_sample.conv_backward(grad, x, plain, geometry, groups, [True] * 3)

    pointwise = taps == 1
    names = [n for n in per_sample.FORWARD if pointwise or n != "bmm"]
    for name in names:  # a red gate prints no timing
        _check_agreement(forward(name), forward("loop"), name)
        for got, expected in zip(backward(name), backward("loop"), strict=True):
            _check_agreement(got, expected, f"backward of {name}")
    _check_agreement(fold(), forward("loop"), "fold")
    runs = {"plain": lambda: F.conv2d(x, plain, plain_bias, *geometry, groups)}
    runs.update({n: (lambda n=n: forward(n)) for n in names})
    runs["fold"] = fold
    result = {"forward": _ratios(compare(runs, rounds=rounds))}
    runs = {"plain": plain_backward}
    runs.update({n: (lambda n=n: backward(n)) for n in names})
    result["backward"] = _ratios(compare(runs, rounds=rounds))
    result["chosen"] = choose_algorithm(x, weight, geometry, groups)
    return {**case, "num_kernels": kernels, **result}


def _check_agreement(got: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    error, scale = (got - expected).abs().max().item(), expected.abs().max().item()
    if not error <= 1e-5 * scale:
        raise AssertionError(f"{name} must agree with loop to 1e-5 of the largest value; got {error / scale:.2g}")


def _ratios(timings: Any) -> dict[str, Any]:
    return {name: t.to_dict() for name, t in timings.items()}


def _format(case: dict[str, Any]) -> torch.memory_format:
    return torch.channels_last if case["layout"] == "channels_last" else torch.contiguous_format


def summary(results: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric means over the cases: chosen over plain, chosen over the best of all."""
    means = {}
    for direction in ("forward", "backward"):
        chosen = [r[direction][r["chosen"]]["ratio"] for r in results]
        best = [min(t["ratio"] for n, t in r[direction].items() if n != "plain") for r in results]
        means[f"{direction}_chosen_over_plain"] = _geomean(chosen)
        means[f"{direction}_chosen_over_best"] = _geomean([c / b for c, b in zip(chosen, best, strict=True)])
    return means


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: geometric means of the ratios to one plain convolution, by kernel and layout."""
    names = ("chosen", "grouped", "loop", "bmm", "fold")
    rows = ["| kernels | layout | pass | " + " | ".join(names) + " |", "| --- " * (len(names) + 3) + "|"]
    for kind, layout, direction in itertools.product(KINDS, ("contiguous", "channels_last"), ("forward", "backward")):
        picked = [r for r in results if r["kind"] == kind and r["layout"] == layout]
        cells = []
        for name in names if picked else ():
            ratios = [r[direction].get(r["chosen"] if name == "chosen" else name) for r in picked]
            cells.append(f"{_geomean([t['ratio'] for t in ratios]):.2f}" if all(ratios) else "-")
        if picked:
            rows.append(f"| {kind} | {layout} | {direction} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few shapes only")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which kernels (default all)")
    parser.add_argument("--kernels", type=int, default=2, help="P (default 2)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write JSON here")
    args = parser.parse_args()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    results = []
    for case in cases(args.quick, args.kinds):
        row = measure(case, args.kernels, args.rounds)
        results.append(row)
        parts = []
        for direction in ("forward", "backward"):
            ratios = " ".join(f"{n} {t['ratio']:.2f}" for n, t in row[direction].items() if n != "plain")
            parts.append(f"{direction}: {ratios} -> {row['chosen']}")
        label = f"{case['kind']:6} C{case['channels']} {case['size']}^2 B{case['batch']} {case['layout']}"
        print(f"{label:36} {' | '.join(parts)}", flush=True)
    means = summary(results)
    print(" ".join(f"{name} {value:.3f}" for name, value in means.items()))
    print(table(results))
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        header = {
            "schema": 1,
            "commit": commit,
            "torch": torch.__version__,
            "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
            "summary": means,
        }
        args.out.write_text(json.dumps({**header, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
