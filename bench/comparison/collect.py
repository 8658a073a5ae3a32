"""From a folder of units to one results file: every per-seed number, sizes, times, machine, commits."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tunable_ops.bench import machine, results_file, timing
from tunable_ops.bench.comparison.evaluation import Mix, falling, unevenness
from tunable_ops.bench.comparison.plan import GRID, METHODS, MIX, SEPARATE, TASKS, Setting, Unit, mixes, steps_of, units
from tunable_ops.bench.comparison.run import load_network, result_file

from tunable_ops import fold
from tunable_ops.modules import TunableModel

_MIDDLE = [0.5, 0.5]


def collect(out: Path, *, size: int = 256, rounds: int = 15) -> dict[str, Any]:
    """Gather what `run_all` left in a folder, and time the networks.

    Args:
        out: The folder.
        size: Side of the picture that is timed, in pixels.
        rounds: Of the interleaved timing.

    Raises:
        ValueError: Units are missing, or were evaluated on different pictures.
    """
    if not (out / "plan.json").is_file():
        raise ValueError(f"comparison: --from must name a results file or a folder with plan.json; got {str(out)!r}")
    plan = results_file.read_json(out / "plan.json")
    setting = Setting(**{k: tuple(v) if isinstance(v, list) else v for k, v in plan["setting"].items()})
    found = {unit.id: unit for unit in units(setting) + mixes(setting)}
    missing = [name for name, unit in found.items() if not result_file(out, unit).exists()]
    if missing:
        raise ValueError(
            f"comparison: --from must name a folder with all {len(found)} results; got {len(missing)} missing: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}: run it again to train them"
        )
    read = {name: results_file.read_json(result_file(out, unit)) for name, unit in found.items()}
    pictures = {tuple(result["pictures"]) for result in read.values()}
    if len(pictures) > 1:
        raise ValueError(f"comparison: units must be evaluated on the same pictures; got {len(pictures)} sets")
    measured = sizes_and_times(out, setting, size=size, rounds=rounds)
    results = {
        "schema": results_file.COMPARISON.version,
        "suite": "comparison",
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {**machine.describe(_device(setting)), "threads": 1},
        "commits": sorted({result["commit"] for result in read.values()}),
        "setting": asdict(setting),
        "data": plan["data"],
        "pictures": list(next(iter(pictures))),
        "timing": {"size": size, "rounds": rounds},
        "methods": {m.key: {"label": m.label, "steps": steps_of(m.key, setting), **measured[m.key]} for m in METHODS},
        "tasks": {task.key: {m.key: _rows(m.key, task.key, setting, read) for m in METHODS} for task in TASKS},
    }
    results = dict(results_file.rounded(results, results_file.COMPARISON.digits))
    results_file.validate(results, out)
    return results


def sizes_and_times(out: Path, setting: Setting, *, size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return numbers of parameters, and seconds per picture with one CPU thread, or on the GPU where training used one.

    A knob is measured as it is, at lambda = (1/2, 1/2), and folded to a plain network where it can be.

    Returns:
        Per method ``parameters``, ``seconds``, and ``folded_parameters`` and ``folded_seconds`` or None; seconds are
        {"median", "q1", "q3"}.
    """
    device = _device(setting)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    nets = {m.key: load_network(out, _example(m.key)).to(device).eval() for m in METHODS}
    folded = {key: folded_network(net) for key, net in nets.items()}
    calls = {SEPARATE: _call(nets[SEPARATE], x)}  # the baseline comes first
    calls |= {key: _call(net, x) for key, net in nets.items()}
    calls |= {f"{key} folded": _call(net, x) for key, net in folded.items() if net is not None}
    with timing.cpu_threads(1):
        clock = timing.CudaClock(host=True) if device == "cuda" else None
        times = timing.compare(calls, rounds=rounds, clock=clock)

    def quartiles(name: str) -> dict[str, float] | None:
        found = times.get(name)
        return found and {"median": found.seconds, "q1": found.seconds_q1, "q3": found.seconds_q3}

    return {
        key: {
            "parameters": _count(net),
            "seconds": quartiles(key),
            "folded_parameters": None if (plain := folded[key]) is None else _count(plain),
            "folded_seconds": quartiles(f"{key} folded"),
        }
        for key, net in nets.items()
    }


def folded_network(net: nn.Module) -> nn.Module | None:
    """Return a knob's plain network at lambda = (1/2, 1/2); None where there is none, or it is plain already."""
    if not isinstance(net, TunableModel):
        return None
    try:
        return fold(net, _MIDDLE).eval()
    except ValueError as error:
        if "plain form" not in str(error):
            raise
        return None


def _example(method: str) -> Unit:
    return Unit(TASKS[0].key, method, 0, GRID[0] if method == SEPARATE else None)


def _device(setting: Setting) -> str:
    return "cuda" if setting.device != "cpu" and torch.cuda.is_available() else "cpu"


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _call(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    takes_lam = isinstance(net, TunableModel | Mix)
    function = partial(net, x, torch.tensor(_MIDDLE, device=x.device)) if takes_lam else partial(net, x)
    return torch.no_grad()(function)


def _rows(method: str, task: str, setting: Setting, read: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return, per seed, means over the pictures, and how the knob travels."""
    seeds = {}
    for seed in range(setting.seeds):
        ts = GRID if method == SEPARATE else (None,)
        parts = [read[Unit(task, method, seed, t).id] for t in ts]
        travel = [row for part in parts for row in part["travel"]]
        means = [_mean(row) for row in travel]
        knob = method != SEPARATE
        seeds[str(seed)] = {
            "db": [_mean(row) for part in parts for row in part["db"]],
            "travel": means,
            "monotone": falling(travel) if knob else None,
            "unevenness": unevenness(means) if knob else None,
            "train_seconds": None if method == MIX else sum(part["train_seconds"] for part in parts),
        }
    return {"seeds": seeds}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
