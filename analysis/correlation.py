"""How the diagnostics go with the gain: correlations over arms of what changes within seeds.

For each arm the change of a diagnostic, arm minus baseline of the same seed, is averaged over the seeds,
and so is the change of a metric. The correlation of the two over the arms does not depend on the
baseline, which takes the same number from every arm of a seed; so the baseline itself is no point.
Letters: A arms, S seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.frame import is_distance, refuse_mixed_protocols
from mirai_bench.results.stats import CONFIDENCE, holm

FEWEST_ARMS = 4  # of which a correlation is made
FEWEST_SEEDS = 2
MOST_ORDERS = 5040  # of the arms that are all tried, those of 7; of more arms as many are drawn
DRAWS = 2000  # of arms and seeds

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Arm:
    """An arm of one of the sweeps."""

    name: str
    arm: str
    """Its name in its sweep."""
    sweep: Diagnoses


@dataclass(frozen=True)
class Correlation:
    """How a diagnostic goes with a metric."""

    diagnostic: str
    value: str
    metric: str
    arms: list[Arm]
    seeds: list[int]
    changes: Array
    """(A, S) of the diagnostic."""
    gains: Array
    """(A, S) of the metric; of a Fréchet distance that of the logarithm."""
    pearson: float
    interval: tuple[float, float]
    """Of Pearson's, for other arms like these and other seeds (`resampled`)."""
    spearman: float
    p: float
    """Of Pearson's, by exchanging the arms."""
    holm: float
    """p, corrected over the diagnostics."""
    within: float
    """Pearson's over runs, with the means of arms and of seeds taken out."""
    of_within: tuple[float, float]


# ---- statistics


