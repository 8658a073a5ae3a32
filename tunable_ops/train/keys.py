"""Every key of the configurations as a page of Markdown: docs/configuration.md, made of the schema.

python -m tunable_ops.train.keys >docs/configuration.md
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from tunable_ops.train.config import Config, PGNConfig

__all__ = ["descriptions", "page"]

_HEAD = """# Configuration

Every key of the TOML files that `tunable-ops train` takes. `make docs` makes this page of the schema
(`config.py`, `tuning.py`, `objectives.py`, `adversarial.py`, `degradations.py`, `sections.py` and `pgn_config.py` in
`tunable_ops/train`); edit the docstrings there.

`--set KEY=VALUE` changes a key on the command line: `--set optim.lr=1e-4`, `--set objectives.0.scale=2`. A key that is
left out has its default. What "left out" means as a default is said beside the key: TOML has no null.

A run that is resumed may change `log`, `checkpoints`, `validation`, `data.workers`, `data.cache_mb`, `compute.device`,
the place (not the content) of the files that a key names, and `optim.steps`. Any other change is refused with both
values: it would be another run. For a state written before a key existed, the key has its default.
"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    seen: dict[str, type[BaseModel]] = {}
    for config in (Config, PGNConfig):
        task = config.model_fields["task"].default
        parts.append(f"## Task `{task}`\n\n{_about(config)}\n")
        parts.append(_table(config))
        same = []
        for path, section in _sections(config):
            if seen.get(path) is section:
                same.append(f"`{path.strip('[]')}`")
                continue
            seen[path] = section
            parts.append(f"### `{path}`\n\n{_about(section)}\n")
            if table := _table(section):
                parts.append(table)
        if same:
            parts.append(f"As above: {', '.join(same)}.\n")
    return "\n".join(parts)


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a section and of those that it extends say of each of its keys.

    The entries of ``Attributes:`` in google style; those of the class itself come first.
    """
    found: dict[str, str] = {}
    for base in section.__mro__:
        _, _, attributes = _docstring(base).partition("\nAttributes:\n")
        for entry in re.split(r"^    (?=\S)", attributes, flags=re.MULTILINE)[1:]:
            key, _, text = entry.partition(": ")
            found.setdefault(key, " ".join(text.split()))
    return {key: found[key] for key in section.model_fields if key in found}


def _docstring(section: type) -> str:
    return inspect.cleandoc(section.__doc__ or "") if issubclass(section, BaseModel) else ""


def _about(section: type[BaseModel]) -> str:
    return _code(_docstring(section).partition("\nAttributes:\n")[0].strip())


def _code(text: str) -> str:
    return text.replace("``", "`")


def _sections(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the tables of a configuration as TOML writes their heads; a class that occurs twice, once."""
    for key, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None or path.startswith("validation"):
            continue
        name = f"{path}{key}"
        yield (f"[[{name}]]" if typing.get_origin(field.annotation) is list else f"[{name}]"), inner
        yield from _sections(inner, f"{name}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(argument) for argument in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)


def _table(section: type[BaseModel]) -> str:
    """Return a table of the keys that are no tables themselves; nothing where there are none."""
    properties, texts = section.model_json_schema()["properties"], descriptions(section)
    rows = []
    for key, field in section.model_fields.items():
        if _section_in(field.annotation) is not None and key not in texts:
            continue
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        cells = (f"`{key}`", _type(properties[key]), default, _code(texts[key]))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "| key | type | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows) if rows else ""


def _default(value: Any) -> str:
    if value is None:
        return "left out"
    return f"`{json.dumps(value)}`"


def _type(schema: Mapping[str, Any]) -> str:
    """Return a type of the JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "const" in schema or "enum" in schema:
        *others, last = (f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
        return f"{', '.join(others)} or {last}" if others else last
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} numbers"
        least = ", at least 1" if schema.get("minItems") else ""
        items = re.sub("^(list|integer|number)", r"\1s", _type(schema["items"]))
        return f"list of {items}{least}"
    if kind in ("integer", "number"):
        return kind + _bounds(schema)
    return {"string": "text", "boolean": "`true` or `false`"}.get(str(kind), "table")


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return "".join(
        f"{',' if index else ''} {words[key]} {schema[key]:g}"
        for index, key in enumerate(key for key in words if key in schema)
    )


if __name__ == "__main__":
    print(page(), end="")
