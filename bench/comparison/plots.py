"""One picture per task: distance to separate networks, the measure, and the knob's travel. Needs matplotlib."""

from __future__ import annotations

import itertools
import math
from typing import Any

from tunable_ops.bench.comparison.plan import FINE, GRID, OURS, SEPARATE, Task
from tunable_ops.bench.comparison.report import WITHIN, Interval, differences, methods, per_position, tasks
from tunable_ops.bench.plots import subplots
from tunable_ops.bench.report import origin

_STYLES = {OURS: ("tab:blue", "o-"), SEPARATE: ("black", "s")}
_OTHERS = [f"tab:{name}" for name in ("orange", "green", "red", "purple", "gray", "brown", "pink", "olive", "cyan")]
_TICKS = sorted({sign * y for y in (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) for sign in (1, -1)})


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """Return a figure per task, by the name of its file."""
    name, backbone = results["setting"]["name"], results["setting"].get("backbone", "dncnn")
    suffix = name if backbone == "dncnn" else f"{name}_{backbone}"
    return {f"comparison_{task.key}_{suffix}": _figure(results, task) for task in tasks(results)}


def _figure(results: dict[str, Any], task: Task) -> Any:
    figure, (gap, measure, travel) = subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    rows = methods(results, task.key)
    kinds = list(dict.fromkeys(method.kind for method in rows if method.key not in _STYLES))
    colors = dict(zip(kinds, itertools.cycle(_OTHERS), strict=False))
    for number, method in enumerate(rows):
        own = (colors.get(method.kind, ""), ".--" if method.factor == 1 else ".:")  # the same colour for more steps
        color, style = _STYLES.get(method.key) or own
        look = {"color": color, "fmt": style, "label": method.label, "ms": 5, "lw": 1.3, "capsize": 2}
        if method.key != SEPARATE:
            shift = 0.008 * (number - len(rows) / 2)  # so that error bars stand side by side
            found = differences(results, task.key, method.key, SEPARATE)
            gap.errorbar([t + shift for t in GRID], *_bars(found), **look)
        measure.errorbar(GRID, *_bars(per_position(results, task.key, method.key)), **look)
        points = GRID if method.key == SEPARATE else FINE
        travel.errorbar(points, *_bars(per_position(results, task.key, method.key, "travel")), **look)
    gap.axhline(0, color="black", lw=0.8)
    gap.axhline(-WITHIN, color="black", lw=0.8, ls=":")
    # linear near 0, where the claims are, logarithmic beyond
    gap.set_yscale("symlog", linthresh=2 * WITHIN, linscale=1.5)
    low, high = gap.get_ylim()
    shown = [y for y in _TICKS if low <= y <= high]
    gap.set_yticks(shown, [f"{y:+g}" if y else "0" for y in shown])
    gap.set_yticks([], minor=True)
    gap.set_title("distance to separate networks, dB", fontsize=9)
    measure.set_title(task.measure, fontsize=9)
    travel.set_title(task.travel, fontsize=9)
    for axes in (gap, measure, travel):
        axes.set_xlabel("t, lambda = (1 - t, t)")
        axes.grid(alpha=0.3)
    measure.legend(fontsize=7)
    seeds = results["setting"]["seeds"]
    figure.suptitle(f"{task.label}; bars: 95 % over {seeds} seeds\n{origin(results)}", fontsize=9)
    return figure


def _bars(found: list[Interval]) -> tuple[list[float], list[float]]:
    """Return means and half widths; unknown ones are not drawn."""
    return [one.mean for one in found], [one.half if math.isfinite(one.half) else 0.0 for one in found]
