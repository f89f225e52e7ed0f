"""Statistics for few seeds: t-intervals, seed-paired differences, Holm's correction.

With one seed only the mean is defined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95  # of the intervals in tables and figures
POWER = 0.8  # with which an effect is to be shown
MOST_SEEDS = 1000  # that are ever asked for

Values = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds, its interval, and the test of its being 0."""

    n: int
    mean: float
    half: float
    """Half width of the interval. It is nan for n = 1."""
    p: float = math.nan
    """Two-sided p-value of the mean being 0. It is nan for n = 1."""
    deviation: float = math.nan
    """Standard deviation of the n values. It is nan for n = 1."""

    @property
    def low(self) -> float:
        """Returns the lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Returns the upper end of the interval."""
        return self.mean + self.half


def t_interval(values: Iterable[float | None], confidence: float = CONFIDENCE) -> Estimate | None:
    """Returns the mean and Student's t-interval of the finite values, or None if there is none.

    The interval is that of the sample deviation with n - 1 degrees of freedom.
    """
    x = np.asarray([value for value in values if value is not None and math.isfinite(value)], dtype=float)
    n = len(x)
    if n == 0:
        return None
    mean = float(x.mean())
    if n == 1:
        return Estimate(1, mean, math.nan)
    # With s the sample deviation and t the quantile of Student's distribution, the interval is
    # mean ± t(n - 1, 1/2 + confidence/2) · s/√n, and p = 2 P(T < -|mean| / (s/√n)).
    deviation = float(x.std(ddof=1))  # s
    error = deviation / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    # Without any spread the statistic is 0/0 (p 1) or infinite (p 0).
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Estimate(n, mean, half, p, deviation)


def paired(
    ours: Values, theirs: Values, confidence: float = CONFIDENCE, *, in_log: bool = False
) -> Estimate | None:
    """Returns the estimate of ours - theirs over the seeds that both have, or None.

    With `in_log` it is that of the logarithms, ln(ours / theirs), and None if a value is not
    positive. Its p is the paired t-test's.
    """
    # Runs of one seed share initial weights, data order and the noise of sampling. What these add to
    # both cancels in the difference, whose interval is narrower than that of two separate means.
    seeds = sorted(ours.keys() & theirs.keys())
    if not in_log:
        return t_interval([ours[seed] - theirs[seed] for seed in seeds], confidence)
    if any(min(ours[seed], theirs[seed]) <= 0 for seed in seeds):
        return None
    return t_interval([math.log(ours[seed] / theirs[seed]) for seed in seeds], confidence)


def ratio(ours: Values, theirs: Values, confidence: float = CONFIDENCE) -> Estimate | None:
    """Returns the estimate of ours / theirs over the seeds that both have, unless theirs is 0."""
    # Seed by seed, so that what slows both runs of a seed cancels, such as its machine.
    seeds = [seed for seed in sorted(ours.keys() & theirs.keys()) if theirs[seed] != 0]
    return t_interval([ours[seed] / theirs[seed] for seed in seeds], confidence)


# ---- what n seeds can show


def power(n: int, effect: float, deviation: float, level: float) -> float:
    """Returns the probability that a paired t-test of n seeds at this level shows an effect.

    `effect` is the mean of the differences, and `deviation` their standard deviation.
    """
    # The statistic has the noncentral t-distribution with noncentrality √n · effect / deviation
    # (J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2).
    if n < 2:
        return 0.0
    if deviation == 0:
        return float(effect != 0)
    from scipy.stats import nct  # takes a second to import

    critical = float(stdtrit(n - 1, 1 - level / 2))
    noncentrality = math.sqrt(n) * abs(effect) / deviation
    # Both tails are upper ones: of lower ones SciPy's functions (1.15 to 1.17) know many as NaN only.
    return float(nct.sf(critical, n - 1, noncentrality) + nct.sf(critical, n - 1, -noncentrality))


def smallest_shown(n: int, deviation: float, level: float, wanted: float = POWER) -> float:
    """Returns the smallest effect that n seeds show with the wanted power. It is inf for n = 1."""
    if n < 2:
        return math.inf
    low, high = 0.0, deviation
    while power(n, high, deviation, level) < wanted:
        high *= 2
    for _ in range(50):  # bisection: power rises with the effect
        middle = (low + high) / 2
        low, high = (middle, high) if power(n, middle, deviation, level) < wanted else (low, middle)
    return high


def seeds_needed(effect: float, deviation: float, level: float, wanted: float = POWER) -> int | None:
    """Returns how many seeds show this effect with the wanted power, or None if over MOST_SEEDS."""
    if effect == 0 or power(MOST_SEEDS, effect, deviation, level) < wanted:
        return None
    low, high = 1, MOST_SEEDS  # `low` are too few, `high` are enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle, effect, deviation, level) < wanted else (low, middle)
    return high


# ---- other tests


def fisher_exact(successes: int, n: int, other_successes: int, other_n: int) -> float:
    """Returns the two-sided p-value of Fisher's exact test that two success rates are the same.

    It is for outcomes that are either reached or not, whose mean is no number to test.
    """
    from scipy.stats import fisher_exact as exact  # takes a second to import

    table = np.array([[successes, n - successes], [other_successes, other_n - other_successes]])
    return float(exact(table).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values after Holm's step-down correction, in the given order.

    A nan (no test) is neither corrected nor counted.
    """
    # S. Holm, "A simple sequentially rejective multiple test procedure", 1979: of m p-values in
    # rising order, number k (from 0) is multiplied by m - k.
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        # Never less than the one before: if that is not rejected, neither are those after it.
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected
