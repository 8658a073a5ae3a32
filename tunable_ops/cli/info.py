"""`tunable-ops info`: describe a checkpoint, or what this installation can run."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS

if TYPE_CHECKING:
    from tunable_ops.pretrained import Found

__all__ = [
    "add_parser",
    "base_facts",
    "describe",
    "describe_installation",
    "describe_shipped",
    "knob_lines",
    "knobs",
    "note_lines",
    "run",
]

_WIDTH = 100  # columns of a note that is written in one line


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "info",
        help=COMMANDS["info"],
        description="Describe a checkpoint or a knob: architecture, slider, layers, size, notes. Without one, describe "
        "this installation: versions, backends, and how the compiled operators were built.",
    )
    parser.add_argument(
        "checkpoint", nargs="?", help="tunable or folded network: a file, or the name of a shipped one; or a knob file"
    )
    parser.add_argument("--configuration", action="store_true", help="print what it was trained with, too")
    parser.add_argument("--json", action="store_true", help="print JSON, with everything")


def run(args: argparse.Namespace) -> int:
    """Print the description and return 0."""
    if args.checkpoint is None:
        facts, table = describe_installation(), _installation_table
    else:
        from tunable_ops.pretrained import find

        found = find(args.checkpoint)
        facts, table = (
            (describe(found.file), _table) if found.base is None else (describe_shipped(found), _shipped_table)
        )
    print(json.dumps(facts, indent=2, allow_nan=False) if args.json else table(facts, args.configuration))
    return 0


def describe_installation() -> dict[str, Any]:
    """Collect what this installation can run, as JSON values.

    Returns:
        dict with version, python, torch; backends (name to None, or why `tunable_conv2d` cannot run on it); wgmma
        (None, or why that kernel cannot run); launcher (None, or why plans of Triton's kernels are repeated in Python);
        operators (compiler, flags, torch, stable_abi and library of the C++ operators, or None).
    """
    import torch

    import tunable_ops
    from tunable_ops import backends
    from tunable_ops.backends import cpp, wgmma
    from tunable_ops.backends.triton import native

    return {
        "version": tunable_ops.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": {name: backends.unavailable_reason("tunable_conv2d", name) for name in backends.NAMES},
        "wgmma": wgmma.unavailable_reason(),
        "launcher": native.missing(),
        "operators": cpp.build_information(),
    }


def _installation_table(facts: dict[str, Any], configuration: bool = False) -> str:
    rows = [("tunable_ops", f"{facts['version']}, Python {facts['python']}, torch {facts['torch']}")]
    for index, (name, reason) in enumerate(facts["backends"].items()):
        rows.append(("" if index else "backends", name if reason is None else f"{name}: no; {reason}"))
    rows.append(("wgmma kernel", "yes" if facts["wgmma"] is None else f"no; {facts['wgmma']}"))
    rows.append(("launcher", "yes" if facts["launcher"] is None else f"no; {facts['launcher']}"))
    for index, (name, value) in enumerate((facts["operators"] or {}).items()):
        rows.append(("" if index else "C++ operators", f"{name:<11} {value}"))
    return _lines(rows)


def describe(path: Path) -> dict[str, Any]:
    """Collect what is known about a checkpoint or a knob, as JSON values.

    Numbers of layers are None if the network cannot be built, because `architecture` is not one of this library.

    Returns:
        dict with path, bytes, kind ("tunable", "plain" or "knob"), version, architecture, arguments, parameters (values
        in the file), dtypes, notes; for a tunable network or a knob domain, lambda (a list of name, unit, low,
        high, default), tuning, tunable_layers, kernels (per layer, sorted without repetition; a knob's are new ones),
        plain_parameters (once folded; None for a knob); and for a knob rank (None if full), fingerprint and licence.

    Raises:
        FileNotFoundError, ValueError: As for `serialization.load`.
    """
    from safetensors import safe_open

    from tunable_ops import models
    from tunable_ops.knob_files import whole_fingerprint

    metadata = _metadata(path)
    spec, conversion = metadata.get("spec"), metadata.get("conversion")
    with safe_open(str(path), framework="pt") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 (not a dict)
        sizes = [_count(part.get_shape()) for part in slices]
        dtypes = sorted({part.get_dtype() for part in slices})
    facts: dict[str, Any] = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "kind": "knob" if "base" in metadata else "plain" if conversion is None else "tunable",
        "version": metadata["version"],
        "architecture": metadata.get("architecture"),
        "arguments": metadata.get("arguments"),
        "parameters": sum(sizes),
        "dtypes": dtypes,
        "notes": metadata.get("notes") or {},
    }
    if conversion is None or spec is None:
        return facts
    facts["domain"] = spec["domain"]
    facts["lambda"] = knobs(spec)
    facts["tuning"] = conversion.get("tuning")
    facts |= {"tunable_layers": None, "kernels": None, "plain_parameters": None}
    if facts["kind"] == "knob":
        facts |= {"tunable_layers": len(metadata["layers"]), "kernels": [_new_kernels(metadata)]}
        facts |= {"rank": conversion.get("rank"), "licence": metadata.get("licence"), "base": metadata["base"]}
        facts["fingerprint"] = whole_fingerprint(metadata["base"])
    elif facts["architecture"] in models.ARCHITECTURES:
        facts |= _layers(path)
    return facts


def base_facts(name: str) -> dict[str, Any]:
    """Return name, path, bytes, architecture, arguments, licence, source and pictures of a base, as JSON values."""
    from tunable_ops import pretrained

    base = pretrained.BASES[name]
    file = pretrained.weights_file(name)
    facts = {"architecture": base.architecture, "arguments": dict(base.arguments), "licence": base.licence}
    facts |= {"source": base.source, "pictures": base.pictures}
    return {"name": name, "path": str(file), "bytes": file.stat().st_size, **facts}


def describe_shipped(found: Found) -> dict[str, Any]:
    """Collect what is known about a network that ships as a base with knobs, or about a base, as JSON values.

    Returns:
        dict with name, kind ("base with knobs" or "base"), bytes (all files), base (`base_facts`); with knobs also
        purpose, domain, lambda (as in `describe`), and knobs (`describe` of every file).
    """
    from tunable_ops import pretrained

    assert found.base is not None
    kind = "base with knobs" if found.knobs else "base"
    facts: dict[str, Any] = {"name": found.name, "kind": kind, "bytes": found.bytes, "base": base_facts(found.base)}
    purpose = pretrained.PURPOSES.get(found.name)
    if not found.knobs:
        spec = pretrained.BASES[found.base].spec
        own = {"domain": "box", "lambda": knobs(dict(spec))} if spec else {}
        return {**facts, **({} if purpose is None else {"purpose": purpose}), **own}
    each = [describe(path) for path in found.knobs]
    known = {knob["name"]: knob for part in each for knob in part["lambda"]}
    facts |= {"purpose": purpose, "domain": "box", "lambda": list(known.values())}
    return {**facts, "knobs": each}


def knobs(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return name, unit, low, high and default of every parameter, from the metadata of a checkpoint."""
    units = spec.get("units") or [""] * len(spec["names"])
    limits = zip(spec["names"], units, spec["ranges"], spec["defaults"], strict=True)
    return [
        {"name": name, "unit": unit, "low": low, "high": high, "default": default}
        for name, unit, (low, high), default in limits
    ]


def knob_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each of `knobs`: name, range with its unit, and default."""
    width = max(len(knob["name"]) for knob in found)
    lines = []
    for knob in found:
        unit = knob["unit"] and f" {knob['unit']}"
        lines.append(f"{knob['name']:<{width}}  {knob['low']:g} to {knob['high']:g}{unit}, default {knob['default']:g}")
    return lines


def note_lines(name: str, value: Any, indent: str = "") -> list[str]:
    """Return a note as lines: tables as one line where they are short, else with their entries indented.

    Entries that are null, and empty tables, are left out.
    """
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [line for k, item in enumerate(value) for line in note_lines(f"{name} {k + 1}", item, indent)]
    if not isinstance(value, dict):
        return [f"{indent}{name}: {_text(value)}"]
    entries = {key: item for key, item in value.items() if item is not None and item != {}}
    line = f"{indent}{name}: " + ", ".join(f"{key} = {_text(item)}" for key, item in entries.items())
    if len(line) <= _WIDTH and not any(isinstance(item, dict) or _is_tables(item) for item in entries.values()):
        return [line] if entries else []
    below = [line for key, item in entries.items() for line in note_lines(key, item, indent + "  ")]
    return [f"{indent}{name}:", *below]


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    from tunable_ops.knob_files import read_knob_metadata
    from tunable_ops.serialization import KNOB_FORMAT, read_metadata

    try:
        with safe_open(str(path), framework="pt") as file:
            is_knob = (file.metadata() or {}).get("format") == KNOB_FORMAT
    except (SafetensorError, OSError):
        is_knob = False  # read_metadata says what it is
    return read_knob_metadata(path) if is_knob else read_metadata(path)


def _new_kernels(metadata: dict[str, Any]) -> int:
    kernels: int | None = metadata["conversion"].get("num_kernels")
    return len(metadata["spec"]["names"]) - len(metadata["read"]) if kernels is None else kernels - 1


def _layers(path: Path) -> dict[str, Any]:
    from tunable_ops.modules import fold
    from tunable_ops.modules.tuning import Tuning
    from tunable_ops.serialization import load

    net = load(path)
    tunings = [module for module in net.network.modules() if isinstance(module, Tuning)]
    plain = fold(net, net.spec.defaults)
    return {
        "tunable_layers": len(tunings),
        "kernels": sorted({tuning.num_kernels for tuning in tunings}),
        "plain_parameters": sum(parameter.numel() for parameter in plain.parameters()),
    }


def _shipped_table(facts: dict[str, Any], configuration: bool = False) -> str:
    base = facts["base"]
    rows = [("network", f"{facts['name']} ({_bytes(facts['bytes'])}): {facts.get('purpose', 'a base, without knobs')}")]
    if "lambda" in facts:
        rows += [("" if index else "lambda", line) for index, line in enumerate(knob_lines(facts["lambda"]))]
    rows += [
        ("base", f"{base['name']}, {base['path']} ({_bytes(base['bytes'])})"),
        ("architecture", f"{base['architecture']}({_arguments(base['arguments'])})"),
        ("source", base["source"]),
        ("trained on", base["pictures"]),
        ("licence", f"{base['licence']} (LICENSES.txt beside the file)"),
    ]
    return "\n\n".join([_lines(rows), *(_table(knob, configuration) for knob in facts.get("knobs", []))])


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


def _table(facts: dict[str, Any], configuration: bool = False) -> str:
    rows = [
        ("file", f"{facts['path']} ({_bytes(facts['bytes'])})"),
        ("kind", _kind(facts)),
        ("architecture", f"{facts['architecture']}({_arguments(facts['arguments'])})"),
    ]
    if facts["kind"] == "knob":
        rows.append(("base", f"fingerprint {facts['fingerprint']}, {len(facts['base'])} layers"))
    if facts["kind"] != "plain":
        sums = "weights that sum to 1" if facts["domain"] == "simplex" else "each moves independently"
        rows.append(("domain", f"{facts['domain']}: {sums}"))
        rows += [("" if index else "lambda", line) for index, line in enumerate(knob_lines(facts["lambda"]))]
        rows.append(("tuning", str(facts["tuning"])))
        if facts["tunable_layers"] is not None:
            kernels = " or ".join(map(str, facts["kernels"]))
            rows.append(("layers", f"{facts['tunable_layers']} tunable, {kernels} {_kernels(facts)} each"))
    parameters = f"{facts['parameters']:,} ({', '.join(facts['dtypes'])})"
    if facts.get("plain_parameters"):
        parameters += f", {facts['plain_parameters']:,} once folded"
    rows.append(("parameters", parameters))
    notes = dict(facts["notes"])
    config = notes.pop("config", None)
    lines = [line for name, value in notes.items() for line in note_lines(name, value)]
    rows += [("" if index else "notes", line) for index, line in enumerate(lines)]
    if isinstance(config, dict) and not configuration:
        rows.append(("configuration", f"of its training, {len(config)} sections: --configuration prints it"))
    elif isinstance(config, dict):
        lines = [line for name, value in config.items() if value is not None for line in note_lines(name, value)]
        rows += [("" if index else "configuration", line) for index, line in enumerate(lines)]
    if facts.get("licence"):
        rows.append(("licence", facts["licence"]))
    return _lines(rows)


def _kind(facts: dict[str, Any]) -> str:
    if facts["kind"] == "knob":
        return f"knob without its base, version {facts['version']}"
    return f"{facts['kind']} network, checkpoint version {facts['version']}"


def _kernels(facts: dict[str, Any]) -> str:
    if facts["kind"] != "knob":
        return "kernels"
    count = "kernel" + "s" * (facts["kernels"] != [1])
    return f"new {count} of {'full rank' if facts['rank'] is None else 'rank ' + str(facts['rank'])}"


def _arguments(arguments: dict[str, Any] | None) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in (arguments or {}).items())


def _bytes(size: int) -> str:
    power = min(3, (size.bit_length() - 1) // 10) if size else 0
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
