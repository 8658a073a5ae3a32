"""Results on disk: written whole or not at all, read with their schema checked, compared with older ones."""

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 2
SCHEMA_FILE = Path(__file__).parent / "results" / "schema.json"
# A ratio has regressed if its quartiles left those of the old one behind, and by more than this factor.
REGRESSION = 1.05


def write(results: dict[str, Any], path: Path) -> None:
    """Writes results; a reader never sees half a file."""
    validate(results, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_rounded(results), indent=1) + "\n")
    os.replace(partial, path)


def read(path: Path) -> dict[str, Any]:
    """Reads results.

    Raises:
        ValueError: Not JSON, or of another schema; the message names the version and this one.
    """
    try:
        results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"bench: {path} must hold JSON; got {error}") from None
    version = results.get("schema") if isinstance(results, dict) else None
    if version != SCHEMA:
        raise ValueError(f"bench: {path} must have schema {SCHEMA}; got {version!r}. Measure again with this version")
    validate(results, path)
    return dict(results)


def validate(results: dict[str, Any], path: Path) -> None:
    """Holds results to `results/schema.json`, where the package jsonschema is there to do it.

    Raises:
        ValueError: What does not fit, and where.
    """
    try:
        import jsonschema
    except ModuleNotFoundError:
        return
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    for error in validator.iter_errors(results):
        where = "/".join(map(str, error.absolute_path)) or "the whole"
        raise ValueError(f"bench: {path} must fit {SCHEMA_FILE.name}; got at {where}: {error.message[:200]}")


def regressions(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """What got slower relative to the plain convolution, beyond noise; a line each.

    Compared are ratios, which another machine's speed leaves alone; and what was "ok" and no longer is.
    """
    before = {row["id"]: row["providers"] for row in old["rows"]}
    found = []
    for row in new["rows"]:
        for name, result in row["providers"].items():
            was = before.get(row["id"], {}).get(name)
            if was is None or was["status"] != "ok" or name == "plain":
                continue
            if result["status"] != "ok":
                found.append(f"{row['id']} {name}: was {was['ratio']:.2f}, is {result['status']}: {result['reason']}")
            elif result["ratio_q1"] > was["ratio_q3"] and result["ratio"] > REGRESSION * was["ratio"]:
                found.append(f"{row['id']} {name}: was {was['ratio']:.2f}, is {result['ratio']:.2f}")
    return found


def compared(new: dict[str, Any], old: dict[str, Any]) -> int:
    """How many pairs `regressions` looked at."""
    before = {row["id"]: row["providers"] for row in old["rows"]}
    return sum(
        before.get(row["id"], {}).get(name, {}).get("status") == "ok"
        for row in new["rows"]
        for name in row["providers"]
        if name != "plain"
    )


def _rounded(value: Any) -> Any:
    """Five significant digits: more is noise, and makes large files."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
