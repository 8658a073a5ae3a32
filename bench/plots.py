"""Timings as pictures: ratios case by case, scaling curves, the roofline. Needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunable_ops.bench.providers import PROVIDERS
from tunable_ops.bench.report import PRACTICE, best_practice, ok, origin

_AXES = {"kernels": "kernels P", "batch": "batch B", "channels": "channels C", "size": "height and width"}


def figures(results: dict[str, Any], stem: str) -> dict[str, Any]:
    """Return the figures that the results hold data for, by the name of their file."""
    draws = {"ratios": _ratios, "scaling": _scaling, "roofline": _roofline}
    drawn = {f"{stem}_{name}": draw(results) for name, draw in draws.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(drawn: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write figures as PNG files, and return these."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        FigureCanvasAgg(figure)
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    return [folder / f"{name}.png" for name in drawn]


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return a figure and its axes, as pyplot's function of that name does, without pyplot's global state."""
    from matplotlib.figure import Figure

    squeeze = options.pop("squeeze", True)
    figure = Figure(**options)
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


def _short(row: dict[str, Any]) -> str:
    case = row.get("case")
    return row["id"].removesuffix("-eager").replace("-channels_last", "") if case else row["id"]


def _ratios(results: dict[str, Any]) -> Any:
    """Draw dots with quartiles: ours, and the best of today's practice, per case."""
    rows = [row for row in results["rows"] if ok(row, "plain") and ok(row, "tunable")]
    if not rows or results["suite"] == "scaling":
        return None
    figure, axes = subplots(figsize=(9, 1.2 + 0.24 * len(rows)))
    for y, row in enumerate(rows):
        best = best_practice(row)
        marks = [("tunable", "tab:blue", "o")] + ([(best[0], "tab:orange", "s")] if best else [])
        for name, color, marker in marks:
            r = ok(row, name)
            if r is not None:
                axes.plot([r["ratio_q1"], r["ratio_q3"]], [y, y], color=color, lw=1.5, alpha=0.6)
                axes.plot(r["ratio"], y, marker, color=color, ms=5)
                if name in PRACTICE:
                    axes.annotate(name, (r["ratio"], y), xytext=(5, -3), textcoords="offset points", fontsize=6)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    ticks = [0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [_short(row) for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("time / plain convolution (blue: ours; orange: the best of today's practice); bars: quartiles")
    axes.set_title(origin(results), fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _scaling(results: dict[str, Any]) -> Any:
    """Draw time over P, B, C and the size, for ours, the plain convolution and today's practice."""
    if results["suite"] != "scaling":
        return None
    rows = [row for row in results["rows"] if "case" in row and ok(row, "plain")]
    if not rows:
        return None
    base = {axis: max({r["case"][axis] for r in rows}, key=[r["case"][axis] for r in rows].count) for axis in _AXES}
    order = {name: n for n, name in enumerate(PROVIDERS)}
    figure, grid = subplots(2, 4, figsize=(15, 7), squeeze=False, layout="constrained")
    for i, alpha in enumerate(("shared", "per_sample")):
        for j, (axis, label) in enumerate(_AXES.items()):
            others = [a for a in _AXES if a != axis]
            line = [r for r in rows if r["case"]["alpha"] == alpha and all(r["case"][a] == base[a] for a in others)]
            line.sort(key=lambda r: r["case"][axis])
            for name in dict.fromkeys(n for r in line for n in r["providers"]):
                points = [(r["case"][axis], p["seconds"] * 1e3) for r in line if (p := ok(r, name)) is not None]
                color = {"plain": "black", "tunable": "tab:blue"}.get(name, f"C{1 + len(PROVIDERS) - order[name]}")
                style = {"plain": "--", "tunable": "o-"}.get(name, ".-")
                if points:
                    grid[i][j].plot(*zip(*points, strict=True), style, color=color, label=name, lw=1.2, ms=4)
            grid[i][j].set(xscale="log", yscale="log", xlabel=label, ylabel="ms" if j == 0 else "")
            ticks = sorted({r["case"][axis] for r in line})
            grid[i][j].set_xticks(ticks, ticks)
            grid[i][j].minorticks_off()
            grid[i][j].set_title(f"{alpha.replace('_', ' ')} alpha", fontsize=9)
            grid[i][j].grid(alpha=0.3)
        grid[i][0].legend(fontsize=7)
    first = rows[0]["case"]
    figure.suptitle(f"{first['kind']} {first['dtype']} {first['layout']} forward; {origin(results)}", fontsize=9)
    return figure


def _roofline(results: dict[str, Any]) -> Any:
    """Draw TFLOP/s over operations per byte, under the peaks of the same run."""
    copy = results["peaks"].get("copy_gbps")
    rows = [r for r in results["rows"] if "case" in r and ok(r, "plain")]
    if not rows or not copy:
        return None
    figure, axes = subplots(figsize=(7, 5))
    dtypes = dict.fromkeys(r["case"]["dtype"] for r in rows)
    intensities = [r["flops"] / r["bytes"] for r in rows]
    low, high = min(intensities) / 2, max(intensities) * 2
    for n, dtype in enumerate(dtypes):
        peak = results["peaks"].get(f"matmul_tflops_{dtype}")
        if peak is None:
            continue
        knee = peak * 1e3 / copy
        axes.plot(
            [low, knee, max(high, knee)], [low * copy / 1e3, peak, peak], color=f"C{n}", lw=1, label=f"{dtype} peak"
        )
        for name, marker in (("plain", "x"), ("tunable", "o")):
            points = [
                (r["flops"] / r["bytes"], result["tflops"])
                for r in rows
                if r["case"]["dtype"] == dtype and (result := ok(r, name)) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=f"C{n}", ms=5, alpha=0.7, label=f"{dtype} {name}")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte (plain convolution)", ylabel="TFLOP/s")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    axes.set_title(origin(results), fontsize=9)
    return figure