def pearson(x: Array, y: Array) -> Array:
    """Returns the correlation of x and y (…, A) along the last axis; nan without any spread."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, (x * y).sum(-1) / scale, np.nan))


def resampled(changes: Array, gains: Array) -> tuple[float, float]:
    """Returns the interval of the correlation over arms: a bootstrap over arms and seeds, both (A, S).

    Each draw takes A arms and S seeds with replacement. A draw of the seeds alone would take the scatter
    of the seeds for that of the arms: in simulations with 6 seeds its 95 % interval held the correlation
    in 38 to 88 % of cases, and this one in 93 to 100 % (tests/analysis/test_correlation.py).
    """
    arms, seeds = changes.shape
    generator = np.random.default_rng(0)
    of_arms = generator.integers(arms, size=(DRAWS, arms, 1))
    of_seeds = generator.integers(seeds, size=(DRAWS, 1, seeds))
    drawn = pearson(changes[of_arms, of_seeds].mean(-1), gains[of_arms, of_seeds].mean(-1))
    known = drawn[np.isfinite(drawn)]  # of one arm drawn A times there is none
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def exchanged_p(x: Array, y: Array) -> float:
    """Returns the share of the orders of the arms in y (A,) whose |r| with x (A,) is as large as theirs.

    All orders are tried, or of more than 7 arms MOST_ORDERS: drawn ones and the one that is there.
    """
    arms = len(x)
    if math.factorial(arms) <= MOST_ORDERS:
        orders = np.array(list(itertools.permutations(range(arms))))
    else:
        generator = np.random.default_rng(0)
        drawn = generator.permuted(np.tile(np.arange(arms), (MOST_ORDERS - 1, 1)), axis=1)
        orders = np.concatenate([np.arange(arms)[None], drawn])
    here = abs(float(pearson(x, y)))
    # As large up to rounding. Without any spread nothing is shown.
    return 1.0 if math.isnan(here) else float((np.abs(pearson(x, y[orders])) >= here - 1e-9).mean())


def least_p(arms: int) -> float:
    """Returns the least p that so many arms can have: no other order does as well as theirs."""
    return 1 / min(math.factorial(arms), MOST_ORDERS)


def within_arms(changes: Array, gains: Array) -> tuple[float, tuple[float, float]]:
    """Returns the correlation over runs, with the means of arms and of seeds taken out, and its interval.

    What is left of (A, S) has (A - 1)(S - 1) degrees of freedom, and atanh(r) a standard error of one
    over the root of two less (R. Fisher, 1921).
    """

    def rest(z: Array) -> Array:
        return (z - z.mean(0) - z.mean(1, keepdims=True) + z.mean()).ravel()

    arms, seeds = changes.shape
    r = float(pearson(rest(changes), rest(gains)))
    freedom = (arms - 1) * (seeds - 1)
    if math.isnan(r) or freedom <= 2 or abs(r) == 1:
        return r, (math.nan, math.nan)
    half = float(ndtri(0.5 + CONFIDENCE / 2)) / math.sqrt(freedom - 2)
    return r, (math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


# ---- from records


def arms_of(sweeps: Sequence[Diagnoses]) -> list[Arm]:
    """Returns the arms of sweeps with one profile, without baselines. Runs that two sweeps share count once.

    Raises UserError if the sweeps were evaluated under two protocols.
    """
    results = [sweep.results for sweep in sweeps]
    everything = replace(results[0], records=[record for each in results for record in each.records])
    refuse_mixed_protocols(everything)
    found: list[Arm] = []
    known: set[str] = set()
    # The sweep that has more seeds comes first.
    for sweep in sorted(sweeps, key=lambda each: -len(each.results.cells)):
        for arm in sweep.results.arms:
            own = {cell["fingerprint"] for cell in sweep.results.cells if cell["arm"] == arm}
            if arm != sweep.results.baseline and not own & known:
                taken = {each.name for each in found}
                found.append(Arm(f"{sweep.results.axis}/{arm}" if arm in taken else arm, arm, sweep))
            known |= own
    return found


def changes_of(arm: Arm, diagnostic: str, value: str) -> dict[int, float]:
    """Returns the change of a diagnostic within each seed."""
    baseline = arm.sweep.results.baseline
    theirs = arm.sweep.by_seed(diagnostic, baseline, value)
    ours = arm.sweep.by_seed(diagnostic, arm.arm, value)
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def gains_of(arm: Arm, diagnostic: str, metric: str) -> dict[int, float]:
    """Returns the change of a metric within each seed, of the weights that were diagnosed."""
    theirs = arm.sweep.metric(diagnostic, arm.sweep.results.baseline, metric)
    ours = arm.sweep.metric(diagnostic, arm.arm, metric)
    seeds = sorted(ours.keys() & theirs.keys())
    if not is_distance(metric):
        return {seed: ours[seed] - theirs[seed] for seed in seeds}
    positive = [seed for seed in seeds if min(ours[seed], theirs[seed]) > 0]
    return {seed: math.log(ours[seed] / theirs[seed]) for seed in positive}


def correlate(arms: Sequence[Arm], diagnostic: str, value: str, metric: str) -> Correlation | None:
    """Returns how a diagnostic goes with a metric, over the arms that have both and the seeds they share.

    If they share fewer than 2 seeds, the arms with the fewest are left out. Returns None for fewer than
    4 arms.
    """
    pairs = {}
    for arm in arms:
        both = (changes_of(arm, diagnostic, value), gains_of(arm, diagnostic, metric))
        if both[0].keys() & both[1].keys():
            pairs[arm] = both
    own = {arm: change.keys() & gain.keys() for arm, (change, gain) in pairs.items()}
    while own and len(set.intersection(*own.values())) < FEWEST_SEEDS:
        fewest = min(own, key=lambda arm: len(own[arm]))
        del own[fewest], pairs[fewest]
    if len(pairs) < FEWEST_ARMS:
        return None
    seeds = sorted(set.intersection(*own.values()))
    changes = np.array([[change[seed] for seed in seeds] for change, _ in pairs.values()])
    gains = np.array([[gain[seed] for seed in seeds] for _, gain in pairs.values()])
    x, y = changes.mean(1), gains.mean(1)
    p = exchanged_p(x, y)
    r = float(pearson(x, y))
    ranks = float(pearson(rankdata(x), rankdata(y)))
    inner = within_arms(changes, gains)
    numbers = (r, resampled(changes, gains), ranks, p, p, *inner)
    return Correlation(diagnostic, value, metric, list(pairs), seeds, changes, gains, *numbers)


def correlations(
    sweeps: Sequence[Diagnoses], wanted: dict[str, list[str]], metrics: Sequence[str]
) -> Iterator[list[Correlation]]:
    """Yields, for each metric, the correlations of all values, their p corrected over them by Holm."""
    arms = arms_of(sweeps)
    for metric in metrics:
        pairs = [(diagnostic, value) for diagnostic, values in wanted.items() for value in values]
        found = [correlate(arms, *pair, metric) for pair in pairs]
        known = [each for each in found if each is not None]
        corrected = holm([each.p for each in known])
        yield [replace(each, holm=p) for each, p in zip(known, corrected, strict=True)]


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
