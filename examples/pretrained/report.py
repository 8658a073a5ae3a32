"""Tables of what has been measured, and whether measures are in order along the knobs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cases import CORNERS, MIDDLE, Case, corner_kind, grid_label
from judge import KINDS

NAMES = {"psnr": "PSNR dB", "lpips": "LPIPS", "dists": "DISTS", "niqe": "NIQE"}
SLACK = {"psnr": 0.02, "lpips": 0.002, "ends": 0.02}  # the wrong way, from one position to the next
Rows = Mapping[str, Mapping[str, float]]


def means(pictures: Mapping[str, Rows]) -> dict[str, dict[str, float]]:
    """Return the mean of every measure over pictures, by position; where not all have one, over those that do."""
    first = next(iter(pictures.values()))
    found: dict[str, dict[str, float]] = {}
    for label in first:
        kinds = dict.fromkeys(kind for rows in pictures.values() for kind in rows[label])
        found[label] = {
            kind: round(fmean(rows[label][kind] for rows in pictures.values() if kind in rows[label]), 5)
            for kind in kinds
        }
    return found


def order(cases: Sequence[Case], rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Return the largest step the wrong way between neighbouring positions, and where, for each kind of measure.

    Args:
        cases: With the orders that must hold.
        rows: The means, by label of the case and position.

    Returns:
        By "psnr", "lpips", and "ends" (the PSNR to the targets at the ends of an edge of the grid): `step`, positive
        the wrong way, `case`, `path`, `limit` and `passed`.
    """
    worst: dict[str, Any] = {}
    for case in cases:
        for path in case.paths:
            values = [rows[case.label][label].get(path.kind) for label in path.labels]
            if None in values:
                continue
            step = max(path.sign * (a - b) for a, b in itertools.pairwise(values))
            kind = path.kind if path.kind in SLACK else "ends"
            if kind not in worst or step > worst[kind]["step"]:
                place = f"{path.labels[0]} to {path.labels[-1]}"
                passed = step <= SLACK[kind]
                worst[kind] = {"step": round(step, 5), "case": case.label, "path": place, "limit": SLACK[kind]}
                worst[kind]["passed"] = passed
    return worst


def table(cases: Sequence[Case], found: Mapping[str, Any], kinds: Sequence[str] = KINDS) -> str:
    """Return the means as a Markdown table, a line about their order, and where there is blur a second table.

    Args:
        cases: The rows.
        found: `means` by label of the case, and `order`.
        kinds: Measures, in their order in a cell.
    """
    columns = [position.label for position in cases[0].positions if position.full]
    natural = "niqe" in kinds
    heads = [*(["clean"] if natural else []), "input", *columns]
    lines = [f"| {', '.join(NAMES[kind] for kind in kinds)} | pictures | {' | '.join(heads)} |"]
    lines.append("|" + " --- |" * (len(heads) + 2))
    for case in cases:
        rows = found["means"][case.label]
        cells = [_cell(rows[head], kinds) for head in heads]
        lines.append(f"| {case.label} | {_size(case)} | {' | '.join(cells)} |")
    parts = ["\n".join(lines)]
    if found["order"]:
        said = "; ".join(_said(kind, worst) for kind, worst in found["order"].items())
        parts.append(f"Over nine positions {said}.")
    if any(case.corners for case in cases):
        parts.append(sharpness(cases, found["means"]))
    return "\n\n".join(parts)


def sharpness(cases: Sequence[Case], rows: Mapping[str, Rows]) -> str:
    """Return a table of the PSNR to the sharp picture: input, without deblurring, with it, and the gain."""
    without, kind = grid_label(CORNERS[0]), corner_kind(2)
    middle, sharp = grid_label(MIDDLE), grid_label(CORNERS[2])
    lines = [f"| PSNR dB to the sharp picture | input | {without} | {middle} | {sharp} | gain of deblur |"]
    lines.append("|" + " --- |" * 6)
    for case in cases:
        values = [rows[case.label][label][kind] for label in ("input", without, middle, sharp)]
        cells = [*(f"{value:.2f}" for value in values), f"{values[3] - values[1]:+.2f}"]
        lines.append(f"| {case.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(case: Case) -> str:
    return f"{len(case.pictures)}" + (f", middle {case.crop}x{case.crop}" if case.crop else ", whole")


def _cell(row: Mapping[str, float], kinds: Sequence[str]) -> str:
    return ", ".join(f"{row[kind]:.{2 if kind in ('psnr', 'niqe') else 3}f}" for kind in kinds if kind in row)


def _said(kind: str, worst: Mapping[str, Any]) -> str:
    name = "the PSNR to the ends of every edge" if kind == "ends" else kind.upper()
    verdict = "in order" if worst["passed"] else "**not in order**"
    unit = "" if kind == "lpips" else " dB"
    where = f"{worst['case']}, {worst['path']}"
    return f"{name} is {verdict} (largest step the wrong way {worst['step']:+.4f}{unit}, {where})"


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of a network in a document.

    Raises:
        ValueError: The document has no such marks.
    """
    whole = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if whole.count(start) != 1 or whole.count(end) != 1:
        raise ValueError(f"measure: --docs must have the marks {start} and {end} once; got {str(path)!r}")
    before, after = whole.split(start)[0], whole.split(end)[1]
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
