"""Configurations as TOML files: overrides, errors that name the nearest right key, and the sections all tasks share."""

from __future__ import annotations

import difflib
import json
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunable_ops.nearest import hint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Schema = TypeVar("_Schema", bound=BaseModel)


class Section(BaseModel):
    """A table of keys; unknown ones are refused, values stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Where clean pictures come from, and how crops are cut from them and varied.

    Attributes:
        source: A folder, or "skimage": the photographs inside the scikit-image package. A resumed run may find the
            folder elsewhere, but must find the same pictures in it: their names, sizes and contents are compared.
        crop: Side of a crop, in pixels. Smaller pictures are left out.
        batch: Crops per step and process.
        flips: Mirror half of the crops.
        rotations: Turn crops by a random multiple of 90 degrees.
        colours: Permute the channels of a crop, and in half of the crops scale each by a factor from [0.5, 1].
        workers: Processes that prepare batches; 0: none but the one that trains.
        cache_mb: MiB of decoded pictures kept in memory; the rest is decoded when drawn. The weights do not depend on
            it.
    """

    source: str = "skimage"
    crop: int = Field(default=64, ge=8)
    batch: int = Field(default=16, ge=1)
    flips: bool = True
    rotations: bool = True
    colours: bool = False
    workers: int = Field(default=0, ge=0)
    cache_mb: int = Field(default=2048, ge=0)


class Steps(Section):
    """The length of a run.

    Attributes:
        steps: Optimiser steps in all.
    """

    steps: int = Field(default=1000, ge=1)


class Ema(Section):
    """Exponential moving average of the weights, which is what is delivered.

    Attributes:
        decay: Of the average; 0 delivers the last weights. A young average has a smaller one, (1 + k) / (10 + k) at
            step k.
    """

    decay: float = Field(default=0.999, ge=0, lt=1)


class Device(Section):
    """Where to train.

    Attributes:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or another device of torch. Another one than before is
            warned about when a run is resumed: the last bits differ.
    """

    device: str = "auto"


class Log(Section):
    """What is written while training.

    Attributes:
        every: Steps per line of ``log.jsonl`` and per point of TensorBoard's scalars.
        tensorboard: Write TensorBoard's files, where the package tensorboard is installed.
    """

    every: int = Field(default=20, ge=1)
    tensorboard: bool = True


class Checkpoints(Section):
    """When the training state and the model are written, besides at a stop and at the end.

    Attributes:
        every: Steps from one to the next.
    """

    every: int = Field(default=500, ge=1)


class HeldOut(Section):
    """An evaluation on held-out pictures.

    Attributes:
        every: Steps from one to the next; there is one more at the end. 0 for never.
        source: A folder, "skimage" (the three photographs that training leaves out), or left out: "skimage" where
            training uses it too, otherwise no validation.
        crop: Side of the central part that is used, in pixels; 0 for all.
    """

    every: int = Field(default=500, ge=0)
    source: str | None = None
    crop: int = Field(default=256, ge=0)


class RunConfig(Section):
    """What the trainer needs of every configuration; a task's own extends it.

    Attributes:
        task: What is trained.
        seed: Of everything that is drawn.
    """

    task: str
    seed: int = 0
    data: Data = Data()
    optim: Steps = Steps()
    ema: Ema = Ema()
    compute: Device = Device()
    log: Log = Log()
    checkpoints: Checkpoints = Checkpoints()
    validation: HeldOut = HeldOut()


def read_tree(path: str | Path, packaged: dict[str, Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file, or a packaged one by name, and apply overrides; the keys are not checked yet.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, or an override fits nowhere.
    """
    file = Path(path)
    if not file.is_file():
        if str(path) not in packaged:
            near = hint(str(path), packaged)
            raise FileNotFoundError(
                f"config: path must be a file or one of {', '.join(sorted(packaged))}; got {str(path)!r}{near}"
            )
        file = packaged[str(path)]
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: path must be TOML; got {str(path)!r}: {error}") from None
    for override in overrides:
        _apply_override(tree, override)
    return tree


def validate(schema: type[_Schema], tree: dict[str, Any], moved: Mapping[str, str] | None = None) -> _Schema:
    """Return the checked configuration of a tree of keys.

    Args:
        schema: Class of the configuration.
        tree: From `read_tree`.
        moved: Former dotted key -> present one, for the messages.

    Raises:
        ValueError: Every unknown key and wrong value, one line each.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(schema, problem, moved or {}) for problem in error.errors())) from None


def configs_of(package: str) -> dict[str, Path]:
    """Return name to file of the configurations that ship in a package's folder ``configs``."""
    folder = Path(str(resources.files(package) / "configs"))
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def flatten(config: BaseModel) -> dict[str, Any]:
    """Return the configuration as dotted keys and JSON values, for comparison and logs."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, item)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                yield from walk(f"{prefix}.{index}", item)
        else:
            yield prefix, value

    return dict(walk("", json.loads(config.model_dump_json())))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of keys that `flatten` made dotted keys of."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value

    def lists(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        values = {key: lists(value) for key, value in node.items()}
        return list(values.values()) if values and all(key.isdigit() for key in values) else values

    return {key: lists(value) for key, value in tree.items()}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not all(key.split(".")):
        raise ValueError(f"config: an override must be key=value with a dotted key; got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else _item(node, part, override)
    if isinstance(node, dict):
        node[last] = value
    else:
        _item(node, last, override)
        node[int(last)] = value


def _item(node: Any, part: str, override: str) -> Any:
    if not isinstance(node, list) or not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"config: an override must name a key or an index that exists; got {override!r} at {part!r}")
    return node[int(part)]


def _explain(schema: type[BaseModel], problem: Any, moved: Mapping[str, str]) -> str:
    """Return one line for one of pydantic's findings."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, last = problem["loc"]
        if where in moved:
            return f"config: {where} must be a known key; got {last!r}: it is now {moved[where]}"
        known = _keys_at(schema, parents)
        close = difflib.get_close_matches(str(last), known, n=1, cutoff=0.5)
        prefix = "".join(f"{part}." for part in parents)
        near = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"config: {where} must be a known key; got {last!r}: {near}"
    if problem["type"] == "missing":
        return f"config: {where} must be given; got nothing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":  # raised here: a complete sentence
        return f"config: {where} {message}" if message.startswith("must") else f"config: {message}"
    return f"config: {where} must be valid; got {problem['input']!r}: {message}"


def _keys_at(section: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys of the section at a path of keys and indices."""
    for part in path:
        if isinstance(part, int):
            continue
        found = _sections_in(typing.get_type_hints(section)[part])
        section = found[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in typing.get_args(annotation) for section in _sections_in(argument)]
