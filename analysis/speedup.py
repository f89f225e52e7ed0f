"""Convergence curves and the speed-up read off them, for the figure and for the claims."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from mirai_bench.results.frame import Results, lower_is_better, value_of
from mirai_bench.results.stats import CONFIDENCE, t_interval
from mirai_bench.results.table import MISSING
from mirai_bench.utils.text_table import markdown_escape, markdown_table

# What a curve is drawn against: the field of a record, and its name on an axis.
AXES = {
    "epochs": ("epoch", "epochs"),
    "flops": ("train_flops", "training FLOPs"),
    "seconds": ("train_seconds", "training time (s)"),
}
TARGETS = ("final", "best")  # values of the baseline that an arm has to reach
DEFINITION = (
    "Speed-up: what the baseline needs until it first reaches a value, divided by what the arm of "
    "the same seed needs until it first reaches it, interpolated linearly between evaluations. "
    "The value is that seed's baseline at its last evaluation (final) or at its best one (best; "
    "picked after the fact, so harder to reach). Geometric mean over seeds with the 95 % "
    "t-interval of its logarithm; ≥: reached before the first evaluation in some seed."
)
Curve = list[tuple[float, float]]  # (x, metric), x rising


class Reach(NamedTuple):
    """Where a curve first reaches a value."""

    x: float
    at_start: bool
    """Whether the first point is there already, so that x is an upper bound."""


@dataclass(frozen=True)
class Speedup:
    """The speed-up of an arm over the baseline."""

    reached: int
    """Number of seeds in which the arm reaches the value."""
    n: int
    """Number of seeds that arm and baseline both have."""
    mean: float
    low: float
    high: float
    """The t-interval over seeds. It is nan unless all reached the value and n > 1."""
    at_least: bool
    """Whether the arm was there before its first evaluation in some seed."""
    sure_low: float
    sure_high: float
    """What the interval still allows if a seed that never got there counts as slower than its \
whole training, and one that was there from the start as infinitely fast. 0 and inf for n < 2."""

    def __str__(self) -> str:
        if self.n == 0:
            return MISSING
        if self.reached == 0:
            return "not reached"
        mean = f"{'≥ ' if self.at_least else ''}{self.mean:.2f}×"
        if self.reached < self.n:
            return f"not reached in {self.n - self.reached} of {self.n} seeds, else {mean}"
        return mean if math.isnan(self.low) else f"{mean} [{self.low:.2f}, {self.high:.2f}]"


def curves(results: Results, metric: str, x: str) -> dict[str, dict[int, Curve]]:
    """Returns the curve of each arm and seed.

    An evaluation whose value is not finite, or whose x is not known, is no point of it.
    """
    found: dict[str, dict[int, Curve]] = {arm: {} for arm in results.arms}
    for record in results.records:
        place = value_of(record, AXES[x][0])
        value = value_of(record, metric)
        if place is not None and value is not None:
            found[record["arm"]].setdefault(record["seed"], []).append((place, value))
    return found


def first_reach(curve: Curve, target: float, lower: bool) -> Reach | None:
    """Returns where the curve first reaches the target, or None if it never does."""
    sign = 1 if lower else -1  # so that less is better
    x, y = curve[0]
    if sign * y <= sign * target:
        return Reach(x, True)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if sign * y1 <= sign * target:
            # On the straight line from (x0, y0), which is not there yet, to (x1, y1).
            return Reach(x0 + (x1 - x0) * (target - y0) / (y1 - y0), False)
    return None


def target_of(curve: Curve, kind: str, lower: bool) -> float:
    """Returns the last value of the curve, or its best one."""
    values = [y for _, y in curve]
    if kind == "final":
        return values[-1]
    return min(values) if lower else max(values)


def speedup(
    results: Results, arm: str, metric: str, x: str, kind: str, confidence: float = CONFIDENCE
) -> Speedup:
    """Returns the speed-up of an arm. `x` is an entry of AXES, `kind` one of TARGETS."""
    lower = lower_is_better(metric)
    by_arm = curves(results, metric, x)
    ours = by_arm[arm]
    theirs = by_arm[results.baseline]
    # 1. For each seed the logarithm of x of the baseline over x of the arm. Speed-ups multiply, so
    #    that 2 and 1/2 have the mean 1: their mean is the geometric one.
    ratios = []  # of the seeds that reach the value
    bounds = []  # of all seeds
    at_least = False
    for seed in sorted(ours.keys() & theirs.keys()):
        target = target_of(theirs[seed], kind, lower)
        needed = first_reach(theirs[seed], target, lower)
        if needed is None or needed.at_start:  # the baseline was never worse: nothing to speed up
            continue
        reach = first_reach(ours[seed], target, lower)
        # A seed that never gets there is censored: it needs more than its whole training, so that
        # its ratio is less than this one.
        spent = reach.x if reach else ours[seed][-1][0]
        bounds.append(math.log(needed.x / spent))
        if reach:
            ratios.append(bounds[-1])
            at_least = at_least or reach.at_start
    # 2. Their means and intervals. A seed that never gets there could lie anywhere below its bound,
    #    hence there is no lower end; one that was there from the start leaves no upper end.
    n = len(bounds)
    found = t_interval(ratios, confidence)
    most = t_interval(bounds, confidence)
    complete = n > 1 and len(ratios) == n
    low = math.exp(found.low) if found and complete else math.nan
    return Speedup(
        reached=len(ratios),
        n=n,
        mean=math.exp(found.mean) if found else math.nan,
        low=low,
        high=math.exp(found.high) if found and complete else math.nan,
        at_least=at_least,
        sure_low=low if complete else 0.0,
        sure_high=math.exp(most.high) if most and n > 1 and not at_least else math.inf,
    )


def speedup_table(results: Results, metric: str, timing: bool = True) -> str:
    """Returns a Markdown table of the arms against the baseline's final and best value.

    The columns are in epochs, training FLOPs and, with `timing`, training time.
    """
    columns = [(kind, x) for kind in TARGETS for x in AXES if timing or x != "seconds"]
    header = ["arm", *(f"{kind}, {AXES[x][1]}" for kind, x in columns)]
    rows = []
    for arm in results.arms:
        if arm != results.baseline:
            found = [speedup(results, arm, metric, x, kind) for kind, x in columns]
            rows.append([arm, *map(str, found)])
    title = f"{results.axis} ({results.profile}): speed-up in {metric} over {results.baseline}"
    return f"**{markdown_escape(title)}**\n\n{markdown_table(header, rows)}\n{DEFINITION}\n"
