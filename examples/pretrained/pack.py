"""Turn a finished training into what ships: the knob file of a network, or the perceptual gradient network.

Both in half precision, a knob at low rank, with notes.

The file holds what training added to its base; its notes have the steps, the configuration and the pictures, with the
authors that their licences want named, from a table with the columns file, author and licence.

python examples/pretrained/pack.py runs/x2 super_resolution_x2.perceptual --rank 16 --sources FREE_SOURCES.tsv
python examples/pretrained/pack.py runs/pgn pgn --sources FREE_SOURCES.tsv
python examples/pretrained/pack.py runs/one pgn --average runs/two --earlier OLD.safetensors --sources FREE_SOURCES.tsv
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunable_ops import TunableModel, knob_files, models, pretrained, serialization
from tunable_ops.losses.pgn import network as pgn
from tunable_ops.serialization import fill, read_weights

LICENCE = "Apache-2.0, as this package"


def pictures(sources: Path, folder: str) -> dict[str, Any]:
    """Describe the pictures of a folder: how many, under which licences, and the authors of those under CC-BY.

    Raises:
        ValueError: The table names no picture of the folder, one whose licence is not free, or a CC-BY without author.
    """
    with open(sources, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["file"].startswith(f"{folder}/")]
    if not rows:
        raise ValueError(f"pack: --pictures must be a folder that --sources names; got {folder!r}")
    for row in rows:
        if not row["licence"].startswith(("CC0", "CC-BY", "public domain")) or "-NC" in row["licence"]:
            raise ValueError(f"pack: pictures must be free; got {row['licence']!r} for {row['file']}")
        if row["licence"].startswith("CC-BY") and not row["author"]:
            raise ValueError(f"pack: pictures under CC-BY must have an author; got none for {row['file']}")
    kinds = Counter(row["licence"].split(" (")[0] for row in rows)
    by = sorted({f"{row['author']} ({row['licence']})" for row in rows if row["licence"].startswith("CC-BY")})
    return {"count": len(rows), "licences": dict(sorted(kinds.items())), "authors": by}


def without_folders(value: Any) -> Any:
    """Return the same tree with absolute paths reduced to their last parts."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def history(path: Path) -> list[dict[str, Any]]:
    """Return step and config of the training in a folder; of a knob file, those of all trainings behind it, and ends.

    An end is the position of that training's knobs which the next one began with as 1 (`move_end`).
    """
    if path.is_dir():
        config = without_folders(json.loads((path / "config.json").read_text()))
        return [{"step": serialization.read_metadata(path / "model.safetensors")["notes"]["step"], "config": config}]
    notes = knob_files.read_knob_metadata(path)["notes"]
    earlier = list(notes.get("earlier", []))
    last = {"step": notes["step"] - sum(each["step"] for each in earlier), "config": notes["config"]}
    return [*earlier, last | ({"end": notes["end"]} if "end" in notes else {})]


def move_end(net: TunableModel, knob: str, end: float) -> None:
    """Make 1 of a knob what `end` was: lambda of the knob is multiplied by it before phi.

    Raises:
        ValueError: `end` is not positive.
    """
    if not end > 0:
        raise ValueError(f"pack: --end must be positive; got {end}")
    place = net.spec.names.index(knob)
    with torch.no_grad():
        for layer in net.layers:
            assert layer.tuning.weight is not None
            layer.tuning.weight[:, place] *= end


