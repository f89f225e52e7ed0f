"""Few seeds, honestly: t-intervals, differences paired by seed, Holm's correction. Nothing here is defined for one seed but the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    n: int
    mean: float
    half: float
    """half width of the interval; nan for n = 1"""
    p: float = math.nan
    """two-sided, of the mean being 0; nan for n = 1"""

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Mean and Student's t-interval (sample deviation, n - 1 degrees of freedom) of the finite values; None where there is none."""
    x = np.asarray([value for value in values if value is not None and math.isfinite(value)], dtype=float)
    n = len(x)
    if n == 0:
        return None
    mean = float(x.mean())
    if n == 1:
        return Estimate(1, mean, math.nan)
    error = float(x.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Estimate(n, mean, half, p)


def paired(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """ours - theirs over the seeds that both have; p is the paired t-test's."""
    return t_interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())], confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the given order; nan (no test) is neither corrected nor counted."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected
