"""Results on disk: written whole or not at all, read with their schema checked, compared with older ones."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple


class Form(NamedTuple):
    """What a results file looks like: its version, its JSON schema, and how many digits are kept.

    More digits are noise, and make large files.
    """

    version: int
    schema: Path
    digits: int


TIMINGS = Form(2, Path(__file__).parent / "results" / "schema.json", 5)
COMPARISON = Form(1, Path(__file__).parent / "comparison" / "schema.json", 6)
# A ratio has regressed if it grew by more than this factor and its lower quartile exceeds the old upper quartile.
REGRESSION = 1.05


def form_of(suite: Any) -> Form:
    """Return the form of a suite's results."""
    return COMPARISON if suite == "comparison" else TIMINGS


def write(results: dict[str, Any], path: Path) -> None:
    """Write results that fit their schema."""
    validate(results, path)
    write_json(rounded(results, form_of(results["suite"]).digits), path)


def read(path: Path) -> dict[str, Any]:
    """Read results.

    Raises:
        ValueError: Not JSON, or of another schema; the message names the version and this one.
    """
    results = read_json(path)
    validate(results, path)
    return results


def validate(results: dict[str, Any], path: Path) -> None:
    """Check results against the schema of their suite if the package jsonschema is installed.

    Raises:
        ValueError: What does not fit, and where.
    """
    form = form_of(results.get("suite"))
    if results.get("schema") != form.version:
        got = f"{results.get('schema')!r} (suite {results.get('suite')!r})"
        raise ValueError(f"bench: {path} must have schema {form.version}; got {got}. Measure again with this version")
    try:
        import jsonschema
    except ModuleNotFoundError:
        return
    validator = jsonschema.Draft202012Validator(json.loads(form.schema.read_text()))
    for error in validator.iter_errors(results):
        where = "/".join(map(str, error.absolute_path)) or "the whole"
        raise ValueError(f"bench: {path} must fit {form.schema.name}; got at {where}: {error.message[:200]}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: No such file.
        ValueError: It holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"bench: {path} must hold JSON; got {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"bench: {path} must hold an object; got {type(found).__name__}")
    return found


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write a file whole or not at all; NaN and infinity are refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def rounded(value: Any, digits: int) -> Any:
    """Return a JSON value with all floats rounded to some significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value


def regressions(new: dict[str, Any], old: dict[str, Any]) -> tuple[list[str], int]:
    """Return what got slower relative to the plain convolution, beyond noise, a line each; and how many were compared.

    Compared are ratios, which another machine's speed leaves alone; and what was "ok" and no longer is.
    """
    before = {(row["id"], name): result for row in old["rows"] for name, result in row["providers"].items()}
    found, count = [], 0
    for row in new["rows"]:
        for name, result in row["providers"].items():
            was = before.get((row["id"], name))
            if was is None or was["status"] != "ok" or name == "plain":
                continue
            count += 1
            if result["status"] != "ok":
                found.append(f"{row['id']} {name}: was {was['ratio']:.2f}, is {result['status']}: {result['reason']}")
            elif result["ratio_q1"] > was["ratio_q3"] and result["ratio"] > REGRESSION * was["ratio"]:
                found.append(f"{row['id']} {name}: was {was['ratio']:.2f}, is {result['ratio']:.2f}")
    return found, count
