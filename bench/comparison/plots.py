"""One picture per task: distance to separate networks, the measure, and the knob's travel. Needs matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunable_ops.bench.comparison.plan import FINE, GRID, METHODS, OURS, SEPARATE, TASKS, Task
from tunable_ops.bench.comparison.report import WITHIN, Interval, differences, per_position

_STYLES = {OURS: ("tab:blue", "o-"), SEPARATE: ("black", "s")}
_OTHERS = ("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:gray")
_TICKS = sorted({sign * y for y in (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) for sign in (1, -1)})


def write_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draws ``comparison_TASK_SETTING.png`` for every task; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task in TASKS:
        figure = _figure(results, task)
        written.append(folder / f"comparison_{task.key}_{results['setting']['name']}.png")
        figure.savefig(written[-1], dpi=110, bbox_inches="tight")
        plt.close(figure)
    return written


def _figure(results: dict[str, Any], task: Task) -> Any:
    import matplotlib.pyplot as plt

    figure, (gap, measure, travel) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    others = iter(_OTHERS)
    for number, method in enumerate(METHODS):
        color, style = _STYLES.get(method.key) or (next(others), ".--")
        look = {"color": color, "fmt": style, "label": method.label, "ms": 5, "lw": 1.3, "capsize": 2}
        if method.key != SEPARATE:
            shift = 0.008 * (number - 2.5)  # so that error bars stand side by side
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
    machine = results["machine"]
    figure.suptitle(
        f"{task.label}; bars: 95 % over {results['setting']['seeds']} seeds\n{machine['name']}, torch "
        f"{machine['versions']['torch']}, commit {', '.join(results['commits'])}",
        fontsize=9,
    )
    return figure


def _bars(found: list[Interval]) -> tuple[list[float], list[float]]:
    """Means and half widths; unknown ones are not drawn."""
    return [one.mean for one in found], [one.half if math.isfinite(one.half) else 0.0 for one in found]
