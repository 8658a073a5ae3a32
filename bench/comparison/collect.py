"""From a folder of units to one results file: every per-seed number, sizes, times, machine, commits."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tunable_ops.bench import machine, results_file, timing
from tunable_ops.bench import step as steps
from tunable_ops.bench.comparison.evaluation import Mix, falling, front_of, unevenness
from tunable_ops.bench.comparison.plan import (
    GRID,
    METHOD,
    MIX,
    SEPARATE,
    Data,
    Method,
    Setting,
    Unit,
    check,
    lam_for,
    methods_of,
    mixes,
    steps_of,
    units,
)
from tunable_ops.bench.comparison.run import network_to_time, result_file

from tunable_ops import fold
from tunable_ops.control import PhasedModel
from tunable_ops.modules import LambdaWarning, TunableModel


def collect(out: Path, *, size: int = 256, rounds: int = 15, **part: Any) -> dict[str, Any]:
    """Gather what `run_all` left in a folder, and time the networks.

    Args:
        out: The folder.
        size: Side of the picture that is timed, in pixels.
        rounds: Of the interleaved timing.
        **part: Of the setting: tasks, methods or seeds in the place of those of the folder's last call.

    Raises:
        ValueError: A part that cannot be, units are missing, or were evaluated on different pictures.
    """
    if not (out / "plan.json").is_file():
        raise ValueError(f"comparison: --from must name a results file or a folder with plan.json; got {str(out)!r}")
    plan = results_file.read_json(out / "plan.json")
    setting = Setting(**{k: tuple(v) if isinstance(v, list) else v for k, v in plan["setting"].items()} | part)
    check(setting)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LambdaWarning)  # phases on the box, at lambda = (1, 1)
        measured = sizes_and_times(setting, Data(**plan["data"]), size=size, rounds=rounds)
    rows = {
        task: {method.key: _rows(method.key, task, setting, read) for method in methods_of(task, setting)}
        for task in setting.tasks
    }
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
        "methods": measured,
        "tasks": rows,
    }
    results = dict(results_file.rounded(results, results_file.COMPARISON.digits))
    results_file.validate(results, out)
    return results


def sizes_and_times(setting: Setting, data: Data, *, size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return numbers of parameters, seconds per picture and per training step, and the memory of a step.

    With one CPU thread, or on the GPU where training used one. A knob is measured at t = 1/2, as it is and folded to a
    plain network where it can be; a training step with the setting's batch, a lambda per sample where the method
    draws them, else in its last phase. Networks are those of the first task that has the method; a row with twice the
    steps has the figures of its method.

    Returns:
        Per method ``label``, ``parameters``, ``seconds``, ``step_seconds`` and ``step_bytes`` (None where outputs are
        mixed), ``folded_parameters`` and ``folded_seconds`` or None; seconds are {"median", "q1", "q3"}.
    """
    device = _device(setting)
    chosen: dict[str, tuple[Method, str]] = {}
    for task in setting.tasks:
        for method in methods_of(task, setting):
            chosen.setdefault(method.kind, (method, task))
    chosen = {SEPARATE: chosen.pop(SEPARATE), **chosen}  # the baseline comes first
    calls: dict[str, Callable[[], Any]] = {}
    trainings: dict[str, Callable[[], list[Tensor]]] = {}
    counts: dict[str, int] = {}
    for kind, (method, task) in chosen.items():
        unit = Unit(task, method.key, 0, GRID[0] if kind == SEPARATE else None)
        net = network_to_time(unit, setting, data).to(device).eval()
        lam = torch.tensor(lam_for(method.key, task, 0.5), device=device)
        x = _picture(1, size, task, setting, device)
        counts[kind] = _count(net)
        calls[kind] = _call(net, x, lam)
        plain = folded_network(net, lam)
        if plain is not None:
            counts[f"{kind} folded"], calls[f"{kind} folded"] = _count(plain), _call(plain, x, lam)
        if kind != MIX:
            trainings[kind] = _training_step(net, _picture(setting.batch, setting.crop, task, setting, device), lam)
    with timing.cpu_threads(1):
        clock = timing.CudaClock(host=True) if device == "cuda" else None
        times = timing.compare(calls, rounds=rounds, clock=clock)
        of_steps = timing.compare(trainings, rounds=rounds, clock=clock)
        memory = {kind: steps.peak_bytes(step, device) for kind, step in trainings.items()}

    def row(kind: str, label: str) -> dict[str, Any]:
        return {
            "label": label,
            "parameters": counts[kind],
            "seconds": _quartiles(times.get(kind)),
            "step_seconds": _quartiles(of_steps.get(kind)),
            "step_bytes": memory.get(kind),
            "folded_parameters": counts.get(f"{kind} folded"),
            "folded_seconds": _quartiles(times.get(f"{kind} folded")),
        }

    keys = {m.key for task in setting.tasks for m in methods_of(task, setting)}
    return {key: row(method.kind, method.label) for key, method in METHOD.items() if key in keys}


def _quartiles(found: timing.Timing | None) -> dict[str, float] | None:
    return found and {"median": found.seconds, "q1": found.seconds_q1, "q3": found.seconds_q3}


def _picture(batch: int, size: int, task: str, setting: Setting, device: str) -> Tensor:
    """Return an input whose output has the size given."""
    side = size // 2 if task == "perception" and setting.backbone == "edsr" else size
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def _training_step(net: nn.Module, x: Tensor, lam: Tensor) -> Callable[[], list[Tensor]]:
    """Return a step that computes the gradients of what a training of the network changes, with its lambda."""
    lams: Tensor | None = None
    if isinstance(net, PhasedModel):
        lams = torch.tensor(net.enter_phase(net.phases - 1), device=x.device)
    elif isinstance(net, TunableModel):
        lams = lam.expand(len(x), -1)
    trained = [p for p in net.parameters() if p.requires_grad]

    def step() -> list[Tensor]:
        output = net(x) if lams is None else net(x, lams)
        return list(torch.autograd.grad(output.square().mean(), trained, allow_unused=True))

    return step


def folded_network(net: nn.Module, lam: Tensor) -> nn.Module | None:
    """Return a knob's plain network at lambda; None where there is none, or it is plain already."""
    if not isinstance(net, TunableModel):
        return None
    try:
        return fold(net, lam).eval()
    except ValueError as error:
        if "plain form" not in str(error):
            raise
        return None


def _device(setting: Setting) -> str:
    return "cuda" if setting.device != "cpu" and torch.cuda.is_available() else "cpu"


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _call(net: nn.Module, x: Tensor, lam: Tensor) -> Callable[[], Tensor]:
    takes_lam = isinstance(net, TunableModel | Mix)
    function = partial(net, x, lam) if takes_lam else partial(net, x)
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
        lpips = None if parts[0]["lpips"] is None else [_mean(row) for part in parts for row in part["lpips"]]
        terms = [row for part in parts for row in part["terms"]]
        seeds[str(seed)] = {
            **{name: [_mean(row) for part in parts for row in part[name]] for name in ("db", "loss", "psnr")},
            "lpips": lpips,
            "travel": means,
            "hypervolume": front_of(task, terms, parts[0]["reference"]),
            "monotone": falling(travel) if knob else None,
            "unevenness": unevenness(means) if knob else None,
            "train_seconds": None if method == MIX else sum(part["train_seconds"] for part in parts),
        }
    return {"steps": steps_of(method, task, setting), "seeds": seeds}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
