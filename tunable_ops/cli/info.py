"""`tunable-ops info`: describe a checkpoint, or what this installation can run."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from tunable_ops.cli import COMMANDS

__all__ = ["add_parser", "describe", "describe_installation", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "info",
        help=COMMANDS["info"],
        description="Describe a checkpoint: architecture, slider, layers, size, notes. Without a checkpoint, describe "
        "this installation: versions, backends, and how the compiled operators were built.",
    )
    parser.add_argument("checkpoint", nargs="?", help="tunable or folded network: a file, or the name of a shipped one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the description and return 0."""
    if args.checkpoint is None:
        facts, table = describe_installation(), _installation_table
    else:
        from tunable_ops.pretrained import find

        facts, table = describe(find(args.checkpoint)), _table
    print(json.dumps(facts, indent=2, allow_nan=False) if args.json else table(facts))
    return 0


def describe_installation() -> dict[str, Any]:
    """Collect what this installation can run, as JSON values.

    Returns:
        dict with version, python, torch; backends (name to None, or why `tunable_conv2d` cannot run on it); operators
        (compiler, flags, torch, stable_abi and library of the C++ operators, or None).
    """
    import torch

    import tunable_ops
    from tunable_ops import backends
    from tunable_ops.backends import cpp

    return {
        "version": tunable_ops.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": {name: backends.unavailable_reason("tunable_conv2d", name) for name in backends.NAMES},
        "operators": cpp.build_information(),
    }


def _installation_table(facts: dict[str, Any]) -> str:
    rows = [("tunable_ops", f"{facts['version']}, Python {facts['python']}, torch {facts['torch']}")]
    for index, (name, reason) in enumerate(facts["backends"].items()):
        rows.append(("" if index else "backends", name if reason is None else f"{name}: no; {reason}"))
    for index, (name, value) in enumerate((facts["operators"] or {}).items()):
        rows.append(("" if index else "C++ operators", f"{name:<11} {value}"))
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


def describe(path: Path) -> dict[str, Any]:
    """Collect what is known about a checkpoint, as JSON values.

    Numbers of layers are None if the network cannot be built, because `architecture` is not one of this library.

    Returns:
        dict with path, bytes, kind ("tunable" or "plain"), version, architecture, arguments, parameters (values in the
        file), dtypes, notes; and for a tunable network domain, lambda (a list of name, unit, low, high, default),
        tuning, tunable_layers, kernels (per layer, sorted without repetition), plain_parameters (once folded).

    Raises:
        FileNotFoundError, ValueError: As for `serialization.load`.
    """
    from safetensors import safe_open

    from tunable_ops import models
    from tunable_ops.serialization import read_metadata

    metadata = read_metadata(path)
    spec, conversion = metadata.get("spec"), metadata.get("conversion")
    with safe_open(str(path), framework="pt") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 (not a dict)
        sizes = [_count(part.get_shape()) for part in slices]
        dtypes = sorted({part.get_dtype() for part in slices})
    facts: dict[str, Any] = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "kind": "plain" if conversion is None else "tunable",
        "version": metadata["version"],
        "architecture": metadata.get("architecture"),
        "arguments": metadata.get("arguments"),
        "parameters": sum(sizes),
        "dtypes": dtypes,
        "notes": metadata.get("notes") or {},
    }
    if conversion is None or spec is None:
        return facts
    units = spec.get("units") or [""] * len(spec["names"])
    limits = zip(spec["names"], units, spec["ranges"], spec["defaults"], strict=True)
    facts["domain"] = spec["domain"]
    facts["lambda"] = [
        {"name": name, "unit": unit, "low": low, "high": high, "default": default}
        for name, unit, (low, high), default in limits
    ]
    facts["tuning"] = conversion.get("tuning")
    facts |= {"tunable_layers": None, "kernels": None, "plain_parameters": None}
    if facts["architecture"] in models.ARCHITECTURES:
        facts |= _layers(path)
    return facts


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


def _table(facts: dict[str, Any]) -> str:
    rows = [
        ("file", f"{facts['path']} ({_bytes(facts['bytes'])})"),
        ("kind", f"{facts['kind']} network, checkpoint version {facts['version']}"),
        ("architecture", f"{facts['architecture']}({_arguments(facts['arguments'])})"),
    ]
    if facts["kind"] == "tunable":
        sums = "weights that sum to 1" if facts["domain"] == "simplex" else "each moves independently"
        rows.append(("domain", f"{facts['domain']}: {sums}"))
        width = max(len(part["name"]) for part in facts["lambda"])
        for index, part in enumerate(facts["lambda"]):
            unit = part["unit"] and f" {part['unit']}"
            text = f"{part['name']:<{width}}  {part['low']:g} to {part['high']:g}{unit}, default {part['default']:g}"
            rows.append(("" if index else "lambda", text))
        rows.append(("tuning", str(facts["tuning"])))
        if facts["tunable_layers"] is not None:
            kernels = " or ".join(map(str, facts["kernels"]))
            rows.append(("layers", f"{facts['tunable_layers']} tunable, {kernels} kernels each"))
    parameters = f"{facts['parameters']:,} ({', '.join(facts['dtypes'])})"
    if facts.get("plain_parameters"):
        parameters += f", {facts['plain_parameters']:,} once folded"
    rows.append(("parameters", parameters))
    for index, (name, value) in enumerate(facts["notes"].items()):
        rows.append(("" if index else "notes", f"{name}: {value if isinstance(value, str) else json.dumps(value)}"))
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


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
