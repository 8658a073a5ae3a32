"""Train and evaluate what is missing in a folder; a stop loses the current evaluation only.

``plan.json`` says what the folder is for, ``runs/ID`` is a unit's training, ``units/ID.json`` its results: what has
those is finished and is skipped, so ``plan.json`` and ``units`` alone are enough to go on elsewhere.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tunable_ops.bench import machine
from tunable_ops.bench.comparison.configure import config_of
from tunable_ops.bench.comparison.evaluation import Mix, Pictures, evaluate, test_pictures
from tunable_ops.bench.comparison.plan import (
    MIX,
    SEPARATE,
    Data,
    Setting,
    Unit,
    check,
    mixes,
    units,
)
from tunable_ops.bench.results_file import read_json, write_json
from tunable_ops.bench.timing import cpu_threads

from tunable_ops import serialization
from tunable_ops.train.build import build_network
from tunable_ops.train.config import Config
from tunable_ops.train.sections import validate
from tunable_ops.train.signals import StopSignals
from tunable_ops.train.trainer import MODEL, train

_STOPPED = 3  # exit status of a worker that was told to stop


def run_all(setting: Setting, data: Data, out: Path, *, jobs: int = 1, threads: int = 1, progress: bool = True) -> bool:
    """Train and evaluate all units that are not finished.

    Args:
        setting: The sizes.
        data: The pictures.
        out: Folder of the comparison; made if missing.
        jobs: Processes that train in parallel.
        threads: CPU threads of each.
        progress: Show bars (with one job).

    Returns:
        True if all is done; False if a signal stopped it.

    Raises:
        ValueError: `out` holds another comparison, or an argument is out of range.
        RuntimeError: A worker failed.
    """
    for name, value in (("--jobs", jobs), ("--threads", threads)):
        if value < 1:
            raise ValueError(f"comparison: {name} must be at least 1; got {value}")
    check(setting)
    test_pictures(data, setting)  # fails early where there are none
    _claim(out, setting, data)
    missing = [unit for unit in units(setting) if not finished(unit, setting, data, out)]
    print(f"{len(missing)} of {len(units(setting))} units to train, {setting.steps} steps each", flush=True)
    jobs = min(jobs, len(missing))
    if jobs > 1:
        done = _in_processes(missing, setting, data, out, jobs, threads)
    else:
        done = _in_turn(missing, setting, data, out, threads, progress)
    if done:
        _evaluate_mixes(setting, data, out, threads)
    return done


def result_file(out: Path, unit: Unit) -> Path:
    """Return the file of a unit's results."""
    return out / "units" / f"{unit.id}.json"


def finished(unit: Unit, setting: Setting, data: Data, out: Path) -> bool:
    """Return True if a unit has results; keys that its configuration lacks have their defaults.

    Raises:
        ValueError: It has, but of another configuration.
    """
    path = result_file(out, unit)
    if not path.exists():
        return False
    stored = {"task": "restoration", **(read_json(path).get("config") or {})}  # older results lack the task
    try:
        same = _portable(validate(Config, stored)) == _portable(config_of(unit, setting, data))
    except ValueError:
        same = False  # of keys that are no more
    if not same:
        raise ValueError(
            f"comparison: --runs must hold units of this comparison; got {unit.id} with another configuration: "
            "name another folder, or delete the unit"
        )
    return True


def load_network(out: Path, unit: Unit) -> nn.Module:
    """Return a unit's trained network on the CPU, or the mix of the two separate ones at the corners."""
    if unit.method == MIX:
        return Mix([load_network(out, Unit(unit.task, SEPARATE, unit.seed, t)) for t in (0.0, 1.0)])
    path = _network_file(out, unit)
    return serialization.load_folded(path) if unit.method == SEPARATE else serialization.load(path)


def _network_file(out: Path, unit: Unit) -> Path:
    return out / "runs" / unit.id / MODEL


def network_to_time(unit: Unit, setting: Setting, data: Data) -> nn.Module:
    """Return a unit's network as it is before training: time and size are those of the trained one."""
    if unit.method == MIX:
        ends = [Unit(unit.task, SEPARATE, unit.seed, t) for t in (0.0, 1.0)]
        return Mix([network_to_time(end, setting, data) for end in ends])
    return build_network(config_of(unit, setting, data))


