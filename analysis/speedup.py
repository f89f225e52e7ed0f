"""Convergence curves and the speed-up read off them, for the figure and for the claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mirai_bench.results.frame import Results, lower_is_better
from mirai_bench.results.stats import t_interval
from mirai_bench.results.writers import markdown_escape, markdown_grid

AXES = {
    "epochs": ("epoch", "epochs"),
    "flops": ("train_flops", "training FLOPs"),
    "seconds": ("train_seconds", "training time (s)"),
}
TARGETS = ("final", "best")
DEFINITION = (
    "Speed-up: what the baseline needs until it first reaches a value, divided by what the arm of the same seed needs until it first reaches "
    "it, interpolated linearly between evaluations. The value is that seed's baseline at its last evaluation (final) or at its best one "
    "(best; picked after the fact, so harder to reach). Geometric mean over seeds with the 95 % t-interval of its logarithm; ≥: reached "
    "before the first evaluation in some seed."
)
Curve = list[tuple[float, float]]  # (x, metric), x rising


@dataclass(frozen=True)
class Speedup:
    reached: int
    """seeds in which the arm reaches the value"""
    n: int
    """seeds that arm and baseline both have"""
    mean: float
    low: float
    high: float
    """t-interval over seeds; nan unless all reached it and n > 1"""
    at_least: bool
    sure_low: float
    sure_high: float
    """what the interval still allows when a seed that never got there counts as slower than its whole training, and one that was there
    from the start as infinitely fast; 0 and inf for n < 2"""

    def __str__(self) -> str:
        if self.n == 0:
            return "—"
        if self.reached == 0:
            return "not reached"
        shown = f"{'≥ ' * self.at_least}{self.mean:.2f}×"
        if self.reached < self.n:
            return f"not reached in {self.n - self.reached} of {self.n} seeds, else {shown}"
        return shown if math.isnan(self.low) else f"{shown} [{self.low:.2f}, {self.high:.2f}]"


def curves(results: Results, metric: str, x: str) -> dict[str, dict[int, Curve]]:
    """arm → seed → curve; evaluations without a finite value are not there."""
    found: dict[str, dict[int, Curve]] = {arm: {} for arm in results.arms}
    for record in results.records:
        value = record["metrics"].get(metric)
        if value is not None and math.isfinite(value):
            found[record["arm"]].setdefault(record["seed"], []).append((record[AXES[x][0]], value))
    return found


def first_reach(
    curve: Sequence[tuple[float, float]], target: float, lower: bool
) -> tuple[float, bool] | None:
    """(x, whether the first point is already there, so that x is an upper bound); None if the curve never reaches the target."""
    sign = 1 if lower else -1
    last_x, last_y = curve[0]
    if sign * last_y <= sign * target:
        return last_x, True
    for x, y in curve[1:]:
        if sign * y <= sign * target:
            return last_x + (x - last_x) * (target - last_y) / (y - last_y), False
        last_x, last_y = x, y
    return None


def target_of(curve: Curve, kind: str, lower: bool) -> float:
    values = [y for _, y in curve]
    return values[-1] if kind == "final" else min(values) if lower else max(values)


def speedup(results: Results, arm: str, metric: str, x: str, kind: str, confidence: float = 0.95) -> Speedup:
    lower, by_arm = lower_is_better(metric), curves(results, metric, x)
    ours, theirs = by_arm[arm], by_arm[results.baseline]
    ratios, bounds, at_least = [], [], False
    for seed in sorted(ours.keys() & theirs.keys()):
        target = target_of(theirs[seed], kind, lower)
        needed, bounded = first_reach(theirs[seed], target, lower)
        if bounded:  # the baseline was never worse: nothing to speed up
            continue
        reach = first_reach(ours[seed], target, lower)
        bounds.append(math.log(needed / (reach[0] if reach else ours[seed][-1][0])))
        if reach:
            ratios.append(bounds[-1])
            at_least |= reach[1]
    found, most = t_interval(ratios, confidence), t_interval(bounds, confidence)
    n, certain = len(bounds), len(bounds) > 1
    if found is None:
        return Speedup(
            0, n, math.nan, math.nan, math.nan, False, 0.0, math.exp(most.high) if certain else math.inf
        )
    complete = certain and len(ratios) == n
    low, high = (math.exp(found.low), math.exp(found.high)) if complete else (math.nan, math.nan)
    sure = (low if complete else 0.0, math.exp(most.high) if certain and not at_least else math.inf)
    return Speedup(len(ratios), n, math.exp(found.mean), low, high, at_least, *sure)


def speedup_table(results: Results, metric: str, timing: bool = True) -> str:
    """Markdown: arms against the baseline's final and best value, in epochs, training FLOPs and, with `timing`, training time."""
    columns = [(kind, x) for kind in TARGETS for x in AXES if timing or x != "seconds"]
    header = ["arm", *(f"{kind}, {AXES[x][1]}" for kind, x in columns)]
    others = [arm for arm in results.arms if arm != results.baseline]
    rows = [[arm, *(str(speedup(results, arm, metric, x, kind)) for kind, x in columns)] for arm in others]
    heading = markdown_escape(
        f"{results.axis} ({results.profile}): speed-up in {metric} over {results.baseline}"
    )
    return f"**{heading}**\n\n{markdown_grid(header, rows)}\n{DEFINITION}\n"
