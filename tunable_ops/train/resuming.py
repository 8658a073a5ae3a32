"""What may change between a stop of a run and its resumption, and what may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunable_ops.train.config import Config
from tunable_ops.train.sections import RunConfig, flatten, unflatten
from tunable_ops.train.task import Task

__all__ = ["precision_of", "refuse_changes"]


def refuse_changes(path: Path, saved: Mapping[str, Any], config: RunConfig, task: Task) -> None:
    """Refuse a configuration under which the run would not go on as it began.

    Keys that name files are compared by the files' fingerprints; keys that the state does not have, because they came
    later, had their defaults; the precision "auto" is what the run began with.

    Args:
        path: The state, for the message.
        saved: Its metadata.
        config: Given now.
        task: Built from it; says what is harmless, and which files there are.

    Raises:
        ValueError: A key that changes the weights differs, or fewer steps are asked for than are done; every such key
            is named with both values. Or the state is of before lambda had units, and lambda would be divided now.
    """
    _refuse_other_scales(path, saved["config"], config)
    then, now = _with_defaults(type(config), saved["config"]), flatten(config)
    files = saved.get("files", {})
    for key in files.keys() & task.files.keys():
        then[key], now[key] = files[key], task.files[key]
    key = task.precision_key
    then[key] = precision_of(saved, key)
    now[key] = then[key] if now[key] == "auto" else now[key]
    differing = [
        f"{key} was {_shown(then, key)}, is {_shown(now, key)}"
        for key in sorted({*then, *now})
        if _shown(then, key) != _shown(now, key) and not key.startswith(task.harmless)
    ]
    if differing:
        raise ValueError(
            f"train: a resumed run must keep its configuration; got {'; '.join(differing)} (saved in {str(path)!r}): "
            "change it back, or start a new run in another folder"
        )
    if config.optim.steps < saved["step"]:
        raise ValueError(
            f"train: optim.steps must be at least {saved['step']}, the steps that are done; got {config.optim.steps}"
        )


def _refuse_other_scales(path: Path, saved: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse states of before lambda had units, when phi got it as it is, if it is divided by its scale now."""
    scales = config.spec.scales if isinstance(config, Config) else ()
    if "tuning.units" not in saved and any(scale != 1 for scale in scales):
        raise ValueError(
            "train: state must be of a run that divides lambda by the largest end of its range; got "
            f"{str(path)!r}, of before lambda had units, with scales {list(scales)}: finish the run with the version "
            "of the code that started it, or start it anew in another folder"
        )


def precision_of(saved: Mapping[str, Any], key: str) -> str:
    """Return the precision with which the run of a state began, in the words of the configuration's ``key``."""
    if "precision" in saved:
        return str(saved["precision"])
    # states of before it was kept: "auto" was bf16 on every GPU
    configured = saved["config"].get(key, "auto")
    on_gpu = saved["circumstances"].get("device") == "cuda"
    return {"auto": "bf16" if on_gpu else "fp32"}.get(configured, configured)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "no key"


def _with_defaults(schema: type[RunConfig], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration with the keys that came later; as it is if it is none any more."""
    saved = {"task": "restoration", **saved}  # states of before there were tasks
    try:
        return flatten(schema.model_validate(unflatten(saved)))
    except ValidationError:
        return saved