def run_unit(
    unit: Unit, setting: Setting, data: Data, out: Path, pictures: Pictures, *, progress: bool = False
) -> dict[str, Any] | None:
    """Train a unit, or continue its training, and evaluate it; None if a signal stopped it."""
    config = config_of(unit, setting, data)
    folder = out / "runs" / unit.id
    outcome = train(config, folder, resume=True, progress=progress)
    clock = folder / "seconds.json"  # of the calls before this one, where it was stopped
    seconds = outcome.seconds + (read_json(clock)["seconds"] if clock.exists() else 0.0)
    write_json({"seconds": seconds}, clock)
    if not outcome.finished or outcome.signal is not None:
        return None
    started = time.perf_counter()
    result = {
        "id": unit.id,
        "config": _portable(config),
        "commit": machine.commit(),
        "train_seconds": seconds,
        "pictures": [name for name, _ in pictures],
        **evaluate(outcome.net, unit, setting, data, pictures),
    }
    result["evaluation_seconds"] = time.perf_counter() - started
    write_json(result, result_file(out, unit))
    return result


def _claim(out: Path, setting: Setting, data: Data) -> None:
    """Note in the folder what it is for; seeds, tasks and methods may change, as each only adds units."""
    plan = json.loads(json.dumps({"setting": asdict(setting), "data": data.described()}))
    path = out / "plan.json"
    there = read_json(path) if path.exists() else plan
    if _without_choice(there) != _without_choice(plan):
        raise ValueError(f"comparison: --runs must hold this comparison; got {path.name} with {there}")
    write_json(plan, path)


def _without_choice(plan: dict[str, Any]) -> dict[str, Any]:
    setting = {key: value for key, value in plan["setting"].items() if key not in ("seeds", "tasks", "methods")}
    return {**plan, "setting": setting}


def _portable(config: Config) -> dict[str, Any]:
    """Return what a configuration trains, without where: the places of files, the device and the memory format."""
    tree = dict(config.model_dump(mode="json"))
    for key in ("device", "channels_last"):
        del tree["compute"][key]
    tree["data"]["source"] = Path(tree["data"]["source"]).name
    for objective in tree["objectives"]:
        if "weights" in objective["arguments"]:
            objective["arguments"]["weights"] = Path(objective["arguments"]["weights"]).name
    return tree


def _say(unit: Unit, result: dict[str, Any]) -> None:
    print(
        f"{unit.id}: trained {result['train_seconds']:.1f} s, evaluated {result['evaluation_seconds']:.1f} s",
        flush=True,
    )


def _in_turn(todo: Sequence[Unit], setting: Setting, data: Data, out: Path, threads: int, progress: bool) -> bool:
    try:
        with cpu_threads(threads):
            pictures = test_pictures(data, setting)
            for unit in todo:
                result = run_unit(unit, setting, data, out, pictures, progress=progress)
                if result is None:
                    return False
                _say(unit, result)
    except KeyboardInterrupt:  # during an evaluation; training returns by itself
        return False
    return True


def _in_processes(todo: Sequence[Unit], setting: Setting, data: Data, out: Path, jobs: int, threads: int) -> bool:
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    for unit in todo:
        queue.put(unit)
    for _ in range(jobs):
        queue.put(None)
    workers = [context.Process(target=_work, args=(queue, setting, data, out, threads)) for _ in range(jobs)]
    with StopSignals() as signals:
        told = False
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                time.sleep(0.1)
                if signals.received is not None and not told:
                    told = True
                    for worker in workers:
                        worker.terminate()  # training saves and returns; an evaluation is done again
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
            queue.cancel_join_thread()  # what a stop leaves unread
    statuses = [worker.exitcode for worker in workers]
    if signals.received is not None or _STOPPED in statuses:
        return False
    if any(statuses):
        raise RuntimeError(
            f"comparison: workers must exit with 0; got {statuses}: see above; run the command again to continue"
        )
    return True


def _work(queue: Any, setting: Setting, data: Data, out: Path, threads: int) -> None:
    """Do one unit after another, in a process of its own, until there is none or a signal comes."""
    torch.set_num_threads(threads)
    try:
        pictures = test_pictures(data, setting)
        while (unit := queue.get()) is not None:
            result = run_unit(unit, setting, data, out, pictures)
            if result is None:
                sys.exit(_STOPPED)
            _say(unit, result)
    except KeyboardInterrupt:
        sys.exit(_STOPPED)


def _evaluate_mixes(setting: Setting, data: Data, out: Path, threads: int) -> None:
    """Evaluate what has no training of its own, where results are missing or older than its networks."""
    with cpu_threads(threads):
        pictures = test_pictures(data, setting)
        for unit in mixes(setting):
            path = result_file(out, unit)
            ends = [_network_file(out, Unit(unit.task, SEPARATE, unit.seed, t)) for t in (0.0, 1.0)]
            # Results without networks, as they are handed on, have nothing newer; copies have times of their own.
            newest = max(end.stat().st_mtime if end.exists() else 0.0 for end in ends)
            if path.exists() and path.stat().st_mtime >= newest:
                continue
            result = {
                "id": unit.id,
                "commit": machine.commit(),
                "pictures": [name for name, _ in pictures],
                **evaluate(load_network(out, unit), unit, setting, data, pictures),
            }
            write_json(result, path)
