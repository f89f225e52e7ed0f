"""Convergence curves and the speed-up read off them, for the figure and for the claims.

A speed-up f says that the arm is at cost u where the baseline is at cost f·u. For each f the two
are compared seed by seed, at the largest costs u and f·u that both runs have. The estimate is the f
at which the mean difference is 0, and the interval holds the f that a paired t-test does not
reject (E. C. Fieller, "Some problems in interval estimation", 1954). So no seed is left out, no
value is chosen after the fact on one side only, and if arm and baseline change places, f becomes
1/f: an arm that does nothing is as likely above 1 as below.

Asking when each seed reaches the last value of its own baseline, without the seeds that never do,
would give at least 1 by construction: 1.67x for a baseline against itself with permuted seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from mirai_bench.results.cost import AXES, spent
from mirai_bench.results.frame import Results, is_distance, lower_is_better, value_of
from mirai_bench.results.notes import MISSING
from mirai_bench.results.stats import CONFIDENCE
from mirai_bench.results.writers import Grid
from mirai_bench.utils.text_table import markdown_escape, markdown_table

KINDS = ("final", "best")  # a run's value at a cost, or its best value up to there
DEFINITION = (
    "Speed-up: f× means that the arm is at a cost u where the baseline is at f·u. Estimate: the f at "
    "which the mean of the paired differences is 0, compared at the ends of both trainings or from there "
    "backwards, and interpolated between evaluations (of Fréchet distances the logarithm). Interval: "
    "the f that a paired t-test at 5 % does not reject; ∞ or 0: it has no end in what was measured. Not "
    "reached: the arm's mean never gets to the baseline's final value, and f says where the baseline "
    "had the arm's. Final: the value at a cost; best: the best one up to there. ≥, ≤: beyond the first "
    "evaluation. Against itself: the same estimate between seeds of the baseline, drawn as pairs of "
    "two different ones; its median, and in brackets its 95 % point. An estimate below that point is "
    "what nothing looks like."
)
POINTS = 401  # values of f on each side of the ends, equally spaced in their logarithm
DRAWS = 2000  # of pairs of seeds of the baseline, and as many with both sides exchanged

Array = NDArray[np.float64]
Curve = list[tuple[float, float]]  # (x, metric), x rising


class Factors(NamedTuple):
    """The values of f at which two arms can be compared."""

    logs: Array
    """Their logarithms, rising."""
    end: int
    """The index of the one at which both arms are at the end of their training."""


class Found(NamedTuple):
    """An estimate of log f with its interval, for one sweep or for many at once."""

    mean: Array
    low: Array
    """-inf if the interval has no lower end."""
    high: Array
    """inf if the interval has no upper end."""


@dataclass(frozen=True)
class Speedup:
    """The speed-up of an arm over the baseline."""

    n: int
    """Number of seeds that arm and baseline both have."""
    mean: float
    low: float
    high: float
    """The interval over seeds: 0 and inf where it has no end, nan for n < 2."""
    reached: bool
    """Whether the arm's mean gets to the baseline's final value."""
    bound: str = ""
    """Whether the mean is only a bound: `≥` or `≤`, and empty if it is not."""
    greatest: float = math.nan
    """The greatest speed-up that evaluations at these costs could show, whatever came out."""

    @property
    def sure_low(self) -> float:
        """Returns the least speed-up that these seeds leave possible. It is 0 for n < 2."""
        return 0.0 if math.isnan(self.low) else self.low

    @property
    def sure_high(self) -> float:
        """Returns the greatest speed-up that these seeds leave possible. It is inf for n < 2."""
        return math.inf if math.isnan(self.high) else self.high

    def __str__(self) -> str:
        if self.n == 0:
            return MISSING
        mean = f"{self.bound}{' ' if self.bound else ''}{self.mean:.2f}×"
        if not self.reached:
            mean = f"not reached, {mean}"
        if math.isnan(self.low):
            return mean
        low = "0" if self.low == 0 else f"{self.low:.2f}"
        high = "∞" if math.isinf(self.high) else f"{self.high:.2f}"
        return f"{mean} [{low}, {high}]"


def curves(results: Results, metric: str, x: str) -> dict[str, dict[int, Curve]]:
    """Returns the curve of each arm and seed.

    An evaluation whose value is not finite, or whose x is not known, is no point of it.
    """
    found: dict[str, dict[int, Curve]] = {arm: {} for arm in results.arms}
    for record in results.records:
        place = spent(record, x)
        value = value_of(record, metric)
        if place is not None and value is not None:
            found[record["arm"]].setdefault(record["seed"], []).append((place, value))
    return found


def _scaled(curve: Curve, metric: str, kind: str) -> tuple[Array, Array]:
    """Returns the costs and the values of a curve, such that less is better and noise is even."""
    x, y = np.array(curve, dtype=float).T
    if is_distance(metric) and (y > 0).all():
        y = np.log(y)
    y = y if lower_is_better(metric) else -y
    return x, np.minimum.accumulate(y) if kind == "best" else y


def factors(ours: list[Array], theirs: list[Array]) -> Factors | None:
    """Returns the f at which each pair of runs can be compared, from the costs of their evaluations.

    Returns None if there is none.
    """
    # At f the arm is at u and the baseline at f·u, for the largest u that both have. Neither is
    # before its first evaluation if first of theirs / last of ours <= f <= last of theirs / first of
    # ours.
    pairs = list(zip(ours, theirs, strict=True))
    low = max(math.log(their[0] / our[-1]) for our, their in pairs)
    high = min(math.log(their[-1] / our[0]) for our, their in pairs)
    if low > high:
        return None
    end = float(np.mean([math.log(their[-1] / our[-1]) for our, their in pairs]))
    end = min(max(end, low), high)  # seconds differ from seed to seed
    below = np.linspace(low, end, POINTS)
    above = np.linspace(end, high, POINTS)
    return Factors(np.concatenate([below, above[1:]]), POINTS - 1)


def difference_at(logs: Array, ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> Array:
    """Returns the arm's value minus the baseline's for each f. Negative: the arm is ahead."""
    x, y = ours
    their_x, their_y = theirs
    f = np.exp(logs)
    u = np.minimum(x[-1], their_x[-1] / f)
    return np.asarray(np.interp(u, x, y) - np.interp(f * u, their_x, their_y))


def estimate(at: Factors, differences: Array, confidence: float = CONFIDENCE) -> Found:
    """Returns the estimate and its interval from the differences (…, n seeds, f)."""
    n = differences.shape[-2]
    mean = differences.mean(-2)  # (…, f)
    found = crossing(at, mean)
    if n < 2:
        return Found(found, np.full_like(found, np.nan), np.full_like(found, np.nan))
    # What is not rejected has |mean| <= t · s/√n. The interval reaches from the least to the
    # greatest of them, even if some between them are rejected.
    error = differences.std(-2, ddof=1) / math.sqrt(n)
    excess = np.abs(mean) - stdtrit(n - 1, 0.5 + confidence / 2) * error
    low = -_last_inside(-at.logs[::-1], excess[..., ::-1])
    high = _last_inside(at.logs, excess)
    # Without any spread nothing but the estimate itself is left.
    empty = (excess > 0).all(-1)
    low = np.where(empty, found, np.minimum(low, found))
    high = np.where(empty, found, np.maximum(high, found))
    # An arm that is still ahead at the greatest f, or behind at the least one, lies beyond it.
    low = np.where(mean[..., 0] > 0, -np.inf, low)
    return Found(found, low, np.where(mean[..., -1] < 0, np.inf, high))


def crossing(at: Factors, mean: Array) -> Array:
    """Returns log f where the mean differences (…, f) are 0, next to the ends of both trainings."""
    # An arm that is ahead at the end is held back (f rises), and one that is behind gains time.
    ahead = mean[..., at.end] < 0
    above = _first_zero(at.logs[at.end :], mean[..., at.end :])
    below = -_first_zero(-at.logs[at.end :: -1], -mean[..., at.end :: -1])
    level = mean[..., at.end] == 0
    return np.where(level, at.logs[at.end], np.where(ahead, above, below))


def _first_zero(x: Array, y: Array) -> Array:
    """Returns where y (…, x), which starts below 0, first reaches 0, or else the last x."""
    index = np.maximum(np.argmax(y >= 0, -1), 1)
    crosses = (y >= 0).any(-1)
    after = np.take_along_axis(y, index[..., None], -1)[..., 0]
    before = np.take_along_axis(y, index[..., None] - 1, -1)[..., 0]
    rise = np.where(after > before, after - before, 1.0)
    place = x[index - 1] - before / rise * (x[index] - x[index - 1])
    return np.where(crosses, np.minimum(place, x[index]), x[-1])


def _last_inside(x: Array, excess: Array) -> Array:
    """Returns the greatest x with an excess (…, x) of at most 0, or inf if that is the last one."""
    inside = excess <= 0
    last = excess.shape[-1] - 1 - np.argmax(inside[..., ::-1], -1)
    following = np.minimum(last + 1, excess.shape[-1] - 1)
    here = np.take_along_axis(excess, last[..., None], -1)[..., 0]
    there = np.take_along_axis(excess, following[..., None], -1)[..., 0]
    rise = np.where(there > here, there - here, 1.0)
    place = x[last] - here / rise * (x[following] - x[last])
    return np.where(last == following, np.inf, place)


def speedup(
    results: Results, arm: str, metric: str, x: str, kind: str, confidence: float = CONFIDENCE
) -> Speedup:
    """Returns the speed-up of an arm. `x` is an entry of AXES, `kind` one of KINDS."""
    # 1. The runs of the seeds that both have, and the f at which they can be compared.
    by_arm = curves(results, metric, x)
    seeds = sorted(by_arm.get(arm, {}).keys() & by_arm.get(results.baseline, {}).keys())
    ours = [_scaled(by_arm[arm][seed], metric, kind) for seed in seeds]
    theirs = [_scaled(by_arm[results.baseline][seed], metric, kind) for seed in seeds]
    at = factors([costs for costs, _ in ours], [costs for costs, _ in theirs]) if seeds else None
    if at is None:
        return Speedup(0, math.nan, math.nan, math.nan, False)
    # 2. The estimate, and whether it lies beyond what was measured.
    differences = np.array([difference_at(at.logs, *pair) for pair in zip(ours, theirs, strict=True)])
    found = estimate(at, differences, confidence)
    mean = differences.mean(0)
    reached = bool(mean[at.end] <= 0)
    bound = ""
    if found.mean == at.logs[-1] and mean[-1] < 0:
        bound = "≥"
    elif found.mean == at.logs[0] and mean[0] > 0:
        bound = "≤"
    ends = (float(np.exp(found.low)), float(np.exp(found.high)))
    return Speedup(len(seeds), float(np.exp(found.mean)), *ends, reached, bound, float(np.exp(at.logs[-1])))


def null(results: Results, metric: str, x: str, kind: str) -> tuple[float, float] | None:
    """Returns the median and the 95 % point of the speed-up of the baseline over itself.

    Each draw pairs seeds of the baseline with other ones, as many pairs as there are seeds. Returns
    None for fewer than two seeds.
    """
    # 1. The differences of all ordered pairs of two different seeds. A permutation of all seeds
    #    would always give 1, because both sides have the same mean; pairs that are drawn with
    #    replacement have the spread of means of independent runs.
    own = curves(results, metric, x).get(results.baseline, {})  # --only may have left it out
    runs = [_scaled(curve, metric, kind) for curve in own.values()]
    n = len(runs)
    if n < 2:
        return None
    pairs = [(one, other) for i, one in enumerate(runs) for other in runs[:i]]
    pairs += [(other, one) for one, other in pairs]
    at = factors([one[0] for one, _ in pairs], [other[0] for _, other in pairs])
    if at is None:
        return None
    differences = np.array([difference_at(at.logs, *pair) for pair in pairs])  # (pairs, f)
    # 2. The means of n drawn pairs.
    generator = np.random.default_rng(0)
    weights = generator.multinomial(n, np.full(len(pairs), 1 / len(pairs)), DRAWS) / n
    exchanged = np.roll(weights, len(pairs) // 2, axis=1)
    found = np.exp(crossing(at, np.concatenate([weights, exchanged]) @ differences))
    return float(np.median(found)), float(np.quantile(found, 0.95))


def speedup_grid(results: Results, metric: str, timing: bool = True) -> Grid:
    """Returns a header and rows: the arms against the baseline, for final and best values.

    The columns are in epochs, training FLOPs and, with `timing`, training time. The first row says
    what the same estimate gives where there is nothing.
    """
    columns = [(kind, x) for kind in KINDS for x in AXES if timing or x != "seconds"]
    header = ["arm", *(f"{kind}, {AXES[x][1]}" for kind, x in columns)]
    nulls = [null(results, metric, x, kind) for kind, x in columns]
    texts = [MISSING if found is None else f"{found[0]:.2f}× ({found[1]:.2f})" for found in nulls]
    rows = [[f"{results.baseline}, against itself", *texts]]
    for arm in results.arms:
        if arm != results.baseline:
            rows.append([arm, *(str(speedup(results, arm, metric, x, kind)) for kind, x in columns)])
    return [header, *rows]


def speedup_table(results: Results, metric: str, timing: bool = True) -> str:
    """Returns the table of all speed-ups in Markdown."""
    header, *rows = speedup_grid(results, metric, timing)
    title = f"{results.axis} ({results.profile}): speed-up in {metric} over {results.baseline}"
    return f"**{markdown_escape(title)}**\n\n{markdown_table(header, rows)}\n{DEFINITION}\n"


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