def pack(
    run: Path,
    name: str,
    found: dict[str, Any],
    out: Path,
    rank: int | None = None,
    earlier: Sequence[Path] = (),
    end: float = 1.0,
    start: str | None = None,
) -> Path:
    """Write ``out/NAME.KNOB.safetensors`` for the network that ships under NAME.

    Args:
        run: Folder of the training.
        name: NAME.KNOB; the names of several knobs are joined by "_".
        found: The pictures, as `pictures` returns them.
        out: Folder of the file.
        rank: Of the new kernels; None: as trained.
        earlier: Folders of the trainings whose results this one began with, in their order, or a knob file of them.
        end: Position of the training's knobs that becomes 1 (`move_end`).
        start: What the first training began with, where that is not the bare base; for the notes.

    Raises:
        ValueError: There is no network of that name, the training had other knobs, or it moved the base.
    """
    network, _, knob = name.partition(".")
    if network not in pretrained.NETWORKS:
        raise ValueError(f"pack: name must begin with one of {', '.join(pretrained.NETWORKS)}; got {name!r}")
    base = pretrained.NETWORKS[network].base
    net = serialization.load(run / "model.safetensors").float()
    own = [each for each in net.spec.names if each not in pretrained.BASES[base].spec.get("names", ())]
    if knob != "_".join(own):
        raise ValueError(f"pack: name must end with the knobs of the training, {'_'.join(own)!r}; got {name!r}")
    for each in own:
        move_end(net, each, end)
    trainings = [training for each in (*earlier, run) for training in history(each)]
    trainings[0]["config"]["model"]["weights"] = base
    steps = sum(training["step"] for training in trainings)
    crops = sum(training["step"] * training["config"]["data"]["batch"] for training in trainings)
    config, side = trainings[-1]["config"], trainings[-1]["config"]["data"]["crop"]
    sentence = f"{steps} steps, {crops} crops of {side}x{side} from {found['count']} photographs under free licences"
    notes = {"trained_on": sentence, "pictures": found, "step": steps, "config": config}
    if len(trainings) > 1:
        notes["earlier"] = trainings[:-1]
    if start is not None:
        notes["start"] = start
    if end != 1:
        notes["end"] = end
    architecture, arguments = pretrained.BASES[base].architecture, config["model"]["arguments"]
    plain, weights = models.build(architecture, **arguments), pretrained.weights_file(base)
    fill(weights, plain, read_weights(weights)[0])
    file = out / f"{name}.safetensors"
    knob_files.save_knob(
        net,
        file,
        architecture=architecture,
        arguments=arguments,
        notes=notes,
        licence=LICENCE,
        dtype=torch.float16,
        base=plain,
        rank=rank,
    )
    return file


def pack_pgn(
    run: Path, found: dict[str, Any], out: Path, earlier: Sequence[Path] = (), average: Sequence[Path] = ()
) -> Path:
    """Write the perceptual gradient network that ships.

    Args:
        run: Folder of the training.
        found: The pictures, as `pictures` returns them.
        out: Folder of the file.
        earlier: Folders of the trainings whose results this one began with, in their order, or a file packed from them.
        average: Folders of other trainings from the same start; the file has the mean of all their weights.
    """
    loaded = [pgn.PGN.load(f / "model.safetensors" if f.is_dir() else f) for f in (*earlier, run, *average)]
    before, (net, *others) = loaded[: len(earlier)], loaded[len(earlier) :]
    weights = [each.state_dict() for each in (net, *others)]
    net.load_state_dict({key: torch.stack([each[key] for each in weights]).mean(0) for key in weights[0]})
    trainings: list[dict[str, Any]] = []
    for each in (*before, net, *others):
        last = {"step": each.notes["step"], "config": without_folders(each.notes["config"])}
        trainings += [*each.notes.get("earlier", []), last]
    steps, side = sum(training["step"] for training in trainings), trainings[-1]["config"]["data.crop"]
    sentence = f"{steps} steps, crops of {side}x{side} from {found['count']} photographs under free licences"
    first = len(trainings) - len(others) - 1
    notes = {"trained_on": sentence, "licence": LICENCE, "pictures": found, **trainings[first]}
    notes["earlier"] = trainings[:first]
    if others:
        notes["averaged_with"] = trainings[first + 1 :]
    file = out / pgn.SHIPPED
    net.save(file, notes)
    return file


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help='network and its knobs, such as super_resolution_x2.perceptual; or "pgn"')
    parser.add_argument("--sources", type=Path, required=True, help="table of the pictures: file, author, licence")
    parser.add_argument("--pictures", default="free", help="folder of the table that was trained on (default: free)")
    parser.add_argument("--rank", type=int, help="rank of the new kernels (default: as trained)")
    parser.add_argument(
        "--earlier",
        nargs="+",
        type=Path,
        default=[],
        help="folders of the runs that this one went on from, or their knob file",
    )
    parser.add_argument(
        "--average",
        nargs="+",
        type=Path,
        default=[],
        help="of pgn: folders of other runs from the same start, to average the weights with",
    )
    parser.add_argument("--end", type=float, default=1.0, help="position of the training's knob that becomes 1")
    parser.add_argument("--start", help="what the first training began with, where that is not the bare base")
    parser.add_argument("--out", type=Path, help="folder of the file (default: where the package has it)")
    args = parser.parse_args(argv)
    if args.average and args.name != "pgn":
        raise ValueError(f"pack: --average must be left out for a knob; got it for {args.name!r}")
    found = pictures(args.sources, args.pictures)
    if args.name == "pgn":
        file = pack_pgn(args.run, found, args.out or Path(pgn.__file__).parent / "weights", args.earlier, args.average)
    else:
        out = args.out or Path(pretrained.__file__).parent
        file = pack(args.run, args.name, found, out, args.rank, args.earlier, args.end, args.start)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
