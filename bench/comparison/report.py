"""Statistics over seeds, the markdown tables, and what the numbers allow to claim.

Intervals are 95 % confidence intervals of the mean over seeds (Student's t), pictures being fixed; of differences, over
the paired per-seed differences. They are per position, not corrected for looking at several. A claim "holds" where the
intervals of all its differences lie on its side of the bound, "fails" where one lies on the other side as a whole, and
is "not resolved" otherwise: where an interval is wider than its distance from the bound.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunable_ops.bench.comparison.plan import GRID, METHODS, MIX, OURS, SEPARATE, TASKS, Method, Task
from tunable_ops.bench.report import table

WITHIN = 0.1  # dB
_INTERIOR = [k for k, t in enumerate(GRID) if 0 < t < 1]


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its 95 % confidence interval; infinite for a single number."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    def text(self, digits: int = 2, sign: str = "") -> str:
        """Return ``mean ± half``, or the mean and a question mark."""
        half = f"± {self.half:.{digits}f}" if math.isfinite(self.half) else "± ?"
        return f"{self.mean:{sign}.{digits}f} {half}"


@dataclass(frozen=True)
class Verdict:
    """A claim, "holds", "fails" or "not resolved", and the number that decides."""

    claim: str
    outcome: str
    evidence: str

    def text(self) -> str:
        """Return it as a line."""
        return f"- {self.claim}: **{self.outcome}** ({self.evidence})"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of one number per seed, with its confidence interval.

    Raises:
        ValueError: No number, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"comparison: values must be finite numbers, one per seed; got {list(values)}")
    count = len(values)
    if count == 1:
        return Interval(values[0], math.inf)
    from scipy.stats import t as student

    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Interval(statistics.fmean(values), half)


def per_position(results: dict[str, Any], task: str, method: str, field: str = "db") -> list[Interval]:
    """Return the mean at every position."""
    seeds = results["tasks"][task][method]["seeds"].values()
    return [interval(column) for column in zip(*(seed[field] for seed in seeds), strict=True)]


def differences(results: dict[str, Any], task: str, method: str, other: str) -> list[Interval]:
    """Return ``method - other`` in dB at every position, paired by seed; negative: `method` is behind.

    Raises:
        ValueError: The two have different seeds.
    """
    a, b = (results["tasks"][task][key]["seeds"] for key in (method, other))
    if set(a) != set(b):
        raise ValueError(f"comparison: methods must have the same seeds; got {sorted(a)} and {sorted(b)}")
    return [interval([a[seed]["db"][k] - b[seed]["db"][k] for seed in a]) for k in range(len(GRID))]


def judge(claim: str, found: Mapping[str, Interval], bound: float) -> Verdict:
    """Judge whether all differences lie above a bound.

    Args:
        claim: In words.
        found: The differences, by where they are from.
        bound: In dB.
    """
    if all(one.low > bound for one in found.values()):
        outcome = "holds"
    elif any(one.high < bound for one in found.values()):
        outcome = "fails"
    else:
        outcome = "not resolved"
    # a failure is shown by the difference that is below the bound for certain, else the one that comes lowest
    if outcome == "fails":
        where = min(found, key=lambda name: found[name].high)
    else:
        where = min(found, key=lambda name: (found[name].low, found[name].mean))
    return Verdict(claim, outcome, f"{where}: {found[where].text(2, '+')} dB")


def methods(results: dict[str, Any], task: str) -> list[Method]:
    """Return the methods that a task has rows of, in the order of the tables."""
    return [method for method in METHODS if method.key in results["tasks"][task]]


def tasks(results: dict[str, Any]) -> list[Task]:
    """Return the tasks that there are results of."""
    return [task for task in TASKS if task.key in results["tasks"]]


def verdicts(results: dict[str, Any], task: str) -> list[Verdict]:
    """Judge the claims about a task: how near each method is to separate networks, then ours against the others."""
    rows = [method for method in methods(results, task) if method.key != SEPARATE]
    found = []
    for method in rows:
        gaps = differences(results, task, method.key, SEPARATE)
        named = {f"t = {t:g}": gap for t, gap in zip(GRID, gaps, strict=True)}
        claim = f"{method.label}: at most {WITHIN:g} dB behind separate networks at every lambda"
        found.append(judge(claim, named, -WITHIN))
        if task == "strength":
            # at t = 1 the target is the network's own input, and what is left of the error matters to nobody
            del named["t = 1"]
            found.append(judge(f"{claim} but t = 1", named, -WITHIN))
    ends: dict[str, Interval] = {}
    for other in [method for method in rows if method.key != OURS]:
        gaps = differences(results, task, OURS, other.key)
        named = {f"{other.label} at t = {GRID[k]:g}": gaps[k] for k in _INTERIOR}
        if other.phased or other.key == MIX:
            found.append(judge(f"ahead of {other.label} at every interior lambda", named, 0.0))
            if other.phased:
                ends |= named
        else:
            whole = {f"{other.label} at t = {t:g}": gap for t, gap in zip(GRID, gaps, strict=True)}
            found.append(judge(f"at most {WITHIN:g} dB behind {other.label} at every lambda", whole, -WITHIN))
    if ends:
        found.append(judge("ahead of every knob that is trained at the ends, at every interior lambda", ends, 0.0))
    return found


def task_table(results: dict[str, Any], task: Task) -> list[str]:
    """Return the measure and its distance to separate networks per method and position, and the costs."""
    head = ["method", "steps", *(f"t = {t:g}" for t in GRID), "monotone", "unevenness", "parameters", "ms"]
    rows = []
    for method in methods(results, task.key):
        sizes = results["methods"][method.key]
        travel = [_over_seeds(results, task.key, method.key, field) for field in ("monotone", "unevenness")]
        costs = [_parameters(method.key, sizes), _milliseconds(sizes)]
        each = (results["tasks"][task.key][method.key].get("steps") or sizes["steps"])["each"]
        rows.append([method.label, each, *_cells(results, task.key, method.key), *travel, *costs])
    return table(head, rows)


def measures_table(results: dict[str, Any], task: Task) -> list[str]:
    """Return the other measures; no lines for results that lack them."""
    rows_of = results["tasks"][task.key]
    if any("loss" not in seed for seed in rows_of[OURS]["seeds"].values()):
        return []
    shown = [0, len(GRID) // 2, len(GRID) - 1]
    head = ["method", "multi-loss, mean over t"]
    head += [f"{name}, t = {GRID[k]:g}" for name in ("PSNR", "LPIPS") for k in shown]
    head += ["hypervolume", "step ms", "step MiB"]
    rows = []
    for method in methods(results, task.key):
        seeds = rows_of[method.key]["seeds"].values()
        loss = interval([statistics.fmean(seed["loss"]) for seed in seeds])
        cells = [f"{loss.mean:.6f} ± {loss.half:.6f}" if math.isfinite(loss.half) else f"{loss.mean:.6f} ± ?"]
        for name, digits in (("psnr", 2), ("lpips", 4)):
            for k in shown:
                values = [seed[name] and seed[name][k] for seed in seeds]
                cells.append("" if None in values else interval(values).text(digits))
        volumes = [seed["hypervolume"] for seed in seeds]
        cells.append("" if None in volumes else interval(volumes).text(4))
        sizes = results["methods"][method.key]
        seconds, memory = sizes["step_seconds"], sizes["step_bytes"]
        cells += ["" if seconds is None else f"{1e3 * seconds['median']:.1f}"]
        cells += ["" if memory is None else f"{memory / 2**20:.1f}"]
        rows.append([method.label, *cells])
    return table(head, rows)


def markdown(results: dict[str, Any]) -> str:
    """Return the tables with their verdicts."""
    parts = [caption(results)]
    for task in tasks(results):
        parts += [
            f"### {task.label[0].upper()}{task.label[1:]}",
            f"{task.measure} (in brackets: distance to the separately trained networks). Monotone and unevenness "
            f"are of the {task.travel}.",
            "\n".join(task_table(results, task)),
        ]
        if more := measures_table(results, task):
            parts.append("\n".join(more))
        parts.append("\n".join(verdict.text() for verdict in verdicts(results, task.key)))
    return "\n\n".join(parts)


def caption(results: dict[str, Any]) -> str:
    """Return what the numbers were measured on and with."""
    s, machine = results["setting"], results["machine"]
    seconds = [
        seed["train_seconds"] or 0.0
        for rows in results["tasks"].values()
        for method in rows.values()
        for seed in method["seeds"].values()
    ]
    crop, size = s["test_crop"], results["timing"]["size"]
    return (
        f"Setting {s['name']}: {_backbone(s)}, batch {s['batch']}, crop {s['crop']}, {s['seeds']} seeds; trained on "
        f"{results['data']['train']}, "
        f"evaluated on {len(results['pictures'])} pictures of {results['data']['test']} (at most the central {crop} x "
        f"{crop}). ± is a 95 % confidence interval over seeds, in brackets of the paired differences. Trained at "
        f"commit {', '.join(results['commits'])} in {sum(seconds) / 60:.0f} minutes of one process. ms: per picture of "
        f"{size} x {size} on {machine['name']}, {machine['threads']} CPU thread, torch {machine['versions']['torch']}, "
        f"median of {results['timing']['rounds']} interleaved rounds; an arrow leads to the folded network. Monotone: "
        "share of the steps along t that go the right way; unevenness: largest step over the mean one."
    )


def _backbone(setting: dict[str, Any]) -> str:
    if setting.get("backbone", "dncnn") == "edsr":
        return f"EDSR of {setting['blocks']} residual blocks and {setting['features']} channels"
    return f"DnCNN of {setting['depth']} convolutions and {setting['features']} channels on 2x2-unshuffled pixels"


def _cells(results: dict[str, Any], task: str, method: str) -> list[str]:
    values = per_position(results, task, method)
    if method == SEPARATE:
        return [value.text() for value in values]
    gaps = differences(results, task, method, SEPARATE)
    return [f"{value.mean:.2f} ({gap.text(2, '+')})" for value, gap in zip(values, gaps, strict=True)]


def _over_seeds(results: dict[str, Any], task: str, method: str, field: str) -> str:
    values = [seed[field] for seed in results["tasks"][task][method]["seeds"].values()]
    return "" if None in values else interval(values).text()


def _parameters(method: str, sizes: dict[str, Any]) -> str:
    text = f"{sizes['parameters']:,}"
    if method == SEPARATE:
        return f"{len(GRID)} x {text}"
    return text if sizes["folded_parameters"] is None else f"{text} → {sizes['folded_parameters']:,}"


def _milliseconds(sizes: dict[str, Any]) -> str:
    text = f"{1e3 * sizes['seconds']['median']:.1f}"
    return text if sizes["folded_seconds"] is None else f"{text} → {1e3 * sizes['folded_seconds']['median']:.1f}"
