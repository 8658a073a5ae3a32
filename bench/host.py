"""What a call costs besides its arithmetic: one layer and a network of 100 on 4x4 pictures, in eager mode on the CPU.

A worker process measures every case and prints JSON. It uses public names only, so that it can run in an environment
with another version of the package: ``python -m bench --suite host --against OTHER/bin/python`` runs both in turn.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS, LAYERS, REPEATS = 8, 100, 60
TARGETS = ("layer", "network")
LAMBDAS = ("shared", "sample")
MODES = ("inference", "training")
FORMATS = ("contiguous", "channels_last")


def ids() -> list[str]:
    """Return the ids of the cases."""
    return ["-".join(parts) for parts in product(TARGETS, LAMBDAS, MODES, FORMATS)]


def compare(rounds: int, others: list[str]) -> dict[str, list[dict[str, float]]]:
    """Run workers in turn, `rounds` times.

    Args:
        rounds: How often.
        others: Python interpreters of environments with other versions of the package.

    Returns:
        By interpreter ("" for this one): microseconds per call by case, one dict per round.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("", *others)}
    for _ in range(rounds):
        for name, results in found.items():
            command = [name or sys.executable, "-P", str(Path(__file__).resolve())]
            worker = subprocess.run(command, capture_output=True, text=True)
            if worker.returncode:
                raise ValueError(f"bench: --against must name a Python with tunable_ops; got {name!r}: {worker.stderr}")
            results.append(json.loads(worker.stdout))
    return found


def report(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return a table: microseconds per call (median over the rounds), and their ratio to each other version's."""
    _, *others = found
    lines = [f"{'us per call':44s}" + "".join(f"{'ratio to ' + str(i + 1):>14s}" for i in range(len(others)))]
    for case in ids():
        here = [results[case] for results in found[""]]
        text = f"{case:34s}{statistics.median(here):10.1f}"
        for name in others:
            ratios = [a / b[case] for a, b in zip(here, found[name], strict=True)]
            text += f"{statistics.median(ratios):14.2f}"
        lines.append(text)
    return lines + [f"{i + 1}: {name}" for i, name in enumerate(others)]


def _calls() -> Iterator[tuple[str, Callable[[], Any], bool, int]]:
    """Yield the id of each case, its call, whether it records gradients, and how many calls make a measurement."""
    import tunable_ops

    for target, lam, mode, layout in product(TARGETS, LAMBDAS, MODES, FORMATS):
        torch.manual_seed(0)
        if target == "layer":
            module: nn.Module = tunable_ops.TunableConv2d(CHANNELS, CHANNELS, 3, padding=1, num_params=2)
        else:
            layers = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(LAYERS)]
            module = tunable_ops.convert(nn.Sequential(*layers), num_params=2)
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        module = module.to(memory_format=memory_format)
        batch = 1 if lam == "shared" else 2
        x = torch.randn(batch, CHANNELS, 4, 4).to(memory_format=memory_format)
        value = torch.tensor([0.3, 0.7]) if lam == "shared" else torch.tensor([[0.3, 0.7], [0.6, 0.4]])
        call = _training(module, x, value) if mode == "training" else _inference(module, x, value)
        yield f"{target}-{lam}-{mode}-{layout}", call, mode == "training", 8 if target == "layer" else 1


def _inference(module: nn.Module, x: Tensor, lam: Tensor) -> Callable[[], Any]:
    return lambda: module(x, lam)


def _training(module: nn.Module, x: Tensor, lam: Tensor) -> Callable[[], Any]:
    def step() -> None:
        module(x, lam).sum().backward()
        module.zero_grad()

    return step


def _measure() -> dict[str, float]:
    """Return microseconds per call, the least of many: what else runs on the machine only adds."""
    torch.set_num_threads(1)
    found = {}
    for name, call, records, count in _calls():
        least = float("inf")
        with torch.set_grad_enabled(records):
            for repeat in range(REPEATS):
                start = time.perf_counter()
                for _ in range(count):
                    call()
                if repeat > REPEATS // 4:
                    least = min(least, (time.perf_counter() - start) / count)
        found[name] = least * 1e6
    return found


if __name__ == "__main__":
    print(json.dumps(_measure()))
