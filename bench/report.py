"""Results in words: the terminal's table, the summary by which targets are judged, the README's section."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunable_ops.bench.providers import PROVIDERS

SPREAD = 1.5  # a ratio whose quartiles are further apart says little
UNSTEADY = "(!)"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
PRACTICE = [name for name, provider in PROVIDERS.items() if provider.practice]


def geomean(values: Iterable[float]) -> float:
    """Return the geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def origin(results: dict[str, Any]) -> str:
    """Return the machine, the version of torch and the commits of results, in a line."""
    machine = results["machine"]
    commits = ", ".join(results.get("commits") or [machine["commit"]])
    return f"{machine['name']}, torch {machine['versions']['torch']}, commit {commits}"


def ok(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return a provider's figures in a row, or None if it has no time."""
    result = row["providers"].get(name)
    return result if result is not None and result["status"] == "ok" else None


def best_practice(row: dict[str, Any]) -> tuple[str, float] | None:
    """Return the fastest of today's practice in a row, with its ratio to the plain convolution."""
    ratios = [(result["ratio"], name) for name in PRACTICE if (result := ok(row, name)) is not None]
    return (min(ratios)[1], min(ratios)[0]) if ratios else None


def header(rounds: int | None = None) -> str:
    """Return what the numbers of `line` and of the tables are."""
    how = "" if rounds is None else f" of up to {rounds} interleaved rounds"
    return (
        f"Numbers are time over that of the plain convolution, lower is better: median [quartiles]{how}; "
        f"{UNSTEADY}: quartiles further apart than a factor of {SPREAD}, not to be relied on."
    )


def unsteady(result: dict[str, Any]) -> bool:
    """Return True if the quartiles of a ratio are further apart than `SPREAD`."""
    return bool(result["ratio_q3"] > SPREAD * result["ratio_q1"])


def line(row: dict[str, Any]) -> str:
    """Return a row for the terminal: the plain convolution's time, then every provider's ratio with its quartiles."""
    plain = ok(row, "plain")
    if plain is None:
        result = row["providers"].get("plain", {"status": "failed", "reason": "not measured"})
        return f"{row['id']}\n    plain: {result['status']}: {result['reason']}"
    head = f"{row['id']}  plain {plain['seconds'] * 1e3:.3g} ms"
    if "share" in plain:
        head += f" ({plain['share']:.0%} of the roofline, {plain['peak_bytes'] / 2**20:.3g} MiB)"
    cells = []
    for name, result in row["providers"].items():
        if name == "plain" or result["status"] == "unsupported":
            continue
        if result["status"] == "ok":
            mark = f" {UNSTEADY} unsteady" if unsteady(result) else ""
            cell = f"{name} {result['ratio']:.2f} [{result['ratio_q1']:.2f} {result['ratio_q3']:.2f}]{mark}"
            if "p99" in result:
                cell += "  p50 p95 p99 " + " ".join(f"{result[p] * 1e3:.3g}" for p in ("p50", "p95", "p99")) + " ms"
            cells.append(cell)
        else:
            cells.append(f"{name} {result['status']}: {result['reason']}")
    return head + "".join(f"\n    {cell}" for cell in cells)


def target_rows(results: dict[str, Any], alpha: str, direction: str) -> list[dict[str, Any]]:
    """Return the rows that the targets speak of: P = 2, 32x32 and larger, channels_last, eager (fp32 on a CPU)."""
    gpu = results["machine"]["device"] == "cuda"
    return [
        row
        for row in results["rows"]
        if (case := row.get("case")) is not None
        and (case["alpha"], case["direction"], case["layout"], case["kernels"])
        == (alpha, direction, "channels_last", 2)
        and case["mode"] == ("graph" if gpu else "eager")
        and case["dtype"] == ("bf16" if gpu else "fp32")
        and case["size"] >= 32
        and ok(row, "tunable")
    ]


def summary(results: dict[str, Any]) -> list[str]:
    """Return geometric means over the target rows, and every case where today's practice is more than 5 % faster."""
    lines = []
    for alpha, direction, what in (
        ("shared", "forward", "shared alpha, inference"),
        ("per_sample", "forward", "per-sample alpha, inference"),
        ("shared", "both", "shared alpha, training step"),
        ("per_sample", "both", "per-sample alpha, training step"),
    ):
        rows = target_rows(results, alpha, direction)
        if rows:
            ratios = [row["providers"]["tunable"]["ratio"] for row in rows]
            practice = [best[1] for row in rows if (best := best_practice(row)) is not None]
            text = f"{what}: tunable / plain {geomean(ratios):.2f} (worst {max(ratios):.2f})"
            text += f", best of today's practice {geomean(practice):.2f}" if len(practice) == len(rows) else ""
            lines.append(f"{text}, over {len(rows)} cases")
    if not any(best_practice(row) for row in results["rows"]):
        return lines
    lost = losses(results)
    lines.append(f"slower than the best of today's practice by more than 5 %: {len(lost)} cases")
    return lines + [f"  {text}" for text in lost]


def unsteady_ratios(results: dict[str, Any]) -> list[str]:
    """Return how many ratios are unsteady, as a line, or nothing if none is."""
    rows = [row["id"] for row in results["rows"] for name in row["providers"] if (r := ok(row, name)) and unsteady(r)]
    if not rows:
        return []
    return [
        f"{UNSTEADY} quartiles further apart than a factor of {SPREAD}: {len(rows)} ratios of {len(set(rows))} cases"
    ]


def losses(results: dict[str, Any]) -> list[str]:
    """Return the cases where the best of today's practice beats ours by more than 5 %, a line each."""
    found = []
    for row in results["rows"]:
        ours, best = ok(row, "tunable"), best_practice(row)
        if ours is not None and best is not None and ours["ratio"] > 1.05 * best[1]:
            found.append(f"{row['id']}: tunable {ours['ratio']:.2f}, {best[0]} {best[1]:.2f}")
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return tables: every case with ours and the practice, then the networks."""
    machine = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v and k in ("torch", "triton", "cuda"))
    parts = [
        f"{machine['name']}, {machine['threads']} threads, {versions}, commit {machine['commit']}."
        if machine["device"] == "cpu"
        else f"{machine['name']}, {versions}, commit {machine['commit']}.",
        header(),
        "",
        *(f"- {text.strip()}" for text in [*summary(results), *unsteady_ratios(results)]),
    ]
    cases = [row for row in results["rows"] if "case" in row and ok(row, "plain")]
    if cases and results["suite"] == "per-sample":
        parts += ["", *_by_kind(cases)]
    elif cases:
        names = [n for n in PROVIDERS if n != "plain" and any(ok(row, n) for row in cases)]
        parts += ["", *_table(cases, names)]
    nets = [row for row in results["rows"] if "network" in row and ok(row, "plain")]
    if nets:
        parts += ["", *_table(nets, [n for n in nets[0]["providers"] if n != "plain"])]
    for row in nets:
        parts += _longest(row)
    return "\n".join(parts)


def _longest(row: dict[str, Any]) -> list[str]:
    """Return a table of the longest kernels of a network's step, where a GPU's profiler saw them."""
    found = [(name, kernel) for name in row["providers"] for kernel in (ok(row, name) or {}).get("kernels", ())]
    if not found:
        return []
    head = ["provider", "kernel", "us", "launches"]
    cells = [[name, kernel, f"{microseconds:.1f}", str(count)] for name, (kernel, microseconds, count) in found]
    return ["", f"Longest kernels of {row['id']}:", "", *table(head, cells)]


def _table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    cells = []
    for row in rows:
        found = [ok(row, name) for name in names]
        ratios = [f"{r['ratio']:.2f}{f' {UNSTEADY}' if unsteady(r) else ''}" if r else "-" for r in found]
        cells.append([row["id"], f"{row['providers']['plain']['seconds'] * 1e3:.3g}", *ratios])
    return table(["case", "plain, ms", *names], cells)


def _by_kind(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return geometric means by layer, format and pass; a dash where a provider does not serve all the cases."""
    names = [n for n in PROVIDERS if n != "plain" and any(ok(row, n) for row in rows)]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        case = row["case"]
        groups.setdefault((case["kind"], case["layout"], case["direction"]), []).append(row)
    cells = []
    for key, picked in groups.items():
        results = [[ok(row, name) for row in picked] for name in names]
        means = [f"{geomean(r['ratio'] for r in found if r):.2f}" if all(found) else "-" for found in results]
        cells.append([*key, str(len(picked)), *means])
    return table(["layer", "layout", "pass", "cases", *names], cells)


def headline(results: dict[str, Any]) -> str:
    """Return the README's section: the summary and a table of geometric means by kind of layer."""
    machine, rows = results["machine"], []
    kinds = dict.fromkeys(row["case"]["kind"] for row in results["rows"] if "case" in row)
    for kind, alpha, direction in itertools.product(kinds, ("shared", "per_sample"), ("forward", "both")):
        picked = [r for r in target_rows(results, alpha, direction) if r["case"]["kind"] == kind]
        if picked:
            ours = geomean(r["providers"]["tunable"]["ratio"] for r in picked)
            best = geomean(b[1] for r in picked if (b := best_practice(r)) is not None)
            step = {"forward": "inference", "both": "training step"}[direction]
            rows.append([kind, alpha.replace("_", " "), step, str(len(picked)), f"{ours:.2f}", f"{best:.2f}"])
    head = ["layer", "alpha", "pass", "cases", "tunable / plain", "best of today's practice / plain"]
    where = f"{machine['name']}, {machine['threads']} threads, torch {machine['versions']['torch']}"
    intro = f"Measured on {where}, commit {machine['commit']}, medians of interleaved rounds:"
    return "\n".join([intro, "", *(f"- {t.strip()}" for t in summary(results)), "", *table(head, rows)])


def write_readme(readme: Path, section: str) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: No markers.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"bench: {readme} must hold the markers {BEGIN} and {END}; got a file without them")
    readme.write_text(f"{before}{BEGIN}\n\n{section}\n\n{END}{after}")
