"""Turn a finished run into a network to ship: half precision, notes about its training, and its log as CSV.

python examples/pretrained/pack.py runs/denoise denoise --licence "pictures: ..." --out tunable_ops/pretrained \
    --log docs/training
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunable_ops import serialization

ROWS = 100  # maximum length of the log


def scalars(folder: Path) -> dict[int, dict[str, float]]:
    """Read the scalars of TensorBoard's files, by step and name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found.setdefault(event.step, {})[name] = event.value
    return dict(sorted(found.items()))


def write_log(found: dict[int, dict[str, float]], file: Path) -> None:
    """Write at most about `ROWS` evenly spaced rows, including the last one."""
    names = sorted({name for row in found.values() for name in row})
    steps = list(found)
    stride = max(1, -(-len(steps) // ROWS))
    chosen = sorted({*steps[::stride], *steps[-1:]})
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["step", *names])
        for step in chosen:
            writer.writerow([step, *(f"{found[step][n]:.6g}" if n in found[step] else "" for n in names)])


def without_folders(value: Any) -> Any:
    """Return the same tree with absolute paths reduced to their last parts."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def pack(run: Path, name: str, licence: str, out: Path) -> Path:
    """Write ``out/name.safetensors``; its notes contain the configuration without absolute paths."""
    net = serialization.load(run / "model.safetensors")
    metadata = serialization.read_metadata(run / "model.safetensors")
    config: dict[str, Any] = json.loads((run / "config.json").read_text())
    notes = {"licence": licence, "step": metadata["notes"]["step"], "config": without_folders(config)}
    file = out / f"{name}.safetensors"
    architecture, arguments = metadata["architecture"], metadata["arguments"]
    serialization.save(net.half(), file, architecture=architecture, arguments=arguments, notes=notes)
    return file


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="name of the network")
    parser.add_argument("--licence", required=True, help="licence of the pictures and weights used for training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, help="folder for the CSV log")
    args = parser.parse_args(argv)
    file = pack(args.run, args.name, args.licence, args.out)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    if args.log:
        write_log(scalars(args.run / "logs"), args.log / f"{args.name}.csv")


if __name__ == "__main__":
    main()
