"""Statistics for few seeds agree with scipy, and with values computed by hand."""

import math

import pytest
from scipy import stats as scipy_stats
from scipy.integrate import quad

from mirai_bench.results.stats import (
    holm,
    paired,
    power,
    ratio,
    seeds_needed,
    smallest_shown,
    t_interval,
)


def test_t_interval_is_scipys():
    x = [5.0, 5.4, 5.2, 4.9]
    ours = t_interval(x)
    low, high = scipy_stats.t.interval(0.95, 3, loc=sum(x) / 4, scale=scipy_stats.sem(x))
    assert (ours.low, ours.high) == pytest.approx((low, high))
    assert t_interval([1.0, 2.0]).half == pytest.approx(12.7062 * 0.5, rel=1e-5)
    assert t_interval([]) is None
    assert t_interval([math.nan, None]) is None
    assert t_interval([3.0]).n == 1
    assert math.isnan(t_interval([3.0]).half)


def test_paired_difference_by_hand_and_by_scipy():
    ours = {0: 4.5, 1: 4.8, 2: 4.7, 9: 0.0}
    theirs = {2: 5.2, 1: 5.4, 0: 5.0}
    d = paired(ours, theirs)
    # -0.5, -0.6, -0.5: mean -1.6/3, s = 0.1/√3, half width 4.302653·s/√3 = 4.302653/30
    assert (d.n, d.mean, d.half) == (3, pytest.approx(-1.6 / 3), pytest.approx(4.302653 / 30, rel=1e-6))
    assert d.p == pytest.approx(scipy_stats.ttest_rel([4.5, 4.8, 4.7], [5.0, 5.4, 5.2]).pvalue)
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0.0
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_ratios_are_paired_by_seed_and_leave_out_what_costs_nothing():
    assert ratio({0: 3.0, 1: 8.0, 2: 1.0}, {0: 1.0, 1: 2.0, 2: 0.0}).mean == 3.5
    assert ratio({0: 3.0}, {1: 1.0}) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True
    )
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("n", [2, 3, 4, 6, 24, 1000])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_the_power_of_a_paired_test_is_that_of_its_definition(n, level):
    """The statistic is (Z + δ) / S, with S² = χ² / (n - 1): integrated over S, for every size of effect."""
    df = n - 1
    critical = scipy_stats.t.ppf(1 - level / 2, df)
    scale = scipy_stats.chi(df, scale=df**-0.5)
    before = level / 2
    for effect in (0.0, 0.05, 0.2, 0.305, 0.35, 1.0, 3.0, 10.0):
        shift = math.sqrt(n) * effect

        def shown(s, shift=shift):
            upper = scipy_stats.norm.sf(critical * s - shift)
            return scale.pdf(s) * (upper + scipy_stats.norm.cdf(-critical * s - shift))

        expected, _ = quad(shown, 0, scale.ppf(1 - 1e-12), points=[min(shift / critical, 1.0)], limit=500)
        found = power(n, effect, 1.0, level)
        assert found == pytest.approx(expected, abs=1e-6) and found >= before
        before = found
    assert power(n, 0.0, 1.0, level) == pytest.approx(level)


@pytest.mark.parametrize("n", range(2, 13))
def test_the_smallest_effect_that_is_shown_has_the_wanted_power(n):
    for level in (0.05, 0.0125):
        effect = smallest_shown(n, 0.05, level)
        assert power(n, effect, 0.05, level) == pytest.approx(0.8, abs=1e-6)
        assert seeds_needed(effect * 1.001, 0.05, level) == n
