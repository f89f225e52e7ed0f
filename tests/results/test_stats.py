"""Statistics for few seeds agree with scipy, and with values computed by hand."""

import math

import pytest
from scipy import stats as scipy_stats

from mirai_bench.results.stats import holm, paired, ratio, t_interval


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
